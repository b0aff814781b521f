"""Branches side by side against the same sequences one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen3Config

from rstar_trl.errors import EngineError
from rstar_trl.policy.branches import PrefixCache, prefill, require_full_attention
from rstar_trl.policy.ragged_attention import use_ragged
from tests.policy.toys import random_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]
STEP = [[30, 31], [32], [33, 34, 35]]
"""One step of each row's prefix."""
BRANCHES = [[[40, 41, 42], [43], [44, 45]], [[46], [47, 48], [40]], [[41, 42], [40, 40, 40, 40], [49]]]


@pytest.fixture(scope="module", params=["llama", "qwen3", "llama without grouped heads"])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "qwen3":
        found = random_model("qwen3", 60, head_dim=16)
    else:
        found = random_model("llama", 60, num_key_value_heads=2 if request.param == "llama" else 4)
    use_ragged(found)
    return found


@torch.inference_mode()
def hidden_of(model: Any, ids: list[int]) -> torch.Tensor:
    """Last hidden states of one plain sequence: [tokens, hidden]."""
    return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@torch.inference_mode()
def run(model: Any, cache: PrefixCache, read_last: bool = False) -> tuple[Any, Any, int]:
    keys = [(f"prompt {row}", f"step {row}") for row in range(3)]
    pieces = [[PROMPTS[row], STEP[row]] for row in range(3)]
    return prefill(model if read_last else model.model, cache, keys, pieces, 12, read_last)


@torch.inference_mode()
def append_all_at_once(batch: Any, model: Any = None) -> torch.Tensor:
    batch.model = model or batch.model
    new = [
        (token, row, sibling, offset)
        for row, branches in enumerate(BRANCHES)
        for sibling, ids in enumerate(branches)
        for offset, token in enumerate(ids)
    ]
    return batch.append(*torch.tensor(new).unbind(1)).last_hidden_state[0]


def check(model: Any, hidden: torch.Tensor) -> None:
    start = 0
    for row, branches in enumerate(BRANCHES):
        for ids in branches:
            alone = hidden_of(model, PROMPTS[row] + STEP[row] + ids)[-len(ids) :]
            torch.testing.assert_close(hidden[start : start + len(ids)], alone, atol=2e-5, rtol=1e-4)
            start += len(ids)


def test_branches_equal_separate_sequences(model: Any) -> None:
    batch, _, computed = run(model, PrefixCache(1 << 20))
    assert computed == sum(map(len, PROMPTS + STEP))
    assert batch.lengths.tolist() == [9, 4, 7]
    check(model, append_all_at_once(batch))


def test_prefix_from_the_cache_gives_the_same(model: Any) -> None:
    cache = PrefixCache(1 << 20)
    run(model, cache)
    batch, output, computed = run(model, cache)
    assert output is None and computed == 0
    check(model, append_all_at_once(batch))


def test_prefix_partly_in_the_cache_gives_the_same(model: Any) -> None:
    """One row's prefix is known whole, one's prompt alone, one not at all."""
    known, mixed = PrefixCache(1 << 20), PrefixCache(1 << 20)
    run(model, known)
    first, second = known.longest(("prompt 0", "step 0")), known.longest(("prompt 1",))
    mixed.put(("prompt 0",), first[0])
    mixed.put(("prompt 0", "step 0"), first[1])
    mixed.put(("prompt 1",), second[0])
    batch, _, computed = run(model, mixed)
    assert computed == len(STEP[1]) + len(PROMPTS[2]) + len(STEP[2])
    check(model, append_all_at_once(batch))


@torch.inference_mode()
def test_last_token_alone_is_read_again_when_its_output_is_wanted(model: Any) -> None:
    cache = PrefixCache(1 << 20)
    run(model, cache)
    batch, logits, computed = run(model, cache, read_last=True)
    assert computed == 3
    check(model, append_all_at_once(batch, model.model))
    for row in range(3):
        expected = model.lm_head(hidden_of(model, PROMPTS[row] + STEP[row])[-1])
        torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_token_by_token_with_rows_dropped_gives_the_same(model: Any) -> None:
    """Siblings grow in step, one ends before the others, a row is dropped, and room is made as it is needed."""
    keys = [(f"prompt {row}",) for row in range(3)]
    batch, _, _ = prefill(model.model, PrefixCache(1 << 20), keys, [[ids] for ids in PROMPTS], 80, False)
    steps = 20
    tokens = torch.randint(5, 60, (3, 2, steps), generator=torch.Generator().manual_seed(0))
    going = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    places = [0, 1, 2]
    for position in range(steps):
        if position == 4:
            going.remove((0, 1))
        if position == 8:
            batch.keep(torch.tensor([0, 2]))
            going, places = [place for place in going if place[0] != 1], [0, -1, 1]
        row, sibling = torch.tensor(going).unbind(1)
        hidden = batch.append(tokens[row, sibling, position], torch.tensor(places)[row], sibling, position)
        assert hidden.last_hidden_state.shape[:2] == (1, len(going))
        for index, (row, sibling) in enumerate(going):
            expected = hidden_of(model, PROMPTS[row] + tokens[row, sibling, : position + 1].tolist())[-1]
            torch.testing.assert_close(hidden.last_hidden_state[0, index], expected, atol=5e-5, rtol=1e-4)


def test_cache_keeps_to_its_bytes_and_drops_the_oldest() -> None:
    segment = torch.zeros(2, 2, 1, 4, 8)
    cache = PrefixCache(3 * segment.nbytes)
    for name in "abc":
        cache.put((name,), segment.clone())
    cache.longest(("a",))
    cache.put(("d",), segment.clone())
    assert cache.bytes == 3 * segment.nbytes
    assert [bool(cache.longest((name,))) for name in "abcd"] == [True, False, True, True]
    cache.put(("a",), segment.clone())
    assert cache.bytes == 3 * segment.nbytes


def test_what_a_prefix_begins_with_is_dropped_after_its_ends() -> None:
    """However often the ends, siblings say, were put after it."""
    segment = torch.zeros(1, 2, 1, 1, 4)
    cache = PrefixCache(3 * segment.nbytes)
    for key in (("p",), ("p", "a"), ("p", "b"), ("q",)):
        cache.put(key, segment.clone())
    assert [len(cache.longest(key)) for key in (("p", "a"), ("p", "b"), ("q",))] == [1, 2, 1]
    cache.put(("r",), segment.clone())
    assert [len(cache.longest(key)) for key in (("p", "b"), ("q",), ("r",))] == [1, 1, 1]


def test_a_prefix_with_a_hole_counts_up_to_the_hole() -> None:
    cache = PrefixCache(1 << 20)
    segment = torch.zeros(1, 2, 1, 1, 4)
    cache.put(("p",), segment)
    cache.put(("p", "a", "b"), segment)
    assert len(cache.longest(("p", "a", "b"))) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MistralConfig(sliding_window=64, max_position_embeddings=512), "mistral.*sliding_window 64"),
        (Qwen3Config(layer_types=["full_attention", "sliding_attention"], num_hidden_layers=2), "qwen3 .*sliding_att"),
    ],
)
def test_sliding_windows_are_refused_by_name(config: PreTrainedConfig, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        require_full_attention(config)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(),
        GemmaConfig(),
        Qwen3Config(),
        MistralConfig(sliding_window=None),
        # A window as long as the model can read hides nothing.
        MistralConfig(sliding_window=512, max_position_embeddings=512),
    ],
)
def test_full_attention_is_accepted(config: PreTrainedConfig) -> None:
    require_full_attention(config)
