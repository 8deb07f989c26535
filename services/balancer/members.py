"""Who the members are: one for each endpoint record of the service."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import OrchError


class RecordError(OrchError):
    """An endpoint record that names no server; carries its path."""

    def __init__(self, path: Path, why: object) -> None:
        self.path = path
        super().__init__(f"{path}: {why}")


@dataclass(frozen=True)
class Member:
    """A server as HAProxy knows it.

    Attributes:
        name: Record and attempt, ``vllm-1.9c1e…``: a server that was started again is another member.
        address: ``IP:PORT``, an IPv6 address in brackets.
        token: Its job's; names the file of its heartbeat.
    """

    name: str
    address: str
    token: str


def record_paths(endpoints: Path, service: str) -> list[Path]:
    """Return the records of ``service`` and of its replicas (``SERVICE.json``, ``SERVICE-1.json``, …), sorted.

    Raises:
        OSError: the folder cannot be read.
    """
    pattern = re.compile(re.escape(service) + r"(-\d+)?\.json")
    return sorted(path for path in endpoints.iterdir() if pattern.fullmatch(path.name))


def read_member(path: Path) -> Member:
    """Return the server that a record names.

    Raises:
        FileNotFoundError: the record has just been removed.
        RecordError: it cannot be read or names no server.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        ip, port = ipaddress.ip_address(record["ip"]), int(record["port"])
        attempt, token = str(record["attempt"]), str(record["token"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RecordError(path, f"{type(error).__name__}: {error}") from error
    name = f"{path.stem}.{attempt}"
    are_plain = all(re.fullmatch(r"[\w.:-]{1,128}", text, re.ASCII) for text in (name, token))
    if not are_plain or not 0 < port < 65536:
        raise RecordError(path, f"attempt {attempt!r}, token {token!r}, port {port}: no server has these")
    return Member(name, f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}", token)
