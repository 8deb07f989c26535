"""A benchmark as a whole: self-check, one load or a sweep of them, repeats, verdict, files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.load.analysis import Analysis, Options, analyse
from client.load.arrivals import constant_arrivals, gamma_arrivals, poisson_arrivals
from client.load.export import Summary, points_csv, summarise, write_jsonl, write_parquet, write_private
from client.load.figures import metrics_of
from client.load.payloads import encode_requests
from client.load.points import Points
from client.load.repeats import combine
from client.load.rows import MEASURED
from client.load.run import Measurement, Progress, measure, scratch
from client.load.saturation import LoadKind, Point, RateSearch, find_capacity, find_knee, point_of
from client.load.self_check import client_adds_ms
from client.load.server_side import ServerSide
from client.load.shapes import ClosedLoop, How, OpenLoop, Shape, choose_processes, deal_out
from client.load.slo import Slo
from client.load.spec import Conversation, Prompt, Sampling, Server
from client.load.validity import CANCELLED, Limits, invalid_reasons
from client.load.watch import Target

MAX_ERRORS_TOLD = 20
# Texts joined of pieces may be cut into tokens in other ways than they were made.
_TOKENS_DIFFER = 0.02


@dataclass(frozen=True)
class Arrivals:
    """How an open loop's requests are spaced.

    Attributes:
        kind: constant, poisson or gamma.
        burstiness: The gamma distribution's shape; 1 is a Poisson process.
        fixed: The times themselves, of a trace; they go before ``kind``.
    """

    kind: str = "poisson"
    burstiness: float = 1.0
    fixed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What is to be measured.

    Attributes:
        prompts: In the order of sending; they begin again where more are needed.
        conversations: In the place of prompts, which then are the warm-up's.
        kind: Whether loads are requests at once or requests per second.
        loads: One for a single measurement, several for a sweep.
        finds_capacity: Search the highest rate that meets ``slos``, from the first of ``loads`` on.
        requests: Of each measurement; None for as many as fit into ``duration_s``.
        requests_per_client: Of each client of a closed loop, in the place of ``requests``.
        exporters: Of the server's machines, besides those at the usual ports of its host, if they answer.
        count_answer: Counts the tokens of generated texts, which are then kept, against the server's own count.
        about: For the summary; no secrets.
    """

    server: Server
    sampling: Sampling
    prompts: tuple[Prompt, ...]
    kind: LoadKind
    loads: tuple[float, ...]
    conversations: tuple[Conversation, ...] = ()
    requests: int | None = None
    requests_per_client: int | None = None
    duration_s: float | None = None
    arrivals: Arrivals = Arrivals()
    ramp_s: float = 0.0
    how: How = field(default_factory=How)
    processes: int | None = None
    seed: int = 0
    repeats: int = 1
    finds_capacity: bool = False
    has_self_check: bool = True
    slos: tuple[Slo, ...] = ()
    limits: Limits = field(default_factory=Limits)
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    exporters: tuple[Target, ...] = ()
    count_answer: Callable[[str], int] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def shape(self, load: float, repeat: int = 0) -> Shape:
        """Return the shape of one measurement; repeats of an open loop have other arrivals."""
        if self.kind == "concurrency":
            return ClosedLoop(int(load), self.requests, self.requests_per_client, self.duration_s, self.ramp_s)
        if self.arrivals.fixed:
            return OpenLoop(self.arrivals.fixed)
        seed = self.seed + 1000 * repeat
        if self.arrivals.kind == "constant":
            times = constant_arrivals(load, self.requests, self.duration_s)
        elif self.arrivals.kind == "poisson":
            times = poisson_arrivals(load, seed, self.requests, self.duration_s)
        else:
            times = gamma_arrivals(load, self.arrivals.burstiness, seed, self.requests, self.duration_s)
        return OpenLoop(tuple(float(at_s) for at_s in times))

    def expected(self, load: float) -> int | None:
        """Return how many requests a measurement has; None where something else ends it."""
        is_limited = self.requests is not None or self.requests_per_client is not None
        if self.duration_s is not None or (self.conversations and not is_limited):
            return None
        if self.arrivals.fixed:
            return len(self.arrivals.fixed)
        return self.requests if self.requests_per_client is None else int(load) * self.requests_per_client

    @property
    def total(self) -> int | None:
        """How many requests all measurements have; None where that is not known."""
        known = [count for load in self.loads if (count := self.expected(load)) is not None]
        return sum(known) * self.repeats if len(known) == len(self.loads) and not self.finds_capacity else None


@dataclass(frozen=True)
class Told:
    """One measurement with its figures and the verdict on them."""

    load: float
    measurement: Measurement
    analysis: Analysis
    reasons: tuple[str, ...]
    server: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A benchmark that has ended.

    Attributes:
        told: Each measurement, in order.
        main: The one whose figures are the summary's.
        was_cancelled: Whether something of it was not measured.
    """

    summary: Summary
    told: tuple[Told, ...]
    main: Told
    was_cancelled: bool


Tell = Callable[[str, Progress | None], None]


def run_bench(
    bench: Bench,
    tell: Tell = lambda _text, _progress: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    on_start: Callable[[float], None] = lambda _: None,
    points: Points | None = None,
) -> Outcome:
    """Measure what ``bench`` asks for.

    Args:
        bench: What is measured.
        tell: Told in words what is being done, and how far it is.
        is_cancelled: Asked now and then; what is under way then ends early.
        on_start: Told each common start, in seconds since the epoch.
        points: Where several measurements are kept as soon as they are made.

    Raises:
        ClientServiceError: the self-check could not be made, a worker died, or a file cannot be written.
    """
    running = _Running(bench, tell, is_cancelled, on_start, points)
    adds_ms = running.check() if bench.has_self_check else None
    told = running.search(adds_ms) if bench.finds_capacity else running.all(adds_ms)
    return _conclude(bench, told, adds_ms, running.was_cut)


class _Running:
    def __init__(
        self,
        bench: Bench,
        tell: Tell,
        is_cancelled: Callable[[], bool],
        on_start: Callable[[float], None],
        points: Points | None,
    ) -> None:
        self._bench, self._tell, self._is_cancelled, self._on_start = bench, tell, is_cancelled, on_start
        self._bodies = encode_requests(bench.server, bench.sampling, bench.prompts)
        self.was_cut = False
        self._has_many = len(bench.loads) * bench.repeats > 1 or bench.finds_capacity
        self._points = points if self._has_many else None
        self._number = 0

    def check(self) -> float:
        """Return what the client adds under the largest of the loads, in milliseconds."""
        bench = self._bench
        shape = bench.shape(max(bench.loads))
        self._tell("self-check on a mock server", None)
        processes = choose_processes(shape, bench.processes)
        return client_adds_ms(bench.server.api, bench.prompts[0], bench.sampling.max_tokens, shape, processes)

    def one(self, load: float, repeat: int, adds_ms: float | None) -> Told:
        """Measure one load once, unless it was measured before."""
        bench, number = self._bench, self._number
        self._number += 1
        options = Options(
            warmup_s=bench.warmup_s,
            cooldown_s=bench.cooldown_s,
            expected=bench.expected(load),
            slos=bench.slos,
            seed=bench.seed,
        )
        asked = (bench.server.api, bench.sampling.model)
        earlier = self._points.find(number, load, asked) if self._points is not None else None
        if earlier is not None:
            seen, server = earlier
            analysis = analyse(seen, options)
        else:
            seen, side = self._measure(number, load, repeat)
            analysis = analyse(seen, options)
            server = side.figures(analysis.figures.window_s, analysis.figures.output_tokens_per_s)
        if self._points is not None and not seen.was_cancelled:
            self._points.keep(number, load, seen, asked, server)
        may_overdrive = self._has_many and bench.kind == "rate"
        reasons = invalid_reasons(analysis.figures, bench.limits, adds_ms, may_overdrive)
        return Told(load, seen, analysis, tuple(reasons), server)

    def _measure(self, number: int, load: float, repeat: int) -> tuple[Measurement, ServerSide]:
        bench = self._bench
        first = number * (bench.requests or 0) % len(self._bodies)
        bodies = self._bodies[first:] + self._bodies[:first]
        shape = bench.shape(load, repeat)
        processes = choose_processes(shape, bench.processes)
        name = f"{bench.kind} {load:g}" + (f", repeat {repeat + 1}" if bench.repeats > 1 else "")
        with scratch() as folder:
            talks = (bench.sampling, bench.conversations) if bench.conversations else None
            plans = deal_out(bench.server, bodies, shape, bench.how, processes, folder, talks)
            with ServerSide(bench.server, bench.exporters) as side:

                def started(started_at: float, zero_s: float) -> None:
                    side.zero_s = zero_s
                    self._on_start(started_at)

                seen = measure(plans, folder, self._is_cancelled, lambda progress: self._tell(name, progress), started)
        return seen, side

    def all(self, adds_ms: float | None) -> list[Told]:
        """Measure each load as often as it is to be repeated; once it is cancelled, nothing more is begun."""
        found: list[Told] = []
        for load, repeat in itertools.product(self._bench.loads, range(self._bench.repeats)):
            if found and self._is_cancelled():
                self.was_cut = True
                break
            found.append(self.one(load, repeat, adds_ms))
        return found

    def search(self, adds_ms: float | None) -> list[Told]:
        """Measure rates until the highest one that meets the objectives is known."""
        bench, found = self._bench, list[Told]()
        search = RateSearch(first=bench.loads[0])
        while (rate := search.next_rate) is not None:
            if found and self._is_cancelled():
                self.was_cut = True
                break
            told = self.one(rate, 0, adds_ms)
            found.append(told)
            point = _point(bench, told)
            search = search.after(rate, bool(point.is_good) and point.is_valid)
        return found


def _point(bench: Bench, told: Told) -> Point:
    return point_of(bench.kind, told.load, told.analysis.figures, not told.reasons)


def _conclude(bench: Bench, told: Sequence[Told], adds_ms: float | None, was_cut: bool) -> Outcome:
    is_sweep = len({item.load for item in told}) > 1
    points = tuple(_point(bench, item) for item in told)
    knee = find_knee(points) if is_sweep else None
    capacity = find_capacity(points) if is_sweep and bench.slos else None
    main = _main(told, knee.load if knee else None, capacity.good_load if capacity else None)
    more: dict[str, Any] = {"client_adds_ms": adds_ms}
    if is_sweep:
        more |= {"points": points, "knee": knee, "capacity": capacity}
    elif bench.repeats > 1:
        more["repeats"] = combine([metrics_of(item.analysis.figures) for item in told])
    reasons = list(dict.fromkeys(reason for item in told for reason in item.reasons)) if not is_sweep else main.reasons
    was_cancelled = was_cut or any(item.measurement.was_cancelled for item in told)
    if was_cancelled:
        reasons = list(dict.fromkeys([*reasons, CANCELLED]))
    about = {**bench.about, "server_side": main.server, "numpy": np.__version__}
    if is_sweep:
        about["figures_of"] = f"{bench.kind} {main.load:g}"
        about["notes"] = [
            *bench.about.get("notes", ()),
            *(f"{bench.kind} {item.load:g} is not valid: {'; '.join(item.reasons)}" for item in told if item.reasons),
        ]
    if bench.count_answer is not None:
        about["token_check"], doubts = check_tokens(main.measurement, bench.count_answer)
        reasons = [*reasons, *doubts]
    summary = summarise(main.analysis.figures, main.measurement.started_at, reasons, about, **more)
    return Outcome(summary, tuple(told), main, was_cancelled)


def check_tokens(seen: Measurement, count: Callable[[str], int]) -> tuple[dict[str, int], list[str]]:
    """Return how the server's counts of output tokens compare with a tokenizer's, and why they are to be doubted.

    An end mark that is generated and not shown counts with the server: one token of an answer is no difference.
    """
    texts = {note["index"]: note.get("text", "") + note.get("reasoning", "") for note in seen.notes if "text" in note}
    told = [(int(row["usage_tokens"]), count(texts[row["index"]])) for row in _counted(seen) if row["index"] in texts]
    by_server, by_tokenizer = sum(pair[0] for pair in told), sum(pair[1] for pair in told)
    differing = sum(abs(server - own) > 1 for server, own in told)
    figures = {"requests": len(told), "server": by_server, "tokenizer": by_tokenizer, "differing": differing}
    if abs(by_server - by_tokenizer) - len(told) > _TOKENS_DIFFER * by_tokenizer:
        words = f"the server counts {by_server} output tokens where the tokenizer counts {by_tokenizer}"
        return figures, [f"{words}, in {differing} of {len(told)} answers by more than one"]
    return figures, []


def _counted(seen: Measurement) -> Any:
    rows = seen.rows
    return rows[(rows["phase"] == MEASURED) & (rows["error"] < 0) & (rows["usage_tokens"] >= 0)]


def _main(told: Sequence[Told], knee: float | None, good: float | None) -> Told:
    """Return the measurement that stands for all: the highest good load, else the knee, else the last."""
    for load in (good, knee):
        found = [item for item in told if load is not None and item.load == load]
        if found:
            return found[-1]
    return told[-1]


def write_files(outcome: Outcome, folder: Path) -> None:
    """Write what was measured into ``folder``, which is there already; Points, summary and page come on top.

    Raises:
        StorageError: a file cannot be written.
    """
    summary, main = outcome.summary, outcome.main
    write_parquet(main.measurement, folder / "requests.parquet")
    write_jsonl(main.measurement, folder / "requests.jsonl")
    if summary.points:
        write_private(folder / "points.csv", points_csv(summary.points).encode())


def errors_of(seen: Measurement) -> list[str]:
    """Return what was said of requests that failed, each once, a few at most."""
    words = dict.fromkeys(str(note["error"]) for note in seen.notes if "error" in note)
    return list(words)[:MAX_ERRORS_TOLD]
