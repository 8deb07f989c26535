"""Distributions as they are written, and what they give."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import WorkloadError
from client.load.distributions import parse_lengths, parse_seconds
from client.load.seeds import generator_for


def lengths(text: str, count: int = 20_000) -> list[int]:
    return parse_lengths(text, "input_tokens").draw_whole(generator_for(1, "test"), count)


@pytest.mark.parametrize("text", ["128", " constant:128 "])
def test_constant_gives_one_value(text: str) -> None:
    assert set(lengths(text)) == {128}


def test_uniform_has_both_ends_as_often_as_the_rest() -> None:
    found, counts = np.unique(lengths("uniform:100-109"), return_counts=True)
    assert list(found) == list(range(100, 110))
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_normal_has_its_mean_and_deviation() -> None:
    values = lengths("mean=512,std=64")
    assert np.mean(values) == pytest.approx(512, rel=0.01)
    assert np.std(values) == pytest.approx(64, rel=0.03)
    assert values == lengths("normal:std=64,mean=512")


def test_truncated_normal_does_not_heap_at_its_limits() -> None:
    values = np.array(lengths("mean=512,std=200,min=400,max=600"))
    assert values.min() == 400
    assert values.max() == 600
    assert np.mean(values == 400) < 0.01
    assert np.mean(values == 600) < 0.01


def test_lognormal_has_the_mean_and_deviation_of_its_values() -> None:
    values = lengths("lognormal:mean=512,std=300", 100_000)
    assert np.mean(values) == pytest.approx(512, rel=0.02)
    assert np.std(values) == pytest.approx(300, rel=0.05)
    bounded = lengths("lognormal:mean=512,std=300,min=100,max=700")
    assert (min(bounded), max(bounded)) == (100, 700)


def test_file_gives_what_is_in_it_as_often(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("10\n10\n\n20\n10\n")
    values = lengths(f"file:{path}")
    assert set(values) == {10, 20}
    assert np.mean(np.array(values) == 10) == pytest.approx(0.75, abs=0.02)


def test_pauses_are_not_rounded() -> None:
    values = parse_seconds("uniform:0.5-1.5", "think").draw(generator_for(1, "think"), 5000)
    assert values.min() >= 0.5
    assert values.max() <= 1.5
    assert len(np.unique(values)) == 5000
    assert parse_seconds("0", "think").draw(generator_for(1, "think"), 2).tolist() == [0.0, 0.0]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5000), st.floats(0.5, 3000), st.integers(1, 4000), st.integers(0, 4000), st.booleans())
def test_no_value_is_beyond_the_limits_and_longer_draws_begin_with_shorter(
    mean: int, std: float, low: int, width: int, is_log: bool
) -> None:
    text = f"{'log' if is_log else ''}normal:mean={mean},std={std},min={low},max={low + width}"
    try:
        distribution = parse_lengths(text, "input_tokens")
    except WorkloadError as error:
        if "next to no value" not in str(error):
            raise
        return
    values = distribution.draw_whole(generator_for(1, "test"), 50)
    assert all(low <= value <= low + width for value in values)
    assert values[:20] == distribution.draw_whole(generator_for(1, "test"), 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no number"),
        ("many", "'many' is no number"),
        ("0", "0 is less than 1"),
        ("1.5", "1.5 is no whole number"),
        ("inf", "'inf' is not finite"),
        ("uniform:100", "LOW-HIGH"),
        ("uniform:200-100", "200 is more than 100"),
        ("uniform:0-10", "0 is less than 1"),
        ("mean=512", "std missing"),
        ("max=512", "mean and std missing"),
        ("mean=512,std=0", "std is not greater than 0"),
        ("mean=512,std=1,std=2", "std is given twice"),
        ("mean=512,sd=1", "'sd=1' is none of mean="),
        ("mean=512,std=1,min=600,max=500", "600 is more than 500"),
        ("mean=512,std=1,min=900", "next to no value"),
        ("lognormal:mean=0,std=1", "mean is not greater than 0"),
        ("poisson:3", "'poisson' is no distribution"),
        ("file:/no/such/file", "cannot be read"),
    ],
)
def test_errors_name_the_field_and_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape(words)) as caught:
        parse_lengths(text, "output_tokens")
    assert str(caught.value).startswith(f"output_tokens = '{text}'")
    assert "Allowed: a number, uniform:LOW-HIGH" in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("", "no numbers"), ("3\nx\n", "line 2"), ("3\n0\n", "0 is less than 1")])
def test_files_that_hold_no_lengths_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=words):
        lengths(f"file:{path}")
