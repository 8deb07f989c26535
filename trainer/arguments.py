"""The command line of a trial, as checked and frozen settings; every problem is reported at once."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainer.datasets import find_location_problem
from trainer.errors import InputError
from trainer.layout import TrialLayout
from trainer.options import MINIMUM_IMAGE_SIZE, OPTIONS, REQUIRED
from trainer.settings import Settings, resolve_defaults

_SWITCHES = {
    "download": "let torchvision download CIFAR when it is not in data_dir (never otherwise)",
    "evaluate_test": "measure test_accuracy once, at the end, with the best checkpoint",
    "resume": "go on from checkpoints/last.pt; starts afresh when there is none",
}


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (train.py --help shows every flag)")


def parse_settings(argv: Sequence[str]) -> Settings:
    """Return the settings that ``argv`` (without the program's name) asks for, defaults resolved.

    Raises:
        InputError: one or more arguments are unknown, missing, malformed, out of range or contradictory, the
        data
            set is not where it was said to be, or the output directory cannot be used.
    """
    parser = _build_parser()
    namespace, unknown = parser.parse_known_args(list(argv))
    given = vars(namespace)
    problems = _describe_unknown(unknown)
    values: dict[str, Any] = {name: bool(given[name]) for name in _SWITCHES}
    values["augment"] = given["augment"]
    is_bad: set[str] = set()
    for option in OPTIONS:
        text = given[option.name]
        if text is None:
            values[option.name] = option.default
            if option.default is REQUIRED:
                problems.append(f"--{option.name}: missing. {option.help[0].upper()}{option.help[1:]}.")
                is_bad.add(option.name)
            continue
        try:
            values[option.name] = option.parse(text)
        except ValueError as error:
            problems.append(f"--{option.name} {text!r} is not possible. Allowed: {error}.")
            values[option.name] = option.default
            is_bad.add(option.name)
    values["data_dir"] = Path(values["data_dir"]).absolute()
    problems += _find_contradictions(values, is_bad)
    if problems:
        raise InputError(*problems)
    return Settings(**resolve_defaults(values))


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="train.py",
        allow_abbrev=False,
        description="Train one image classifier and write metrics.jsonl, results.json and checkpoints. "
        "Flags may be written with underscores or dashes.",
    )
    for option in OPTIONS:
        shown = option.shown_default or str(option.default)
        suffix = "(required)" if option.default is REQUIRED else f"(default: {shown})"
        help_text = f"{option.help} {suffix}".replace("%", "%%")
        parser.add_argument(*_spellings(option.name), dest=option.name, metavar="VALUE", help=help_text)
    for name, text in _SWITCHES.items():
        parser.add_argument(*_spellings(name), dest=name, action="store_true", help=text)
    parser.add_argument(
        *("--augment", "--no-augment", "--no_augment"),
        dest="augment",
        nargs=0,
        action=_AugmentAction,
        help="random crops and flips (default: on, off for digits)",
    )
    return parser


class _AugmentAction(argparse.Action):
    """``--augment`` and ``--no-augment`` (or ``--no_augment``)."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.augment = option_string == "--augment"


def _spellings(name: str) -> list[str]:
    return sorted({f"--{name}", f"--{name.replace('_', '-')}"}, reverse=True)


def _describe_unknown(words: Sequence[str]) -> list[str]:
    """Return one problem per unknown flag; words that can be its values are not problems of their own."""
    names = [option.name for option in OPTIONS] + [*_SWITCHES, "augment", "no_augment"]
    flags = [word.split("=", 1)[0] for word in words if word.startswith("-")]
    problems = []
    for flag in flags or words:
        close = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), names, n=1)
        hint = f" Did you mean --{close[0]}?" if close else ""
        problems.append(f"{flag!r}: no such argument.{hint}")
    return problems


def _find_contradictions(values: dict[str, Any], is_bad: set[str]) -> list[str]:
    """Return the problems between arguments, leaving out those that are wrong in themselves."""
    problems = []
    model_type, dataset = values["model_type"], values["dataset"]
    if model_type != "customcnn" and "model_type" not in is_bad:
        problems += [
            f"--{name}: {model_type} has no such thing. Leave it out, or take --model_type customcnn."
            for name in ("hidden_size", "num_layers")
            if values[name] is not None
        ]
    if values["optimizer"] == "adamw" and values["momentum"] is not None and "optimizer" not in is_bad:
        problems.append("--momentum: adamw has no such thing. Leave it out, or take --optimizer sgd.")
    if values["device"] == "cpu" and values["precision"] == "fp16":
        problems.append("--precision fp16: needs --device cuda. Allowed on cpu: auto, fp32, bf16.")
    minimum = MINIMUM_IMAGE_SIZE[model_type]
    if values["image_size"] is not None and values["image_size"] < minimum:
        problems.append(f"--image_size {values['image_size']}: {model_type} needs {minimum} pixels a side at least.")
    if values["download"] and not dataset.startswith("cifar"):
        problems.append(f"--download: {dataset} is not downloadable. Allowed with: cifar100, cifar10.")
    elif not is_bad & {"dataset", "data_dir"}:
        location_problem = find_location_problem(dataset, values["data_dir"], values["download"])
        problems += [location_problem] if location_problem else []
    if "output_dir" not in is_bad:
        problems += _find_output_problem(values["output_dir"], resume=values["resume"])
    return problems


def _find_output_problem(output_dir: Path, *, resume: bool) -> list[str]:
    layout = TrialLayout(output_dir)
    try:
        if output_dir.exists() and not output_dir.is_dir():
            return [f"--output_dir {output_dir}: is a file, not a directory."]
        if not resume and (layout.metrics.exists() or layout.last_checkpoint.exists()):
            problem = "already holds a trial. Pass --resume to go on with it, or name another directory."
            return [f"--output_dir {output_dir}: {problem}"]
    except OSError as error:
        return [f"--output_dir {output_dir}: {error.strerror}."]
    return []
