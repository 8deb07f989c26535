"""Faults that need hosts of their own: each is a network namespace with its name, its addresses and its link."""
