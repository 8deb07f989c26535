"""The load engine: what is asked for, how it is sent and timed, and what it says of a server."""
