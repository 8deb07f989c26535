"""The server's counts of output tokens against those of a tokenizer."""

from __future__ import annotations

from client.load.bench import check_tokens
from tests.client.load.conftest import Ask


def test_counts_that_agree_are_told(ask: Ask) -> None:
    seen = ask("mock:tokens=8", clients=2, requests=5, keeps_text=True)
    figures, doubts = check_tokens(seen, lambda text: text.count("tok"))
    assert (figures, doubts) == ({"requests": 10, "server": 80, "tokenizer": 80, "differing": 0}, [])


def test_counts_that_differ_make_a_result_doubtful(ask: Ask) -> None:
    seen = ask("mock:tokens=8", clients=2, requests=5, keeps_text=True)
    figures, (doubt,) = check_tokens(seen, lambda text: text.count("tok") // 2)
    assert (figures["tokenizer"], figures["differing"]) == (40, 10)
    assert "counts 80 output tokens where the tokenizer counts 40" in doubt
