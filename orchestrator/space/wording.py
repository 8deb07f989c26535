"""Sizes and ages as people write and read them."""

from __future__ import annotations

import argparse
import re

DAY_S = 86400.0
_UNITS_S = {"h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


def size_text(n_bytes: float) -> str:
    """Return a size in the unit that fits, of 1024 each, such as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def age_text(age_s: float) -> str:
    """Return an age in whole days, or hours below two days."""
    return f"{age_s / 3600:.0f} h" if age_s < 2 * DAY_S else f"{age_s / DAY_S:.0f} d"


def age_argument(text: str) -> float:
    """Return an age of the command line (``30d``, ``12h``, ``2w``) in seconds.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; allowed: a number with h, d or w, such as 30d")
    return int(match[1]) * _UNITS_S[match[2]]
