"""How the broker of steps reaches the nodes of an allocation: pbsdsh (a stand-in), ssh (a real server), sizes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.schedulers.steps import Config, Group, StepsError, shares_of
from tests.orchestrator.brokers import Allocation
from tests.orchestrator.conftest import is_running
from tests.orchestrator.transports.sshd import SSHD, SshServer

PBS_PROGRAMS = Path(__file__).parents[1] / "standin" / "pbs"
GPU = {"name": "gpu", "nodes": 2, "cpus": 4, "mem_mib": 4000, "gpus": 2}
CPU = {"name": "cpu", "nodes": 1, "cpus": 2, "mem_mib": 2000, "gpus": 0}
TELL = 'echo "$STANDIN_NODE|$CUDA_VISIBLE_DEVICES|$ORCH_STEP_NODES|$GREETING"'


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    """Return an allocation of PBS with four chunks on three hosts, the broker on the first."""
    allocation = Allocation(tmp_path)
    nodes = tmp_path / "nodes"
    nodes.write_text("n1\nn2\nn2\n")
    allocation.env.update(PBS_NODEFILE=str(nodes), PBS_ENVIRONMENT="PBS_BATCH", PBS_JOBID="12.pbshost")
    yield allocation
    allocation.close()


@pytest.fixture
def with_pbsdsh(allocation: Allocation) -> Allocation:
    """Put the stand-in on the broker's PATH."""
    allocation.env["PATH"] = f"{PBS_PROGRAMS}{os.pathsep}{allocation.env['PATH']}"
    return allocation


def serve(allocation: Allocation, launcher: str) -> None:
    allocation.serve(GPU, CPU, launcher=launcher, env={"GREETING": "it's $HOME"}, grace_s=1)


def test_pbsdsh_starts_steps_by_their_chunk_and_the_first_host_needs_none(with_pbsdsh: Allocation) -> None:
    allocation = with_pbsdsh
    serve(allocation, "pbsdsh")
    for name in ("a", "b", "c"):
        allocation.submit(name, f"{TELL}; sleep 60", "--group", "gpu", "--gpus", "1", "--cpus", "2")
    allocation.submit("d", f"{TELL}; sleep 60", "--group", "cpu")
    allocation.wait(a="RUNNING", b="RUNNING", c="RUNNING", d="RUNNING")
    said = {name: allocation.wait_output(name).splitlines()[-1] for name in "abcd"}
    assert said == {
        "a": "|0|n1|it's $HOME",
        "b": "|1|n1|it's $HOME",
        "c": "n2|0|n2|it's $HOME",
        "d": "n2||n2|it's $HOME",
    }
    assert [allocation.steps()[name]["node"] for name in "abcd"] == ["n1", "n1", "n2", "n2"]
    allocation.cancel("a", "c")
    assert allocation.wait(a="CANCELLED", c="CANCELLED", d="RUNNING")["c"]["exit_code"] == 143


def test_exit_code_is_the_steps_though_pbsdsh_always_says_0(with_pbsdsh: Allocation) -> None:
    allocation = with_pbsdsh
    serve(allocation, "pbsdsh")
    allocation.submit("bad", "exit 7", "--group", "cpu")
    allocation.submit("good", "true", "--group", "cpu")
    steps = allocation.wait(bad="FAILED", good="COMPLETED")
    assert (steps["bad"]["exit_code"], steps["bad"]["reason"]) == (7, "exit code 7")


def test_step_that_ignores_term_on_another_node_is_killed(with_pbsdsh: Allocation) -> None:
    allocation = with_pbsdsh
    serve(allocation, "pbsdsh")
    text = f"trap '' TERM; echo $$ >'{allocation.folder}/pid'; while :; do sleep 0.2; done"
    allocation.submit("stubborn", text, "--group", "cpu")
    pid = allocation.pid("pid")
    allocation.wait(stubborn="RUNNING")
    allocation.cancel("stubborn")
    assert allocation.wait(stubborn="CANCELLED")["stubborn"]["exit_code"] == 137
    assert not is_running(pid)


def test_step_whose_pbsdsh_is_killed_is_ended_before_its_node_is_used_again(with_pbsdsh: Allocation) -> None:
    allocation = with_pbsdsh
    serve(allocation, "pbsdsh")
    allocation.submit(
        "one", f"echo $PPID >'{allocation.folder}/attendant'; exec sleep 60", "--group", "cpu", "--cpus", "2"
    )
    allocation.submit("two", "true", "--group", "cpu")
    attendant = allocation.pid("attendant")
    allocation.wait(one="RUNNING", two="PENDING")
    pbsdsh = int(Path(f"/proc/{attendant}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pbsdsh, signal.SIGKILL)
    steps = allocation.wait(one="NODE_FAIL", two="COMPLETED")
    assert steps["one"]["reason"] == "pbsdsh lost it, and its node told of no end"
    assert not is_running(attendant)


def test_launcher_that_fails_is_quoted(with_pbsdsh: Allocation) -> None:
    allocation = with_pbsdsh
    del allocation.env["PBS_ENVIRONMENT"]
    serve(allocation, "pbsdsh")
    allocation.submit("one", "true", "--group", "cpu")
    reason = allocation.wait(one="FAILED")["one"]["reason"]
    assert reason == "could not be started: pbsdsh ended with exit code 1: pbsdsh: not executing under PBS"


@pytest.mark.skipif(shutil.which("sshd") is None and not Path(SSHD).exists(), reason="sshd is not installed")
def test_ssh_takes_the_place_of_a_missing_pbsdsh(allocation: Allocation, tmp_path: Path) -> None:
    server = SshServer(tmp_path / "sshd").start()
    try:
        programs = tmp_path / "bin"
        programs.mkdir()
        options = f"-p {server.port} -i {server.folder}/user -o UserKnownHostsFile={server.folder}/known_hosts"
        # Every node is this machine, at the port of the test's own server.
        ssh = f'#!/bin/bash\nexec {shutil.which("ssh")} {options} -o HostName=127.0.0.1 "$@"\n'
        (programs / "ssh").write_text(ssh)
        (programs / "ssh").chmod(0o700)
        allocation.env["PATH"] = f"{programs}{os.pathsep}{allocation.env['PATH']}"
        serve(allocation, "pbsdsh")
        assert "pbsdsh is not on PATH" in allocation.broker_log
        allocation.submit("far", f"{TELL}; exec sleep 60", "--group", "cpu")
        allocation.submit("bad", "exit 7", "--group", "cpu")
        assert allocation.wait(far="RUNNING", bad="FAILED")["bad"]["exit_code"] == 7
        assert allocation.wait_output("far").splitlines()[-1] == "||n2|it's $HOME"
        assert server.n_logins >= 2
        allocation.cancel("far")
        assert allocation.wait(far="CANCELLED")["far"]["exit_code"] == 143
    finally:
        server.kill()


def test_nodes_of_pbs_have_to_be_those_of_the_configuration(allocation: Allocation) -> None:
    broker = allocation.start_broker(GPU, {**CPU, "nodes": 2}, launcher="pbsdsh")
    assert broker.wait(10) == 1
    assert "[['n1', 'n2'], ['n2']] as nodes, and the configuration says [2, 2]" in allocation.broker_log


def slurm_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[Group], launcher: str = "srun", **env: str
) -> list[tuple[str, ...]]:
    """Return group, host, CPUs, MiB and GPUs of each share on a Slurm whose scontrol answers as the real one."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/bash\ncase $3 in\n"gpu[1-2]") echo gpu1; echo gpu2 ;;\n*) echo "$3" ;;\nesac\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _, shares = shares_of(Config(launcher, groups, {}), {"SLURM_JOB_ID": "7", **env})
    return [(s.group.name, s.host, *map(str, (len(s.cpus), s.mem_mib, len(s.gpus)))) for s in shares]


def test_sizes_that_are_not_given_are_slurms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_JOB_CPUS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "4"}
    assert slurm_groups(tmp_path, monkeypatch, [Group("gpu", 2)], **one, SLURM_MEM_PER_NODE="8000") == [
        ("gpu", "gpu1", "8", "8000", "4"),
        ("gpu", "gpu2", "8", "8000", "4"),
    ]
    assert slurm_groups(tmp_path, monkeypatch, [Group("gpu", 2, cpus=3, gpus=1)], **one, SLURM_MEM_PER_CPU="100") == [
        ("gpu", "gpu1", "3", "800", "1"),
        ("gpu", "gpu2", "3", "800", "1"),
    ]


def test_sizes_of_a_het_job_are_each_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"SLURM_HET_SIZE": "2", "SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "1"}
    env |= {"SLURM_JOB_NODELIST_HET_GROUP_0": "gpu1", "SLURM_JOB_NODELIST_HET_GROUP_1": "cpu1"}
    env |= {"SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "4", "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "6"}
    env |= {"SLURM_MEM_PER_NODE_HET_GROUP_0": "4000", "SLURM_MEM_PER_NODE_HET_GROUP_1": "2000"}
    env |= {"SLURM_GPUS_PER_NODE_HET_GROUP_0": "a100:2"}
    groups = [Group("gpu"), Group("cpu")]
    assert slurm_groups(tmp_path, monkeypatch, groups, **env) == [
        ("gpu", "gpu1", "4", "4000", "2"),
        ("cpu", "cpu1", "6", "2000", "0"),
    ]
    with pytest.raises(StepsError, match="the configuration says"):
        slurm_groups(tmp_path, monkeypatch, [Group("gpu", 2), Group("cpu")], **env)


def test_ssh_on_slurm_takes_nodes_and_sizes_from_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_JOB_CPUS_PER_NODE": "8(x2)", "SLURM_MEM_PER_NODE": "8000"}
    shares = slurm_groups(tmp_path, monkeypatch, [Group("gpu", 2)], "ssh", **env, SLURM_GPUS_ON_NODE="4")
    assert shares == [("gpu", "gpu1", "8", "8000", "4"), ("gpu", "gpu2", "8", "8000", "4")]


def pbs_shares(tmp_path: Path, lines: str, *groups: Group) -> list[tuple[str, int]]:
    """Return host of each share on a PBS, and which line of PBS_NODEFILE pbsdsh is told of."""
    nodes = tmp_path / "nodes"
    nodes.write_text("\n".join(lines.split()) + "\n")
    _, shares = shares_of(Config("pbsdsh", list(groups), {}), {"PBS_NODEFILE": str(nodes)})
    return [(share.host, share.index) for share in shares]


def test_host_with_a_line_for_each_rank_is_one_node(tmp_path: Path) -> None:
    sized = Group("a", 2, cpus=4, mem_mib=100, gpus=0)
    assert pbs_shares(tmp_path, "n1 n1 n2 n2", Group("all", 2)) == [("n1", 0), ("n2", 2)]
    assert pbs_shares(tmp_path, "n1 n1 n2 n2 n3", sized, sized._replace(name="b", nodes=1)) == [
        ("n1", 0),
        ("n2", 2),
        ("n3", 4),
    ]
    # Two chunks of known size on one host.
    assert pbs_shares(tmp_path, "n1 n1", sized) == [("n1", 0), ("n1", 1)]
    with pytest.raises(StepsError, match=r"\[\['n1'\]\] as nodes, and the configuration says \[4\]"):
        pbs_shares(tmp_path, "n1 n1 n1 n1", Group("all", 4))


def test_shares_of_this_machine_part_what_it_has() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    groups, shares = shares_of(Config("here", [Group("a"), Group("b", cpus=1)], {}), environ)
    assert [share.host for share in shares] == [socket.gethostname()] * 2
    assert [group.gpus for group in groups] == [2, 2]
    assert [share.gpus for share in shares] == [[0, 1], [2, 3]]
    assert shares[1].cpus == [len(shares[0].cpus)]
