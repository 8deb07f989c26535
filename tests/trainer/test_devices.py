from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from trainer.devices import choose_compute, count_usable_cores
from trainer.errors import InputError
from trainer.settings import Settings


def test_choose_compute_cpu_auto_takes_bf16_where_the_cpu_has_it(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for capabilities, expected in (
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_f": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_compute(make_settings(device="cpu")).precision == expected


def test_choose_compute_precision_asked_for_is_taken(make_settings: Callable[..., Settings]) -> None:
    compute = choose_compute(make_settings(device="cpu", precision="fp32"))
    assert (compute.device.type, compute.precision, compute.autocast_dtype) == ("cpu", "fp32", None)
    assert choose_compute(make_settings(precision="bf16")).autocast_dtype is torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_choose_compute_cuda_absent_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match="sees no CUDA device"):
        choose_compute(make_settings(device="cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_choose_compute_fp16_without_cuda_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match="fp16: needs a CUDA device"):
        choose_compute(make_settings(device="auto", precision="fp16"))


def test_choose_compute_threads_are_set(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_compute(make_settings(threads=2))
    assert torch.get_num_threads() == 2
    choose_compute(make_settings(threads=1))
    assert torch.get_num_threads() == 1


def test_count_usable_cores_is_the_affinity() -> None:
    assert count_usable_cores() == len(os.sched_getaffinity(0))
