from __future__ import annotations

from pathlib import Path

import pytest

from trainer.layout import TrialLayout, replace_atomically


def test_create_any_umask_gives_private_directories(tmp_path: Path) -> None:
    root = tmp_path / 'it\'s a "trial"\n'
    TrialLayout(root).create()
    TrialLayout(root).create()
    folders = [root, *root.iterdir()]
    assert {folder.name for folder in folders[1:]} == {"output", "logs", "checkpoints", "tensorboard"}
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}


def test_replace_atomically_success_replaces_privately(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replace_atomically(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_replace_atomically_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with replace_atomically(path) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]
