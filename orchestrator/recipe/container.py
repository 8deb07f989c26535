"""Images in which jobs run: ``job.container``, and the same section in a site file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from orchestrator.recipe.base import Line, StrictModel, Word

ContainerRole = Literal["server", "client", "trial", "monitoring"]
ImageName = Literal["vllm", "ollama", "client", "trainer", "prometheus", "pushgateway", "node_exporter"]


def _check_bind(text: str) -> str:
    parts = text.split(":")
    is_wrong = len(parts) > 3 or "," in text or not all(part.startswith("/") for part in parts[:2])
    if is_wrong or parts[2:] not in ([], ["ro"], ["rw"]):
        raise ValueError("give /FOLDER, /FOLDER:/INSIDE or /FOLDER:/INSIDE:ro, without commas")
    return text


Bind = Annotated[Line, AfterValidator(_check_bind)]
Registry = Annotated[Word, Field(pattern=r"^(/[^\s,]*[^/\s,]|[A-Za-z0-9.-]+(:\d+)?(/[A-Za-z0-9._-]+)*)$")]


class Container(StrictModel):
    """Apptainer images in which jobs run, in place of plain environments."""

    roles: tuple[ContainerRole, ...] = ()
    """Whose jobs run in images; those of other roles run in plain environments."""
    images: dict[ImageName, Word] = {}
    """Image files of your own in place of the store's: paths on the nodes."""
    dir: Word | None = None
    """The image store: a folder that the nodes share. If not given: containers/ in the cache."""
    runtime: Word | None = None
    """`apptainer` or `singularity`, or a path. If not given: apptainer, unless singularity alone is on PATH here."""
    gpu: Literal["auto", "nvidia", "amd", "none"] = "auto"
    """Whose GPU libraries are brought in (`--nv`, `--rocm`). `auto`: NVIDIA's, for jobs that get GPUs."""
    binds: tuple[Bind, ...] = ()
    """Further folders that jobs see: `/FOLDER`, `/FOLDER:/INSIDE`, `/FOLDER:/INSIDE:ro`. The run's directory, the code,
    model and data are there already."""
    options: tuple[Annotated[Line, Field(pattern="^-")], ...] = ()
    """Further options of `apptainer exec`, each one word (`--nvccli`). Everybody can read them: not for secrets."""
    registry: Registry | None = None
    """In place of docker.io and nvcr.io: the prefix of a mirror (`registry.site.example/mirror`), or an absolute folder
    that holds images under their names there (`FOLDER/prom/prometheus:v2.55.1`)."""
    index: Annotated[Word, Field(pattern=r"^[a-z+]+://[^\s,]+$")] | None = None
    """Python package index that images are built from. If not given: PyPI."""


def merge_container(own: Container, base: Container) -> Container:
    """Return ``own`` with what it leaves open taken from ``base``."""
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
