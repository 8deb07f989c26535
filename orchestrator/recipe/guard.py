"""What a run may cost and whom it tells: ``job.guard`` and ``job.notify``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.recipe.base import Line, StrictModel, Word

Occasion = Literal["ready", "failed", "finished", "near_end"]
OCCASIONS: tuple[Occasion, ...] = ("ready", "failed", "finished", "near_end")


class Guard(StrictModel):
    """What a run may cost."""

    max_gpu_hours: Annotated[float, Field(gt=0, le=10_000_000)] | None = None
    """GPU-hours that the whole run may use, resumed parts included. No job is submitted that could go over it: what
    was used, plus what open jobs and the new one can still use within their wall time, must fit. A search then ends
    with the best that it has. If not given: no cap."""


class Notice(StrictModel):
    """Somebody to be told: exactly one of command, webhook and mail."""

    on: Annotated[tuple[Occasion, ...], Field(min_length=1)] = OCCASIONS
    """`ready`: all services answer. `finished`: the run was completed, stopped or interrupted. `failed`: it failed, or
    its orchestrator was ended before it. `near_end`: wall time is running out."""
    command: Annotated[tuple[Line, ...], Field(min_length=1)] | None = None
    """A program with its arguments, run where orch runs. It gets the event as JSON on standard input, and ORCH_EVENT,
    ORCH_RUN_ID, ORCH_RUN_DIR, ORCH_STATE and ORCH_TEXT in its environment."""
    webhook: Annotated[str, Field(pattern=r"^https?://[^\s\x00-\x1f\x7f]+$", max_length=2000)] | None = None
    """A URL that gets the event as JSON with POST. What comes after the host is never logged."""
    token_file: Word | None = None
    """A file with a secret, sent to the webhook as `Authorization: Bearer`."""
    mail: Word | None = None
    """An address that the scheduler mails to about the serving job (`--mail-user`, `-M`). It knows when that job
    begins (for `ready`), ends or fails; Slurm also when nine tenths of its wall time are over (for `near_end`)."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """How long the command, or one request to the webhook, may take, in seconds."""
    near_end_minutes: Annotated[float, Field(gt=0, le=100_000)] = 10.0
    """How long before the end of its wall time a service, or orch's own batch job, counts as near it, in minutes."""

    @model_validator(mode="after")
    def _check_way(self) -> Notice:
        ways = [name for name in ("command", "webhook", "mail") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"exactly one of command, webhook and mail is needed, not {' and '.join(ways) or 'none'}")
        if self.token_file is not None and self.webhook is None:
            raise ValueError("token_file goes with webhook")
        return self
