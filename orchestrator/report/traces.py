"""What requests and trials left on disk, read for the plots."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.plots import Flight
from orchestrator.report.untrusted import as_number, as_text, iter_json_lines
from orchestrator.rundir import RunDir


@dataclass
class RequestTrace:
    """The measured requests of one or more benchmarks, in the order in which they finished.

    ``ttft_s`` and ``e2e_s`` are of successful requests only; a flight may have failed,
    then it brought no tokens.
    """

    flights: list[Flight] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrialTrace:
    """Validation accuracy (a share) by epoch of the trial of ``job_id``; ``folder`` is its directory's name."""

    job_id: str
    folder: str
    accuracy: dict[int, float]


def read_requests(run: RunDir, expected: int | None) -> RequestTrace:
    """Return the trace of the run's benchmark; warm-up requests are no part of it.

    Several files are repeats and are laid one after the other, unless just one of them has the ``expected`` number of
    requests: then the others are of attempts that did not end.
    """
    paths = sorted(path for path in run.benchmark.rglob("requests.jsonl") if path.is_file())
    traces = [_read_requests(run, str(path.relative_to(run.benchmark))) for path in paths]
    if expected is not None and sum(len(trace.flights) for trace in traces) != expected:
        whole = [trace for trace in traces if len(trace.flights) == expected]
        traces = whole if len(whole) == 1 else traces
    return _joined(traces)


def _read_requests(run: RunDir, name: str) -> RequestTrace:
    trace = RequestTrace()
    for record in iter_json_lines(run.benchmark / name):
        sent_at_s, eof_at_s = as_number(record.get("sent_at_s")), as_number(record.get("eof_at_s"))
        if record.get("warmup") is True or sent_at_s is None or eof_at_s is None:
            continue
        first_at_s, last_at_s = as_number(record.get("first_token_at_s")), as_number(record.get("last_token_at_s"))
        is_success = record.get("error_class") is None
        tokens = (as_number(record.get("completion_tokens")) or 0.0) if is_success else 0.0
        trace.flights.append(Flight(sent_at_s, eof_at_s, first_at_s, last_at_s, tokens))
        if is_success:
            trace.e2e_s.append(eof_at_s - sent_at_s)
            if first_at_s is not None:
                trace.ttft_s.append(first_at_s - sent_at_s)
    return trace


def _joined(traces: list[RequestTrace]) -> RequestTrace:
    joined, offset_s = RequestTrace(), 0.0
    for trace in traces:
        joined.ttft_s += trace.ttft_s
        joined.e2e_s += trace.e2e_s
        joined.flights += [_later(flight, offset_s) for flight in trace.flights] if offset_s else trace.flights
        offset_s = max([offset_s, *(flight.eof_at_s for flight in joined.flights)])
    return joined


def _later(flight: Flight, by_s: float) -> Flight:
    first_at_s = None if flight.first_token_at_s is None else flight.first_token_at_s + by_s
    last_at_s = None if flight.last_token_at_s is None else flight.last_token_at_s + by_s
    return Flight(flight.sent_at_s + by_s, flight.eof_at_s + by_s, first_at_s, last_at_s, flight.tokens)


def read_trials(run: RunDir) -> list[TrialTrace]:
    """Return the curve of each trial that has finished an epoch, by the name of its directory."""
    traces = []
    for path in sorted(run.trials.glob("*/metrics.jsonl")):
        accuracy: dict[int, float] = {}
        job_id = ""
        for record in iter_json_lines(path):
            epoch, value = as_number(record.get("epoch")), as_number(record.get("val_accuracy"))
            job_id = as_text(record.get("job_id")) or job_id
            if epoch is not None and value is not None:
                accuracy[int(epoch)] = value
        if accuracy:
            traces.append(TrialTrace(job_id, path.parent.name, accuracy))
    return traces
