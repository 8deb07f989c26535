from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.checkpoint import check_same_trial, load_checkpoint, save_checkpoint
from trainer.errors import InputError

CPU = torch.device("cpu")


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("executed",)


def test_load_checkpoint_saved_gives_the_content(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": {"a": torch.arange(3)}, "epoch": 2, "rate": 0.1, "none": None})
    content = load_checkpoint(path, CPU)
    assert torch.equal(content["weights"]["a"], torch.arange(3))
    assert (content["epoch"], content["rate"], content["none"]) == (2, 0.1, None)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_load_checkpoint_damaged_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.arange(1000)})
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path, CPU)


def test_load_checkpoint_code_inside_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.pt"
    torch.save({"schema_version": 1, "payload": Payload()}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path, CPU)
    assert capsys.readouterr().out == ""


def test_load_checkpoint_other_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"schema_version": 99})
    with pytest.raises(InputError, match="schema_version is 99"):
        load_checkpoint(path, CPU)


def test_check_same_trial_differences_are_all_named() -> None:
    found = {"seed": 0, "learning_rate": 0.1, "batch_size": 128}
    check_same_trial(Path("last.pt"), found, dict(found))
    with pytest.raises(InputError) as caught:
        check_same_trial(Path("last.pt"), found, {"seed": 1, "learning_rate": 0.2, "batch_size": 128})
    assert [line.split(": ")[1] for line in caught.value.problems[:2]] == [
        "last.pt was made with --seed 0, not 1.",
        "last.pt was made with --learning_rate 0.1, not 0.2.",
    ]
