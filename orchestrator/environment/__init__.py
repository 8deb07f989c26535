"""Python environments on this machine and on hosts: made, proven and switched to."""
