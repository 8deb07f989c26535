"""How a job's program is started in its image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.containers.definition import definition_of
from orchestrator.containers.making import Runtime, fetch, runtime_of
from orchestrator.containers.store import IMAGE, Store
from orchestrator.errors import ProgramMissingError, UnsafeValueError
from orchestrator.models.meter import telling_meter
from orchestrator.recipe.container import ImageName
from orchestrator.service import Launch, PlanContext, Role

PYTHON = "python3"
"""The interpreter of every image that has one."""
PASSED = (
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK",
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
"""Variables of the node that programs in images see too; the scheduler's choice of GPUs is among them."""
# Of the node's file system; an image has its own.
_NOT_PASSED = frozenset({"HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH"})
_GPU_OPTIONS = {"auto": "--nv", "nvidia": "--nv", "amd": "--rocm"}
_ASK_S = 60.0


def is_in_image(context: PlanContext, role: Role) -> bool:
    """Tell whether the jobs of a role run in images."""
    return role in context.recipe.job.container.roles


def launch_of(
    context: PlanContext,
    role: Role,
    image: ImageName,
    job: str | None = None,
    *,
    reads: Sequence[Path] = (),
    writes: Sequence[Path] = (),
    binds: Sequence[str] = (),
) -> Launch | None:
    """Return how a program of a role is started in its image, or None where it runs in a plain environment.

    Args:
        context: What the job is planned with.
        role: Of the job.
        image: In the catalogue.
        job: Name of the job in the run, for a folder of its own in place of /tmp; None where no room is needed there.
        reads: Files and folders that it sees under their own names, beside the project.
        writes: Folders that it writes to, beside the run's directory; made if they are not there.
        binds: Further ones, as the runtime takes them.

    Raises:
        UnsafeValueError: a path cannot be given to the runtime.
    """
    if not is_in_image(context, role):
        return None
    container, root = context.recipe.job.container, context.run.root
    runtime = Runtime(container.runtime or "apptainer")
    scratch = () if job is None else (context.run.data(f"{job}-container"),)
    written = dict.fromkeys((root, *writes))
    # The run may be inside of the project: what is bound last lies on top.
    all_binds = [
        *(_bind(path, "ro") for path in dict.fromkeys((context.project, *reads)) if path not in written),
        *(_bind(path, "rw") for path in written),
        *binds,
        *container.binds,
    ]
    has_gpus = bool(getattr(context.recipe.job.resources, role).gpus)
    gpu = _GPU_OPTIONS[container.gpu] if container.gpu != "none" and (container.gpu != "auto" or has_gpus) else None
    argv = (
        context.recipe.job.environment.supervisor_python,
        str(context.project / "orchestrator" / "containers" / "guard.py"),
        runtime.program,
        "exec",
        *([gpu] if gpu else []),
        "--cleanenv",
        "--containall",
        "--no-home",
        # Or $(…) in a variable's value would be executed.
        "--no-eval",
        # Without a home and with the 64 MiB that containall may give to /tmp, few programs start.
        "--home=/tmp",
        *(f"--workdir={folder}" for folder in scratch),
        *(f"--bind={bind}" for bind in all_binds),
        *container.options,
        str(image_path(context, image)),
    )
    own = (name for name in context.recipe.job.environment.variables if name not in _NOT_PASSED)
    passed = tuple(dict.fromkeys((*PASSED, *own)))
    return Launch(argv, f"{runtime.prefix}ENV_", passed, (*scratch, *writes))


def _bind(path: Path, mode: str) -> str:
    if any(mark in str(path) for mark in ",:\\"):
        raise UnsafeValueError(f"a ',', ':' or '\\' cannot stand in a path that a container sees: {path}")
    return f"{path}:{path}:{mode}"


def image_path(context: PlanContext, image: ImageName) -> Path:
    """Return the image file as jobs see it: the recipe's own, or the store's."""
    own = context.recipe.job.container.images.get(image)
    return Path(own) if own else _store(context).folder / definition_of(image).folder / IMAGE


def _store(context: PlanContext) -> Store:
    folder = context.recipe.job.container.dir
    return Store(Path(folder) if folder else context.cache / "containers")


def check_image(context: PlanContext, image: ImageName, is_made_by_run: bool = True) -> None:
    """Look whether a job can be started in an image, and whether there is a runtime.

    Args:
        context: What the job is planned with.
        image: In the catalogue.
        is_made_by_run: Whether the run makes it on this machine if it is not there; see prepare_image.

    Raises:
        ProgramMissingError: it cannot.
    """
    container = context.recipe.job.container
    path, is_own = image_path(context, image), image in container.images
    is_there = context.transport.run(["test", "-f", str(path)], _ASK_S).returncode == 0
    if not is_there and (is_own or not context.is_here or not is_made_by_run):
        remedy = f"`orch.py containers {'build' if definition_of(image).is_built else 'pull'} {image}` makes it"
        raise ProgramMissingError(
            f"there is no image {path} on '{context.host}'.\n"
            + ("Correct job.container.images." if is_own else f"{remedy}; bring its folder there, or run that there.")
        )
    if not is_there:
        runtime_of(container).check()
    elif not context.recipe.job.environment.modules:
        runtime = Runtime(container.runtime or "apptainer").program
        if context.transport.run(["sh", "-c", 'command -v -- "$1"', "sh", runtime], _ASK_S).returncode != 0:
            raise ProgramMissingError(
                f"'{runtime}' is not on PATH on '{context.host}'.\n"
                "Let jobs load its module (job.environment.modules), or name it in job.container.runtime."
            )


def prepare_image(context: PlanContext, role: Role, image: ImageName, tell: Callable[[str], None]) -> None:
    """Make the image of a role that is missing in the store of this machine; nothing where it needs none.

    Raises:
        OrchError: see making.fetch.
    """
    container = context.recipe.job.container
    if is_in_image(context, role) and context.is_here and image not in container.images:
        fetch(definition_of(image), _store(context), container, tell, telling_meter(tell))
