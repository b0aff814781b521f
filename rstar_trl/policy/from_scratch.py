"""A small random model and a tokenizer trained on the corpus, so that a run needs no download.

Guarantees: the same texts, spec and seed give the same folder. The tokenizer never merges across a newline (the blank
line between steps is always its own token), reads digits in pairs, and spells a number or a name alike after a space
and after a quote, so that a value can be copied token by token; `<pad>` and `<eos>` are distinct.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rstar_trl.errors import ConfigError
from rstar_trl.strict_yaml import unknown_key

PIECES = r"\n+|--| (?=\d|[A-Z]\b|[A-Z][a-z])|\d{1,2}| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]|[^\S\n]+"
"""What the tokenizer never merges across. The space before a number or a capitalised word is a token of its own."""


def build_base(spec: dict[str, Any], texts: Iterable[str], output_dir: Path, seed: int) -> None:
    """Writes a randomly initialised causal model and its tokenizer to `output_dir`.

    `spec`: `architecture` (a `model_type` of transformers), `vocab_size` (the tokenizer's upper bound),
    `induction_heads` (see `rstar_trl.policy.induction`; none when absent), and fields of that architecture's config.
    Raises `ConfigError` for a spec or architecture that cannot be built, and `EngineError` for one that could not be
    searched with.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rstar_trl.policy.branches import require_full_attention
    from rstar_trl.policy.induction import induction_heads

    spec = dict(spec)
    architecture, vocab_size = spec.pop("architecture"), spec.pop("vocab_size", 2000)
    heads = spec.pop("induction_heads", 0)
    tokenizer = train_tokenizer(texts, vocab_size)
    config = model_config(architecture, spec)
    require_full_attention(config)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if heads:
        induction_heads(model, heads, seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    # transformers ties some architectures to a tokenizer class that replaces what was trained here.
    reloaded = AutoTokenizer.from_pretrained(output_dir)
    probe = "-- two rows, 2014\nSELECT a_b\n\n"
    if len(reloaded) != len(tokenizer) or reloaded(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise ConfigError(
            f"`model.from_scratch.architecture`: transformers loads its own tokenizer for `{architecture}` models and "
            "would ignore the one trained on the corpus; use `llama` or `qwen3`."
        )


def model_config(architecture: str, fields: dict[str, Any]) -> Any:
    """The architecture's config with `fields` set; unknown architectures and fields are a `ConfigError`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if architecture not in CONFIG_MAPPING:
        raise ConfigError(f"`model.from_scratch.architecture`: transformers has no model type `{architecture}`.")
    cls = CONFIG_MAPPING[architecture]
    known = {field.name for field in dataclasses.fields(cls)}
    problems = [f"`model.from_scratch`: {unknown_key(name, sorted(known))}" for name in fields if name not in known]
    if problems:
        raise ConfigError(problems)
    return cls(**fields)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer trained on `texts`, as a `PreTrainedTokenizerFast`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
