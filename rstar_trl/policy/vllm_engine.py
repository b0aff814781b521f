"""The policy and the PPM in vLLM, in this process: continuous batching, and prefixes computed once by its own cache.

Written against the versions that TRL 1.16 supports (0.22 to 0.31), which need an environment of their own: their
`transformers` is older than the one the rest was tested with. Tested on the CPU build of 0.31, not on a GPU.

Guarantees: as `TransformersEngine`, except that vLLM's random streams are not ours: the same seed gives other steps
than the embedded engine's.
"""

from __future__ import annotations

import itertools
import os
from functools import lru_cache
from typing import Any

from rstar_trl.config import EngineConfig, ModelConfig
from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Answer, Candidate, FinishReason, ProposeRequest, Refused, ScoreRequest
from rstar_trl.policy.loop import LoopEngine
from rstar_trl.policy.tokens import (
    DELIMITER,
    check_path,
    check_ppm,
    encode_prompt,
    encode_step,
    first_line,
    load_tokenizer,
    renderer,
)

SEEDS = 2**31

POLICY_MEMORY, PPM_MEMORY = 0.6, 0.3
"""Shares of a GPU's memory; `engine.options` may give the policy's (`gpu_memory_utilization`)."""


class VllmEngine(LoopEngine):
    """Implements `rstar_trl.policy.interface.ConcurrentEngine` in process."""

    def __init__(self, engine: Any, tokenizer: Any, max_step_tokens: int, concurrency: int):
        """`engine`: a `vllm.v1.engine.async_llm.AsyncLLM`."""
        super().__init__(concurrency)
        self.engine, self.max_step_tokens = engine, max_step_tokens
        self._render = renderer(tokenizer)
        self._longest = engine.model_config.max_model_len
        self._names = map(str, itertools.count())
        self._encode_prompt = lru_cache(4096)(lambda text: encode_prompt(tokenizer, text))
        self._encode_step = lru_cache(65536)(lambda text: encode_step(tokenizer, text, final=False))

    @classmethod
    def load(cls, path: str, model: ModelConfig, config: EngineConfig, max_step_tokens: int) -> VllmEngine:
        """Loads a whole model (vLLM cannot merge an adapter) in one process, which may use several GPUs."""
        check_path(path)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise EngineError(
                "vLLM shares out GPUs itself: launch one process, and give it the GPUs by `engine.options` "
                "(data_parallel_size, tensor_parallel_size)."
            )
        tokenizer = load_tokenizer(path, model.trust_remote_code)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        settings = {"gpu_memory_utilization": POLICY_MEMORY, **_shared(path, model), **config.options}
        try:
            engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"vLLM cannot load {path}: {first_line(error)}; mend `engine.options`.") from error
        return cls(engine, tokenizer, max_step_tokens, config.concurrency)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt by the tokenizer's chat template where there is one."""
        return self._render(messages)

    def close(self) -> None:
        """Frees the device too. vLLM's sockets belong to the loop: it must let go of them before the loop ends."""
        self.wait_for(self._shut_down())
        super().close()
        del self.engine

    async def _shut_down(self) -> None:
        self.engine.shutdown()

    async def answer(self, request: ProposeRequest) -> Answer:
        """See `LoopEngine.answer`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        ids = list(self._encode_prompt(request.prompt))
        for step in request.steps:
            ids += self._encode_step(step)
        if len(ids) + self.max_step_tokens > self._longest:
            return Refused(
                f"{len(ids)} tokens and a step of {self.max_step_tokens} exceed the model's {self._longest}"
            )
        settings = SamplingParams(
            n=request.n,
            temperature=request.temperature,
            seed=request.seed % SEEDS,
            max_tokens=self.max_step_tokens,
            stop=[DELIMITER],
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            async for output in self.engine.generate({"prompt_token_ids": ids}, settings, next(self._names)):
                final = output
        except EngineDeadError as error:
            raise EngineError(
                "vLLM ended (its own output above says why); give the same command again: finished work is kept."
            ) from error
        except ValueError as error:
            return Refused(f"vLLM refuses the request: {first_line(error)}")
        return [_candidate(each, len(ids)) for each in final.outputs]


class VllmScorer:
    """Implements `rstar_trl.policy.interface.Scorer` by vLLM's pooling runner."""

    def __init__(self, llm: Any, tokenizer: Any):
        """`llm`: a `vllm.LLM` with `runner="pooling"` over a one-label sequence-classification model."""
        self.llm = llm
        self._longest = llm.model_config.max_model_len
        self._encode_prompt = lru_cache(4096)(lambda text: encode_prompt(tokenizer, text))
        self._encode_step = lru_cache(65536)(lambda text, final: encode_step(tokenizer, text, final))

    @classmethod
    def load(cls, path: str, model: ModelConfig, config: EngineConfig) -> VllmScorer:
        """Loads a PPM folder beside the policy, with the policy's options but for its share of the memory."""
        from transformers import AutoConfig
        from vllm import LLM

        check_path(path)
        try:
            known = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
        except (OSError, ValueError) as error:
            raise EngineError(f"no PPM could be loaded from {path}: {first_line(error)}; check the path.") from error
        tokenizer = load_tokenizer(path, model.trust_remote_code)
        check_ppm(path, known.num_labels, tokenizer, known.vocab_size)
        settings = {**_shared(path, model), **config.options, "gpu_memory_utilization": PPM_MEMORY}
        return cls(LLM(runner="pooling", **settings), tokenizer)

    def close(self) -> None:
        """Frees the device."""
        self.llm.llm_engine.engine_core.shutdown()

    def score(self, requests: list[ScoreRequest]) -> list[float | Refused]:
        """Raw scores, one per request, in order: the model's output at the last token of each."""
        from vllm import PoolingParams

        ids = [self._ids(request) for request in requests]
        prompts = [{"prompt_token_ids": each} for each in ids if len(each) <= self._longest]
        raw = PoolingParams(use_activation=False)
        outputs = iter(self.llm.encode(prompts, pooling_params=raw, pooling_task="classify", use_tqdm=False))
        return [
            float(next(outputs).outputs.data[0])
            if len(each) <= self._longest
            else Refused(f"{len(each)} tokens exceed the PPM's {self._longest}")
            for each in ids
        ]

    def _ids(self, request: ScoreRequest) -> list[int]:
        ids = list(self._encode_prompt(request.prompt))
        for step in request.steps[:-1]:
            ids += self._encode_step(step, False)
        return ids + self._encode_step(request.steps[-1], request.final)


def _shared(path: str, model: ModelConfig) -> dict[str, Any]:
    return {
        "model": path,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "enable_prefix_caching": True,
    }


def _candidate(output: Any, prefix_tokens: int) -> Candidate:
    finish: FinishReason = "step" if output.stop_reason == DELIMITER else "eos"
    if output.finish_reason == "length":
        finish = "length"
    return Candidate(output.text, output.cumulative_logprob, len(output.token_ids), finish, prefix_tokens)
