from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainer.models import build_model
from trainer.schedule import build_optimizer, learning_rate_at, set_learning_rate
from trainer.settings import Settings


def test_learning_rate_at_none_stays() -> None:
    assert {learning_rate_at("none", 0.3, step, 100) for step in range(100)} == {0.3}


def test_learning_rate_at_cosine_falls_to_zero() -> None:
    rates = [learning_rate_at("cosine", 0.3, step, 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[50], rates[100]) == pytest.approx((0.3, 0.15, 0.0))


def test_learning_rate_at_onecycle_rises_then_falls() -> None:
    rates = [learning_rate_at("onecycle", 0.3, step, 100) for step in range(101)]
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert (rates[0], rates[30], rates[100]) == pytest.approx((0.3 / 25, 0.3, 0.0))


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_build_optimizer_decays_weights_only(
    make_settings: Callable[..., Settings], optimizer: str, expected: type
) -> None:
    settings = make_settings(optimizer=optimizer, weight_decay=0.25)
    model = build_model(settings, 10)
    built = build_optimizer(settings, model)
    assert type(built) is expected
    decayed, others = built.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_build_optimizer_sgd_takes_momentum(make_settings: Callable[..., Settings], momentum: float) -> None:
    settings = make_settings(optimizer="sgd", momentum=momentum)
    group = build_optimizer(settings, build_model(settings, 10)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (momentum, momentum > 0)


def test_set_learning_rate_sets_every_group(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    optimizer = build_optimizer(settings, build_model(settings, 10))
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
