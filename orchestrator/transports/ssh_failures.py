"""From ssh's words to an error that says what to do."""

from __future__ import annotations

from orchestrator.errors import AuthenticationError, HostKeyError, NoConnectionError, TransportError

_CHANGED = ("REMOTE HOST IDENTIFICATION HAS CHANGED", "differs from the key for the IP address")
_UNKNOWN = ("host key is known for", "Host key verification failed", "authenticity of host")
_REFUSED = (
    "Permission denied (",
    "Too many authentication failures",
    "Authentication failed",
    "no more authentication methods",
)


def connection_error(label: str, said: str, login_command: str) -> TransportError:
    """Return the error for a connection that could not be made.

    Args:
        label: The machine as the user names it.
        said: What ssh said on stderr.
        login_command: The command that makes the connection by hand.
    """
    end = said.strip()[-2000:]
    if any(word in said for word in _CHANGED):
        return HostKeyError(
            label,
            f"its host key is not the one that is known\n{end}",
            "Somebody may be listening. Ask the centre; if its key did change, remove the old one with "
            "`ssh-keygen -R` as ssh says above, and log in once by hand.",
        )
    if any(word in said for word in _UNKNOWN):
        return HostKeyError(
            label,
            f"its host key is not known\n{end}",
            "Compare the fingerprint with what the centre publishes while you log in once by hand with ssh, "
            "or set accept_new_host_key in the site file.",
        )
    if any(word in said for word in _REFUSED):
        return AuthenticationError(
            label,
            f"it does not let you in without asking\n{end}",
            f"Log in once by hand; the connection stays open for orch:\n  {login_command}",
        )
    return NoConnectionError(label, f"no connection\n{end}", "Check the name, the network and VPN.")
