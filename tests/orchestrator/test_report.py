"""The report: complete, in words where parts are missing, and inert whatever a run says."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report import build_page, write_report
from orchestrator.report.wording import quantity, time_span
from orchestrator.rundir import RunDir

START = 1_795_312_345.0
HOSTILE = '<script>alert("1")</script>"><img src=x onerror=alert(1)>${7*7}{{ 7*7 }}\x1b[31mred\x00\ud800\u202e'
VOID = {"meta", "link", "br", "img", "hr", "input"}


def seeded(seed: int) -> random.Random:
    return random.Random(seed)


def request_records(
    n_clients: int = 8, each: int = 40, failed: frozenset[int] = frozenset({37, 205, 290})
) -> list[dict[str, Any]]:
    """Return requests of a server that needs about 90 ms to the first token and 11 ms for each one after."""
    chance, records = seeded(7), []
    for client_id in range(n_clients):
        now_s = 0.0
        for index in range(each):
            lost = client_id * each + index in failed
            tokens = chance.randint(64, 128)
            first_s = now_s + chance.lognormvariate(-2.4, 0.35) + (0.4 if index == 0 else 0.0)
            last_s = first_s + tokens * chance.uniform(0.0095, 0.0125)
            end_s = now_s + 2.5 if lost else last_s + 0.002
            record = {
                "client_id": client_id, "index": index, "intended_at_s": now_s, "sent_at_s": now_s, "eof_at_s": end_s,
                "first_byte_at_s": None if lost else first_s - 0.001, "first_token_at_s": None if lost else first_s,
                "last_token_at_s": None if lost else last_s, "prompt_tokens": None if lost else 21,
                "completion_tokens": 0 if lost else tokens, "chunks": 0 if lost else tokens, "finish_reason": "length",
                "http_status": None if lost else 200, "error_class": "timeout" if lost else None, "warmup": False,
                "error": "no answer in 2.5 s" if lost else None,
            }  # fmt: skip
            records.append(record)
            now_s = end_s
    return records


def trial_curve(job_id: str, epochs: int, top: float, seed: int) -> list[dict[str, Any]]:
    """Return the epochs of a trial that approaches ``top``."""
    chance = seeded(seed)
    shares = [top * (1 - math.exp(-3.2 * epoch / epochs)) + chance.gauss(0, 0.006) for epoch in range(1, epochs + 1)]
    return [
        {"job_id": job_id, "epoch": epoch, "num_epochs": epochs, "val_accuracy": share, "time_s": 9.0 * epoch}
        for epoch, share in enumerate(shares, 1)
    ]


def distribution(p50: float, spread: float, count: int) -> dict[str, Any]:
    """Return a plausible distribution around ``p50``."""
    factors = {"mean": 1.06, "p50": 1.0, "p90": 1 + spread, "p95": 1 + 1.4 * spread, "p99": 1 + 2.4 * spread}
    return {name: p50 * factor for name, factor in factors.items()} | {"max": p50 * (1 + 4 * spread), "count": count}


def trials() -> list[dict[str, Any]]:
    """Return twelve trials of an LLM and of TPE, one of which failed and one was pruned."""
    chance, found = seeded(3), []
    for number in range(12):
        source = "tpe" if number in {2, 5, 9} else "llm"
        failed, value = number == 4, 0.52 + 0.022 * number + chance.uniform(-0.06, 0.05)
        found.append(
            {
                "number": number,
                "job_id": f"48213{number:02d}",
                "source": source,
                "state": "OUT_OF_MEMORY" if failed else "PRUNED" if number == 6 else "COMPLETED",
                "params": {
                    "model_type": chance.choice(["resnet18", "resnet34", "densenet121"]),
                    "batch_size": 128,
                    "learning_rate": 0.1 * chance.random() + 1e-3,
                    "weight_decay": 5.1234e-4 * chance.random(),
                    "dropout_rate": round(chance.random() / 2, 2),
                    "num_epochs": 24,
                },
                "objective": None if failed else value,
                "val_accuracy": None if failed else value - 0.003,
                "duration_s": 41.5 if failed else 412.0 + 9 * number,
                "cause": "CUDA out of memory: batch_size 512 with densenet121 needs 81 GiB of 80" if failed else None,
                "rationale": None
                if source == "tpe"
                else "Trials 1 and 3 were still improving at the last epoch, so a "
                "higher learning rate with the same weight decay should get further in the same number of epochs.",
            }
        )
    return found


def summary_of(run: RunDir) -> dict[str, Any]:
    """Return the summary of a run that did everything."""
    records, tried = request_records(), trials()
    best = max((trial for trial in tried if trial["objective"]), key=lambda trial: trial["objective"])
    packages = ("aiohttp 3.14.5", "jinja2 3.1.6", "matplotlib 3.11.2", "optuna 5.0.0", "torch 2.13.0", "vllm 0.32.0")
    return {
        "schema_version": 1, "run_id": "7f3a2b91", "name": "llama-3.1-8b-tuning", "run_dir": str(run.root),
        "state": "completed", "error": None, "started_at": START, "finished_at": START + 5312.4, "duration_s": 5312.4,
        "scheduler": "slurm",
        "served": {"engine": "vllm", "model": "meta-llama/Llama-3.1-8B-Instruct", "model_source": "Hugging Face",
                   "url": "http://gpu042:41234", "node": "gpu042", "job_id": "4821300", "ready_after_s": 148.2,
                   "device": "NVIDIA H100 80GB HBM3", "precision": "bfloat16"},
        "jobs": [
            {"name": "vllm", "role": "service", "kind": "service", "job_id": "4821300", "state": "COMPLETED",
             "node": "gpu042", "why": None, "submitted_at": START + 3, "ready_after_s": 148.2},
            {"name": "client", "role": "client", "kind": "service", "job_id": "4821301", "state": "COMPLETED",
             "node": "cpu007", "why": None, "submitted_at": START + 3, "ready_after_s": 0.912},
            {"name": "prometheus", "role": "monitoring", "kind": "service", "job_id": "4821302", "state": "CANCELLED",
             "node": "cpu007", "why": "the run is over: cancelled by orch after everything was collected",
             "submitted_at": START + 3, "ready_after_s": 2.31},
            {"name": "trial-4", "role": "trial", "kind": "task", "job_id": "4821304", "state": "OUT_OF_MEMORY",
             "node": "gpu043", "why": "the scheduler says OUT_OF_MEMORY", "submitted_at": START, "ready_after_s": None},
        ],
        "stages": {
            "benchmark": {
                "state": "completed", "n_clients": 8, "n_requests_per_client": 40, "total_queries": len(records),
                "successful": len(records) - 3, "failed": 3, "total_time": 49.6, "queries_per_second": 6.39,
                "avg_request_time": 1.21, "valid": True, "invalid_reasons": [],
                "ttft_ms": distribution(92.1, 0.5, 317), "itl_ms": distribution(10.8, 0.2, 30_118),
                "tpot_ms": distribution(10.9, 0.15, 317), "e2e_ms": distribution(1150, 0.3, 317),
                "output_tokens_per_s": 613.4, "total_tokens_per_s": 748.1, "requests_per_s": 6.39,
                "failures": {"connect": 0, "timeout": 3, "http_status": 0, "zero_tokens": 0},
                "tokens_per_second": {str(client): 74.0 + client for client in range(8)},
                "client_adds_ms": 0.31, "page": "benchmark/run-7f3a2b91/report.html",
            },
            "hpo": {
                "state": "completed", "objective_name": "best_val_accuracy", "trials": tried,
                "finished": 11, "failed": 1,
                "best": {name: best[name] for name in ("number", "params", "objective")},
                "by_source": {"llm": {"count": 9, "best": 0.7612}, "tpe": {"count": 3, "best": 0.694}},
                "llm": {"requests": 14, "prompt_tokens": 21_873, "completion_tokens": 3_120, "latency_s": 3.4},
                "test_accuracy": 0.7533,
            },
        },
        "monitoring": {
            "seen": True, "why": None, "prometheus_url": "http://cpu007:36211",
            "series": [
                {"metric": {"__name__": "tokens_per_second", "client_id": str(client)},
                 "values": [[START + 300, "0"], [START + 315, str(74 + client)]]} for client in range(8)
            ] + [
                {"metric": {"__name__": "vllm:num_requests_running", "model_name": "llama"}, "values": [[START, "8"]]},
                {"metric": {"__name__": "vllm:time_to_first_token_seconds_sum"}, "values": [[START, "29.874"]]},
                {"metric": {"__name__": "trial_val_accuracy", "trial": "11"}, "values": [[START, "NaN"]]},
            ],
        },
        "notes": ["Partition 'gpu' was chosen by the site file.", "The token of this run was revoked at its end."],
        "provenance": {"orch_version": "0.1.0", "python": "3.12.8", "recipe_sha256": "9f86d081884c7d659a2feaa0c55ad015",
                       "packages": dict(package.split() for package in packages)},
    }  # fmt: skip


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def build_example(folder: Path) -> RunDir:
    """Make a run directory with everything that a report can show."""
    run = RunDir(folder / "example_7f3a2b91")
    run.make()
    run.summary.write_text(json.dumps(summary_of(run)))
    write_lines(run.benchmark / "bench-1" / "requests.jsonl", request_records())
    for trial in trials():
        epochs = 9 if trial["state"] == "PRUNED" else 24
        if trial["objective"]:
            lines = trial_curve(trial["job_id"], epochs, trial["objective"], trial["number"])
            write_lines(run.trials / f"job_{trial['job_id']}" / "metrics.jsonl", lines)
    return run


class Outline(HTMLParser):
    """Collects what a browser would make of a page, and fails if its elements are not nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text, with plain single spaces."""
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = build_example(tmp_path_factory.mktemp("runs"))
    assert write_report(run) == run.report
    return run


@pytest.fixture
def empty(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "quiet_00000001")
    run.make()
    return run


def report_of(run: RunDir, summary: object) -> Outline:
    run.summary.write_text(json.dumps(summary))
    return Outline(write_report(run).read_text())


def test_report_of_a_whole_run_shows_every_figure(example: RunDir) -> None:
    text = Outline(example.report.read_text()).text
    for part in (
        "llama-3.1-8b-tuning", "completed", "7f3a2b91", "1 h 29 min", "slurm",
        "Output tokens/s 613", "TTFT p50 92.1 ms", "ITL p50 10.8 ms", "Failed requests 3 of 320: 0.9 %",
        "Best validation accuracy 80.4 % trial 11", "Trials finished 11 of 12 trials, 1 failed", "Test accuracy 75.3 %",
        "meta-llama/Llama-3.1-8B-Instruct", "NVIDIA H100 80GB HBM3", "bfloat16", "after 2 min 28 s",
        "Valid: these figures met every condition", "TTFT time to first token 97.6 ms 92.1 ms", "30,118", "1.15 s",
        "Failed requests by class", "timeout no complete answer in time 3", "74 to 81",
        "CUDA out of memory", "Trials 1 and 3 were still improving", "learning_rate", "out of memory", "912 ms",
        "tokens_per_second", "no value", "Partition 'gpu' was chosen", "vllm 0.32.0", "9f86d081",
        f"python orch.py {example.recipe}",
    ):  # fmt: skip
        assert part in text, part
    assert "NaN" not in text
    assert "None" not in text


def test_report_is_one_private_file_without_scripts_or_other_resources(example: RunDir) -> None:
    page = Outline(example.report.read_text())
    assert stat.S_IMODE(example.report.stat().st_mode) == 0o600
    assert [path.name for path in example.root.glob(".*")] == []
    assert page.count("script") == page.count("link") == page.count("img") == page.count("iframe") == 0
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "url(" not in example.report.read_text().replace("url(#", "")
    assert "@import" not in example.report.read_text()


def test_report_is_accessible(example: RunDir) -> None:
    page = Outline(example.report.read_text())
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 4
    assert all(picture["role"] == "img" and len(picture["aria-label"] or "") > 40 for picture in pictures)
    assert page.count("caption") == page.count("table") == page.count("thead") == 5
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in page.elements if tag == "th")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(attributes["href"] or "")[1:] for _, attributes in page.elements if "href" in attributes]
    assert set(targets) <= set(ids)
    assert page.count("h1") == page.count("main") == 1


def test_report_of_a_failed_run_shows_its_error_in_a_box(empty: RunDir) -> None:
    error = "job 'vllm' failed\nIts last words:\n  ValueError: <no> such \x1b[1mmodel\x1b[0m"
    page = report_of(empty, {"name": "sad", "state": "failed", "error": error, "stages": {}, "jobs": []})
    assert page.count("pre") == 2
    text = page.text
    assert "The run ended with this error: job 'vllm' failed Its last words: ValueError: <no> such model" in text
    assert "No model was served" in text
    assert "There was no benchmark: the recipe does not ask for one, or the run ended before it." in text
    assert "There was no hyperparameter search" in text
    assert "No job was submitted." in text
    assert "Nothing was recorded about monitoring." in text
    assert "The run left no notes." in text
    assert page.count("svg") == 0


@pytest.mark.parametrize("summary", [None, [], {}, "text", {"stages": None, "served": 3, "jobs": {"a": 1}}])
def test_report_without_a_usable_summary_says_so(empty: RunDir, summary: object) -> None:
    text = report_of(empty, summary).text
    assert "not recorded" in text
    assert ("no summary.json" in text) == (not isinstance(summary, dict) or not summary)


def test_report_without_a_summary_file_is_written(empty: RunDir) -> None:
    assert "no summary.json" in write_report(empty).read_text()


def test_completed_run_without_stages_says_that_none_was_asked_for(empty: RunDir) -> None:
    text = report_of(empty, {"state": "completed"}).text
    assert "There was no benchmark: the recipe does not ask for one." in text


def test_invalid_benchmark_says_why(empty: RunDir) -> None:
    stage = {"state": "completed", "valid": False, "invalid_reasons": ["12 % of the requests failed", None, "x" * 9]}
    text = report_of(empty, {"stages": {"benchmark": stage}}).text
    assert "Not valid: do not publish or compare these figures. 12 % of the requests failed xxxxxxxxx" in text
    assert "No record of a single request was found" in text


def test_failed_benchmark_shows_its_error(empty: RunDir) -> None:
    text = report_of(empty, {"stages": {"benchmark": {"state": "failed", "error": "the client died"}}}).text
    assert "The benchmark ended with an error. the client died" in text


def test_search_without_results_says_so(empty: RunDir) -> None:
    tried = [{"number": 0, "state": "FAILED", "cause": "no GPU"}, {"number": None}]
    text = report_of(empty, {"stages": {"hpo": {"state": "failed", "trials": tried}}}).text
    assert "No trial finished with a result" in text
    assert "0 trials with a result, 1 without." in text


def test_monitoring_that_saw_nothing_says_why(empty: RunDir) -> None:
    text = report_of(empty, {"monitoring": {"seen": False, "why": "the run has no monitoring", "series": []}}).text
    assert "Prometheus has seen nothing of this run: the run has no monitoring" in text


def test_benchmark_that_was_measured_again_says_why(empty: RunDir) -> None:
    summary = summary_of(empty)
    reason = "the LLM server was restarted while it was measured"
    summary["stages"]["benchmark"]["earlier"] = [{"id": "run-1", "invalid_reasons": [reason]}, "damaged"]
    text = report_of(empty, summary).text
    assert text.count("Measured again; the figures of before are not valid:") == 2
    assert reason in text


def _hostile(value: object) -> object:
    if isinstance(value, dict):
        return {(f"{key}" if key.islower() else HOSTILE): _hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_everywhere_stays_text(empty: RunDir) -> None:
    summary = summary_of(empty)
    summary["error"] = summary["stages"]["hpo"]["trials"][0]["cause"] = "x"
    summary["stages"]["benchmark"] |= {
        "valid": False,
        "invalid_reasons": ["x"],
        "earlier": [{"invalid_reasons": ["x"]}],
    }
    summary["stages"]["benchmark"]["failures"]["<b>X"] = 2
    write_lines(empty.benchmark / "requests.jsonl", request_records(2, 3))
    hostile_name = '"><script>alert(2)</script>'
    write_lines(empty.trials / "job_<svg onload=alert(3)>" / "metrics.jsonl", trial_curve(hostile_name, 3, 0.5, 1))
    page = report_of(empty, _hostile(summary))
    content = empty.report.read_text()
    assert page.count("script") == page.count("img") == page.count("b") - content.count("</span> <b>") == 0
    assert '<script>alert("1")</script>"><img src=x onerror=alert(1)>${7*7}{{ 7*7 }}red' in page.text
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes or "onload" in attributes]
    assert not {"\x1b", "\x00", "\u202e", "\ud800"} & set(content)


@pytest.mark.browser
def test_report_in_a_browser_fits_its_window_and_runs_and_loads_nothing(example: RunDir, empty: RunDir) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on PATH")
    from playwright.sync_api import sync_playwright

    report_of(empty, _hostile(summary_of(empty) | {"error": "x", "name": "long" * 99}))
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        backgrounds = set()
        for run in (example, empty):
            page = browser.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("dialog", lambda dialog: said.append(dialog.message))
            page.on("request", lambda request: said.append(request.url))
            page.goto(run.report.as_uri())
            for width in (1280, 400):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") == width, run.root.name
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.close()
    assert set(said) == {example.report.as_uri(), empty.report.as_uri()}
    assert len(backgrounds) == 2


def _each_field_broken(value: Any, by: object) -> Iterator[Any]:
    """Yield copies of ``value``, in each of which one field of its objects is ``by``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield {**value, key: by}
            for broken in _each_field_broken(item, by):
                yield {**value, key: broken}
    elif isinstance(value, list) and value:
        for broken in _each_field_broken(value[0], by):
            yield [broken, *value[1:]]


@pytest.mark.parametrize(
    "by", [None, float("nan"), 1e400, -1, "text", [], {}, [None], True, 10**400], ids=lambda by: str(by)[:6]
)
def test_any_broken_field_is_survived(empty: RunDir, by: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plot_objective", "plot_curves"):
        monkeypatch.setattr(f"orchestrator.report.search.{name}", lambda *_: "<svg></svg>")
    summary = summary_of(empty)
    summary["stages"]["hpo"]["trials"] = summary["stages"]["hpo"]["trials"][:2]
    for broken in _each_field_broken(summary, by):
        assert not re.search(r"\b(nan|inf)\b", repr(build_page(empty, broken))), broken


@pytest.mark.parametrize("value", [1e308, -1e308, 1e18, -1e18, 1e-300])
def test_absurd_measurements_are_drawn_or_left_out(empty: RunDir, value: float) -> None:
    requests = request_records(1, 5, frozenset())
    for record, name in zip(requests, ("sent_at_s", "eof_at_s", "first_token_at_s", "last_token_at_s"), strict=False):
        record[name] = value
    requests[4]["completion_tokens"] = value
    write_lines(empty.benchmark / "requests.jsonl", requests)
    epochs = trial_curve("1", 5, 0.5, 1)
    epochs[1]["val_accuracy"] = epochs[2]["epoch"] = value
    write_lines(empty.trials / "job_1" / "metrics.jsonl", epochs)
    tried = [{"number": 0, "objective": value}, {"number": value, "objective": 0.1}, {"number": 2, "objective": 0.2}]
    page = report_of(empty, {"stages": {"benchmark": {"state": "failed"}, "hpo": {"state": "failed", "trials": tried}}})
    assert page.count("svg") == 4
    assert not re.search(r"\b(nan|inf)\b", empty.report.read_text())


def test_records_that_are_torn_or_of_the_wrong_type_are_left_out(empty: RunDir) -> None:
    records = empty.benchmark / "requests.jsonl"
    write_lines(records, [*request_records(1, 4, frozenset()), {"sent_at_s": "x"}, {"sent_at_s": 1, "eof_at_s": None}])
    warm = {**request_records(1, 1)[0], "warmup": True}
    records.write_text(records.read_text() + json.dumps(warm) + '\nnull\n[1]\n{"sent_at_s": 1, "eo')
    metrics = empty.trials / "job_1" / "metrics.jsonl"
    write_lines(metrics, [{"epoch": None}, {"epoch": 1, "val_accuracy": float("nan")}])
    stages = {"benchmark": {"state": "failed", "total_queries": 9}, "hpo": {"state": "failed"}}
    page = report_of(empty, {"stages": stages})
    assert "4 successful requests. The summary counts 9." in page.text
    assert page.count("svg") == 2


def test_repeats_are_drawn_together_and_attempts_that_did_not_end_are_not(empty: RunDir) -> None:
    write_lines(empty.benchmark / "a" / "requests.jsonl", request_records(2, 5, frozenset()))
    write_lines(empty.benchmark / "b" / "requests.jsonl", request_records(2, 3, frozenset()))
    both = report_of(empty, {"stages": {"benchmark": {"state": "completed", "total_queries": 16}}}).text
    one = report_of(empty, {"stages": {"benchmark": {"state": "completed", "total_queries": 10}}}).text
    assert "16 successful requests." in both
    assert "10 successful requests." in one


def test_long_tables_are_cut_and_say_so(empty: RunDir) -> None:
    many = [{"number": number, "objective": 0.5, "state": "COMPLETED"} for number in range(620)]
    text = report_of(empty, {"stages": {"hpo": {"state": "completed", "trials": many}}}).text
    assert "120 further trials in summary.json." in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"), (0.0, "0 ms"), (0.000234, "0.234 ms"), (0.0921, "92.1 ms"), (0.9996, "1.00 s"), (1.234, "1.23 s"),
        (59.94, "59.9 s"), (59.96, "1 min 00 s"), (148.2, "2 min 28 s"), (3599.7, "1 h 00 min"),
        (90_000, "25 h 00 min"), (-0.5, "−500 ms"),
    ],
)  # fmt: skip
def test_time_span_has_a_sensible_unit(seconds: float | None, words: str) -> None:
    assert time_span(seconds).replace("\u00a0", " ") == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (8.0, "8"), (613.4, "613"), (77.46, "77.5"), (9.999, "10.0"), (0.9999, "1.00"), (1e-5, "1e-05"),
     (30_118.0, "30,118"), (1e18, "1e+18"), (-12.34, "-12.3"), (None, "–")],
)  # fmt: skip
def test_quantity_has_three_digits(value: float | None, words: str) -> None:
    assert quantity(value) == words
