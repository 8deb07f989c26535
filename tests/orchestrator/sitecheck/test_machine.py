"""The folder of runs, its space and its quotas, on real folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.sitecheck import machine
from orchestrator.sitecheck.findings import Verdict
from tests.orchestrator.sitecheck.conftest import MakeVisit, Shim


def test_folder_that_is_not_there_is_made_and_removed_again(make_visit: MakeVisit, tmp_path: Path) -> None:
    visit = make_visit(folder=tmp_path / "a" / "b c" / "runs")
    found = machine.look_at_folder(visit, "secret")
    assert found.verdict == Verdict.OK
    assert (tmp_path / "a" / "b c" / "runs" / visit.token / "nonce").read_text() == "secret"
    assert machine.tidy(visit)
    assert not (tmp_path / "a").exists()


def test_folder_with_something_in_it_keeps_it(make_visit: MakeVisit, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").write_text("a run")
    visit = make_visit()
    assert machine.look_at_folder(visit, "n").verdict == Verdict.OK
    assert machine.tidy(visit)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["latest"]


def test_folder_that_cannot_be_written_fails_with_its_path_and_a_remedy(make_visit: MakeVisit) -> None:
    found = machine.look_at_folder(make_visit(folder=Path("/proc/orch")), "n")
    assert found.verdict == Verdict.FAILED
    assert "/proc/orch" in found.words
    assert "--output-dir" in found.remedy


def test_folder_that_everybody_may_write_is_a_warning(make_visit: MakeVisit, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    found = machine.look_at_folder(make_visit(), "n")
    assert found.verdict == Verdict.WARNING
    assert "777" in found.words


QUOTA = "Disk quotas for user me (uid 1000):"


@pytest.mark.parametrize(
    ("used_kib", "verdict"), [(10_000_000, Verdict.OK), (19_500_000, Verdict.WARNING), (20_971_520, Verdict.FAILED)]
)
def test_space_is_judged_by_the_quota_of_its_file_system(
    used_kib: int, verdict: Verdict, make_visit: MakeVisit, shim: Shim, tmp_path: Path
) -> None:
    shim(
        "df", 'case $1 in -Pk) echo h; echo "nfs:/home 9e9 1 900000000 1% /h";; *) echo h; echo "x 1 1 5000000";; esac'
    )
    mark = "*" if used_kib >= 20_971_520 else ""
    # In the form of quota(1) with -w and -p: grace is 0 where none runs.
    shim(
        "quota",
        f"echo '{QUOTA}'; echo 'nfs:/home {used_kib}{mark} 0 20971520 0 512 0 0 0'; echo 'other 9 1 2 0 9 1 2 0'",
    )
    found = machine.look_at_space(make_visit(folder=tmp_path))
    assert found.verdict == verdict
    assert f"{used_kib / 1048576:.1f} of 20.0 GiB" in found.words


def test_quotas_of_lustre_are_read_for_user_and_project() -> None:
    # In the form of `lfs quota -q` (lfs-quota(1)); a long name is followed by a line break, which tr made a space.
    lines = [
        "device 10.0.0.1@o2ib:/flare",
        "quota_user       /lus/flare 1048576 0 0 - 17 0 0 - ",
        "quota_project       /lus/flare [2097152]* 3145728 4194304 6d23h 900000 0 1000000 - ",
        "quota_group ",
    ]
    user, project = machine.parse_quotas(lines)
    assert (user.whose, user.share) == ("user", 0.0)
    assert (project.whose, project.used_kib, project.limit_kib) == ("project", 2_097_152, 4_194_304)
    assert project.share == pytest.approx(0.9)


def test_space_that_is_nearly_gone_fails(make_visit: MakeVisit, shim: Shim, tmp_path: Path) -> None:
    shim("df", 'echo h; echo "dev 1 1 50000 99% /h"')
    assert machine.look_at_space(make_visit(folder=tmp_path)).verdict == Verdict.FAILED


def test_cache_that_cannot_be_written_fails_and_one_to_be_made_is_well(make_visit: MakeVisit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine.look_at_cache(make_visit()).verdict == Verdict.NOT_APPLICABLE
    assert machine.look_at_cache(make_visit({"cache_dir": str(tmp_path / "new" / "cache")})).verdict == Verdict.OK
    assert machine.look_at_cache(make_visit({"cache_dir": str(tmp_path / "file" / "x")})).verdict == Verdict.FAILED
