from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rstar_trl.errors import ConfigError
from rstar_trl.policy.from_scratch import build_base
from tests.policy.toys import TEXTS

SHAPE = {
    "architecture": "llama",
    "vocab_size": 400,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
    "attention_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def copied(folder: Path, **spec: Any) -> float:
    """The share of tokens guessed right when a sequence of different random tokens is read a second time."""
    build_base({**SHAPE, **spec}, TEXTS * 20, folder, seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    generator, right = torch.Generator().manual_seed(1), []
    for _ in range(20):
        ids = torch.randperm(model.config.vocab_size, generator=generator)[:24]
        with torch.inference_mode():
            guessed = model(input_ids=torch.cat([ids, ids])[None]).logits[0, 24:-1].argmax(-1)
        right.append((guessed == ids[1:]).float().mean().item())
    return sum(right) / len(right)


def test_a_model_without_training_copies_what_it_reads_twice(tmp_path: Path) -> None:
    assert copied(tmp_path / "plain") < 0.05
    assert copied(tmp_path / "induction", induction_heads=2) > 0.5


def test_the_same_seed_gives_the_same_heads(tmp_path: Path) -> None:
    for name in ("first", "again"):
        build_base({**SHAPE, "induction_heads": 2}, TEXTS, tmp_path / name, seed=3)
    first, again = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("first", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"attention_bias": False}, "biased attention"),
        ({"num_hidden_layers": 1}, "needs two layers"),
        ({"num_key_value_heads": 2}, "as many key-value heads"),
        ({"num_attention_heads": 16, "num_key_value_heads": 16}, "more than 8 dimensions"),
    ],
)
def test_a_shape_that_cannot_hold_the_heads_is_refused(spec: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_base({**SHAPE, "induction_heads": 2, **spec}, TEXTS, tmp_path, seed=0)
