"""A stand-in for trainer/train.py where many runs are needed: its command line, its files, no network and no time.

The accuracy follows from the parameters, so that runs agree: it is best at a learning rate of 0.05.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write metrics.jsonl and results.json as the trainer does (docs/run-directory.md)."""
    options = {word[2:].partition("=")[0]: word.partition("=")[2] for word in pairs(argv)}
    folder, job_id = Path(options["output_dir"]), options["job_id"]
    folder.mkdir(parents=True, exist_ok=True)
    time.sleep(float(os.environ.get("STANDIN_TRAINING_S", "0.2")))
    rate = float(options.get("learning_rate", "0.05"))
    accuracy = max(0.0, 1.0 - abs(math.log10(rate / 0.05)) / 2)
    epoch = {"job_id": job_id, "epoch": 1, "num_epochs": 1, "train_loss": 1.0, "val_accuracy": accuracy}
    if "evaluate_test" not in options:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(epoch) + "\n")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "best.pt").write_bytes(b"weights")
    results = {
        "job_id": job_id,
        "status": "completed",
        "val_accuracy": accuracy,
        "best_val_accuracy": accuracy,
        "best_epoch": 1,
        "val_auc": accuracy,
        "epochs_run": 1,
        "training_time_s": 0.1,
        "images_per_s": 1.0,
        "test_accuracy": accuracy if "evaluate_test" in options else None,
    }
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(results))
    temporary.replace(folder / "results.json")
    return 0


def pairs(argv: list[str]) -> list[str]:
    """Return the options of ``argv`` as ``--name=value``, flags as ``--name``."""
    found: list[str] = []
    for word in argv:
        if word.startswith("--"):
            found.append(word)
        elif found and "=" not in found[-1]:
            found[-1] += f"={word}"
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
