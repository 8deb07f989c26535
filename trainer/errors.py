"""The errors of the trainer, each of which knows the exit code it leads to."""

from __future__ import annotations

import signal


class TrainerError(Exception):
    """Whatever ends a trial early; ``exit_code`` is the process's."""

    exit_code = 1


class InputError(TrainerError):
    """Bad arguments or unusable data; ``problems`` holds every one that was found, in words."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(self.problems))


class TrainingError(TrainerError):
    """The training itself went wrong, for example by a loss that is not finite."""


class TrainingInterruptedError(TrainerError):
    """A signal asked for the end; what was reached so far can be resumed."""

    def __init__(self, signum: int) -> None:
        self.signal_name = signal.Signals(signum).name
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {self.signal_name}; pass --resume to go on from checkpoints/last.pt")
