"""Random numbers that depend on a seed and a purpose alone."""

from __future__ import annotations

import zlib

import numpy as np

from client.errors import WorkloadError


def generator_for(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the generator of one purpose, independent of those of every other, and of what they have drawn.

    A seed gives the same draws for as long as numpy's distributions stay the same (NEP 19); the record of a
    measurement therefore names numpy's version.

    Args:
        seed: Not negative.
        purpose: What is drawn, as ``arrivals``.
        numbers: Which one of many, as the index of a prompt; not negative.

    Raises:
        WorkloadError: the seed is negative.
    """
    if seed < 0:
        raise WorkloadError(f"seed = {seed}: a seed is not negative")
    sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *numbers))
    return np.random.Generator(np.random.PCG64(sequence))
