"""The embedded engine: samples steps with a `transformers` causal model on CPU or GPU.

Guarantees: a request's candidates come from its own random stream (`seed`), so they do not depend on the batch beyond
floating-point rounding; a prefix that is cached is not computed again; log-probabilities are at temperature 1,
whatever the sampling temperature; a prefix that the model cannot read whole is refused, and so is a request that does
not fit into the device's memory alone. Does not: run models without full attention (see `branches.prepare`); keep what
it computed while it sampled a step, which is read once more when the step is expanded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from rstar_trl.errors import EngineError
from rstar_trl.policy.branches import GROWTH, PrefixCache, prefill, prepare
from rstar_trl.policy.interface import Answer, Candidate, FinishReason, ProposeRequest, Refused
from rstar_trl.policy.memory import MemoryLimit, usual_rows
from rstar_trl.policy.tokens import (
    DELIMITER,
    check_path,
    encode_prompt,
    encode_step,
    first_line,
    load_tokenizer,
    renderer,
)


class TransformersEngine:
    """Implements `rstar_trl.policy.interface.Engine` in process."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_step_tokens: int = 96,
        rows_per_batch: int | None = None,
        cache_bytes: int | None = None,
    ):
        """`rows_per_batch`: tree nodes expanded in one pass, which samples four times as many steps at most.

        `cache_bytes`: keys and values kept of prefixes. Both are upper bounds: where memory runs out, passes get
        smaller and what is kept is dropped. None: as the device allows, see `memory`.
        """
        prepare(model, read_last=True)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.render = renderer(tokenizer)
        self.max_step_tokens = max_step_tokens
        self.rows_per_batch = rows_per_batch or usual_rows(model.device)
        self.cache = PrefixCache(cache_bytes or 0)
        self.memory = MemoryLimit(self.cache, model.device if cache_bytes is None else None)
        self.prompt_tokens = 0
        self._stops = _Stops.of(tokenizer, model.config.vocab_size, model.device)
        self._encode_prompt = lru_cache(4096)(lambda text: encode_prompt(tokenizer, text))
        self._encode_step = lru_cache(65536)(lambda text: encode_step(tokenizer, text, final=False))

    @classmethod
    def load(
        cls, path: str, dtype: str = "float32", trust_remote_code: bool = False, max_step_tokens: int = 96
    ) -> TransformersEngine:
        """Loads a model or a LoRA adapter folder (merged into its base) on the accelerator where there is one."""
        return cls(
            load_policy(path, dtype, trust_remote_code), load_tokenizer(path, trust_remote_code), max_step_tokens
        )

    def propose(self, requests: list[ProposeRequest]) -> list[Answer]:
        """The candidates of each request, in order. `prompt_tokens` counts the prefix tokens actually computed."""
        answers: list[Answer] = [[] for _ in requests]
        pieces = [
            [self._encode_prompt(request.prompt), *(self._encode_step(step) for step in request.steps)]
            for request in requests
        ]
        lengths = [sum(map(len, parts)) for parts in pieces]
        order = []
        for index, length in enumerate(lengths):
            if reason := self._problem(length):
                answers[index] = Refused(reason)
            else:
                order.append(index)
        # Each row of a pass has room for the longest prefix and the most steps, so those alike belong together.
        order.sort(key=lambda i: (_kind(requests[i]), lengths[i]))
        found = self.memory.in_passes(
            order,
            lambda left: self._fitting(requests, lengths, left),
            lambda chunk: self._sample([requests[i] for i in chunk], [pieces[i] for i in chunk]),
        )
        for index, candidates in found:
            answers[index] = self._too_large(requests[index], lengths[index]) if candidates is None else candidates
        return answers

    def _fitting(self, requests: list[ProposeRequest], lengths: list[int], order: list[int]) -> tuple[int, int]:
        """How many of `order`, which comes by kind and length, go into one pass, at least one; and that pass's size.

        They are of one kind and within all limits, the last with one step at most twice as long as the first with one.
        The size is rows times tokens if no step ends before it must.
        """
        first, longest = order[0], self.max_step_tokens
        steps = most = size = 0
        for count, index in enumerate(order):
            n, length = requests[index].n, lengths[index]
            steps, most = steps + n, max(most, n)
            larger = (count + 1) * (length + most * longest)
            if count and (
                count == self.rows_per_batch
                or steps > 4 * self.rows_per_batch
                or _kind(requests[index]) != _kind(requests[first])
                or length + longest > 2 * (lengths[first] + longest)
                or larger > self.memory.most
            ):
                return count, size
            size = larger
        return len(order), size

    def _too_large(self, request: ProposeRequest, length: int) -> Refused:
        return Refused(
            f"{length} tokens of prompt and steps, and {request.n} steps of up to {self.max_step_tokens} tokens after "
            "them, need more memory than the device has, even alone; show less of the schema, sample fewer steps at "
            "once, or use a device with more memory"
        )

    def _problem(self, length: int) -> str:
        """Why a prefix of so many tokens cannot be continued; empty when it can."""
        if not length:
            return "the prompt is empty"
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and length + self.max_step_tokens > most:
            return (
                f"{length} tokens of prompt and steps and a step of {self.max_step_tokens} are more than the {most} "
                "that the model reads; show less of the schema or fewer values"
            )
        return ""

    @torch.inference_mode()
    def _sample(self, requests: list[ProposeRequest], pieces: list[list[list[int]]]) -> list[list[Candidate]]:
        keys = [(request.prompt, *request.steps) for request in requests]
        most = max(request.n for request in requests)
        batch, logits, computed = prefill(self.model, self.cache, keys, pieces, GROWTH * most, read_last=True)
        assert logits is not None
        self.prompt_tokens += computed
        prefix = batch.lengths.tolist()
        state = _Siblings.start(requests, self.max_step_tokens, batch.device)
        row = state.request
        logits = logits[row]
        for step in range(self.max_step_tokens):
            if step:
                held, row = row.unique(return_inverse=True)
                if len(held) <= 0.75 * len(batch.lengths):
                    batch.keep(held)
                else:
                    row = held[row]
                last = state.tokens[state.going, step - 1]
                logits = batch.append(last, row, state.sibling[state.going], step - 1).logits[0]
            row = row[state.take(step, logits.float(), requests[0].temperature, self._stops)]
            if not len(row):
                break
        return state.candidates(self.tokenizer, self._stops.eos, prefix)


def load_policy(path: str, dtype: str, trust_remote_code: bool = False) -> Any:
    """A causal model for inference; a LoRA adapter folder is merged into its base model."""
    from transformers import AutoModelForCausalLM

    check_path(path)
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": "sdpa",
        "trust_remote_code": trust_remote_code,
    }
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise EngineError(f"no policy could be loaded from {path}: {first_line(error)}; check the path.") from error
    if getattr(model, "peft_config", None):
        from peft import PeftModel

        base = str(next(iter(model.peft_config.values())).base_model_name_or_path)
        wrapped: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), path)
        model = wrapped.merge_and_unload()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _kind(request: ProposeRequest) -> tuple[float, int]:
    """What may be sampled side by side: at one temperature, and fewer than twice as many steps."""
    return request.temperature, request.n.bit_length()


@dataclass(frozen=True)
class _Stops:
    """Per token id [vocabulary]: does it hold the delimiter, end with a newline, start with one."""

    delimits: torch.Tensor
    ends: torch.Tensor
    starts: torch.Tensor
    eos: int

    @classmethod
    def of(cls, tokenizer: Any, size: int, device: torch.device) -> _Stops:
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        texts += [""] * (size - len(texts))

        def flags(test: Any) -> torch.Tensor:
            return torch.tensor([bool(test(text)) for text in texts], device=device)

        return cls(
            flags(lambda text: DELIMITER in text),
            flags(lambda text: text.endswith("\n")),
            flags(lambda text: text.startswith("\n")),
            tokenizer.eos_token_id,
        )


@dataclass
class _Siblings:
    """What has been sampled so far, [candidates, tokens] and [candidates], siblings together.

    `request` and `sibling` say whose candidate it is and which of them; `going` are the indices of those that go on.
    """

    request: torch.Tensor
    sibling: torch.Tensor
    tokens: torch.Tensor
    uniform: torch.Tensor
    logprob: torch.Tensor
    length: torch.Tensor
    done: torch.Tensor
    going: torch.Tensor

    @classmethod
    def start(cls, requests: Sequence[ProposeRequest], longest: int, device: torch.device) -> _Siblings:
        streams = [
            np.random.Generator(np.random.Philox(key=r.seed)).random((r.n, longest), np.float32) for r in requests
        ]
        uniform = torch.from_numpy(np.concatenate(streams)).to(device)
        count = len(uniform)
        whose = [(index, sibling) for index, r in enumerate(requests) for sibling in range(r.n)]
        request, sibling = torch.tensor(whose, device=device).unbind(1)
        return cls(
            request=request,
            sibling=sibling,
            tokens=torch.zeros(uniform.shape, dtype=torch.long, device=device),
            uniform=uniform,
            logprob=torch.zeros(count, device=device),
            length=torch.zeros(count, dtype=torch.long, device=device),
            done=torch.zeros(count, dtype=torch.bool, device=device),
            going=torch.arange(count, device=device),
        )

    def take(self, step: int, logits: torch.Tensor, temperature: float, stops: _Stops) -> torch.Tensor:
        """Samples a token for each sibling that goes on, from `logits` [those, vocabulary].

        Returns which of those still go on, as indices.
        """
        if temperature == 0:
            chosen = logits.argmax(-1)
        else:
            cumulative = torch.softmax(logits / temperature, -1).cumsum(-1)
            target = self.uniform[self.going, step, None] * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        self.tokens[self.going, step] = chosen
        self.logprob[self.going] += logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        self.length[self.going] += 1
        ended = stops.delimits[chosen] | (chosen == stops.eos)
        if step:
            ended |= stops.ends[self.tokens[self.going, step - 1]] & stops.starts[chosen]
        self.done[self.going] = ended
        kept = (~ended).nonzero()[:, 0]
        self.going = self.going[kept]
        return kept

    def candidates(self, tokenizer: Any, eos: int, prefix: list[int]) -> list[list[Candidate]]:
        """What was sampled for each request, in their order; `prefix`: tokens before it."""
        lengths, logprobs, done = self.length.tolist(), self.logprob.tolist(), self.done.tolist()
        ids = [tokens[:length] for tokens, length in zip(self.tokens.tolist(), lengths, strict=True)]
        texts = tokenizer.batch_decode([[t for t in kept if t != eos] for kept in ids], skip_special_tokens=False)
        answers: list[list[Candidate]] = [[] for _ in prefix]
        for request, text, logprob, kept, ended in zip(self.request.tolist(), texts, logprobs, ids, done, strict=True):
            finish = _finish(kept, ended, eos)
            step = text.partition(DELIMITER)[0]
            answers[request].append(Candidate(step, logprob, len(kept), finish, prefix[request]))
        return answers


def _finish(ids: list[int], done: bool, eos: int) -> FinishReason:
    if not done:
        return "length"
    return "eos" if ids[-1] == eos else "step"
