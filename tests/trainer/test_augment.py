from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trainer.augment import DevicePictures, Normalizer, crop_and_flip
from trainer.pictures import Pictures

CPU = torch.device("cpu")


def test_crop_and_flip_gives_windows_of_reflected_pictures(random_pictures: Callable[..., Pictures]) -> None:
    pictures = random_pictures(6, size=16)
    torch.manual_seed(0)
    index = torch.tensor([5, 0, 3, 3])
    batch = crop_and_flip(torch.from_numpy(pictures.images), index).numpy()
    for chosen, result in zip(index.tolist(), batch, strict=True):
        padded = np.pad(pictures.images[chosen], ((2, 2), (2, 2), (0, 0)), mode="reflect")
        windows = [padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        assert any(np.array_equal(result, view) for w in windows for view in (w, w[:, ::-1]))


def test_crop_and_flip_shifts_and_mirrors_are_all_drawn() -> None:
    image = torch.arange(32 * 32, dtype=torch.int32).reshape(1, 32, 32, 1)
    torch.manual_seed(0)
    batch = crop_and_flip(image, torch.zeros(3000, dtype=torch.int64))
    assert len({tuple(picture[10, 10:12, 0].tolist()) for picture in batch}) == 9 * 9 * 2


def test_crop_and_flip_same_seed_gives_same_batch(random_pictures: Callable[..., Pictures]) -> None:
    images = torch.from_numpy(random_pictures(8).images)
    index = torch.arange(8)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(crop_and_flip(images, index))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_normalizer_gives_zero_mean_and_unit_spread(random_pictures: Callable[..., Pictures]) -> None:
    pictures = DevicePictures.from_pictures(random_pictures(1200, size=8), CPU)
    values = Normalizer.from_pictures(pictures).apply(pictures.images)
    assert values.shape == (1200, 3, 8, 8)
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(values.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(values.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)


def test_normalizer_channel_without_spread_stays_finite() -> None:
    pictures = DevicePictures(torch.full((4, 8, 8, 3), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(Normalizer.from_pictures(pictures).apply(pictures.images), torch.zeros(4, 3, 8, 8))
