"""Runs a container runtime and ends it with its supervisor: ``python guard.py RUNTIME ARGUMENT...``.

A supervisor's programs die with it (PR_SET_PDEATHSIG), but the kernel forgets this of a process whose credentials
change, and a runtime's do. Runs on compute nodes: standard library only, Python 3.6.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT_DIED = signal.SIGRTMIN
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(argv: "list[str]") -> int:
    """Run ``argv`` to its end and return its exit status: 128 and the signal's number where a signal ended it."""
    signal.signal(PARENT_DIED, lambda *_: os.killpg(0, signal.SIGKILL))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, PARENT_DIED)
    # The supervisor signals the whole process group: the program decides when it is over.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    try:
        code = subprocess.Popen(argv).wait()
    except OSError as error:
        sys.stderr.write(f"cannot execute {argv[0]!r}: {error.strerror}\n")
        return 127
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
