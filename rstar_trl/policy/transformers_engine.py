"""The embedded engine: samples steps with a `transformers` causal model on CPU or GPU.

Guarantees: a request's candidates come from its own random stream (`seed`), so they do not depend on the batch beyond
floating-point rounding; a prefix that is cached is not computed again; log-probabilities are at temperature 1,
whatever the sampling temperature; a prefix that the model cannot read whole is refused, and so is a request that does
not fit into the device's memory alone. Does not: run models without full attention (see
`branches.require_full_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from rstar_trl.errors import EngineError
from rstar_trl.policy.branches import GROWTH, PrefixCache, prefill, require_full_attention
from rstar_trl.policy.interface import Answer, Candidate, FinishReason, ProposeRequest, Refused
from rstar_trl.policy.memory import MemoryLimit, prefix_bytes
from rstar_trl.policy.ragged_attention import use_ragged
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
        rows_per_batch: int = 128,
        cache_bytes: int | None = None,
    ):
        """`rows_per_batch`: tree nodes expanded in one pass; `cache_bytes`: keys and values kept of prefixes, see
        `memory.prefix_bytes` for None.

        Both are upper bounds: where memory runs out, passes get smaller and what is kept is dropped.
        """
        require_full_attention(model.config)
        use_ragged(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.render = renderer(tokenizer)
        self.max_step_tokens = max_step_tokens
        self.rows_per_batch = rows_per_batch
        self.cache = PrefixCache(prefix_bytes(model.device) if cache_bytes is None else cache_bytes)
        self.memory = MemoryLimit(self.cache)
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
        # Rows of one pass are padded to the longest, so equal lengths belong together.
        order.sort(key=lambda i: (requests[i].n, requests[i].temperature, lengths[i]))
        found = self.memory.in_passes(
            order,
            lambda left: self._fitting(requests, lengths, left),
            lambda chunk: self._sample([requests[i] for i in chunk], [pieces[i] for i in chunk]),
        )
        for index, candidates in found:
            answers[index] = self._too_large(requests[index], lengths[index]) if candidates is None else candidates
        return answers

    def _fitting(self, requests: list[ProposeRequest], lengths: list[int], order: list[int]) -> tuple[int, int]:
        """How many of `order`, which comes by length, go into one pass, at least one; and the size of that pass.

        They are alike and within both limits. The size is rows times tokens if no step ends before it must.
        """
        first = requests[order[0]]
        rows = order[: max(1, self.rows_per_batch * 4 // max(4, first.n))]
        size = 0
        for count, index in enumerate(rows):
            larger = (count + 1) * (lengths[index] + first.n * self.max_step_tokens)
            if count and (not _alike(requests[index], first) or larger > self.memory.most):
                return count, size
            size = larger
        return len(rows), size

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
        n, temperature = requests[0].n, requests[0].temperature
        keys = [(request.prompt, *request.steps) for request in requests]
        batch, logits, computed = prefill(self.model, self.cache, keys, pieces, GROWTH * n, read_last=True)
        assert logits is not None
        self.prompt_tokens += computed
        prefix = batch.lengths.tolist()
        state = _Siblings.start(requests, self.max_step_tokens, batch.device)
        logits = logits.repeat_interleave(n, 0)
        row = state.going // n
        for step in range(self.max_step_tokens):
            if step:
                held, row = row.unique(return_inverse=True)
                if len(held) <= 0.75 * len(batch.lengths):
                    batch.keep(held)
                else:
                    row = held[row]
                last = state.tokens[state.going, step - 1]
                logits = batch.append(last, row, state.going % n, step - 1).logits[0]
            row = row[state.take(step, logits.float(), temperature, self._stops)]
            if not len(row):
                break
        return state.candidates(n, self.tokenizer, self._stops.eos, prefix)


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


def _alike(a: ProposeRequest, b: ProposeRequest) -> bool:
    return a.n == b.n and a.temperature == b.temperature


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
    """What has been sampled so far, [candidates, tokens] and [candidates], siblings together; `going`: which go on."""

    tokens: torch.Tensor
    uniform: torch.Tensor
    logprob: torch.Tensor
    length: torch.Tensor
    done: torch.Tensor
    going: torch.Tensor

    @classmethod
    def start(cls, requests: Sequence[ProposeRequest], longest: int, device: torch.device) -> _Siblings:
        shape = (requests[0].n, longest)
        streams = [np.random.Generator(np.random.Philox(key=r.seed)).random(shape, np.float32) for r in requests]
        uniform = torch.from_numpy(np.concatenate(streams)).to(device)
        count = len(uniform)
        return cls(
            tokens=torch.zeros(uniform.shape, dtype=torch.long, device=device),
            uniform=uniform,
            logprob=torch.zeros(count, device=device),
            length=torch.zeros(count, dtype=torch.long, device=device),
            done=torch.zeros(count, dtype=torch.bool, device=device),
            going=torch.arange(count, device=device),
        )

    def take(self, step: int, logits: torch.Tensor, temperature: float, stops: _Stops) -> torch.Tensor:
        """Samples a token for each sibling that goes on from `logits` [those, vocabulary]; which of them still do."""
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
        self.going = self.going[~ended]
        return ~ended

    def candidates(self, n: int, tokenizer: Any, eos: int, prefix: list[int]) -> list[list[Candidate]]:
        """What was sampled, `n` for each request, in their order; `prefix`: tokens before it."""
        lengths, logprobs, done = self.length.tolist(), self.logprob.tolist(), self.done.tolist()
        ids = [tokens[:length] for tokens, length in zip(self.tokens.tolist(), lengths, strict=True)]
        texts = tokenizer.batch_decode([[t for t in kept if t != eos] for kept in ids], skip_special_tokens=False)
        found = [
            Candidate(text.partition(DELIMITER)[0], logprob, len(kept), _finish(kept, ended, eos), prefix[index // n])
            for index, (text, logprob, kept, ended) in enumerate(zip(texts, logprobs, ids, done, strict=True))
        ]
        return [found[start : start + n] for start in range(0, len(found), n)]


def _finish(ids: list[int], done: bool, eos: int) -> FinishReason:
    if not done:
        return "length"
    return "eos" if ids[-1] == eos else "step"
