"""Which engine and which scorer a recipe names: opened for a block, and everything they hold given back after it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rstar_trl.config import EngineConfig, ModelConfig
from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Engine, Scorer


@contextmanager
def open_engine(config: EngineConfig, model: ModelConfig, policy: str, max_step_tokens: int) -> Iterator[Engine]:
    """The engine for the policy in the folder `policy`, or for `config.model` where that is to answer instead."""
    path = config.model or policy
    if config.kind == "transformers":
        from rstar_trl.policy.transformers_engine import TransformersEngine

        yield TransformersEngine.load(path, model.dtype, model.trust_remote_code, max_step_tokens)
    elif config.kind == "vllm":
        with closing(_module("vllm").VllmEngine.load(path, model, config, max_step_tokens)) as engine:
            yield engine
    else:
        tokenizer = _tokenizer(config, model, policy)
        with closing(_module("openai").OpenAIEngine(config, path, max_step_tokens, tokenizer)) as engine:
            engine.check()
            yield engine


@contextmanager
def open_scorer(config: EngineConfig, model: ModelConfig, ppm: Path | None) -> Iterator[Scorer | None]:
    """The scorer for the PPM in a folder, None without one. Where a server proposes, this process still scores."""
    if ppm is None:
        yield None
    elif config.kind == "vllm":
        with closing(_module("vllm").VllmScorer.load(str(ppm), model, config)) as scorer:
            yield scorer
    else:
        from rstar_trl.policy.ppm_scorer import PPMScorer

        yield PPMScorer.load(str(ppm), model.dtype, model.trust_remote_code)


def _module(kind: str) -> Any:
    """The engine's module, which imports the package its extra installs."""
    try:
        importlib.import_module(kind)
    except ImportError as error:
        raise EngineError(
            f"`engine.kind: {kind}` needs the package {kind} ({error}); install it: pip install 'rstar-trl[{kind}]'."
        ) from error
    return importlib.import_module(f"rstar_trl.policy.{kind}_engine")


def _tokenizer(config: EngineConfig, model: ModelConfig, policy: str) -> Any:
    """What renders prompts for a server; None where the chat endpoint does so itself, or nothing is known of it."""
    from rstar_trl.policy.tokens import load_tokenizer

    name = config.tokenizer or (None if config.model else policy)
    if name is None or config.endpoint == "chat":
        return None
    return load_tokenizer(name, model.trust_remote_code)
