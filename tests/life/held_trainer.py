"""An interpreter that gives the stand-in in the trainer's place, notes each start and can hold it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.faults.conftest import TRAINER


@dataclass(frozen=True)
class HeldTrainer:
    """Files of such an interpreter, all in one folder."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "trial-python"

    @property
    def hold(self) -> Path:
        """While this file is there, no trainer gets on."""
        return self.folder / "hold"

    def starts(self) -> list[str]:
        """Return the number of the trial of each start so far."""
        path = self.folder / "starts"
        return path.read_text().split() if path.exists() else []

    def write(self) -> HeldTrainer:
        """Write the interpreter."""
        real, trainer = shlex.quote(sys.executable), shlex.quote(str(TRAINER))
        starts, hold = shlex.quote(str(self.folder / "starts")), shlex.quote(str(self.hold))
        self.python.write_text(
            "#!/bin/bash\n"
            "if [[ $1 == */trainer/train.py ]]; then\n"
            f'  shift; for word in "$@"; do [[ $word == --job_id=* ]] && echo "${{word##*_}}" >>{starts}; done\n'
            f"  while [[ -e {hold} ]]; do sleep 0.1; done\n"
            f'  exec {real} {trainer} "$@"\n'
            "fi\n"
            f'exec {real} "$@"\n'
        )
        self.python.chmod(0o700)
        return self
