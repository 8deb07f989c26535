"""Resizing of pictures that are in memory already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resize_square(images: NDArray[np.uint8], image_size: int | None) -> NDArray[np.uint8]:
    """Return uint8 [N, height, width, C] pictures at ``image_size`` pixels a side (bilinear, antialiased).

    ``None``, or the size they have, gives the pictures themselves.
    """
    if image_size is None or images.shape[1:3] == (image_size, image_size):
        return images
    import torch
    from torch.nn.functional import interpolate

    resized = np.empty((len(images), image_size, image_size, images.shape[3]), dtype=np.uint8)
    for start in range(0, len(images), 1000):  # bounds the float copy
        part = torch.from_numpy(images[start : start + 1000]).permute(0, 3, 1, 2).float()
        part = interpolate(part, size=(image_size, image_size), mode="bilinear", antialias=True)
        resized[start : start + 1000] = part.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return resized
