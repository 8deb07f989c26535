"""Images are made once, whole or not at all, by a stand-in for Apptainer that is slow, fails or is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import lease
from orchestrator.containers.definition import definition_of
from orchestrator.containers.making import Runtime, fetch, runtime_of
from orchestrator.containers.sif import ImageError
from orchestrator.containers.store import Store
from orchestrator.errors import ProgramMissingError, StorageError
from orchestrator.models.meter import telling_meter
from orchestrator.recipe.container import Container
from orchestrator.space.caches import is_leftover, lock_path
from tests.orchestrator.conftest import wait_for
from tests.orchestrator.containers.conftest import PROJECT, FakeApptainer, sif_bytes

Begin = Callable[..., subprocess.Popen[str]]
PROMETHEUS = definition_of("prometheus")
CLIENT = definition_of("client")


def make(fake: FakeApptainer, name: str = "prometheus", *, force: bool = False, **container: Any) -> list[str]:
    """Make an image in this process and return what was told."""
    told: list[str] = []
    store = Store(fake.store)
    fetch(definition_of(name), store, Container(**container), told.append, telling_meter(told.append), force)
    assert store.has(definition_of(name))
    return told


def test_pull_makes_an_image_with_a_manifest_and_leaves_nothing_else(fake: FakeApptainer) -> None:
    assert make(fake) == ["pulling prometheus-v2.55.1 from docker.io/prom/prometheus:v2.55.1"]
    folder = fake.store / "prometheus-v2.55.1"
    assert sorted(path.name for path in folder.iterdir()) == ["image.sif", "manifest.json"]
    assert (folder / "image.sif").read_bytes() == fake.sif
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["size"], manifest["made_with"]) == (4096, "apptainer version 1.4.5")
    assert fake.left() == []
    assert make(fake) == []
    assert fake.makings == ["pull image.sif docker://docker.io/prom/prometheus:v2.55.1"]


@pytest.mark.parametrize(
    ("name", "container", "call"),
    [
        (
            "prometheus",
            {"registry": "site.example/m"},
            "pull image.sif docker://site.example/m/prom/prometheus:v2.55.1",
        ),
        ("prometheus", {"registry": "/mirror"}, "build image.sif /mirror/prom/prometheus:v2.55.1"),
        ("client", {}, f"build image.sif {CLIENT.path}"),
        (
            "client",
            {"registry": "site.example/m", "index": "https://a.example"},
            f"build --build-arg=REGISTRY=site.example/m --build-arg=INDEX=https://a.example image.sif {CLIENT.path}",
        ),
        (
            "client",
            {"registry": "/mirror"},
            f"build --build-arg=REGISTRY=/mirror --build-arg=BOOTSTRAP=localimage image.sif {CLIENT.path}",
        ),
    ],
)
def test_image_is_made_from_the_site_s_own_mirror(
    fake: FakeApptainer, name: str, container: dict[str, Any], call: str
) -> None:
    make(fake, name, **container)
    assert fake.makings == [call]


def test_temporary_files_go_beside_the_image_and_nothing_into_the_home_s_cache(fake: FakeApptainer) -> None:
    make(fake)
    temporary = fake.store / ".prometheus-v2.55.1.partial" / "tmp"
    assert (fake.folder / "environment").read_text() == f"{temporary}||1\n"


def test_singularity_alone_is_taken_with_its_own_variables(fake: FakeApptainer) -> None:
    (fake.folder / "apptainer").rename(fake.folder / "singularity")
    assert runtime_of(Container()) == Runtime("singularity")
    assert Runtime("/opt/bin/singularity").prefix == "SINGULARITY"
    assert runtime_of(Container(runtime="apptainer")) == Runtime("apptainer")


def test_image_is_not_made_without_a_runtime_and_the_remedy_is_told(fake: FakeApptainer) -> None:
    (fake.folder / "apptainer").unlink()
    with pytest.raises(ProgramMissingError, match=r"neither apptainer nor singularity is on PATH[^$]*module load"):
        make(fake)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("refused", r"exit code 255\): apptainer pull [^$]*connection refused[^$]*container\.registry"),
        ("garbage", "no SIF image"),
        ("cut", "cut short: 500 of 4096 bytes"),
        ("unreadable", "inspect .*failed"),
    ],
)
def test_image_that_is_not_good_is_refused_and_nothing_is_left(fake: FakeApptainer, how: str, words: str) -> None:
    fake.behave(how)
    with pytest.raises(ImageError, match=words):
        make(fake)
    assert fake.left() == []
    assert not (fake.store / PROMETHEUS.folder).exists()
    fake.behave("well")
    make(fake)


def test_quota_that_is_exceeded_is_told_with_sizes(fake: FakeApptainer) -> None:
    fake.behave("quota")
    with pytest.raises(StorageError, match=r"Disk quota exceeded: 1\.0 MiB were written, and .* are free") as caught:
        make(fake)
    assert caught.value.is_full
    assert fake.left() == []


def _why_no_small_disk() -> str:
    argv = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/tmp"]
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(argv, capture_output=True, text=True)
    return f"no mount namespace for this user: {done.stderr.strip()}" if done.returncode else ""


def test_full_disk_is_told_with_sizes_and_holds_nothing_afterwards(fake: FakeApptainer) -> None:
    if why := _why_no_small_disk():
        pytest.skip(why)
    fake.behave("full")
    fake.store.mkdir()
    script = 'mount -t tmpfs -o size=4m none "$1"; "${@:2}"; code=$?; find "$1" -size +3 ; exit $code'
    argv = [sys.executable, str(PROJECT / "orch.py"), "containers", "pull", "prometheus", f"--dir={fake.store}"]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "sh", str(fake.store), *argv],
        env={**os.environ, "XDG_CONFIG_HOME": str(fake.folder)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    words = done.stderr.partition("No space left on device: ")[2]
    assert words.startswith("4.0 MiB were written, and 0 B are free"), done.stderr
    assert "container.dir" in words


def test_two_at_once_make_one_image(fake: FakeApptainer, begin: Begin) -> None:
    fake.behave("slow")
    first = begin("pull", "prometheus")
    wait_for(lambda: fake.has_started)
    second = begin("pull", "prometheus")
    assert second.stderr is not None
    assert (
        second.stderr.readline()
        == f"waiting: process {first.pid} on {os.uname().nodename} is making prometheus-v2.55.1\n"
    )
    fake.let_go()
    assert [first.wait(30), second.wait(30)] == [0, 0]
    assert len(fake.makings) == 1
    assert fake.left() == []


def test_killed_maker_leaves_nothing_that_is_taken_for_an_image(fake: FakeApptainer, begin: Begin) -> None:
    fake.behave("slow")
    first = begin("pull", "prometheus")
    wait_for(lambda: fake.has_started)
    first.kill()
    first.wait()
    code, out, _ = fake.run("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, rows["prometheus"]["state"]) == (0, "unfinished")
    second = begin("pull", "prometheus")
    assert second.stderr is not None
    # What it started has outlived it, and still writes.
    assert second.stderr.readline() == "waiting: somebody is making prometheus-v2.55.1\n"
    fake.let_go()
    assert second.wait(30) == 0
    assert len(fake.makings) == 2
    assert fake.left() == []
    assert (fake.store / "prometheus-v2.55.1" / "image.sif").read_bytes() == fake.sif


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_maker_ends_the_runtime_and_cleans_up(fake: FakeApptainer, begin: Begin, number: int) -> None:
    fake.behave("slow")
    process = begin("pull", "prometheus")
    wait_for(lambda: fake.has_started)
    process.send_signal(number)
    assert process.wait(30) != 0
    wait_for(lambda: not fake.left())
    fake.let_go()
    time.sleep(0.2)
    assert not (fake.store / "prometheus-v2.55.1").exists()


def test_maker_on_another_node_is_waited_for_until_it_falls_silent(
    fake: FakeApptainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.store.mkdir()
    owner = {"host": "node7", "boot_id": "b", "pid": 12, "started": 1, "nonce": "n"}
    document = {"owner": owner, "renewed_at": time.time(), "expires_at": 0, "keep": False}
    (fake.store / ".prometheus-v2.55.1.lease").write_text(json.dumps(document))
    monkeypatch.setattr(lease, "SILENT_S", 1.0)
    began = time.monotonic()
    assert make(fake)[0] == "waiting: process 12 on node7 is making prometheus-v2.55.1"
    assert time.monotonic() - began > 0.8


def test_maker_that_lost_its_lease_puts_nothing_in_place(
    fake: FakeApptainer, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0.0)
    real = lease.Lease.verify
    owner = {"host": "node7", "boot_id": "b", "pid": 12, "started": 1, "nonce": "n"}

    def taken_over(self: lease.Lease) -> None:
        (fake.store / ".prometheus-v2.55.1.lease").write_text(json.dumps({"owner": owner, "renewed_at": time.time()}))
        real(self)

    monkeypatch.setattr(lease.Lease, "verify", taken_over)
    with pytest.raises(ImageError, match="process 12 on node7 has taken over the making of prometheus"):
        make(fake)
    assert not (fake.store / "prometheus-v2.55.1").exists()


def test_forced_making_replaces_the_image_and_a_damaged_one_is_made_again_by_itself(fake: FakeApptainer) -> None:
    make(fake)
    (fake.folder / "sif").write_bytes(sif_bytes(8192))
    make(fake, force=True)
    image = fake.store / "prometheus-v2.55.1" / "image.sif"
    assert image.stat().st_size == 8192
    os.truncate(image, 1000)
    make(fake)
    assert image.stat().st_size == 8192
    assert len(fake.makings) == 3
    assert fake.left() == []


def test_names_beside_an_image_are_those_that_clean_knows(fake: FakeApptainer) -> None:
    make(fake)
    assert lock_path(fake.store / PROMETHEUS.folder).exists()
    assert is_leftover(f".{PROMETHEUS.folder}.partial")
    assert lock_path(fake.store / f".{PROMETHEUS.folder}.partial") == lock_path(fake.store / PROMETHEUS.folder)
