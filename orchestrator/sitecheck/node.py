"""What the test job told of its compute node, against what the site file claims."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.sitecheck.findings import Finding, Verdict, failed, not_applicable, not_tried, ok, warning
from orchestrator.sitecheck.job import NAME
from orchestrator.sitecheck.software import judge_python, judge_supervisor_python
from orchestrator.sitecheck.visit import Report, Visit, last_words

# Heartbeats and leases of jobs are compared by the clock; the shortest of them is 9 s.
TOLERATED_SKEW_S, GREATEST_SKEW_S = 5.0, 60.0
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def _report(visit: Visit) -> Report | Finding:
    if visit.report is not None:
        return visit.report
    return not_tried("--no-job" if not visit.options.wants_job else f"the {NAME} job brought no report")


def look_at_node_folder(visit: Visit, nonce: str) -> Finding:
    """Compare what the node read from the folder with what was written there."""
    report = _report(visit)
    if isinstance(report, Finding):
        return report
    node = report.first("host")
    if report.first("nonce") != nonce:
        return failed(
            f"{visit.folder} on {node} is another folder of the same name",
            "Runs must lie on a file system that login node and compute nodes share.",
        )
    return ok(f"{visit.folder} is the same on {node}, read and written")


def look_at_node_python(visit: Visit) -> Finding:
    """Judge both interpreters as they are on the node."""
    report = _report(visit)
    if isinstance(report, Finding):
        return report
    environment = visit.environment
    own = judge_python(environment.python or "python3", report.first("python"), visit.packages)
    supervisor = judge_supervisor_python(environment.supervisor_python, report.first("supervisor_python"))
    for finding in (own, supervisor):
        if finding.verdict != Verdict.OK:
            return finding
    return ok(f"{own.words}; supervisor: {supervisor.words}")


def look_at_gpus(visit: Visit) -> Finding:
    """Compare the GPUs that the node shows with those that were asked for."""
    report = _report(visit)
    if isinstance(report, Finding):
        return report
    asked = (visit.resources.gpus if visit.resources else None) or 0
    if not asked:
        return not_applicable("the test job asked for none (--gpus, or partitions of the site file)")
    counts = {tool: found for tool, lines in report.facts.items() if (found := count_gpus(tool, lines)) is not None}
    given = next(((name, report.first(name)) for name in _VISIBLE if report.first(name)), None)
    granted = f", {given[0]}={given[1]}" if given else ""
    if not counts and given and len(given[1].split(",")) >= asked:
        return warning(
            f"{asked} asked for{granted}; nvidia-smi, rocm-smi and xpu-smi are not there to prove it",
            "A module may bring one of them; serve a small model before a long run.",
        )
    tool, seen = max(counts.items(), key=lambda item: item[1], default=("nobody", 0))
    if seen < asked:
        said = (report.facts.get(tool) or [""])[0]
        return failed(
            f"{asked} asked for, {seen} seen by {tool}{granted}{f': {said}' if seen == 0 and said else ''}",
            "Correct gpus_per_node (and gpu_type, or gpu_resource on PBS), or report the node to the site.",
        )
    names = sorted({name for line in report.facts[tool] if (name := gpu_name(tool, line))})
    return ok(f"{seen} seen by {tool}, {asked} asked for{f': {names[0]}' if names else ''}")


def count_gpus(tool: str, lines: Sequence[str]) -> int | None:
    """Return how many GPUs a program listed; None if it is none of the three."""
    match tool:
        case "nvidia-smi":
            return sum(bool(re.match(r"GPU \d+:", line)) for line in lines)
        case "rocm-smi":
            return len({match.group() for line in lines if (match := re.match(r"GPU\[\d+\]", line))})
        case "xpu-smi":
            return sum(bool(re.match(r"\|\s*\d+\s*\|\s*Device Name:", line)) for line in lines)
    return None


def gpu_name(tool: str, line: str) -> str:
    """Return the GPU's name in one line of a program's list, empty if it is not told there."""
    patterns = {"nvidia-smi": r"GPU \d+: (.+?) \(UUID", "xpu-smi": r"\|\s*\d+\s*\|\s*Device Name: (.+?)\s*\|"}
    match = re.match(patterns.get(tool, r"(?!)"), line)
    return match.group(1) if match else ""


def look_at_clock(visit: Visit) -> Finding:
    """Judge how far the node's clock is from the login node's."""
    report = _report(visit)
    if isinstance(report, Finding):
        return report
    least, most = report.ahead_s
    if least <= 0 <= most:
        return ok(f"within {max(-least, most):.0f} s of the login node's")
    off_s = least if least > 0 else most
    words = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the login node's, at least"
    if abs(off_s) <= TOLERATED_SKEW_S:
        return ok(words)
    remedy = "Heartbeats and leases would be misread; ask the site to synchronise its clocks (NTP)."
    return failed(words, remedy) if abs(off_s) > GREATEST_SKEW_S else warning(words, remedy)


def look_at_data(visit: Visit) -> Finding:
    """Look whether the paths given with --data can be read, on the login node and by the test job."""
    paths = visit.options.data
    if not paths:
        return not_applicable("no --data PATH was given")
    script = 'for p do if [ -r "$p" ]; then echo yes; else echo no; fi; done'
    answer = visit.shell(script, *paths)
    here = answer.stdout.split()
    if len(here) != len(paths):
        return failed(f"the paths could not be looked at: {last_words(answer)}", "Try `ls` there.")
    missing = [path for path, seen in zip(paths, here, strict=True) if seen != "yes"]
    if missing:
        return failed(f"cannot be read: {', '.join(missing)}", "Bring them there, or correct the paths.")
    if visit.report is None:
        return ok(f"{', '.join(paths)}: readable on the login node; not looked at on a compute node")
    there = visit.report.facts.get("data", [])
    hidden = [path for path, seen in zip(paths, there, strict=False) if seen != "yes"]
    if hidden or len(there) != len(paths):
        return failed(
            f"cannot be read on {visit.report.first('host')}: {', '.join(hidden or paths)}",
            "Put them on a file system that the nodes see.",
        )
    return ok(f"{', '.join(paths)}: readable, on {visit.report.first('host')} too")
