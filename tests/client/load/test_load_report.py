"""The page and its plots."""

from __future__ import annotations

import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from client.load.analysis import Options, compute_figures
from client.load.columns import columns_of
from client.load.export import Summary, summarise
from client.load.figures import metrics_of
from client.load.repeats import combine
from client.load.report import render_report, write_report
from client.load.run import Measurement
from client.load.saturation import find_capacity, find_knee, point_of
from client.load.slo import parse_slos
from client.load.validity import Limits, invalid_reasons
from tests.client.load.synthetic import closed_loop, failed, measurement, open_loop

_HOSTILE = '</style><script>alert("1")</script>"><img src=x onerror=alert(1)>\u202e\x00'


class _Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in {"meta", "path", "use", "clippath", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def _summary(made: Measurement, about: dict[str, Any], **more: Any) -> Summary:
    figures = compute_figures(made, Options(slos=parse_slos("ttft_ms<=100")))
    return summarise(figures, made.started_at, invalid_reasons(figures, Limits()), about, **more)


def _sweep() -> dict[str, Any]:
    slos = parse_slos("ttft_ms<=100")
    points = tuple(
        point_of("concurrency", clients, compute_figures(closed_loop(clients, 30), Options(slos=slos)), clients != 4)
        for clients in (1, 2, 4, 8, 16)
    )
    return {"points": points, "knee": find_knee(points), "capacity": find_capacity(points)}


def test_a_valid_load_is_told_with_its_figures_and_plots(tmp_path: Path) -> None:
    made = open_loop(600)
    repeats = combine([metrics_of(compute_figures(open_loop(100, seed=seed))) for seed in range(3)])
    summary = _summary(made, {"model": "m", "url": "http://a:1"}, repeats=repeats, **_sweep())
    written = write_report(tmp_path, summary, columns_of(made))
    names = ["saturation", "ttft-load", "percentiles", "itl", "timeline", "ttft"]
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "report.html", *(f"plots/{name}.png" for name in names)
    ]  # fmt: skip
    page = _Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 6
    assert page.open == []
    for words in (
        "Valid: nothing speaks",
        f"{summary.ttft_ms.p99:.1f}"[:4],
        "p99.9",
        "Good requests/s",
        "16 at once",
        "ttft_p50",
    ):
        assert words in page.text, words
    assert "not valid" not in page.text.replace("Hollow points are not valid", "")
    for path in written[1:]:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", data[16:24]) == (1000, 720)


def test_an_invalid_load_is_never_told_as_valid() -> None:
    made = failed(open_loop(200), [3, 4, 9], "timeout")
    page = _Page(render_report(_summary(made, {}), columns_of(made), ["no answer"] * 3))
    assert "Not valid: do not publish" in page.text
    assert "3 of 200 requests failed (timeout: 3)" in page.text
    assert page.text.count("not valid") == 1 + page.tags.count("svg")
    assert "no answer" in page.text
    assert "nothing speaks" not in page.text


def test_hostile_text_is_text() -> None:
    made = failed(open_loop(50), [3], "server_error")
    content = render_report(_summary(made, {"model": _HOSTILE, _HOSTILE: _HOSTILE}), columns_of(made), [_HOSTILE])
    page = _Page(content)
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.text.count("onerror=alert(1)>\ufffd\ufffd") >= 4
    assert not {"\u202e", "\x00"} & set(content)
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!#)|@import", content.replace("&quot;", ""))


@pytest.mark.parametrize(
    "made",
    [
        measurement(*(open_loop(0).rows["sent_s"],) * 2, open_loop(0).gaps.reshape(0, 1)),
        open_loop(1),
        open_loop(3, tokens=1),
        failed(open_loop(20), list(range(20)), "connect"),
        closed_loop(2, 3),
    ],
    ids=["nothing", "one", "one token each", "all failed", "few"],
)
def test_little_data_still_makes_a_page(made: Measurement) -> None:
    page = _Page(render_report(_summary(made, {}), columns_of(made)))
    assert page.open == []
    assert "Load on a server" in page.text
    assert "nan" not in page.text.lower().replace("finance", "")


def test_a_page_without_requests_has_no_plots() -> None:
    assert "svg" not in _Page(render_report(_summary(open_loop(50), {}))).tags


@pytest.mark.browser
def test_the_page_fits_its_window_and_loads_nothing(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on PATH")
    from playwright.sync_api import sync_playwright

    made = failed(open_loop(400), [3, 4], "timeout")
    write_report(
        tmp_path, _summary(made, {"model": "long" * 90, "x": _HOSTILE}, **_sweep()), columns_of(made), [_HOSTILE]
    )
    where = (tmp_path / "report.html").as_uri()
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: said.append(request.url))
        page.goto(where)
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        backgrounds = set()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.close()
    assert set(said) == {where}
    assert len(backgrounds) == 2
