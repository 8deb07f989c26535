"""Conversations under way: each turn is sent when the answer before it has ended, and carries it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from client.load.clock import Alarm
from client.load.connection import Exchange
from client.load.payloads import encode_request
from client.load.replies import Reply
from client.load.rows import MEASURED
from client.load.spec import Api, Conversation, Plan


class Sender(Protocol):
    """Who sends requests.

    Attributes:
        on_end: Called with each request that has ended.
        pausing: How many clients will send something though nothing of theirs is under way.
    """

    on_end: Callable[[Exchange], None]
    pausing: int

    def send(self, exchange: Exchange) -> None:
        """Send a request."""

    def look_whether_idle(self) -> None:
        """Let the measurement end if nothing is under way."""


@dataclass
class _Talk:
    conversation: Conversation
    answers: list[str] = field(default_factory=list)


class Talks:
    """The conversations of one worker's clients, one at a time each."""

    def __init__(
        self,
        plan: Plan,
        sender: Sender,
        loop: asyncio.AbstractEventLoop,
        zero_s: float,
        read: Callable[[Api, Exchange], Reply],
    ) -> None:
        """Take over what happens at the end of requests.

        Args:
            plan: Has conversations, and how tokens are chosen.
            sender: Sends requests.
            loop: The worker's.
            zero_s: The start, on the monotonic clock.
            read: Returns what an exchange said.
        """
        self._plan, self._sender, self._loop, self._zero_s, self._read = plan, sender, loop, zero_s, read
        is_endless = any(limit is not None for limit in (plan.requests, plan.requests_per_client, plan.duration_s))
        self._left = itertools.cycle(plan.conversations) if is_endless else iter(plan.conversations)
        self._end_s = zero_s + plan.duration_s if plan.duration_s is not None else float("inf")
        self._talks: dict[int, _Talk] = {}
        self._remaining = dict.fromkeys(plan.clients, plan.requests_per_client)
        self._sent = 0
        sender.on_end = self._go_on

    async def begin_all(self) -> None:
        """Let each client begin at its time; return when all have begun."""
        waiting = sorted(zip(self._plan.starts_s, self._plan.clients, strict=True))
        for start_s, client in waiting:
            due = asyncio.Event()
            alarm = Alarm(self._loop, due.set)
            alarm.set(self._zero_s + start_s)
            await due.wait()
            alarm.close()
            self._begin(client, self._zero_s + start_s)
        self._sender.look_whether_idle()

    def _begin(self, client: int, at_s: float) -> None:
        conversation = next(self._left, None)
        if conversation is not None:
            self._talks[client] = _Talk(conversation)
            self._say(client, at_s)

    def _say(self, client: int, at_s: float) -> None:
        plan, talk = self._plan, self._talks[client]
        remaining = self._remaining[client]
        if self._sent == plan.requests or remaining == 0 or at_s >= self._end_s or plan.sampling is None:
            return
        if remaining is not None:
            self._remaining[client] = remaining - 1
        number, self._sent = self._sent, self._sent + 1
        prompt = talk.conversation.prompt(len(talk.answers), talk.answers)
        request = encode_request(plan.server, plan.sampling, prompt)
        self._sender.send(Exchange(request, plan.first_index + number * plan.index_step, client, MEASURED, at_s))

    def _go_on(self, exchange: Exchange) -> None:
        """Say the next turn, after a pause, or begin another conversation; a failure ends one."""
        reply = exchange.reply = self._read(self._plan.server.api, exchange)
        client, talk = exchange.client, self._talks[exchange.client]
        talk.answers.append(reply.text)
        turns = talk.conversation.turns
        if reply.failure is not None or len(talk.answers) == len(turns):
            self._begin(client, exchange.eof_s)
            return
        pause_s = turns[len(talk.answers)].think_s
        if not pause_s:
            self._say(client, exchange.eof_s)
            return
        self._sender.pausing += 1
        self._loop.call_later(pause_s, self._after_pause, client, exchange.eof_s + pause_s)

    def _after_pause(self, client: int, at_s: float) -> None:
        if monotonic() < at_s:  # the loop's timers are of whole milliseconds
            self._loop.call_soon(self._after_pause, client, at_s)
            return
        self._sender.pausing -= 1
        self._say(client, at_s)
        self._sender.look_whether_idle()
