"""Batches of pictures that lie on the device: chosen, cropped and flipped there, in one gather."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.pictures import Pictures


@dataclass(frozen=True)
class DevicePictures:
    """``images`` as uint8 [N, size, size, 3] and ``labels`` as int64 [N], both on the training device."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def from_pictures(cls, pictures: Pictures, device: torch.device) -> DevicePictures:
        """Return the pictures on ``device``."""
        return cls(torch.from_numpy(pictures.images).to(device), torch.from_numpy(pictures.labels).to(device))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Normalizer:
    """Maps uint8 pictures to zero mean and unit spread; ``mean`` and ``std`` are [3], in 0..255."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def from_pictures(cls, pictures: DevicePictures) -> Normalizer:
        """Return the normaliser for these (training) pictures; a channel without spread keeps its scale."""
        total = torch.zeros(3, dtype=torch.float64, device=pictures.images.device)
        squares = torch.zeros_like(total)
        for part in torch.split(pictures.images, 1000):  # bounds the float copy
            values = part.double()
            total += values.sum(dim=(0, 1, 2))
            squares += values.square().sum(dim=(0, 1, 2))
        count = pictures.images.numel() / 3
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        return cls(mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float())

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, H, W, 3] as float [B, 3, H, W] in channels_last memory."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def crop_and_flip(images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return ``images[index]``, each randomly shifted and, in one of two cases, mirrored: uint8 [B, H, W, 3].

    The shift is a random crop after reflecting an eighth of the side at every edge: 4 pixels for 32. Draws
    from torch's global generator of the device.
    """
    batch, size = len(index), images.shape[1]
    padding = size // 8
    device = images.device
    shifts = torch.randint(-padding, padding + 1, (2, batch, 1), device=device)
    mirrored = torch.rand(batch, 1, device=device) < 0.5
    along = torch.arange(size, device=device)
    rows = _reflect(along + shifts[0], size)
    columns = _reflect(torch.where(mirrored, size - 1 - along, along) + shifts[1], size)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(position: torch.Tensor, size: int) -> torch.Tensor:
    """Return positions folded back at the edges, as numpy.pad's ``reflect`` does."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
