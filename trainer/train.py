"""Train one image classifier: ``python trainer/train.py --output_dir DIR --job_id ID …``.

Exit codes: 0 completed, 1 the training failed, 2 bad arguments or data, 128 + signal number when stopped by a
signal.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # run by its path: this folder must not shadow other modules, its parent holds the package
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != _HERE)]

from trainer.arguments import parse_settings
from trainer.errors import InputError, TrainerError, TrainingInterruptedError
from trainer.layout import TrialLayout
from trainer.records import TrialReport, write_json
from trainer.settings import Settings
from trainer.stopping import StopRequest, stop_on_signals

_log = logging.getLogger("trainer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial that ``argv`` (default: the process's arguments) asks for and return the exit code."""
    os.umask(0o077)
    try:
        settings = parse_settings(sys.argv[1:] if argv is None else argv)
        layout = TrialLayout(settings.output_dir)
        _create(layout)
    except InputError as error:
        _complain(error)
        return error.exit_code
    with stop_on_signals() as stop, _logging_to(layout.log):
        return _run(settings, layout, stop)


def _run(settings: Settings, layout: TrialLayout, stop: StopRequest) -> int:
    report = TrialReport(settings.job_id, settings.hyperparameters(), settings.dataset, settings.seed)
    status, cause, exit_code = "failed", "an error of the trainer itself; its traceback is on stderr", 1
    try:
        from trainer.trial import Trial  # torch: seconds, which bad arguments need not cost

        Trial(settings, layout, report, stop).run()
        status, cause, exit_code = "completed", "", 0
    except TrainerError as error:
        status = "interrupted" if isinstance(error, TrainingInterruptedError) else "failed"
        cause, exit_code = str(error), error.exit_code
        _complain(error)
    except OSError as error:
        cause = f"a file could not be read or written: {error}"
        _log.error("%s", cause)
    finally:  # whatever ended the trial, its record says so
        try:
            write_json(layout.results, report.as_results(status, cause or None))
        except OSError as error:
            _log.error("%s could not be written: %s", layout.results, error)
            exit_code = exit_code or 1
    return exit_code


def _create(layout: TrialLayout) -> None:
    try:
        layout.create()
    except OSError as error:
        raise InputError(f"--output_dir {layout.root}: cannot be created: {error.strerror}.") from error


def _complain(error: TrainerError) -> None:
    for problem in error.problems if isinstance(error, InputError) else (str(error),):
        if _log.handlers:
            _log.error("%s", problem)
        else:
            sys.stderr.write(f"train.py: {problem}\n")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send the trainer's log to ``path``, and to stderr."""
    file_handler = logging.FileHandler(path)
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    stderr_handler = logging.StreamHandler()
    stderr_handler.setFormatter(logging.Formatter("train.py: %(message)s"))
    handlers = (file_handler, stderr_handler)
    for handler in handlers:
        _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            _log.removeHandler(handler)
            handler.close()


if __name__ == "__main__":
    sys.exit(main())
