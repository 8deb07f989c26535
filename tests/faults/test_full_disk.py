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
if [[ $when == before ]]; then "$@" "$recipe" --output-dir "$out"; else "$@" resume --output-dir "$out"; fi 2>"$folder/said_then"
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


@pytest.mark.parametrize("when", ["before", "deploy", "trial"] if IS_WHOLE else ["trial"])
def test_run_on_a_full_disk_says_so_ends_its_jobs_and_is_resumed_when_there_is_space(
    when: str, scene: Scene, holding_python: Path
) -> None:
    folder = holding_python.parent
    scene.output_dir.mkdir()
    story = [STORY, "story", str(scene.output_dir), str(folder / "recipe.json"), str(folder), when]
    argv = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", *story, sys.executable]
    env = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
    subprocess.run([*argv, str(PROJECT / "orch.py")], env=env, check=True, timeout=280)
    said, said_then = (folder / "said").read_text(), (folder / "said_then").read_text()
    assert (folder / "code").read_text() == "1\n", said
    assert "cannot write" in said
    assert "No space left on device" in said
    assert "Free some space or quota there" in said
    assert "Traceback" not in said
    assert (folder / "left").read_text() == "", "its jobs were ended"
    assert (folder / "code_then").read_text() == "0\n", said_then
    scene.output_dir = folder / "kept"
    summary = scene.summary()
    assert (summary["state"], summary["error"]) == ("completed", None)
    states = [trial["state"] for trial in summary["stages"]["hpo"]["trials"]]
    assert states.count("COMPLETE") == TRIALS
    assert max(scene.started().values()) == 1
    assert scene.left() == []
