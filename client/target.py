"""Where the LLM server is: by the run's endpoint record, read for each request, or by a fixed URL."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import SplitResult, urlsplit

from client.errors import SettingsError, TargetUnavailableError
from client.load.spec import Api, Server

Family = Literal["openai", "ollama"]
_APIS: dict[Family, Api] = {"openai": "openai-chat", "ollama": "ollama-generate"}
OLLAMA_PORT = 11434
_PROBE_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """An LLM server. ``url`` has no trailing slash and no ``/v1``; ``model`` is what it serves, if known."""

    url: str
    api: Family
    model: str | None

    def server(self, token: str | None) -> Server:
        """Return this server as the load engine wants it, asked with ``token``."""
        return Server(self.url, _APIS[self.api], token)

    @property
    def host(self) -> str:
        """Return the server's host name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Return the server's port, also where the URL leaves it to the scheme."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def is_listening(self) -> bool:
        """Return whether something accepts connections there now; takes half a second at most, plus the
        resolver.
        """
        try:
            with socket.create_connection((self.host, self.port), timeout=_PROBE_TIMEOUT_S):
                return True
        except OSError:
            return False


class TargetSource(Protocol):
    """Finds the LLM server each time it is asked."""

    def resolve(self) -> Target:
        """Return the server.

        Raises:
            TargetUnavailableError: there is none yet, or what is said about it does not hold.
        """


@dataclass(frozen=True, slots=True)
class FixedTarget:
    """A server named by the user."""

    target: Target

    def resolve(self) -> Target:
        """Return the server, whether it answers or not."""
        return self.target


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """The record that the server's supervisor publishes once it is healthy and removes at its end.

    ``model`` and ``api`` override what the record says.
    """

    path: Path
    model: str | None = None
    api: Family | None = None

    def resolve(self) -> Target:
        """Return the server of the record as it is now.

        Raises:
            TargetUnavailableError: no record, or one without a usable URL.
        """
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise TargetUnavailableError(
                f"the LLM server has not published {self.path}: it is still starting, or has ended; "
                "see its log in the run's logs/ folder"
            ) from error
        except (OSError, ValueError) as error:
            raise TargetUnavailableError(f"cannot read the endpoint record {self.path}: {error}") from error
        if not isinstance(record, dict):
            raise TargetUnavailableError(f"the endpoint record {self.path} is not a JSON object")
        return self._target(record)

    def _target(self, record: dict[str, Any]) -> Target:
        url, model = record.get("url"), record.get("model")
        try:
            base_url = parse_server_url(url if isinstance(url, str) else "")
        except SettingsError as error:
            raise TargetUnavailableError(f"the endpoint record {self.path}: {error}") from error
        api = self.api or ("ollama" if record.get("engine") == "ollama" else "openai")
        return Target(base_url, api, self.model or (model if isinstance(model, str) and model else None))


def parse_server_url(url: str) -> str:
    """Return ``url`` without trailing slash and without ``/v1``, which belongs to the API's paths.

    Raises:
        SettingsError: not an http(s) URL with a host, or one with a password, a query or a fragment in it.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise SettingsError(f"not a usable server URL: {error}") from error
    if not is_usable or _is_odd(url, parts):
        raise SettingsError(
            "not a usable server URL; allowed: http://HOST:PORT or https://HOST:PORT, without user, query and fragment"
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def parse_ollama_host(value: str) -> str:
    """Return the URL that Ollama's own ``OLLAMA_HOST`` stands for: HOST, HOST:PORT or a URL; port 11434 by
    default.

    Raises:
        SettingsError: ``value`` is none of these.
    """
    base_url = parse_server_url(value if "://" in value else f"http://{value}")
    if urlsplit(base_url).port is None and "://" not in value:
        return f"{base_url}:{OLLAMA_PORT}"
    return base_url


def _is_odd(url: str, parts: SplitResult) -> bool:
    has_secret_or_tail = "@" in parts.netloc or bool(parts.query) or bool(parts.fragment)
    return has_secret_or_tail or any(character.isspace() or not character.isprintable() for character in url)
