"""The value options of the command line: name, parser, default and help, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# The smallest picture, in pixels a side, that each model's strides leave something of.
MINIMUM_IMAGE_SIZE = {
    "resnet18": 8,
    "resnet34": 8,
    "resnet50": 8,
    "vgg16": 32,
    "densenet121": 8,
    "customcnn": 8,
}
DATASETS = ("cifar100", "cifar10", "folder", "digits", "synthetic")


@dataclass(frozen=True)
class Option:
    """One ``--name VALUE``; ``parse`` raises ValueError with what is allowed."""

    name: str
    parse: Callable[[str], object]
    default: object
    help: str
    shown_default: str | None = None


def one_of(*allowed: str) -> Callable[[str], str]:
    """Return a parser that takes exactly the names given."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(", ".join(allowed))
        return text

    return parse


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return a parser for whole numbers in ``low``..``high``, both included."""
    allowed = f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= value <= high:
            raise ValueError(allowed)
        return value

    return parse


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """Return a parser for finite numbers in ``low``..``high``; ``above``, ``below`` exclude that end."""
    allowed = f"a number {'above' if above else 'from'} {low:g} {'and below' if below else 'to'} {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(allowed) from None
        inside = (value > low if above else value >= low) and (value < high if below else value <= high)
        if not (math.isfinite(value) and inside):
            raise ValueError(allowed)
        return value

    return parse


def path(text: str) -> Path:
    """Return an absolute path, ``~`` expanded.

    Raises:
        ValueError: the text is empty or holds a NUL character.
    """
    if not text or "\0" in text:
        raise ValueError("a path")
    return Path(text).expanduser().absolute()


def printable(text: str) -> str:
    """Return the text.

    Raises:
        ValueError: the text is empty, longer than 200 characters, or holds control characters.
    """
    if not text.strip() or not text.isprintable() or len(text) > 200:
        raise ValueError("1 to 200 printable characters")
    return text


def http_url(text: str) -> str:
    """Return an http or https address without its last slash.

    Raises:
        ValueError: another scheme, no host, a bad port, or credentials (argv is public to every user of the
        node).
    """
    allowed = "http://HOST:PORT or https://HOST:PORT, without user name and password"
    try:
        parts = urlsplit(text)
        has_credentials = parts.username is not None or parts.password is not None
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError(allowed) from None
    if not usable or has_credentials or not text.isprintable() or " " in text:
        raise ValueError(allowed)
    return text.rstrip("/")


def _listed(meaning: str, *allowed: str) -> str:
    return f"{meaning}: {', '.join(allowed)}"


REQUIRED = object()

OPTIONS = (
    Option("model_type", one_of(*MINIMUM_IMAGE_SIZE), "resnet18", _listed("the network", *MINIMUM_IMAGE_SIZE)),
    Option(
        "learning_rate",
        number(0, 1e9, above=True),
        None,
        "the peak learning rate",
        "0.001 for adamw, 0.1 for sgd",
    ),
    Option("batch_size", integer(2, 65536), 128, "pictures in one step"),
    Option("num_epochs", integer(1, 100_000), 50, "passes over the training set"),
    Option(
        "weight_decay",
        number(0, 100),
        None,
        "decay of weights, not of biases and norms",
        "0.01 for adamw, 0.0005 for sgd",
    ),
    Option("dropout_rate", number(0, 1, below=True), 0.2, "dropout before the classifier"),
    Option("hidden_size", integer(4, 4096), None, "channels of a block; customcnn only", "128"),
    Option("num_layers", integer(1, 32), None, "convolution blocks; customcnn only", "4"),
    Option("momentum", number(0, 1, below=True), None, "Nesterov momentum (0: none); sgd only", "0.9 for sgd"),
    Option("optimizer", one_of("sgd", "adamw"), "adamw", "how steps are taken: sgd, adamw"),
    Option(
        "scheduler",
        one_of("cosine", "onecycle", "none"),
        "cosine",
        "how the learning rate changes from step to step: cosine, onecycle, none",
    ),
    Option("label_smoothing", number(0, 1, below=True), 0.0, "smoothing of the training labels"),
    Option("dataset", one_of(*DATASETS), "cifar100", _listed("which pictures", *DATASETS)),
    Option(
        "data_dir",
        path,
        Path("data"),
        "where data sets lie (digits needs none: it comes with scikit-learn)",
        "data",
    ),
    Option(
        "image_size",
        integer(8, 1024),
        None,
        "pixels a side after resizing",
        "CIFAR 32; digits 16 (32 for vgg16); folder: the first picture's shorter side, 32 at most",
    ),
    Option(
        "val_fraction",
        number(0, 1, above=True, below=True),
        0.1,
        "share of the training set kept for validation",
    ),
    Option("seed", integer(0, 2**31 - 1), 0, "decides split, weights, order and augmentation"),
    Option(
        "device",
        one_of("auto", "cpu", "cuda"),
        "auto",
        "where to train: auto, cpu, cuda",
        "auto, which is cuda if there is one",
    ),
    Option(
        "precision",
        one_of("auto", "fp32", "bf16", "fp16"),
        "auto",
        "arithmetic of the network: auto, fp32, bf16, fp16",
        "auto, which is bf16 where the hardware has it, else fp32",
    ),
    Option(
        "threads",
        integer(1, 4096),
        None,
        "CPU threads",
        "OMP_NUM_THREADS, else the cores this process may use",
    ),
    Option("checkpoint_every", integer(1, 100_000), 1, "epochs between writes of checkpoints/last.pt"),
    Option("pushgateway", http_url, None, "push each epoch's metrics to this Pushgateway", "no pushing"),
    Option("output_dir", path, REQUIRED, "the trial's directory"),
    Option("job_id", printable, REQUIRED, "the trial's name in its records"),
)
