"""The file system of a run is full: a small tmpfs in a mount namespace, no root needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import PROJECT, TRIALS, Scene

IS_WHOLE = os.environ.get("ORCH_FAULTS") == "all"
# $1 is where the disk gets full. The recipe's trials wait while the file "hold" is there.
STORY = r"""
out=$1 recipe=$2 folder=$3 when=$4; shift 4
mount -t tmpfs -o size=4m none "$out"
fill() { head -c 16m /dev/zero >>"$out/filler"; touch "$folder/full"; }
if [[ $when == before ]]; then fill 2>/dev/null; fi
"$@" "$recipe" --output-dir "$out" 2>"$folder/said" &
orch=$!
case $when in
  trial) while [[ ! -e $folder/starts ]] && kill -0 $orch 2>/dev/null; do sleep 0.1; done; fill 2>/dev/null ;;
  deploy) while ! compgen -G "$out/*/status/*-vllm.json" >/dev/null && kill -0 $orch 2>/dev/null; do sleep 0.02; done
    fill 2>/dev/null ;;
esac
rm -f "$folder/hold"
wait $orch; echo $? >"$folder/code"
pgrep -f -- "--output-dir $out|$out/" >"$folder/left"
rm "$out/filler"
go_on=resume
if [[ $when == before ]]; then go_on=$recipe; fi
"$@" "$go_on" --output-dir "$out" 2>"$folder/said_then"
echo $? >"$folder/code_then"
cp -rP "$out" "$folder/kept"
"""


def _why_not() -> str:
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    argv = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/tmp"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no mount namespace for this user: {done.stderr.strip()}"


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")


@pytest.fixture
def holding_python(scene: Scene, counting_python: Path) -> Path:
    """Let trials wait while the file "hold" is there."""
    text, folder = counting_python.read_text(), counting_python.parent
    (folder / "hold").touch()
    wait = f"  while [[ -e '{folder}/hold' ]]; do sleep 0.1; done\n"
    counting_python.write_text(text.replace("; exec", f"\n{wait}  exec", 1))
    return counting_python


class Story:
    """A run on a disk that is full at some moment, and its resumption once there is space."""

    def __init__(self, when: str, scene: Scene, folder: Path) -> None:
        self._folder, self._scene = folder, scene
        scene.output_dir.mkdir()
        story = [STORY, "story", str(scene.output_dir), str(folder / "recipe.json"), str(folder), when]
        argv = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", *story, sys.executable]
        env = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
        subprocess.run([*argv, str(PROJECT / "orch.py")], env=env, check=True, timeout=280)
        scene.output_dir = folder / "kept"

    def read(self, name: str) -> str:
        return (self._folder / name).read_text()

    def check_end(self) -> None:
        """Check that the run said what was wrong and ended its jobs."""
        said = self.read("said")
        assert self.read("code") == "1\n", said
        assert "cannot write" in said
        assert "No space left on device" in said
        assert "Free some space or quota there" in said
        assert self.read("left") == "", "its jobs were ended"

    def check_resumed(self) -> None:
        """Check that the run was completed."""
        assert self.read("code_then") == "0\n", self.read("said_then")
        summary = self._scene.summary()
        assert (summary["state"], summary["error"]) == ("completed", None)
        states = [trial["state"] for trial in summary["stages"]["hpo"]["trials"]]
        assert states.count("COMPLETE") == TRIALS
        assert max(self._scene.started().values()) == 1


@pytest.mark.parametrize("when", ["before", "deploy"] if IS_WHOLE else ["before"])
def test_run_on_a_full_disk_says_so_ends_its_jobs_and_goes_on_when_there_is_space(
    when: str, scene: Scene, holding_python: Path
) -> None:
    story = Story(when, scene, holding_python.parent)
    story.check_end()
    story.check_resumed()
    assert "Traceback" not in story.read("said")


@pytest.mark.skipif(not IS_WHOLE, reason="a slow fault: `make test-faults` (ORCH_FAULTS=all) injects it")
def test_disk_that_gets_full_during_a_trial_ends_the_run_and_its_jobs(scene: Scene, holding_python: Path) -> None:
    Story("trial", scene, holding_python.parent).check_end()


@pytest.mark.skipif(not IS_WHOLE, reason="a slow fault: `make test-faults` (ORCH_FAULTS=all) injects it")
def test_disk_that_got_full_during_a_trial_is_no_hindrance_to_resume(scene: Scene, holding_python: Path) -> None:
    Story("trial", scene, holding_python.parent).check_resumed()
