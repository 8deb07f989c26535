"""Many files at once, ended soon by whatever ends one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from orchestrator.errors import OrchError

WORKERS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


class StoppedError(OrchError):
    """Another thread has failed, or the main one was interrupted."""


def in_threads(
    work: Callable[[Item, Callable[[int], None]], Result], items: Iterable[Item], note: Callable[[int], None]
) -> list[Result]:
    """Return what ``work`` returns for each of ``items``, in their order.

    Args:
        work: Takes an item and a function that it calls with the bytes done since the last call, often enough: the
            function raises StoppedError once there is no need to go on.
        items: What to work on.
        note: Told those bytes, from any thread.

    Raises:
        Exception: the first that ``work`` raised, after all threads have ended.
    """
    stop = Event()

    def step(n_bytes: int) -> None:
        if stop.is_set():
            raise StoppedError
        note(n_bytes)

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(work, item, step) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
