"""Site files from what schedulers say; each is loaded again."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import TransportError, UserError
from orchestrator.site import Site, load_site
from orchestrator.sitecheck.commands import init_site, parse_ssh_host
from orchestrator.sitecheck.site_text import site_text
from orchestrator.sitecheck.survey import survey
from orchestrator.transports import LocalTransport
from orchestrator.transports.ssh_spec import SshSpec
from tests.orchestrator.sitecheck.conftest import Shim

PROJECT = Path(__file__).parents[3]


def written(tmp_path: Path) -> tuple[Site, str]:
    path = tmp_path / "new folder" / "site.yaml"
    assert init_site(argparse.Namespace(output=path, host=None, force=False)) == 0
    assert oct(path.stat().st_mode)[-3:] == "600"
    return load_site(path)[0], path.read_text()


def test_site_of_slurm_has_partitions_with_their_gpus_and_limits(
    tmp_path: Path,
    slurm_answers: None,
    shim: Shim,
) -> None:
    shim("sacctmgr", "case $* in *DefaultAccount*) echo 'p2|p1|long'; echo 'p2|p2|short';; *) echo 'p2||short';; esac")
    site, text = written(tmp_path)
    assert site.scheduler is not None
    assert site.scheduler.kind == "slurm"
    assert {name: (item.gpus_per_node, item.gpu_type) for name, item in site.partitions.items()} == {
        "cpu": (0, None),
        "gpu": (4, "a100"),
    }
    roles = site.role_partitions
    assert (roles.server, roles.trial, roles.client, roles.monitoring) == ("gpu", "gpu", "cpu", "cpu")
    assert (site.account, site.qos) == ("p2", "short")
    assert "2 nodes, 8 CPUs, 15.6 GiB, at most 0:30:00" in text


def test_site_without_accounts_says_why_it_names_none(tmp_path: Path, slurm_answers: None, shim: Shim) -> None:
    shim("sacctmgr", "echo You are not running a supported accounting_storage plugin >&2; exit 1")
    site, text = written(tmp_path)
    assert site.account is None
    assert "supported accounting_storage plugin" in text


def test_site_of_pbs_has_queues_and_says_that_gpus_are_those_of_the_largest_node(
    tmp_path: Path,
    pbs_answers: None,
    shim: Shim,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shim("qsub", "exit 1")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/qsub" if name == "qsub" else None)
    site, text = written(tmp_path)
    assert site.scheduler is not None
    assert site.scheduler.kind == "pbs"
    assert {name: item.gpus_per_node for name, item in site.partitions.items()} == {"gpu": 4, "workq": 4}
    assert "at most 1:00:00" in text
    assert "the largest node of all has 8 CPUs, 23.5 GiB, 4 GPUs" in text
    # Which queue has GPUs is not known, so no role is given one.
    assert site.role_partitions.server is None


def test_site_of_a_scheduler_without_an_answer_says_what_is_not_known(tmp_path: Path, shim: Shim) -> None:
    for name in ("sbatch", "sinfo", "sacctmgr"):
        shim(name, "exit 1")
    site, text = written(tmp_path)
    assert site.partitions == {}
    assert "# partitions: not known" in text.lower()


def test_site_of_a_host_is_that_host(slurm_answers: None, tmp_path: Path) -> None:
    found = survey(LocalTransport(), is_here=False)
    path = tmp_path / "site.yaml"
    path.write_text(site_text(found, SshSpec(host="meluxina", port=8822, user="u100000")))
    host = load_site(path)[0].hosts["meluxina"]
    assert (host.ssh.host, host.ssh.port, host.ssh.user) == ("meluxina", 8822, "u100000")
    assert host.partitions["gpu"].gpus_per_node == 4
    assert host.scheduler is not None


def test_site_of_a_host_without_batch_system_is_a_plain_machine(tmp_path: Path, no_batch_system: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(site_text(survey(LocalTransport(), is_here=False), SshSpec(host="box")))
    host = load_site(path)[0].hosts["box"]
    assert host.scheduler is not None
    assert host.scheduler.kind == "local"
    assert host.partitions == {}
    assert "processes of this machine itself" in path.read_text()
    assert f"It has {len(os.sched_getaffinity(0))} CPUs" in path.read_text()


def test_site_of_a_host_whose_batch_system_is_on_path_at_login_only_is_not_written(
    home: Path, tmp_path: Path, no_batch_system: Path
) -> None:
    (tmp_path / "qsub").write_text("#!/bin/sh\n")
    (tmp_path / "qsub").chmod(0o755)
    (home / ".bash_profile").write_text(f"PATH={no_batch_system}:{tmp_path}\n")
    with pytest.raises(TransportError, match="qsub is on PATH there at login only"):
        survey(LocalTransport(), is_here=False)


def test_site_is_not_replaced_without_force(tmp_path: Path, slurm_answers: None) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("name: mine\n")
    with pytest.raises(UserError, match="--force"):
        init_site(argparse.Namespace(output=path, host=None, force=False))
    assert path.read_text() == "name: mine\n"
    assert init_site(argparse.Namespace(output=path, host=None, force=True)) == 0
    assert "name: mine" not in path.read_text()


def test_words_of_a_hostile_machine_stay_in_their_comments(tmp_path: Path, slurm_answers: None, shim: Shim) -> None:
    shim("sacctmgr", "printf 'x\\rname: evil\\u2028name: evil\\n${HOME} \"' >&2; exit 1")
    site, _ = written(tmp_path)
    assert site.name != "evil"


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("meluxina", "meluxina", None, None),
        ("u100@login.lxp.lu:8822", "login.lxp.lu", "u100", 8822),
        ("fe80::1", "fe80::1", None, None),
        ("me@[fe80::1]:22", "fe80::1", "me", 22),
    ],
)
def test_ssh_host_is_parsed(text: str, host: str, user: str | None, port: int | None) -> None:
    spec = parse_ssh_host(text)
    assert (spec.host, spec.user, spec.port) == (host, user, port)


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "host:port", "a b"])
def test_ssh_host_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(UserError):
        parse_ssh_host(text)


@pytest.mark.parametrize(("name", "gpus"), [("meluxina", {"gpu": 4}), ("aurora", {"prod": 6, "debug": 6})])
def test_example_of_a_site_loads(name: str, gpus: dict[str, int]) -> None:
    path = PROJECT / "recipes" / "sites" / f"{name}.yaml"
    site, _ = load_site(path)
    assert site.name == name
    assert {partition: site.partitions[partition].gpus_per_node for partition in gpus} == gpus
    assert "EXAMPLE, to be adapted" in path.read_text().splitlines()[0]
    hosts = path.read_text().partition("# hosts:\n")[2]
    commented = "hosts:\n" + "".join(line.removeprefix("# ") for line in hosts.splitlines(True))
    assert Site.model_validate(yaml.safe_load(commented)).hosts[name].base_dir.endswith("orch-runs")
