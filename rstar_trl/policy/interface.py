"""The seam between search and models: requests in, candidates and values out.

An engine proposes next steps for a prefix; a scorer values prefixes. Both take whole batches and answer in order; a
`ConcurrentEngine` (a server) also takes requests one by one and answers each when it is done.
Guarantees asked of every implementation: an answer depends on the request alone (its own random stream comes from
`seed`), up to floating-point rounding, not on what else is in the batch; a request that cannot be answered is
answered by `Refused`, and the others are not touched; `EngineError` is raised when nothing can be answered any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["step", "eos", "length"]


@dataclass(frozen=True)
class ProposeRequest:
    """Asks for `n` sampled next steps after `prompt` and `steps`. `temperature` 0 is greedy (n must be 1)."""

    prompt: str
    steps: tuple[str, ...]
    n: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled step: `text` without the delimiter.

    `logprob`: summed over its tokens at temperature 1, None where it is not told. `finish`: `step` when the delimiter
    ended it, `eos` when the policy ended the trajectory here, `length` when the token limit cut it off.
    `prefix_tokens`: tokens of the prompt and the steps it follows, 0 where they are not known.
    """

    text: str
    logprob: float | None
    tokens: int
    finish: FinishReason
    prefix_tokens: int = 0


@dataclass(frozen=True)
class ScoreRequest:
    """Asks for the value of the trajectory `steps` (the last one included) after `prompt`.

    `final` says that the trajectory is finished: the score is then read at the end-of-sequence token.
    """

    prompt: str
    steps: tuple[str, ...]
    final: bool


@dataclass(frozen=True)
class Refused:
    """In place of candidates: this one request cannot be answered. `reason` is one line for a person.

    For what lies with the request (a prompt over the context length, a server's error for it alone after retries); the
    search records it on the tree and goes on elsewhere.
    """

    reason: str


Answer = list[Candidate] | Refused
"""What a request gets. Fewer candidates than asked for are taken as they are."""


class Engine(Protocol):
    """Proposes steps. `render(messages)` turns a chat into the prompt string the engine's tokenizer expects.

    `propose` blocks until all requests are answered, in order. The search calls it from one thread at a time, not
    always the same one.
    """

    def render(self, messages: list[dict[str, str]]) -> str: ...

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]: ...


class ConcurrentEngine(ABC):
    """An `Engine` that answers each request on its own, in any order; the search keeps `capacity` of them with it."""

    capacity: int
    """Requests it works on at once."""

    @abstractmethod
    def render(self, messages: list[dict[str, str]]) -> str: ...

    @abstractmethod
    def submit(self, request: ProposeRequest) -> Future[Answer]:
        """Begins a request and returns at once. Set the exception `EngineError` when the whole engine is gone."""

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        """All answers, in order."""
        return [future.result() for future in [self.submit(request) for request in requests]]


class Scorer(Protocol):
    """Values steps: raw PPM scores (no tanh), one per request, in order."""

    def score(self, requests: list[ScoreRequest]) -> list[float | Refused]: ...
