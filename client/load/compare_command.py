"""``orch.py compare A B […]``: results of benchmarks against the first of them, and a gate for regressions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from client.errors import ClientServiceError, WorkloadError
from client.load.analysis import Options
from client.load.compare import Comparison, Difference, Side, Verdict, compare, judge, parse_fail_on
from client.load.export import read_parquet
from client.load.run import Measurement

EXIT_REGRESSION, EXIT_WRONG_INPUT = 1, 2
_SHOWN = (
    "ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "itl_mean", "itl_p50", "itl_p99", "tpot_mean",
    "e2e_mean", "e2e_p50", "e2e_p99", "requests_per_s", "output_tokens_per_s", "goodput_per_s", "failed_share",
)  # fmt: skip
_EPILOG = """\
A, B, …: folders of `orch.py bench` (or of a run's benchmark/ID), or requests.parquet files. Repeats of one side are
found in its points/ folder, or joined with commas: A1,A2,A3.
exit codes: 0 compared, 1 a condition of --fail-on is met, 2 wrong input
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``orch.py compare``."""
    made = argparse.ArgumentParser(
        prog="orch.py compare",
        description="Compare benchmarks: differences with intervals, tests, effect sizes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "sides", nargs="+", metavar="RESULT", help="two or more; the first is what others are held against"
    )
    made.add_argument("--fail-on", metavar="TERMS", help="such as 'ttft_p99>5%%,output_tokens_per_s<-3%%'")
    made.add_argument("--unsure-fails", action="store_true", help="also where the change may be chance")
    made.add_argument("--all", action="store_true", help="every metric")
    made.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: Sequence[str]) -> int:
    """Run ``orch.py compare`` and return its exit code."""
    options = parser().parse_args(argv)
    try:
        conditions = parse_fail_on(options.fail_on) if options.fail_on else ()
        sides = [_side(text) for text in options.sides]
        if len(sides) < 2:
            raise WorkloadError("a comparison needs two results or more")
        if len({side.name for side in sides}) < len(sides):
            raise WorkloadError("a result is named twice")
        found = compare(sides, Options(seed=options.seed))
        verdicts = {name: judge(differences, conditions) for name, differences in found.differences.items()}
    except ClientServiceError as error:
        sys.stderr.write(f"orch: {error}\n")
        return EXIT_WRONG_INPUT
    if options.json:
        told = {"comparison": msgspec.to_builtins(found), "verdicts": msgspec.to_builtins(verdicts)}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    else:
        sys.stdout.write(show_comparison(found, verdicts, is_whole=options.all))
    failing = {"fail", "unsure"} if options.unsure_fails else {"fail"}
    outcomes = {verdict.outcome for told in verdicts.values() for verdict in told}
    return EXIT_REGRESSION if outcomes & failing else 0


def _side(text: str) -> Side:
    repeats: list[Measurement] = []
    for part in text.split(","):
        repeats += [read_parquet(path) for path in _files(Path(part))]
    return Side(text, tuple(repeats))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    points = sorted(path.glob("points/*/requests.parquet"))
    loads = {point.parent.name.partition("_")[2] for point in points}
    if len(loads) == 1:
        return points
    if len(loads) > 1:
        raise WorkloadError(f"{path} is a sweep; name one of its loads: {points[0].parent} and others beside it")
    whole = path / "requests.parquet"
    if not whole.is_file():
        raise WorkloadError(f"{path}: there is no requests.parquet; name a folder of `orch.py bench`")
    return [whole]


def show_comparison(found: Comparison, verdicts: dict[str, tuple[Verdict, ...]], is_whole: bool = False) -> str:
    """Return a comparison as text of 80 columns."""
    lines = [f"A: {found.base}"]
    for name, differences in found.differences.items():
        lines += [f"B: {name}", "", f"{'metric':<20}{'A':>11}{'B':>11}{'change':>8}{'95 % of B - A':>23}  sure"]
        shown = [item for item in differences if is_whole or item.metric in _SHOWN]
        lines += [_line(item) for item in shown]
        told = verdicts.get(name, ())
        lines += ["", *(f"{verdict.outcome.upper():<7}{verdict.words}" for verdict in told)] if told else []
        lines.append("")
    if len(found.differences) > 1:
        lines.append(f"Analysis of variance over all, by {found.group_unit}:")
        for metric, anova in found.groups.items():
            if is_whole or metric in _SHOWN:
                lines.append(
                    f"  {metric:<22}F = {anova.f:.4g}, p = {anova.p_value:.3g}, eta² = {anova.eta_squared:.2f}"
                )
    return "\n".join(lines) + "\n"


def _line(item: Difference) -> str:
    change = "-" if item.relative is None else f"{item.relative:+.1%}"
    interval = "-" if item.low is None or item.high is None else f"{item.low:+.3g} to {item.high:+.3g}"
    sure = "yes" if item.is_certain else "no" if item.low is not None else "-"
    return f"{item.metric:<20}{item.a:>11.5g}{item.b:>11.5g}{change:>8}{interval:>23}  {sure}"
