"""OpenAI's two request formats, and what servers make of them: plain functions from requests to JSON and back.

Guarantees: what is read from a server is checked for its shape before it is used (`MalformedReply`). A server says in
its own way what ended a text: vLLM by `stop_reason`, SGLang by `matched_stop`, `transformers serve` by leaving the
stop string in; hosted APIs do not say. `finish_of` knows all four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from rstar_trl.policy.interface import Candidate, FinishReason, ProposeRequest
from rstar_trl.policy.tokens import DELIMITER

Endpoint = Literal["completions", "chat"]

PATHS: Final[Mapping[Endpoint, str]] = {"completions": "/completions", "chat": "/chat/completions"}
SEEDS = 2**31
"""Servers take seeds of different widths; all take these."""

CONTINUE = "Go on with the next step. Do not repeat the steps above, and write nothing after the last one."
"""Asks a chat model for more where the server would not continue an assistant's message."""

UNTOLD: Final = object()
"""Stands for what a server does not say."""


class MalformedReply(Exception):
    """A server's answer is no JSON, or not of the shape it should have. The text says what is wrong."""


@dataclass(frozen=True)
class Choice:
    """One sampled text as the server sent it.

    `stop` is what ended it, `UNTOLD` where the server does not say; `tokens` are each token's text and
    log-probability, None where the server gives none; `count` is how many were generated.
    """

    text: str
    finish: str
    stop: Any
    tokens: Sequence[tuple[str, float]] | None
    count: int = 0


@dataclass(frozen=True)
class Reply:
    """A server's answer to one request."""

    choices: list[Choice]
    prompt_tokens: int


def completion_body(request: ProposeRequest, ids: Sequence[int] | None) -> dict[str, Any]:
    """The prompt of the completions endpoint: token ids where a tokenizer is known, else the text they stand for."""
    text = request.prompt + "".join(step + DELIMITER for step in request.steps)
    return {"prompt": text if ids is None else list(ids), "logprobs": 1}


def chat_body(request: ProposeRequest, prefill: bool) -> dict[str, Any]:
    """The messages of the chat endpoint: the prompt, then the steps so far as an assistant's unfinished message.

    With `prefill` the server is told to continue that message, else a last message asks for the next step.
    """
    messages = [{"role": "user", "content": request.prompt}]
    extra: dict[str, Any] = {}
    if request.steps:
        messages.append({"role": "assistant", "content": "".join(step + DELIMITER for step in request.steps)})
        if prefill:
            extra = {"continue_final_message": True, "add_generation_prompt": False}
        else:
            messages.append({"role": "user", "content": CONTINUE})
    return {"messages": messages, "logprobs": True, **extra}


def with_options(body: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own fields over ours; an empty one takes ours out."""
    return {name: value for name, value in {**body, **options}.items() if value is not None}


def read_reply(data: Any, endpoint: Endpoint, stopped: bool) -> Reply:
    """Takes a decoded answer apart. `stopped`: the request asked the server to stop at the delimiter."""
    if not isinstance(data, dict) or not isinstance(data.get("choices"), list):
        raise MalformedReply("it has no list of choices")
    usage = data.get("usage") or {}
    try:
        choices = [
            _read_chat(each, stopped) if endpoint == "chat" else _read_completion(each) for each in data["choices"]
        ]
        prompt_tokens, generated = (int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion"))
        shares = _share(generated, choices)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise MalformedReply(f"a choice cannot be read ({error!r})") from error
    counts = [len(choice.tokens or ()) or share for choice, share in zip(choices, shares, strict=True)]
    counted = [replace(choice, count=count) for choice, count in zip(choices, counts, strict=True)]
    # What a filter took away was never the policy's step.
    return Reply([choice for choice in counted if choice.finish != "content_filter"], prompt_tokens)


def finish_of(choice: Choice, stopped: bool) -> FinishReason | None:
    """How the step ended; None where only the server knows whether the delimiter or the policy ended it.

    `stopped`: as for `read_reply`.
    """
    if DELIMITER in choice.text:
        return "step"
    if choice.finish == "length":
        return "length"
    if isinstance(choice.stop, str):
        return "step"
    return None if stopped and choice.stop is UNTOLD else "eos"


def to_candidates(choices: Sequence[Choice], stopped: bool, prefix_tokens: int) -> list[Candidate]:
    """The steps among `choices`, each cut at its delimiter. `prefix_tokens`: as the server counted them, all in all.

    Where any log-probability is missing none is told.
    """
    listed = all(choice.tokens is not None for choice in choices)
    return [
        Candidate(
            choice.text.partition(DELIMITER)[0],
            _logprob(choice.tokens or ()) if listed else None,
            choice.count,
            finish_of(choice, stopped) or "eos",
            prefix_tokens,
        )
        for choice in choices
    ]


def _read_completion(data: Any) -> Choice:
    logprobs = data.get("logprobs") or {}
    tokens = None
    # A server that leaves one out has told none: what is left out is not certain.
    if None not in (logprobs.get("token_logprobs") or [None]):
        pairs = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
        tokens = [(str(token), float(value)) for token, value in pairs]
    return Choice(str(data["text"] or ""), str(data.get("finish_reason")), _stop(data), tokens)


def _read_chat(data: Any, stopped: bool) -> Choice:
    content = (data.get("logprobs") or {}).get("content")
    tokens = None if content is None else [(str(each["token"]), float(each["logprob"])) for each in content]
    text = _unfenced(str(data["message"].get("content") or ""))
    # Blank lines at the end are the delimiter where it was asked for, and a habit where it was not.
    text = text if stopped else text.rstrip("\n")
    return Choice(text, str(data.get("finish_reason")), _stop(data), tokens)


def _stop(data: Mapping[str, Any]) -> Any:
    return next((data[name] for name in ("stop_reason", "matched_stop") if name in data), UNTOLD)


def _unfenced(text: str) -> str:
    """A chat model's steps without the code fence it likes to put around them."""
    return "\n".join(line for line in text.split("\n") if not line.startswith("```")).lstrip("\n")


def _logprob(tokens: Sequence[tuple[str, float]]) -> float:
    """The log-probability of a step: its tokens up to the one that completes the delimiter."""
    total, text = 0.0, ""
    for token, logprob in tokens:
        total += logprob
        text += token
        if DELIMITER in text:
            break
    return total


def _share(total: int, choices: Sequence[Choice]) -> list[int]:
    """`total` in whole parts that are about proportional to the choices' lengths."""
    # Some servers report what they spent in all, and none of them whose it was.
    lengths = [len(choice.text) + 1 for choice in choices]
    ends = [round(total * sum(lengths[: i + 1]) / sum(lengths)) for i in range(len(lengths))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
