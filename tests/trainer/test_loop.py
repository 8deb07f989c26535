from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.augment import DevicePictures
from trainer.devices import choose_compute
from trainer.errors import TrainingError, TrainingInterruptedError
from trainer.loop import TrainingLoop
from trainer.models import build_model
from trainer.pictures import Pictures
from trainer.settings import Settings
from trainer.stopping import StopRequest

CPU = torch.device("cpu")


class StopAtCheck(StopRequest):
    """Asks for the end at its ``number``-th check (one before every batch)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.request(15)
        super().check()


@pytest.fixture
def make_loop(
    make_settings: Callable[..., Settings], random_pictures: Callable[..., Pictures]
) -> Callable[..., TrainingLoop]:
    def make(stop: StopRequest | None = None, **flags: object) -> TrainingLoop:
        settings = make_settings(**{"batch_size": 8, "augment": True, "dropout_rate": 0.5, **flags})
        train, val = (DevicePictures.from_pictures(random_pictures(count, seed=count), CPU) for count in (44, 12))
        torch.manual_seed(settings.seed)
        model = build_model(settings, num_classes=4)
        return TrainingLoop(settings, choose_compute(settings), model, train, val, stop or StopRequest())

    return make


def curve_of(loop: TrainingLoop) -> list[tuple[float, ...]]:
    return [
        (r.epoch, r.step, r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy, r.learning_rate)
        for r in loop.progress.history
    ]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded: dict[str, Any] = torch.load(stream, weights_only=True)
    return loaded


def ignore(record: object) -> None:
    pass


def test_training_loop_counts_whole_batches_only(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop()
    seen = []
    loop.run(lambda record: seen.append((record.epoch, record.step)))
    assert seen == [(1, 5), (2, 10)]
    last = loop.progress.history[-1]
    assert last.time_s == pytest.approx(sum(record.epoch_time_s for record in loop.progress.history))
    assert last.images_per_s > 0
    assert 0 <= last.val_accuracy <= 1


def test_training_loop_same_seed_gives_same_curve(make_loop: Callable[..., TrainingLoop]) -> None:
    loops = [make_loop(seed=seed) for seed in (3, 3, 4)]
    for loop in loops:
        loop.run(ignore)
    assert curve_of(loops[0]) == curve_of(loops[1])
    assert curve_of(loops[0]) != curve_of(loops[2])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scheduler", ["cosine", "onecycle"])
@pytest.mark.parametrize(
    "checks", [1, 4, 6, 7, 9], ids=["before", "mid-epoch", "validation", "epoch-start", "second-epoch"]
)
def test_training_loop_interrupted_anywhere_resumes_to_the_same_curve(
    make_loop: Callable[..., TrainingLoop], optimizer: str, scheduler: str, checks: int
) -> None:
    flags = {"optimizer": optimizer, "scheduler": scheduler}
    whole = make_loop(**flags)
    whole.run(ignore)

    interrupted = make_loop(StopAtCheck(checks), **flags)
    with pytest.raises(TrainingInterruptedError):
        interrupted.run(ignore)
    state = through_a_file(interrupted.state_dict())
    resumed = make_loop(**flags)
    resumed.load_state_dict(state)
    resumed.run(ignore)

    assert curve_of(resumed) == curve_of(whole)
    pairs = zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_training_loop_completed_state_trains_nothing(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop()
    loop.run(ignore)
    again = make_loop()
    again.load_state_dict(through_a_file(loop.state_dict()))
    again.run(lambda record: pytest.fail("trained again"))
    assert again.progress == loop.progress


def test_training_loop_huge_learning_rate_is_detected(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop(optimizer="sgd", learning_rate=1e9, precision="fp32", num_epochs=20)
    with pytest.raises(
        TrainingError, match=r"loss became (nan|inf) in epoch \d+ by step \d+ with --learning_rate 1e\+09"
    ):
        loop.run(ignore)


def test_training_loop_out_of_memory_says_what_to_do(
    make_loop: Callable[..., TrainingLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop()

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(loop.model, "forward", fail)
    with pytest.raises(TrainingError, match="lower --batch_size 8"):
        loop.run(ignore)


def test_evaluate_changes_nothing(make_loop: Callable[..., TrainingLoop]) -> None:
    loop = make_loop()
    pictures = DevicePictures(torch.zeros((700, 8, 8, 3), dtype=torch.uint8), torch.zeros(700, dtype=torch.int64))
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    first, again = loop.evaluate(pictures), loop.evaluate(pictures)
    assert first == again
    assert all(torch.equal(before[name], value) for name, value in loop.model.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_loop_precision_trains(make_loop: Callable[..., TrainingLoop], precision: str) -> None:
    loop = make_loop(precision=precision)
    loop.run(ignore)
    assert {parameter.dtype for parameter in loop.model.parameters()} == {torch.float32}
