"""The optimizer, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.settings import Settings

_ONECYCLE_WARMUP = 0.3  # share of the steps; PyTorch's OneCycleLR has the same
_ONECYCLE_START = 1 / 25


def build_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of ``model``; biases and normalisation layers are not decayed."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        momentum = settings.momentum or 0.0
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def learning_rate_at(scheduler: str, peak: float, step: int, total_steps: int) -> float:
    """Return the learning rate of step ``step`` (from 0) of ``total_steps``.

    ``cosine`` falls from ``peak`` to nearly 0; ``onecycle`` rises from a 25th of it over the first 30 %, then
    falls (Smith and Topin, arXiv:1708.07120; momentum is not cycled); ``none`` stays.
    """
    if scheduler == "none":
        return peak
    progress = step / total_steps
    if scheduler == "cosine":
        return peak * _half_cosine(progress)
    if progress < _ONECYCLE_WARMUP:
        rise = 1 - _half_cosine(progress / _ONECYCLE_WARMUP)
        return peak * (_ONECYCLE_START + (1 - _ONECYCLE_START) * rise)
    return peak * _half_cosine((progress - _ONECYCLE_WARMUP) / (1 - _ONECYCLE_WARMUP))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
