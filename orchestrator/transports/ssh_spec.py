"""What a site or recipe says of a machine that is reached over OpenSSH."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Whatever is not listed is refused: ssh_config(5) has options that run commands (ProxyCommand, LocalCommand,
# KnownHostsCommand, Match exec), load libraries (PKCS11Provider, SecurityKeyProvider) or switch checks off. A site file
# is passed around; the user's own ~/.ssh/config is honoured and may hold any of them under a host alias.
ALLOWED_OPTIONS = frozenset(
    {
        "AddressFamily",
        "BindAddress",
        "BindInterface",
        "CASignatureAlgorithms",
        "CertificateFile",
        "CheckHostIP",
        "Ciphers",
        "Compression",
        "ConnectionAttempts",
        "GSSAPIAuthentication",
        "GSSAPIDelegateCredentials",
        "GSSAPITrustDns",
        "HostKeyAlgorithms",
        "HostKeyAlias",
        "HostName",
        "IdentitiesOnly",
        "IdentityAgent",
        "IPQoS",
        "KbdInteractiveAuthentication",
        "KexAlgorithms",
        "MACs",
        "NumberOfPasswordPrompts",
        "PasswordAuthentication",
        "PreferredAuthentications",
        "PubkeyAcceptedAlgorithms",
        "PubkeyAcceptedKeyTypes",
        "PubkeyAuthentication",
        "RekeyLimit",
        "RequiredRSASize",
        "TCPKeepAlive",
    }
)
_ALLOWED_BY_LOWER = {name.lower(): name for name in ALLOWED_OPTIONS}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HOP = rf"(?:{_NAME}@)?(?:{_NAME}|\[[0-9A-Fa-f:.%]+\])(?::\d{{1,5}})?"


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for name, value in options.items():
        known = _ALLOWED_BY_LOWER.get(name.lower())
        if known is None:
            raise ValueError(
                f"ssh option {name!r} is not taken from here. Allowed: {', '.join(sorted(ALLOWED_OPTIONS))}. "
                "Write others into ~/.ssh/config under a Host alias, and give the alias as host"
            )
        if _CONTROL.search(value) or not value.strip():
            raise ValueError(f"ssh option {name!r}: an empty value or a control character")
        checked[known] = value
    return checked


def _checked_path(path: Path | None) -> Path | None:
    # ssh_config(5): %-tokens and ${variables} are expanded in these, and white space and quotes end them.
    if path is not None and re.search(r"[\s\"'%$]", str(path)):
        raise ValueError("ssh cannot take a path with white space, quotes, % or $ here; make a link without")
    return path


def _checked_known_hosts(path: Path | None) -> Path | None:
    if path is not None and Path("/dev") in path.parents:
        raise ValueError("host keys are always checked; name a file that keeps them")
    return _checked_path(path)


SshPath = Annotated[Path | None, AfterValidator(_checked_path)]


class SshSpec(BaseModel):
    """A machine reached over OpenSSH. What is not given here comes from the user's ~/.ssh/config."""

    # The recipe's StrictModel has the same; importing it here would make a circle with the recipe's sections.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    host: Annotated[str, Field(pattern=rf"^(?:{_NAME}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)$", max_length=255)]
    """A Host alias of ~/.ssh/config, a name or an address."""
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]*$", max_length=255)] | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    identity_file: SshPath = None
    proxy_jump: Annotated[str, Field(pattern=rf"^{_HOP}(?:,{_HOP})*$", max_length=1024)] | None = None
    """Machines on the way: `[user@]host[:port]`, with commas between. Their keys are checked as ~/.ssh/config says."""
    known_hosts: Annotated[Path | None, AfterValidator(_checked_known_hosts)] = None
    """File of known host keys in place of ~/.ssh/known_hosts."""
    accept_new_host_key: bool = False
    """Trust the key of a machine that was never seen before. A changed key is an error in any case."""
    config_file: SshPath = None
    """File in place of ~/.ssh/config and the system's own."""
    control_path: SshPath = None
    """Socket of a master connection of your own. It is used, and neither started nor ended."""
    ssh_options: Annotated[dict[str, str], AfterValidator(_checked_options)] = {}
    """Further options of ssh_config(5), from a list of harmless ones."""
    reads_profile: bool = False
    """Read /etc/profile and ~/.profile first (`sh -l`), for sites that put the scheduler on PATH only there."""
    connect_timeout_s: Annotated[float, Field(ge=1, le=600)] = 20.0
    """Longest wait for the connection, and for the first sign of life of each command, in seconds."""
    keepalive_s: Annotated[int, Field(ge=1, le=3600)] = 15
    """A silent connection is probed this often, in seconds."""
    keepalive_count: Annotated[int, Field(ge=1, le=100)] = 3
    """So many probes without an answer end the connection."""
    slack_s: Annotated[float, Field(ge=2, le=600)] = 10.0
    """How much longer than its time limit a command's answer may take on its way, in seconds."""
    persist_s: Annotated[int, Field(ge=60, le=604_800)] = 3600
    """An idle connection, which an orchestrator that was killed left behind, ends after this many seconds."""
    retry_first_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    """Pause after a failed attempt to connect, in seconds; doubled each time, up to retry_longest_s."""
    retry_longest_s: Annotated[float, Field(gt=0, le=3600)] = 60.0

    @property
    def label(self) -> str:
        """The machine for people, as ssh takes it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + name + (f":{self.port}" if self.port else "")

    def connection_argv(self) -> list[str]:
        """Return the words of ssh that say where to connect to and how, without the host."""
        argv = []
        if self.config_file is not None:
            argv += ["-F", str(self.config_file.expanduser())]
        if self.user is not None:
            argv += ["-l", self.user]
        if self.port is not None:
            argv += ["-p", str(self.port)]
        if self.identity_file is not None:
            argv += ["-i", str(self.identity_file.expanduser()), "-o", "IdentitiesOnly=yes"]
        if self.proxy_jump is not None:
            argv += ["-J", self.proxy_jump]
        if self.known_hosts is not None:
            argv += ["-o", f"UserKnownHostsFile={self.known_hosts.expanduser()}", "-o", "GlobalKnownHostsFile=none"]
        for name, value in self.ssh_options.items():
            argv += ["-o", f"{name}={value}"]
        return argv
