"""rsync's remote shell: ssh, without what the start-up files of the remote login shell print.

Started by rsync as a program of its own. ORCH_CLEAN_SHELL holds ssh's words, host included, and the remote shell's
words, as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys

_BLOCK_BYTES = 1 << 18


def main() -> int:
    """Run rsync's command over there, and return ssh's exit code."""
    settings = json.loads(os.environ["ORCH_CLEAN_SHELL"])
    mark = secrets.token_hex(8)
    # The first word is the host, which ssh's own words have already.
    command = f"""exec {settings["shell"]} 'printf %s. "$1"; shift; exec "$@"' sh {mark} {shlex.join(sys.argv[2:])}"""
    with subprocess.Popen([*settings["ssh"], command], stdout=subprocess.PIPE, bufsize=0) as ssh:
        assert ssh.stdout is not None  # noqa: S101 — it is a pipe
        _copy_after(f"{mark}.".encode(), ssh.stdout.fileno())
    return ssh.returncode


def _copy_after(mark: bytes, source: int) -> None:
    seen, is_clean = b"", False
    while data := os.read(source, _BLOCK_BYTES):
        if not is_clean:
            seen += data
            _, found, data = seen.partition(mark)
            if not found:
                continue
            is_clean = True
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
