"""What a server, node_exporter and DCGM tell during a load, and targets that do not behave."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.errors import WorkloadError
from client.load.bench import run_bench
from client.load.command import EXIT_WRONG_INPUT, main
from client.load.exposition import pattern_of, samples_in
from client.load.inputs import Wanted, make_bench
from client.load.plots import pictures_of_server
from client.load.quantities import Reading, read
from client.load.report import write_report
from client.load.server_side import ServerSide, _changes
from client.load.show import show_summary
from client.load.spec import Server
from client.load.watch import Target, exporter_at, usual_exporters
from tests.client.load.conftest import Mock

RECORDED = Path(__file__).parent / "expositions"
BEFORE, AFTER = ((RECORDED / f"vllm_0.32_{when}.prom").read_bytes() for when in ("before", "after"))
DCGM = (RECORDED / "dcgm_exporter.prom").read_bytes()
NODE_EXPORTER = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
PERIOD_S = 0.05
Page = Callable[[float], bytes]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.load.watch.PERIOD_S", PERIOD_S)


class Exporter:
    """Answers with what ``page`` gives for the seconds since its beginning."""

    def __init__(self, page: Page) -> None:
        self.headers: list[dict[str, str]] = []
        began_s, headers = time.monotonic(), self.headers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers.append(dict(self.headers))
                body = page(time.monotonic() - began_s)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def raw(answer: bytes) -> Iterator[str]:
    """A server that says ``answer`` and hangs up; nothing at all and no end for an empty one."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as open_ones:

        def serve() -> None:
            while True:
                try:
                    connection = open_ones.enter_context(listening.accept()[0])
                    if answer:
                        connection.recv(4096)
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def watched(server: str, *exporters: str, lasts_s: float = 0.5, token: str | None = None) -> dict[str, Any]:
    """Watch for a while, as around a load of 100 output tokens per second."""
    named = [exporter_at(url) for url in exporters] or [Target("http://127.0.0.1:1/metrics")]
    with ServerSide(Server(server, "openai-chat", token), named) as side:
        side.zero_s = time.monotonic()
        time.sleep(lasts_s)
    return side.figures((0.0, lasts_s), 100.0)


def test_samples_are_those_of_a_whole_parser() -> None:
    expected: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(AFTER.decode()):
        for sample in family.samples:
            expected.setdefault(sample.name, []).append(sample.value)
    found = samples_in(AFTER, pattern_of(expected))
    assert {name: [value for _, value in rows] for name, rows in found.items()} == expected


def test_name_that_begins_like_a_wanted_one_is_not_it() -> None:
    text = b'up_time 1\nup{a="} 5"} 2 1700000000\namd_up 3\nxup 4\n# up 6\nup 7'
    assert samples_in(text, pattern_of(["up"])) == {"up": [(b'a="} 5"', 2.0), (b"", 3.0), (b"", 7.0)]}


def test_gpus_of_dcgm_are_summed_or_averaged_in_our_units() -> None:
    told = read(DCGM)
    assert told is not None
    assert told.now == pytest.approx({
        "gpu_busy_share": 0.5, "gpu_memory_used_bytes": 73728 * 2**20, "gpu_power_w": 500.0,
        "gpu_energy_j": 5551899.58 + 4742776.0,
    })  # fmt: skip


def test_gpu_that_is_told_for_each_pod_or_slice_counts_once_with_the_memory_of_all() -> None:
    text = b"".join(
        b'DCGM_FI_DEV_POWER_USAGE{UUID="A",GPU_I_ID="%d",pod="%d"} 300\n'
        b'DCGM_FI_DEV_FB_USED{UUID="A",GPU_I_ID="%d",pod="%d"} 1024\n' % (part, pod, part, pod)
        for part in (1, 2)
        for pod in (1, 2)
    )
    told = read(text)
    assert told is not None
    assert told.now == {"gpu_power_w": 300.0, "gpu_memory_used_bytes": 2.0**31}


@pytest.mark.parametrize("blank", [b"140737488355328.0", b"9223372036854775794", b"NaN"])
def test_value_that_the_exporter_does_not_know_is_none(blank: bytes) -> None:
    told = read(b'DCGM_FI_DEV_POWER_USAGE{UUID="A"} 300\nDCGM_FI_DEV_POWER_USAGE{UUID="B"} %s\n' % blank)
    assert told is not None
    assert told.now == {"gpu_power_w": 300.0}


def test_vllm_is_told_by_its_changes_and_its_course() -> None:
    with Exporter(lambda at_s: AFTER if at_s > 0.25 else BEFORE) as server:
        told = watched(server.url)
    assert (told["prompt_tokens"], told["generation_tokens"], told["preemptions"]) == (100, 64, 1)
    assert told["prefix_cache_hit_ratio"] == 0.4
    assert told["ttft_s"]["count"] == 2
    assert told["ttft_s"]["mean"] == pytest.approx(0.05)
    assert (told["ttft_s"]["p50_at_most"], told["ttft_s"]["p99_at_most"]) == (0.04, 0.08)
    assert (told["requests_running"]["min"], told["requests_running"]["max"]) == (0, 2)
    assert 0 < told["kv_cache_usage"]["mean"] < 0.25
    course = told["series"]["requests_waiting"]
    assert {value for _, value in course} == {0, 1}
    assert [at_s for at_s, _ in course] == sorted(at_s for at_s, _ in course if at_s >= 0)


def test_values_that_cannot_be_and_counters_that_began_anew_are_left_out() -> None:
    text = (
        b'vllm:kv_cache_usage_perc{engine="0"} -1e308\nvllm:kv_cache_usage_perc{engine="1"} -1e308\n'
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\nnode_load1 -Inf\n"
        b"vllm:generation_tokens_total 7\n"
    )
    reading = read(text)
    assert reading is not None
    assert (reading.now, reading.totals) == ({}, {"vllm:generation_tokens_total": 7.0})
    assert _changes({"vllm:generation_tokens_total": 9.0}, reading.totals) == {}
    assert _changes({"vllm:generation_tokens_total": 2.0}, reading.totals) == {"generation_tokens": 5.0}


def test_cache_usage_of_several_engines_is_their_mean() -> None:
    told = read(b'vllm:kv_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="1"} 0.7\n')
    assert told is not None
    assert told.now["kv_cache_usage"] == pytest.approx(0.8)


def energy_page(per_s: float, renewed_s: float = 0.0) -> Page:
    """A DCGM whose first GPU draws ``per_s`` watts; its counter is renewed as often as told."""

    def page(at_s: float) -> bytes:
        at_s = at_s // renewed_s * renewed_s if renewed_s else at_s
        return DCGM.replace(b"5551899580", b"%d" % (5551899580 + 1000 * per_s * at_s))

    return page


@pytest.mark.parametrize("renewed_s", [0.0, 0.15])
def test_energy_is_what_the_counters_say(renewed_s: float) -> None:
    with Exporter(energy_page(300.0, renewed_s)) as dcgm:
        told = watched("http://127.0.0.1:1", dcgm.url, lasts_s=0.8)
    assert told["energy_j"] == pytest.approx(300.0 * 0.8, rel=0.2)
    assert told["joules_per_output_token"] == pytest.approx(told["energy_j"] / 0.8 / 100)
    assert told["exporters"][f"{dcgm.url}/metrics"]["gpu_power_w"]["mean"] == 500


def test_energy_without_a_counter_that_moves_is_by_power_of_all_exporters() -> None:
    with Exporter(lambda _: DCGM) as one, Exporter(lambda _: b'amd_gpu_package_power{gpu_id="0"} 750\n') as other:
        told = watched("http://127.0.0.1:1", one.url, other.url)
    assert told["energy_j"] == pytest.approx((500 + 750) * 0.5)
    assert told["joules_per_output_token"] == pytest.approx(12.5)


@pytest.mark.skipif(NODE_EXPORTER is None, reason="no prometheus-node-exporter on PATH")
def test_real_node_exporter_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [str(NODE_EXPORTER), f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with socket.socket() as asking:
                    if asking.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            url = f"http://127.0.0.1:{port}"
            told = watched("http://127.0.0.1:1", url, lasts_s=1.0)["exporters"][f"{url}/metrics"]
        finally:
            process.terminate()
    available_kib = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    assert available_kib is not None
    assert math.isclose(told["memory_available_bytes"]["mean"], 1024 * int(available_kib[1]), rel_tol=0.2)
    assert 0 <= told["cpu_busy_share"]["min"] <= told["cpu_busy_share"]["mean"] <= 1
    assert told["load_1min"]["samples"] >= 3
    assert set(told["series"]) == {"cpu_busy_share"}


def test_target_that_hangs_keeps_no_other_waiting() -> None:
    with raw(b"") as hanging, Exporter(lambda _: DCGM) as dcgm:
        began_s = time.monotonic()
        told = watched(hanging, hanging, dcgm.url)
        assert time.monotonic() - began_s < 0.5 + 2.5, "the first look waits 2 s, and then the load lasts 0.5 s"
    assert told["exporters"][f"{hanging}/metrics"] == {}
    assert told["exporters"][f"{dcgm.url}/metrics"]["gpu_power_w"]["samples"] >= 3
    assert "requests_running" not in told


def test_target_that_hangs_in_mid_run_keeps_what_it_has_shown() -> None:
    released = threading.Event()

    def page(at_s: float) -> bytes:
        if at_s > 0.3:
            released.wait(10)
        return AFTER

    with Exporter(page) as server, Exporter(lambda _: DCGM) as dcgm:
        told = watched(server.url, dcgm.url, lasts_s=0.8)
        released.set()
    assert 1 <= told["requests_running"]["samples"] <= 6
    assert told["exporters"][f"{dcgm.url}/metrics"]["gpu_power_w"]["samples"] >= 6
    assert told["series"]["requests_running"][-1][0] < 0.5


def test_target_that_dies_in_mid_run_keeps_what_it_has_shown() -> None:
    with Exporter(lambda _: DCGM) as dcgm:
        with (
            Exporter(lambda at_s: AFTER if at_s > 0.1 else BEFORE) as server,
            ServerSide(Server(server.url, "openai-chat"), [exporter_at(dcgm.url)]) as side,
        ):
            side.zero_s = time.monotonic()
            time.sleep(0.4)
            server.__exit__()
            time.sleep(0.3)
        told = side.figures((0.0, 0.7), 100.0)
    assert told["generation_tokens"] == 64
    assert told["series"]["requests_running"][-1][0] < 0.5
    assert told["exporters"][f"{dcgm.url}/metrics"]["gpu_power_w"]["samples"] > told["requests_running"]["samples"]


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        HEAD + b"\r\n<html>no metrics</html>",
        HEAD + b"\r\nvllm:num_requests_running many\n",
        HEAD + b"Content-Length: 100\r\n\r\nvllm:num_requests_running 1\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nvllm:num_requests_running 1\n",
        b"HTTP/1.1 401 Unauthorized\r\n\r\nvllm:num_requests_running 1\n",
        HEAD + b"\r\n" + b"\xff\x00" * 2**22 + b"\nvllm:num_requests_running 1\n",
    ],
    ids=["no HTTP", "a page", "no number", "cut short", "no chunks", "401", "endless"],
)
def test_nonsense_tells_nothing(answer: bytes) -> None:
    with raw(answer) as url:
        assert watched(url, lasts_s=0.1) == {"exporters": {"http://127.0.0.1:1/metrics": {}}}


def test_chunked_answer_is_read() -> None:
    line = b"vllm:num_requests_running 3\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (line[:9], line[9:])) + b"0\r\n\r\n"
    with raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) as url:
        assert watched(url, lasts_s=0.2)["requests_running"]["mean"] == 3


def test_only_the_server_gets_the_token() -> None:
    with Exporter(lambda _: AFTER) as server, Exporter(lambda _: DCGM) as dcgm:
        watched(server.url, dcgm.url, lasts_s=0.1, token="sesame")
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sesame"}
    assert not [headers for headers in dcgm.headers if "Authorization" in headers]


def test_benchmark_tells_and_draws_what_its_exporters_said(mock: Mock, tmp_path: Path) -> None:
    with Exporter(energy_page(300.0)) as dcgm, Exporter(lambda _: b"node_load1 2.5\n") as node:
        wanted = Wanted(
            Server(mock.url, "openai-chat"), "mock:ttft=0.02,itl=0.005,tokens=8", duration_s=0.8,
            exporters=(dcgm.url, node.url), has_self_check=False,
        )  # fmt: skip
        outcome = run_bench(make_bench(wanted))
    told = outcome.summary.about["server_side"]
    assert told["joules_per_output_token"] == pytest.approx(
        told["energy_j"] / outcome.summary.duration_s / outcome.summary.output_tokens_per_s
    )
    assert 0 <= told["exporters"][f"{dcgm.url}/metrics"]["series"]["gpu_power_w"][0][0] < 0.2
    assert "Energy of the GPUs: " in show_summary(outcome.summary)
    write_report(tmp_path, outcome.summary, outcome.main.analysis.columns)
    page = (tmp_path / "report.html").read_text()
    for words in ("The server meanwhile", f"By the exporter at {node.url}/metrics", "mean 500.0 W, 500.0 to 500.0",
                  "GPU busy</dt><dd>mean 50.00 %", "Load 1min</dt><dd>mean 2.50"):  # fmt: skip
        assert words in page
    assert (tmp_path / "plots" / "server.png").stat().st_size > 5000


def test_bench_refuses_what_is_no_exporter(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["http://127.0.0.1:1", "--model", "m", "--output", str(tmp_path), "--exporter", "node7:9100"]
    assert main(argv) == EXIT_WRONG_INPUT
    assert "--exporter: give http://" in capsys.readouterr().err


def test_few_samples_are_not_drawn() -> None:
    told = {"series": {"requests_running": [(0.0, 1.0), (1.0, 2.0)]}}
    assert pictures_of_server(told, is_valid=True) == []
    [picture] = pictures_of_server({"exporters": {"a": told, "b": _course("gpu_power_w")}}, is_valid=False)
    assert not picture.is_valid
    assert [words for _, _, words in picture.keys] == ["GPUs' power"]


def _course(name: str) -> dict[str, Any]:
    return {"series": {name: [(float(at_s), 1.0) for at_s in range(3)]}}


def test_long_course_is_told_by_means_of_neighbours() -> None:
    side = ServerSide(Server("http://127.0.0.1:1", "openai-chat"))
    side.zero_s = 0.0
    for at_s in range(1200):
        side.seen[0].add(float(at_s), Reading({"gpu_power_w": float(at_s)}, {}))
    told = side.figures((0.0, 2000.0), 1.0)
    assert told["series"]["gpu_power_w"][:2] == [(1.5, 1.5), (5.5, 5.5)]
    assert len(told["series"]["gpu_power_w"]) == 300
    assert told["gpu_power_w"]["samples"] == 1200


def test_load_that_never_began_tells_nothing() -> None:
    with Exporter(lambda _: AFTER) as server, ServerSide(Server(server.url, "openai-chat")) as side:
        pass
    assert side.figures((0.0, 1.0), 1.0) == {}


def test_exporters_are_looked_for_on_the_servers_own_host() -> None:
    assert [target.url for target in usual_exporters("https://[::1]:8000/v1")] == [
        "http://[::1]:9100/metrics",
        "http://[::1]:9400/metrics",
    ]


def test_exporter_keeps_its_own_path_and_query() -> None:
    assert exporter_at("http://n:1/").url == "http://n:1/metrics"
    assert exporter_at("http://n:1/metrics?collect[]=cpu").url == "http://n:1/metrics?collect[]=cpu"


@pytest.mark.parametrize("url", ["node7:9100", "http://", "http://n:99999", "http://me:secret@n:1", "http://n/a b"])
def test_url_of_no_exporter_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(WorkloadError, match="--exporter: give http://") as refused:
        exporter_at(url)
    assert "secret" not in str(refused.value)
