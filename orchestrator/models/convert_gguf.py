"""Turn a GGUF file into an ordinary Hugging Face directory: ``python convert_gguf.py FILE.gguf DIRECTORY``.

Runs under the engine's interpreter, which has transformers, gguf and accelerate. Where the directory cannot be written
it ends with EXIT_CANNOT_WRITE, and its last line on stdout is a JSON list: errno and the reason in words.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

# EX_IOERR of sysexits.h
EXIT_CANNOT_WRITE = 74
# So ends the text of every I/O error of the Rust library that writes the weights.
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")


def convert(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer of ``gguf`` to ``target`` in bfloat16.

    Raises:
        OSError: ``gguf`` cannot be read or, with ``target`` as its file name, ``target`` cannot be written.
    """
    model, tokenizer = _load(gguf)
    try:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except Exception as error:
        number = errno_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(target)) from error


def errno_of(error: Exception) -> int | None:
    """Return the errno that ``error`` tells of, or None if it is no I/O error."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    found = _RUST_ERRNO.search(str(error))
    return int(found.group(1)) if found else None


def _load(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The weights are dequantised by now, but the model still carries the marks and would refuse to be saved.
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.to(torch.bfloat16), tokenizer


def main(gguf: str, target: str) -> int:
    """Convert, and return the exit code."""
    try:
        convert(Path(gguf), Path(target))
    except OSError as error:
        if error.filename != target:
            raise
        print(json.dumps([error.errno, error.strerror]))  # noqa: T201
        return EXIT_CANNOT_WRITE
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
