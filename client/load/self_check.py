"""What the client itself adds: the planned load, put on a mock whose timing is known, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from client.errors import ClientServiceError
from client.load.payloads import encode_request
from client.load.run import PROJECT, measure, scratch
from client.load.shapes import How, OpenLoop, Shape, deal_out
from client.load.spec import Api, Prompt, Sampling, Server

TTFT_S = 0.05
GAP_S = 0.01
MAX_TOKENS = 32
OPEN_LOOP_S = 1.5
MAX_REQUESTS = 2000
_START_TIMEOUT_S = 20.0


class SelfCheckError(ClientServiceError):
    """The self-check could not be made; the words say why."""


@contextmanager
def mock_server() -> Iterator[str]:
    """Give the URL of a mock of one's own, and end it afterwards.

    Raises:
        SelfCheckError: it does not start.
    """
    argv = [sys.executable, "-m", "client.load.mock"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT) as process:
        if process.stdin is None or process.stdout is None:
            raise SelfCheckError("no pipes to the mock server")
        try:
            port = process.stdout.readline().strip()
            if not port.isdigit():
                raise SelfCheckError("the mock server of the self-check did not start")
            yield f"http://127.0.0.1:{int(port)}"
        finally:
            process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()


def client_adds_ms(api: Api, prompt: Prompt, max_tokens: int, shape: Shape, processes: int) -> float:
    """Return how much this client adds to the median time to first token under a load like ``shape``, in milliseconds.

    The mock runs on the same machine and takes its part of it: the figure is an upper bound.

    Args:
        api: That of the planned load.
        prompt: One of its prompts.
        max_tokens: Output tokens of its requests.
        shape: The planned load; about a second of it is put on.
        processes: As many workers as it will have.

    Raises:
        SelfCheckError: the mock does not start, or requests to it fail.
    """
    tokens = max(1, min(MAX_TOKENS, max_tokens))
    sampling = Sampling(f"mock:ttft={TTFT_S},itl={GAP_S},tokens={tokens}", tokens)
    with mock_server() as url, scratch() as folder:
        server = Server(url, api)
        body = encode_request(server, sampling, prompt)
        plans = deal_out(server, (body,), _shortened(shape), How(timeout_s=30.0), processes, folder)
        seen = measure(plans, folder)
        with urllib.request.urlopen(f"{url}/truth", timeout=_START_TIMEOUT_S) as answer:
            truth = json.load(answer)["first_s"]
    rows = seen.rows[seen.rows["error"] < 0]
    if not len(rows) or not truth:
        notes = "; ".join(str(note.get("error")) for note in seen.notes[:3])
        raise SelfCheckError(f"the self-check failed: no request to the mock succeeded: {notes}")
    measured = float(np.median(rows["first_content_s"] - rows["sent_s"]))
    return max(0.0, (measured - float(np.median(truth))) * 1000)


def _shortened(shape: Shape) -> Shape:
    if isinstance(shape, OpenLoop):
        first = tuple(at_s for at_s in shape.arrivals_s[:MAX_REQUESTS] if at_s <= OPEN_LOOP_S)
        return OpenLoop(first or shape.arrivals_s[:1])
    return replace(shape, requests=None, requests_per_client=2, duration_s=None, ramp_s=min(shape.ramp_s, 0.2))
