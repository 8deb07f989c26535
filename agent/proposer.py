"""Asks the model for one candidate: again when it does not answer, and for a repair when its answer cannot be used."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.history import Params, TrialView
from agent.llm import Completion, LlmClient, LlmError, Question
from agent.prompts import Message, Task, first_messages, repair_messages
from agent.proposals import DuplicateError, Proposal, RejectedError, proposal_schema, read_proposal
from orchestrator.atomic import append_line
from orchestrator.recipe.hpo import LlmProposals

BACKOFFS_S = (1.0, 3.0)
# A model that was wrong once is asked for something less like its last answer.
REPAIR_TEMPERATURE_STEP = 0.3
MAX_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Asked:
    """What came of asking for one candidate.

    Attributes:
        params: The proposal, or None if there is none that can be used.
        source: llm, llm_repaired, or tpe_fallback.
        notes: For the trial's user attributes.
    """

    params: Params | None
    source: str
    notes: dict[str, Any]


@dataclass
class _Tally:
    """What one candidate has cost so far."""

    requests: int = 0
    failed_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    model: str | None = None
    rejects: list[str] = field(default_factory=list)

    def add(self, completion: Completion) -> None:
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.latency_s += completion.latency_s
        self.model = completion.model


class Proposer:
    """Turns the history into the next candidate with the model's help.

    Every exchange is appended to ``log``: the conversation, the raw answer and the verdict; never the API token.
    """

    def __init__(
        self,
        client: LlmClient,
        task: Task,
        settings: LlmProposals,
        seed: int,
        log: Path,
        look_every_s: float,
    ) -> None:
        self._client, self._task, self._settings, self._seed = client, task, settings, seed
        self._log, self._look_every_s = log, look_every_s
        self._schema = proposal_schema(task.space)
        self._was_silent = False

    def propose(self, trials: Sequence[TrialView], number: int, wait: Callable[[float], None]) -> Asked:
        """Return a candidate for trial ``number``.

        Args:
            trials: All earlier trials.
            number: Of the trial that is to be.
            wait: Waits that many seconds while the run is watched; called with 0 to watch only.

        Raises:
            JobFailedError: the server's job has died while it was waited for.
            StorageError: the log cannot be written.
        """
        messages = first_messages(self._task, trials)
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        tally = _Tally()
        proposal, turn, question = None, 0, self._question(messages, number, 0)
        while True:
            completion = self._complete(question, number, turn, tally, wait)
            if completion is None:
                break
            try:
                proposal = self._judge(completion, trials)
            except RejectedError as error:
                tally.rejects.append(str(error))
                self._note(question, number, turn, completion, f"rejected: {error}")
                if turn == self._settings.max_repairs:
                    break
                turn += 1
                quoted = None if isinstance(error, DuplicateError) else completion.text
                question = self._question(repair_messages(messages, quoted, str(error)), number, turn)
            else:
                self._note(question, number, turn, completion, "accepted")
                break
        source = "tpe_fallback" if proposal is None else ("llm_repaired" if turn else "llm")
        notes = {
            "rationale": proposal.rationale if proposal else None,
            "rejects": tally.rejects,
            "prompt_sha256": digest,
            "model": tally.model,
            "temperature": question.temperature,
            "seed": question.seed,
            "requests": tally.requests,
            "failed_requests": tally.failed_requests,
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
            "latency_s": round(tally.latency_s, 3),
        }
        return Asked(proposal.params if proposal else None, source, notes)

    def _question(self, messages: Sequence[Message], number: int, turn: int) -> Question:
        temperature = min(MAX_TEMPERATURE, self._settings.temperature + turn * REPAIR_TEMPERATURE_STEP)
        # Different for each request, the same in a repetition of the search.
        seed = (self._seed * 1_000_003 + number * 16 + turn) % 2**31
        return Question(messages, self._schema, round(temperature, 6), self._settings.max_tokens, seed)

    def _complete(
        self, question: Question, number: int, turn: int, tally: _Tally, wait: Callable[[float], None]
    ) -> Completion | None:
        """Return the answer, or None if there is none after all attempts; next time a silent server gets only one."""
        backoffs = () if self._was_silent else BACKOFFS_S
        for backoff_s in (*backoffs, None):
            tally.requests += 1
            try:
                completion = self._client.complete(
                    question, lambda: wait(0.0), self._look_every_s, is_awaited=not self._was_silent
                )
            except LlmError as error:
                tally.failed_requests += 1
                reason = f"no answer: {error}"
                tally.rejects.append(reason)
                self._note(question, number, turn, None, reason)
                if backoff_s is None or not error.is_transient:
                    break
                wait(backoff_s)
            else:
                self._was_silent = False
                tally.add(completion)
                return completion
        self._was_silent = True
        return None

    def _judge(self, completion: Completion, trials: Sequence[TrialView]) -> Proposal:
        if completion.is_cut_off:
            limit = self._settings.max_tokens
            raise RejectedError(f"the answer was cut off after {limit} tokens; write it compactly, on one line")
        return read_proposal(completion.text, self._task.space, trials)

    def _note(self, question: Question, number: int, turn: int, completion: Completion | None, verdict: str) -> None:
        line = {
            "at": time.time(),
            "trial": number,
            "turn": turn,
            "messages": list(question.messages),
            "temperature": question.temperature,
            "seed": question.seed,
            "answer": completion.text if completion else None,
            "verdict": verdict,
            "model": completion.model if completion else None,
            "prompt_tokens": completion.prompt_tokens if completion else None,
            "completion_tokens": completion.completion_tokens if completion else None,
            "latency_s": round(completion.latency_s, 3) if completion else None,
        }
        append_line(self._log, json.dumps(line, ensure_ascii=False, allow_nan=False))
