"""The site file."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SiteError
from orchestrator.site import Site, default_site_path, load_site

EXAMPLE = """
name: meluxina
scheduler: {kind: slurm}
account: ${PROJECT_ACCOUNT}
time: 02:00:00
partitions:
  gpu: {gpus_per_node: 4, gpu_type: a100}
role_partitions: {client: cpu}
environment: {modules: [Python/3.11], variables: {HF_HOME: /scratch/hf}}
binaries: {prometheus: /apps/prometheus}
cache_dir: /scratch/cache
"""


def test_site_file_in_yaml_is_read_with_variables_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT_ACCOUNT", "p200981")
    path = tmp_path / "site.yaml"
    path.write_text(EXAMPLE)
    site, source = load_site(path)
    assert (source, site.account, site.time, site.partitions["gpu"].gpu_type) == (
        str(path), "p200981", "02:00:00", "a100",
    )  # fmt: skip


def test_site_at_the_default_place_is_found_and_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_site(None) == (Site(), "none")
    path = tmp_path / "orch" / "site.yaml"
    path.parent.mkdir()
    path.write_text("account: p1\n")
    site, source = load_site(None)
    assert (site.account, source) == ("p1", str(path))


def test_site_default_place_is_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert default_site_path(tmp_path) == tmp_path / ".config" / "orch" / "site.yaml"


def test_site_named_but_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no such file"):
        load_site(tmp_path / "site.yaml")


def test_site_empty_file_is_an_empty_site(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("# nothing yet\n")
    assert load_site(tmp_path / "site.yaml")[0] == Site()


def test_site_problems_come_all_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("acount: p1\ntime: soon\npartitions: {gpu: {gpus: 4}}\naccount: ${NOT_SET_ANYWHERE}\n")
    with pytest.raises(SiteError) as caught:
        load_site(path)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "4 problems" in text
    assert "acount: unknown key" in text
    assert "Did you mean 'account'?" in text
    assert "NOT_SET_ANYWHERE is not set" in text
    assert "partitions.gpu.gpus: unknown key" in text
