"""The seam between search and models: requests in, candidates and values out.

An engine proposes next steps for a prefix; a scorer values prefixes. Both take whole batches and answer in order.
Guarantees asked of every implementation: an answer depends on the request alone (its own random stream comes from
`seed`), up to floating-point rounding, not on what else is in the batch.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Candidate:
    """One sampled step: `text` without the delimiter, `logprob` summed over its tokens at temperature 1.

    `finish`: `step` when the delimiter ended it, `eos` when the policy ended the trajectory here, `length` when the
    token limit cut it off.
    """

    text: str
    logprob: float
    tokens: int
    finish: FinishReason


@dataclass(frozen=True)
class ScoreRequest:
    """Asks for the value of the trajectory `steps` (the last one included) after `prompt`.

    `final` says that the trajectory is finished: the score is then read at the end-of-sequence token.
    """

    prompt: str
    steps: tuple[str, ...]
    final: bool


class Engine(Protocol):
    """Proposes steps. `render(messages)` turns a chat into the prompt string the engine's tokenizer expects."""

    def render(self, messages: list[dict[str, str]]) -> str: ...

    def propose(self, requests: list[ProposeRequest]) -> list[list[Candidate]]: ...


class Scorer(Protocol):
    """Values steps: raw PPM scores (no tanh), one per request."""

    def score(self, requests: list[ScoreRequest]) -> list[float]: ...
