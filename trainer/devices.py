"""Where a trial computes, and in which arithmetic."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import InputError

if TYPE_CHECKING:
    import torch

    from trainer.settings import Settings


@dataclass(frozen=True)
class Compute:
    """The device, and the arithmetic of the network on it (``fp32``, ``bf16`` or ``fp16``)."""

    device: torch.device
    precision: str

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The type that autocast uses, or None for plain fp32."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)

    @property
    def device_name(self) -> str:
        """The hardware's own name where it has one, for example ``NVIDIA H100 80GB HBM3``."""
        import torch

        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def count_usable_cores() -> int:
    """Return the number of cores that this process may run on: its affinity, as Slurm and cpusets set it."""
    return len(os.sched_getaffinity(0))


def choose_compute(settings: Settings) -> Compute:
    """Return the device and precision for ``settings``, and set torch's number of threads.

    Raises:
        InputError: CUDA was asked for and is not there, or the device lacks the precision asked for.
    """
    import torch

    torch.set_num_threads(settings.threads or _default_threads())
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise InputError(
            "--device cuda: torch sees no CUDA device here (is a GPU in the job's request?). Allowed: auto, cpu."
        )
    device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    elif settings.precision == "fp16":
        raise InputError("--precision fp16: needs a CUDA device. Allowed on cpu: auto, fp32, bf16.")
    if settings.precision != "auto":
        return Compute(device, settings.precision)
    return Compute(device, "bf16" if _has_fast_bf16(device) else "fp32")


def _has_fast_bf16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _default_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else count_usable_cores()
