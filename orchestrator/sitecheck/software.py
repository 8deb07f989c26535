"""What is installed: modules, interpreters, container runtimes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from secrets import token_hex

from orchestrator.render import render
from orchestrator.sitecheck.findings import Finding, failed, not_applicable, ok, warning
from orchestrator.sitecheck.packages import PYTHON_FOR_JOBS, PYTHON_FOR_SUPERVISOR, Packages
from orchestrator.sitecheck.visit import PYTHON_TIMEOUT_S, SHELL_TIMEOUT_S, Visit, last_words
from orchestrator.transports import Answer

# For any Python from 2.7 on: an old one has to be told as such.
PYTHON_CODE = """\
import sys
try:
    from importlib.util import find_spec
except ImportError:
    find_spec = None
missing = [name for name in sys.argv[1:] if find_spec is None or find_spec(name) is None]
print("orch-python %d.%d.%d " % sys.version_info[:3] + ",".join(missing))
"""
_PYTHON = re.compile(r"orch-python (\d+)\.(\d+)\.(\d+) (\S*)")
# Environment Modules before 4.2 succeed whatever happens. Sources: module(1) of both; Lmod's messageDir/en.lua.
_LOAD_ERROR = re.compile(r"ERROR:|Unable to locate a modulefile|Lmod has detected the following error", re.IGNORECASE)
_RUNTIMES = ("apptainer", "singularity")


def look_at_modules(visit: Visit) -> Finding:
    """Load each module of the environment, in order, in a login shell."""
    modules = visit.environment.modules
    if not modules:
        return not_applicable("the site file names no environment.modules")
    key = f"orch-{token_hex(6)}-"
    script = render("sitecheck/modules.j2", {})
    answer = visit.login_shell(script, key, *modules, timeout_s=SHELL_TIMEOUT_S * (1 + len(modules)))
    if answer.returncode is None:
        return failed(f"modules did not load in time: {last_words(answer)}", "Load them by hand in a login shell.")
    if f"{key}none" in answer.stdout:
        return failed(
            "there is no `module` command",
            "Leave environment.modules out, or have the site's start-up files define it for `bash -l`.",
        )
    problems = parse_module_loads(answer.stdout, key)
    for name in modules:
        if name not in problems:
            problems[name] = "was not tried: the shell ended before"
    bad = {name: words for name, words in problems.items() if words}
    if bad:
        told = "; ".join(f"{name}: {words}" for name, words in bad.items())
        return failed(told, "Look with `module avail` or `module spider NAME`, and correct environment.modules.")
    return ok(f"{', '.join(modules)} load in a login shell")


def parse_module_loads(stdout: str, key: str) -> dict[str, str]:
    """Return what is wrong with each module, by its name; empty text if it was loaded."""
    found = {}
    for part in stdout.split(f"{key}begin ")[1:]:
        name, _, rest = part.partition("\n")
        said, end, after = rest.partition(f"{key}end ")
        code = after.partition("\n")[0].strip()
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        wrong = [line for line in lines if _LOAD_ERROR.search(line)]
        if wrong and wrong[0].endswith(":") and len(lines) > lines.index(wrong[0]) + 1:
            wrong = [f"{wrong[0]} {lines[lines.index(wrong[0]) + 1]}"]
        is_loaded = bool(end) and code == "0" and not wrong
        found[name] = "" if is_loaded else (wrong or lines[-1:] or [f"exit code {code or 'unknown'}"])[0]
    return found


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter said of itself."""

    version: tuple[int, int, int]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(str(part) for part in self.version)


def parse_python(text: str) -> Interpreter | None:
    """Return what PYTHON_CODE printed; None if it did not."""
    match = _PYTHON.search(text)
    if match is None:
        return None
    major, minor, micro, missing = match.groups()
    return Interpreter((int(major), int(minor), int(micro)), tuple(filter(None, missing.split(","))))


def judge_python(python: str, said: str, packages: Packages) -> Finding:
    """Return whether an interpreter can run the client service and the trainer."""
    found = parse_python(said)
    if found is None:
        return failed(f"{python}: {said.strip() or 'it says nothing'}", "Correct environment.python.")
    if found.version[:2] < PYTHON_FOR_JOBS:
        return failed(
            f"{python} is {found}, too old",
            f"Name one of {'.'.join(map(str, PYTHON_FOR_JOBS))} or newer in environment.python.",
        )
    for_client = [name for name in packages.client if name in found.missing]
    for_trainer = [name for name in packages.trainer if name in found.missing]
    if for_client:
        lacks = ", ".join(dict.fromkeys([*for_client, *for_trainer]))
        return failed(
            f"{python} ({found}) lacks {lacks}",
            "The client service needs them: `orch.py env create` (--host NAME for a host), or name an interpreter "
            "that has them in environment.python.",
        )
    if for_trainer:
        return warning(
            f"{python} ({found}) lacks {', '.join(for_trainer)}",
            "A search (job.hpo) needs them, benchmarks do not: `orch.py env create --for client,trainer`.",
        )
    return ok(f"{python}: {found}, with what client and trainer need")


def judge_supervisor_python(python: str, said: str) -> Finding:
    """Return whether an interpreter can run the supervisor of a job."""
    found = parse_python(said)
    if found is None:
        return failed(f"{python}: {said.strip() or 'it says nothing'}", "Correct environment.supervisor_python.")
    if found.version[:2] < PYTHON_FOR_SUPERVISOR:
        wanted = ".".join(map(str, PYTHON_FOR_SUPERVISOR))
        return failed(f"{python} is {found}, too old", f"Name a {wanted} or newer in environment.supervisor_python.")
    return ok(f"{python}: {found}")


def look_at_python(visit: Visit) -> Finding:
    """Start the interpreter of client and trainer, in the environment of a job.

    A login shell that hangs is told as such: the interpreter is not to blame.
    """
    python = visit.environment.python or "python3"
    packages = dict.fromkeys((*visit.packages.client, *visit.packages.trainer))
    return judge_python(python, _python_says(visit, python, *packages), visit.packages)


def look_at_supervisor_python(visit: Visit) -> Finding:
    """Start the interpreter of the supervisor, in the environment of a job."""
    python = visit.environment.supervisor_python
    return judge_supervisor_python(python, _python_says(visit, python))


def _python_says(visit: Visit, python: str, *packages: str) -> str:
    answer = _in_environment(visit, [python, "-c", PYTHON_CODE, *packages])
    if answer.returncode is None:
        return f"no answer within {PYTHON_TIMEOUT_S:.0f} s: try `time bash -l -c true` there"
    return answer.stdout if answer.returncode == 0 else last_words(answer)


def _in_environment(visit: Visit, argv: list[str]) -> Answer:
    script = render("sitecheck/login.j2", {"job": {"run_dir": visit.folder}, "environment": visit.environment})
    return visit.login_shell(script, *argv, timeout_s=PYTHON_TIMEOUT_S)


def look_at_containers(visit: Visit) -> Finding:
    """Look for a container runtime; only a site that loads one as a module has to have it."""
    wanted = [name for name in visit.environment.modules if any(known in name.lower() for known in _RUNTIMES)]
    find = 'for name do if command -v "$name" >/dev/null 2>&1; then exec "$name" --version; fi; done; exit 44'
    answer = _in_environment(visit, ["sh", "-c", find, "sh", *_RUNTIMES])
    version = answer.stdout.strip().splitlines()[-1] if answer.returncode == 0 and answer.stdout.strip() else ""
    if wanted and not version:
        return failed(
            f"neither apptainer nor singularity after loading {', '.join(wanted)}: {last_words(answer)}",
            "Look with `module spider apptainer`, and correct environment.modules.",
        )
    if wanted:
        return ok(version)
    return not_applicable(f"the site file names none{f'; {version} is there' if version else ''}")
