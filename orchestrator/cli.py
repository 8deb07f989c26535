"""The command line."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator import __version__, commands
from orchestrator.allocation.within import refuse_keep
from orchestrator.compose import Composed, Parts, Request, compose, load, reopen, saved_recipe
from orchestrator.containers import commands as containers
from orchestrator.dependency import dependency_words, record_queued, words_of_after
from orchestrator.earlier import find_earlier, with_earlier
from orchestrator.environment import commands as environment
from orchestrator.errors import OrchError, StorageError, UserError
from orchestrator.history import RunState, run_state
from orchestrator.hosts import PROJECT
from orchestrator.interrupts import Interrupts
from orchestrator.models import commands as models
from orchestrator.plan_view import show_plan
from orchestrator.progress import elapsed, make_progress
from orchestrator.queued_job import KINDS, scheduler_of
from orchestrator.recipe.schema import recipe_schema_text
from orchestrator.run import Run
from orchestrator.rundir import LATEST, RunDir, find_run
from orchestrator.sitecheck import commands as sitecheck
from orchestrator.space import commands as space
from orchestrator.start_guard import check_not_withdrawn, check_resume_name, check_start
from orchestrator.summary import Outcome, headline
from orchestrator.transports import LocalTransport
from orchestrator.transports.ways import close_ways

_OWN_COMMANDS = ("run", "validate", "schema", "list", "status", "logs", "stop", "resume", "report", "after")
COMMANDS = (
    *_OWN_COMMANDS,
    *space.COMMANDS,
    *sitecheck.COMMANDS,
    *environment.COMMANDS,
    *containers.COMMANDS,
    *models.COMMANDS,
)
# What the shell shows of a program that SIGPIPE ended.
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
_OTHER_FOLDER = "Name a folder in which you may write; it is made if it is not there."
EPILOG = """\
commands (RUN is 'latest' if not given):
  orch.py RECIPE                  deploy, benchmark, tune, report, tear down
  orch.py validate RECIPE         only check the recipe
  orch.py schema                  print the recipe's JSON schema
  orch.py list                    all runs
  orch.py status [RUN]            state of a run and its jobs
  orch.py logs [-f] [SERVICE] [--run RUN]
  orch.py stop [RUN]              end a run's jobs, kept services included
  orch.py resume [RUN]            go on with what is missing; start a dry run
  orch.py report [RUN]            write the report anew, print the main figures
  orch.py bench URL --model NAME  measure an OpenAI- or Ollama-compatible server
  orch.py compare A B [...]       compare benchmarks; --fail-on is a gate for CI
  orch.py after RECIPE            print job.after as an option of sbatch or qsub
"""
_EXIT_CODES = """
exit codes: 0 done, 1 the run failed, 2 wrong input, 130 Ctrl-C
"""


def main(argv: Sequence[str], parts: Parts) -> int:
    """Run one command and return its exit code; a reader of its output may leave early (`orch.py schema | head`)."""
    try:
        try:
            return _command(argv, parts)
        finally:
            close_ways()
            if sys.stdout is not None:  # closed by `>&-`
                sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would break again at exit: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _command(argv: Sequence[str], parts: Parts) -> int:
    arguments = _parser().parse_args(_with_command(list(argv)))
    try:
        exit_code: int = _dispatch(arguments, parts)
    except OrchError as error:
        print(f"orch: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("orch: interrupted before anything was started", file=sys.stderr)  # noqa: T201
        return 130
    return exit_code


def _with_command(argv: list[str]) -> list[str]:
    """Return argv with the command ``run`` put in front where the user gave a recipe straight away."""
    if any(argument in COMMANDS for argument in argv[:1]) or argv[:1] in (["-h"], ["--help"], ["--version"], []):
        return argv
    return ["run", *argv]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orch.py",
        description="One recipe in; a served, measured, monitored and self-tuning LLM workload out.",
        epilog=EPILOG
        + space.EPILOG
        + sitecheck.EPILOG
        + environment.EPILOG
        + containers.EPILOG
        + models.EPILOG
        + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"orch {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="RECIPE | COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"], type=str.upper)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--output-dir", type=Path, default=None, metavar="DIR", help="folder of all runs (output/)")
    runs = argparse.ArgumentParser(add_help=False, parents=[common, as_json, folder])
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe file (JSON or YAML)")
    recipe.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help="override a recipe field"
    )
    recipe.add_argument("--site", type=Path, default=None, metavar="FILE", help="site file")
    recipe.add_argument("--no-monitoring", action="store_true", help="the same as job.monitoring.mode=off")

    run = subparsers.add_parser("run", parents=[recipe, runs], help="run a recipe (the command may be left out)")
    run.add_argument("--dry-run", action="store_true", help="write the scripts and print the plan; start nothing")
    run.add_argument("--keep", action="store_true", help="leave the services up when the run has ended")
    subparsers.add_parser("validate", parents=[recipe, runs], help="only check a recipe")
    subparsers.add_parser("schema", parents=[common, as_json], help="print the recipe's JSON schema")
    subparsers.add_parser("list", parents=[runs], help="list all runs")
    for name, text in (("status", "state of a run"), ("stop", "end a run's jobs"), ("report", "write the report anew")):
        subparsers.add_parser(name, parents=[runs], help=text).add_argument(
            "run", nargs="?", default=LATEST, metavar="RUN"
        )
    resume = subparsers.add_parser("resume", parents=[runs], help="go on with what is missing of a run")
    resume.add_argument("run", nargs="?", default=LATEST, metavar="RUN")
    resume.add_argument("--keep", action="store_true", help="leave the services up when the run has ended")
    logs = subparsers.add_parser("logs", parents=[common, folder], help="print the logs of a service")
    logs.add_argument("-f", "--follow", action="store_true", help="keep on printing until the job ends")
    logs.add_argument("service", nargs="?", default=None, metavar="SERVICE", help="orchestrator's own log if not given")
    logs.add_argument("--run", default=LATEST, metavar="RUN")
    after = subparsers.add_parser("after", parents=[common], help="print the option that orders batch jobs")
    after.add_argument("--scheduler", choices=KINDS, default=None, help="what takes the batch job; found if not given")
    after.add_argument("--submitted", metavar="ID", default=None, help="the batch job is in the queue: record its id")
    after.add_argument(
        "--in-place", action="store_true", help="print RECIPE … for a shell, with directories in place of `latest`"
    )
    after.add_argument("words", nargs=argparse.REMAINDER, metavar="RECIPE …", help="what follows orch.py in that job")
    space.add_commands(subparsers, [common, as_json, folder])
    sitecheck.add_commands(subparsers, [common, as_json, folder], common)
    environment.add_commands(subparsers, [common, as_json, folder])
    models.add_commands(subparsers, [common, as_json, folder])
    containers.add_commands(subparsers, [common, as_json])
    return parser


def _dispatch(arguments: argparse.Namespace, parts: Parts) -> int:
    if arguments.command == "schema":
        print(recipe_schema_text(), end="")  # noqa: T201
        return 0
    if arguments.command == "run":
        return _run(arguments, parts)
    without_parts = {
        "validate": _validate,
        "after": _after,
        **dict.fromkeys(models.COMMANDS, models.run_command),
        **dict.fromkeys(containers.COMMANDS, containers.run_command),
    }
    if arguments.command in without_parts:
        return without_parts[arguments.command](arguments)
    if arguments.command in sitecheck.COMMANDS:
        return sitecheck.run_command(arguments, parts.packages)
    if arguments.command in environment.COMMANDS:
        return environment.run_command(arguments, parts.packages)
    output_dir: Path = arguments.output_dir or PROJECT / "output"
    _check_output_dir(output_dir)
    if arguments.command == "list":
        return commands.list_runs(output_dir, arguments.json)
    if arguments.command in space.COMMANDS:
        return space.run_command(arguments, output_dir)
    run = find_run(output_dir, arguments.run)
    if arguments.command == "status":
        return commands.show_status(run, arguments.json)
    if arguments.command == "logs":
        return commands.show_logs(run, arguments.service, arguments.follow)
    if arguments.command == "stop":
        return commands.stop(run, arguments.json)
    if arguments.command == "resume":
        return _resume(run, arguments, parts)
    return commands.show_report(run, arguments.json)


def _request(arguments: argparse.Namespace) -> Request:
    return Request(
        recipe=arguments.recipe,
        overrides=tuple(arguments.overrides),
        site=arguments.site,
        output_dir=arguments.output_dir,
        without_monitoring=arguments.no_monitoring,
    )


def _validate(arguments: argparse.Namespace) -> int:
    recipe, _, _ = load(_request(arguments))
    if arguments.json:
        print(json.dumps(recipe.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2))  # noqa: T201
    else:
        print(f"{arguments.recipe}: valid")  # noqa: T201
    return 0


def _after(arguments: argparse.Namespace) -> int:
    """Print the words of the option on one line, or nothing; with --in-place, the words that the job is to have."""
    inner = _parser().parse_args(_with_command(arguments.words))
    is_started = inner.command == "resume" or (inner.command == "run" and not inner.dry_run)
    if not is_started:
        if arguments.in_place:
            print(shlex.join(arguments.words))  # noqa: T201
        return 0
    output_dir: Path = inner.output_dir or PROJECT / "output"
    scheduler = scheduler_of(arguments.scheduler)
    run = find_run(output_dir, inner.run) if inner.command == "resume" else None
    if arguments.in_place:
        print(shlex.join(_in_place(arguments.words, inner, run, output_dir)))  # noqa: T201
        return 0
    if arguments.submitted is not None:
        # A run that the job itself is to make has no directory yet.
        if run is not None:
            record_queued(run, arguments.submitted, scheduler, LocalTransport())
        return 0
    if run is None:
        entries = load(_request(inner))[0].job.after
    else:
        entries = () if run_state(run).has_waited else saved_recipe(run).job.after
        output_dir = run.root.parent
    words = dependency_words(find_earlier(entries, output_dir), scheduler, LocalTransport())
    if words:
        print(" ".join(words))  # noqa: T201
    return 0


def _in_place(words: list[str], inner: argparse.Namespace, run: RunDir | None, output_dir: Path) -> list[str]:
    """Return ``words`` so that they mean the same when a batch job starts: `latest` may be another run by then."""
    if run is None:
        return [*words, *words_of_after(load(_request(inner))[0].job.after, output_dir)]
    root = str(run.root)
    for position, word in enumerate(words):
        # The parser alone knows which word is the run, and which the value of an option.
        tried = [*words[:position], root, *words[position + 1 :]]
        if position and word == inner.run and _parser().parse_args(tried).run == root:
            return tried
    return [words[0], root, *words[1:]]


def _run(arguments: argparse.Namespace, parts: Parts) -> int:
    transport = LocalTransport()
    if not arguments.dry_run:
        check_start(_request(arguments), arguments.output_dir or PROJECT / "output")
    os.umask(0o077)
    _check_output_dir(arguments.output_dir or PROJECT / "output")
    composed = compose(_request(arguments), parts, transport, is_plan_only=arguments.dry_run)
    composed = with_earlier(composed, is_plan_only=arguments.dry_run)
    if arguments.keep and not arguments.dry_run:
        refuse_keep(composed.allocation_host)
    _write(composed)
    plan = composed.plan
    if arguments.dry_run:
        if arguments.json:
            print(json.dumps(plan.as_json(), indent=2))  # noqa: T201
        else:
            show_plan(plan, Console())
        return 0
    return _execute(composed, parts, arguments, None)


def _check_output_dir(output_dir: Path) -> None:
    """Make sure that the folder of all runs can be one.

    Raises:
        UserError: it, or a folder above it, is a file.
    """
    for path in (output_dir, *output_dir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"--output-dir = {output_dir}: {path} is a file, not a folder.\n{_OTHER_FOLDER}")


def _write(composed: Composed) -> None:
    """Write the run directory; a folder that may not be written is the user's to change, a full one is not.

    Raises:
        UserError: the output folder cannot be written.
        StorageError: there is no space.
    """
    try:
        composed.write()
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}:
            raise
        if not isinstance(cause, OSError):
            raise
        folder = composed.plan.run.root.parent
        raise UserError(
            f"--output-dir = {folder}: cannot write {error.path}: {cause.strerror}\n{_OTHER_FOLDER}"
        ) from error


def _resume(run: RunDir, arguments: argparse.Namespace, parts: Parts) -> int:
    check_resume_name(arguments.run)
    past = run_state(run)
    check_not_withdrawn(past)
    if past.state == "completed":
        print(f"{run.root.name} was completed: nothing is missing.", file=sys.stderr)  # noqa: T201
        return commands.show_report(run, arguments.json)
    os.umask(0o077)
    composed = reopen(run, parts)
    if arguments.keep:
        refuse_keep(composed.allocation_host)
    return _execute(composed, parts, arguments, past)


def _execute(composed: Composed, parts: Parts, arguments: argparse.Namespace, past: RunState | None) -> int:
    plan = composed.plan
    plan.run.make_latest()
    _log_to(plan.run.orchestrator_log, arguments.log_level)
    progress = make_progress()
    interrupts = Interrupts()
    interrupts.install()
    progress.say(f"run {plan.run_id}: {plan.run.root}")
    for note in plan.notes:
        progress.say(f"note: {note}")
    for warning in plan.warnings:
        progress.say(f"warning: {warning}")
    outcome = Run(composed, parts, progress, interrupts, arguments.keep, past).execute()
    _tell_end(outcome, plan.run.root, arguments)
    return outcome.exit_code


def _tell_end(outcome: Outcome, root: Path, arguments: argparse.Namespace) -> None:
    report = root / "report.html"
    took = elapsed((outcome.finished_at or outcome.started_at) - outcome.started_at)
    if outcome.error:
        print(f"orch: {outcome.error}", file=sys.stderr)  # noqa: T201
    print(f"Run {outcome.state} after {took}; it is kept in {root}", file=sys.stderr)  # noqa: T201
    if arguments.json:
        document = {
            "run_id": root.name.rpartition("_")[2],
            "run_dir": str(root),
            "state": outcome.state,
            "stages": outcome.stages,
            "report": str(report) if report.is_file() else None,
        }
        print(json.dumps(document, indent=2))  # noqa: T201
    elif outcome.stages:
        for line in headline({"stages": outcome.stages}):
            print(line)  # noqa: T201
        if report.is_file():
            print(f"Report     {report}")  # noqa: T201
    if arguments.keep and outcome.state == "completed":
        print(f"Services are kept: `orch.py status {root.name}`, `orch.py stop {root.name}`", file=sys.stderr)  # noqa: T201


def _log_to(path: Path, level: str) -> None:
    # A full disk is told of once, by the run itself, not with a traceback for each line.
    logging.raiseExceptions = False
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    shown.setLevel(max(logging.WARNING, getattr(logging, level)))
    logging.basicConfig(level=level, handlers=[handler, shown], force=True)
