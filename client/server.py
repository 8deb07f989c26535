"""Start the client service: ``python -m client.server`` or ``python client/server.py``.

The imports here are few because each worker of the load engine imports its parent's main module again.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if __package__ in {None, ""}:
    # Run by path: what is importable is the package, not the modules in its folder.
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(entry for entry in sys.path if Path(entry).resolve() != _FOLDER)]

if TYPE_CHECKING:
    from client.app import ServiceSettings
    from client.target import TargetSource

TOKEN_VARIABLE = "ORCH_API_TOKEN"  # noqa: S105 - the name of the variable, not a token
_FAILED = 2
logger = logging.getLogger("client.server")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of the service."""
    parser = argparse.ArgumentParser(prog="client.server", description="The client service: queries and benchmarks.")
    add = parser.add_argument
    add("--bind", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_integer(0, 65535), default=5000, help="port, 0 for a free one (default: %(default)s)")
    add("--endpoints-dir", type=Path, help="the run's folder of endpoint records")
    add("--server-service", default="vllm", help="whose record names the LLM server (default: %(default)s)")
    add("--server-url", help="the LLM server, instead of a record; without either OLLAMA_HOST is used if set")
    add("--output-dir", type=Path, required=True, help="where benchmarks are written, RUN/benchmark")
    add("--api-token-file", type=Path, help=f"file with the LLM server's token (else {TOKEN_VARIABLE} if set)")
    add("--auth-token-file", type=Path, help="file with the token that callers of this service must send")
    add("--scrape-token-file", type=Path, help="file with a token that opens /metrics only")
    add("--model", help="model to ask for where a request names none (default: the endpoint record's)")
    add(
        "--api",
        choices=["openai", "ollama"],
        help="the server's API (default: by the record's engine, else openai)",
    )
    add(
        "--processes",
        type=_integer(1, 256),
        help="worker processes of a load (default: one per 16 clients and CPU)",
    )
    add(
        "--threads",
        type=_integer(2, 256),
        default=16,
        help="threads that answer requests (default: %(default)s)",
    )
    add(
        "--request-timeout-s",
        type=_seconds,
        default=120.0,
        help="for a whole completion (default: %(default)s)",
    )
    add(
        "--max-tokens",
        type=_integer(1, 1_000_000),
        default=64,
        help="where a request names none (default: %(default)s)",
    )
    return parser


def settings_from(arguments: argparse.Namespace, environ: Mapping[str, str]) -> ServiceSettings:
    """Return the settings that ``arguments`` and the environment stand for.

    Raises:
        SettingsError: they name no server, or a file that does not hold a token.
    """
    from client.app import ServiceSettings
    from client.bodies import QueryDefaults

    return ServiceSettings(
        source=_target_source(arguments, environ),
        output_dir=arguments.output_dir.absolute(),
        api_token=_read_token(arguments.api_token_file, environ.get(TOKEN_VARIABLE)),
        auth_token=_read_token(arguments.auth_token_file, None),
        scrape_token=_read_token(arguments.scrape_token_file, None),
        defaults=QueryDefaults(max_tokens=arguments.max_tokens, request_timeout_s=arguments.request_timeout_s),
        processes=arguments.processes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until TERM or Ctrl-C; return the exit code: 0, or 2 where it could not start."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    import waitress

    from client.app import MAX_BODY_BYTES, create_app
    from client.errors import SettingsError

    try:
        app = create_app(settings_from(arguments, os.environ))
        server = waitress.create_server(
            app,
            host=arguments.bind,
            port=arguments.port,
            threads=arguments.threads,
            ident="",
            max_request_body_size=MAX_BODY_BYTES + 2**20,
        )
    except SettingsError as error:
        logger.error("cannot start: %s", error)
        return _FAILED
    except OSError as error:
        logger.error("cannot listen on %s port %d: %s", arguments.bind, arguments.port, error)
        return _FAILED
    benchmarks = app.extensions["benchmarks"]

    def stop(number: int, _frame: FrameType | None) -> None:
        running = benchmarks.running()
        if running is not None:
            running.cancel()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # A name that resolves to several addresses gives a server with several sockets.
    sockets = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    for host, port in sockets:
        logger.info("listening on %s port %s", host, port)
    try:
        server.run()
    finally:
        benchmarks.close()
        server.close()
    logger.info("stopped")
    return 0


def _target_source(arguments: argparse.Namespace, environ: Mapping[str, str]) -> TargetSource:
    from client.errors import SettingsError
    from client.fields import is_valid_id
    from client.target import EndpointRecord, FixedTarget, Target, parse_ollama_host, parse_server_url

    if arguments.server_url is not None:
        url = parse_server_url(arguments.server_url)
        return FixedTarget(Target(url, arguments.api or "openai", arguments.model))
    if arguments.endpoints_dir is not None:
        if not is_valid_id(arguments.server_service):
            raise SettingsError("--server-service is not a service's name; allowed: A-Z a-z 0-9 . _ -")
        path = arguments.endpoints_dir.absolute() / f"{arguments.server_service}.json"
        return EndpointRecord(path, arguments.model, arguments.api)
    if environ.get("OLLAMA_HOST"):
        url = parse_ollama_host(environ["OLLAMA_HOST"])
        return FixedTarget(Target(url, arguments.api or "ollama", arguments.model))
    raise SettingsError("no LLM server named; give --endpoints-dir or --server-url, or set OLLAMA_HOST")


def _read_token(path: Path | None, fallback: str | None) -> str | None:
    from client.errors import SettingsError

    if path is None:
        token, origin = fallback, TOKEN_VARIABLE
    else:
        origin = str(path)
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the token file {path}: {error}") from error
    if token is not None and (not token or not all("!" <= character <= "~" for character in token)):
        raise SettingsError(f"{origin} does not hold a token; allowed: one line of visible ASCII without blanks")
    return token


def _integer(low: int, high: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not within {low} to {high}")
        return value

    return integer


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.001 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.001 to 86400 seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
