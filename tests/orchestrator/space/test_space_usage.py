"""What lies where, against du itself and against what was written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from orchestrator.atomic import write_json
from orchestrator.space.removal import doomed_name
from orchestrator.space.usage import measure
from orchestrator.space.wording import age_text, size_text
from orchestrator.transports import LocalTransport
from tests.orchestrator.space.conftest import COMPLETED, Runs, snapshot

Orch = Callable[..., int]


@pytest.fixture
def site(runs: Runs) -> None:
    """A site file whose cache is in the output folder."""
    folder = runs.folder / ".config" / "orch"
    folder.mkdir(parents=True)
    write_json(folder / "site.yaml", {"cache_dir": str(runs.output / "cache")})


def du(path: object) -> int:
    """Return what du says."""
    shown = subprocess.run(["du", "-s", "-B1", str(path)], capture_output=True, text=True, check=True).stdout
    return int(shown.split()[0])


@pytest.mark.usefixtures("site")
def test_du_tells_sizes_by_run_and_kind(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.add("a run with a long name of its own, for eighty columns", *COMPLETED)
    (run.data("prometheus")).mkdir()
    (run.data("prometheus") / "chunk").write_bytes(os.urandom(300_000))
    (runs.output / "cache" / "models" / "m").mkdir(parents=True)
    (runs.output / "cache" / "models" / "m" / "weights").write_bytes(os.urandom(700_000))
    (runs.output / "archives").mkdir()
    (runs.output / "archives" / "x.tar.gz").write_bytes(os.urandom(100_000))
    (runs.output / doomed_name("gone")).mkdir()
    (runs.output / "strange").mkdir()
    before = snapshot(runs.output)
    assert orch("du", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert snapshot(runs.output) == before
    (told,) = found["runs"]
    assert told["checkpoints"] == du(run.checkpoints) + du(run.trials / "job_1" / "checkpoints")
    assert told["logs"] == du(run.logs) + du(run.trials / "job_1" / "logs")
    assert told["data"] == du(run.root / "data") >= 300_000
    assert told["total"] == du(run.root) == sum(told[kind] for kind in ("logs", "checkpoints", "data", "rest"))
    assert found["others"]["caches"] == du(runs.output / "cache") >= 700_000
    assert set(found["others"]) == {"caches", "archives", "half-deleted runs", "other files"}
    assert found["total"] == du(runs.output)
    assert orch("du") == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown[1:])) <= 80


def test_links_are_not_followed_and_a_file_with_two_names_counts_once(runs: Runs) -> None:
    outside = runs.folder / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(os.urandom(1 << 20))
    folder = runs.output / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "one").write_bytes(os.urandom(100_000))
    os.link(folder / "one", folder / "two")
    tree = measure(LocalTransport(), str(runs.output))
    assert 100_000 <= tree.sizes["folder"] < 200_000
    assert measure(LocalTransport(), str(runs.output / "none")).total == 0


def test_names_that_look_like_sizes_or_options_are_names(runs: Runs) -> None:
    for name in ("-x", "12\t34", "a\nb", " "):
        (runs.output / name).mkdir()
    assert set(measure(LocalTransport(), str(runs.output)).folders()) == {"-x", "12\t34", "a\nb", " "}


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")]
)
def test_sizes_are_written_with_their_unit(size: int, text: str) -> None:
    assert size_text(size) == text


def test_ages_are_written_in_days_or_hours() -> None:
    assert (age_text(7200), age_text(3 * 86400)) == ("2 h", "3 d")
