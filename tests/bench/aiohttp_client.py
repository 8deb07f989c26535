"""A lean client on aiohttp and json, to compare with: ``python -m tests.bench.aiohttp_client LOAD RESULT``.

LOAD is a JSON object: url, model, requests, clients. As many requests as there are clients warm up and do not count.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np


class _Load:
    """So many requests under way at once; times in seconds."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session, self._url = session, f"{url}/v1/chat/completions"
        messages = [{"role": "user", "content": "hello"}]
        self._body = json.dumps(
            {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        ).encode()

    async def put(self, requests: int, clients: int) -> dict[str, Any]:
        self._left, self._ttft_s, self._gaps_s = requests, list[float](), list[float]()
        began_s = time.monotonic()
        await asyncio.gather(*(self._client() for _ in range(clients)))
        return {
            "requests": len(self._ttft_s),
            "lasted_s": time.monotonic() - began_s,
            "ttft_s": float(np.mean(self._ttft_s)),
            "ttft_p99_s": float(np.percentile(self._ttft_s, 99)),
            "itl_s": float(np.mean(self._gaps_s)),
        }

    async def _client(self) -> None:
        while self._left > 0:
            self._left -= 1
            last_s = sent_s = time.monotonic()
            async with self._session.post(self._url, data=self._body) as answer:
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        now_s = time.monotonic()
                        (self._ttft_s if last_s == sent_s else self._gaps_s).append(now_s - last_s)
                        last_s = now_s


async def _main(url: str, model: str, requests: int, clients: int) -> dict[str, Any]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        load = _Load(session, url, model)
        await load.put(clients, clients)
        return await load.put(requests, clients)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(_main(**json.loads(sys.argv[1])))))
