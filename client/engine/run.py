"""The seam of the load engine under the client service: a spec in, records out, as they finish."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from client.engine.spec import LoadSpec, RequestRecord, RequestSpec
from client.load.payloads import encode_request
from client.load.row_fields import fields_of
from client.load.rows import ROW, WARMUP, RowTail
from client.load.run import Progress, measure, scratch
from client.load.shapes import ClosedLoop, How, deal_out
from client.load.spec import Api, Plan, Prompt, Sampling, Server

_APIS: dict[str, Api] = {"openai": "openai-chat", "ollama": "ollama-generate"}
_RECORD_FIELDS = frozenset(RequestRecord.__dataclass_fields__)
Gaps = npt.NDArray[np.float64]


def server_of(spec: RequestSpec) -> Server:
    """Return whom a completion is asked of."""
    return Server(spec.base_url, _APIS[spec.api], spec.api_token)


def encode(spec: RequestSpec) -> bytes:
    """Return a completion as the bytes that go over the wire. They hold the token: never log them."""
    sampling = Sampling(spec.model, spec.max_tokens, spec.temperature, spec.seed, spec.ignore_eos, spec.system)
    return encode_request(server_of(spec), sampling, Prompt(spec.prompt))


def run_load(
    spec: LoadSpec,
    on_record: Callable[[RequestRecord], None],
    cancel: threading.Event,
    on_start: Callable[[float], None] | None = None,
) -> list[RequestRecord]:
    """Put the load of ``spec`` on its server and return the records of all finished requests, as they
    finished.

    ``on_record`` is called in this thread for each record as it comes in; an exception from it ends the load
    and is raised. ``on_start`` gets the wall clock, in seconds since the epoch, of the records' time zero.
    Setting ``cancel`` ends the load early; requests then in flight leave no record.

    Raises:
        WorkerDiedError: a worker process ended before its clients did.
    """
    request, shape = spec.request, ClosedLoop(spec.n_clients, requests_per_client=spec.n_requests_per_client)
    how = How(spec.warmup_requests, request.request_timeout_s, spec.keep_text)
    processes = max(1, min(spec.processes, spec.n_clients))
    with scratch() as folder:
        plans = deal_out(server_of(request), (encode(request),), shape, how, processes, folder)
        follower = _Follower(plans, on_record, spec.keep_text)

        def start(started_at: float, zero_s: float) -> None:
            follower.zero_s = zero_s
            if on_start is not None:
                on_start(started_at)

        measure(plans, folder, cancel.is_set, follower.look, start)
        follower.look(None)
    return follower.records


class _Follower:
    """Makes records of the rows that workers write."""

    def __init__(self, plans: list[Plan], on_record: Callable[[RequestRecord], None], keeps_text: bool) -> None:
        self.records: list[RequestRecord] = []
        self.zero_s: float | None = None
        self._on_record, self._keeps_text = on_record, keeps_text
        self._tails = [(RowTail(Path(plan.rows), Path(plan.gaps)), _NoteTail(Path(plan.texts))) for plan in plans]
        self._counts: Counter[int] = Counter()

    def look(self, _progress: Progress | None) -> None:
        """Take what is new; before the start only the warm-up is there, and it waits."""
        if self.zero_s is None:
            return
        for rows, notes in self._tails:
            found, gaps = rows.read()
            for values in found:
                row = dict(zip(ROW.names or (), values.item(), strict=True))
                note = notes.of(row["index"], row["phase"]) if row["error"] >= 0 or self._keeps_text else {}
                self._emit(row, gaps[row["gap_start"] : row["gap_start"] + row["gap_count"]], note)

    def _emit(self, row: dict[str, Any], gaps: Gaps, note: dict[str, Any]) -> None:
        is_warmup = row["phase"] == WARMUP
        client = max(0, row["client"])
        index = 0 if is_warmup else self._counts[client]
        self._counts[client] += not is_warmup
        record = _record(row, gaps, note, self.zero_s or 0.0, client, index)
        self.records.append(record)
        self._on_record(record)


class _NoteTail:
    """Reads what a worker says of single requests: errors and texts."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._notes: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def of(self, index: int, phase: int) -> dict[str, Any]:
        """Return what is said of a request; the warm-up's have all one index and are taken in order."""
        if not self._notes.get((index, phase)):
            self._read()
        waiting = self._notes.get((index, phase))
        return waiting.pop(0) if waiting else {}

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            note: dict[str, Any] = msgspec.json.decode(line)
            self._notes.setdefault((note["index"], note["phase"]), []).append(note)


def _record(
    row: dict[str, Any], gaps: Gaps, note: dict[str, Any], zero_s: float, client: int, index: int
) -> RequestRecord:
    fields = {name: value for name, value in fields_of(row, note, zero_s).items() if name in _RECORD_FIELDS}
    fields |= {"client_id": client, "index": index}
    return RequestRecord(**fields, chunk_gaps_s=array("d", gaps.tobytes()), text=note.get("text"))
