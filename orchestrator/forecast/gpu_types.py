"""Memory of a GPU by the name that schedulers give it."""

from __future__ import annotations

import re
from collections.abc import Mapping

# In GiB, as on the maker's data sheet; where a name was sold with several sizes, all of them. What a job sees is a
# little less (H100: 79.6 of 80 GiB). Sources: NVIDIA's data sheets of each; AMD's "Instinct MI200" and "MI300" data
# sheets (MI250X: 128 GB on two dies, and Slurm counts dies); Intel's "Data Center GPU Max 1550" (128 GB on two
# tiles) and "1100". The site file's gpu_memory_gb goes before this table.
MEMORY_GIB: Mapping[str, tuple[float, ...]] = {
    "p100": (12, 16),
    "v100": (16, 32),
    "t4": (16,),
    "a10": (24,),
    "a30": (24,),
    "a40": (48,),
    "a100": (40, 80),
    "l4": (24,),
    "l40": (48,),
    "l40s": (48,),
    "h100": (80, 94),
    "h200": (141,),
    "gh200": (96, 144),
    "b200": (180,),
    "mi100": (32,),
    "mi210": (64,),
    "mi250": (64,),
    "mi250x": (64,),
    "mi300a": (128,),
    "mi300x": (192,),
    "mi325x": (256,),
    "pvc": (64,),
    "max1550": (64,),
    "max1100": (48,),
}
_SIZE = re.compile(r"\b(\d+) ?gi?b\b")


def memory_gib(name: str | None) -> tuple[float, ...]:
    """Return the sizes in GiB that a GPU of this name comes with, smallest first; none if the name says nothing.

    A size in the name itself (``a100_80gb``, ``nvidia_h100_80gb_hbm3``) goes before the table.
    """
    words = re.sub(r"[^a-z0-9]+", " ", (name or "").lower())
    size = _SIZE.search(words)
    if size:
        return (float(size.group(1)),)
    found = [MEMORY_GIB[word] for word in words.split() if word in MEMORY_GIB]
    return found[0] if len(found) == 1 else ()
