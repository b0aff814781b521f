from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from rstar_trl.errors import EngineError
from rstar_trl.training.packing import attention_mask, check_attention, fill_rows, lay_out
from tests.training.trees import questions, tiny_ppm

budgets = st.sampled_from([None, 70, 90])


def seen_by(last: np.ndarray, slot: int) -> list[int]:
    return [other for other in range(slot + 1) if slot < last[other]]


@settings(deadline=None, max_examples=60)
@given(questions(), budgets)
def test_a_token_sees_exactly_its_own_sequence(sequences: list[list[int]], budget: int | None) -> None:
    layout = lay_out(sequences, budget)
    for sequence, number, path in zip(sequences, layout.piece, layout.paths, strict=True):
        piece = layout.pieces[number]
        assert piece.tokens[path].tolist() == sequence
        assert piece.positions[path].tolist() == list(range(len(sequence)))
        assert seen_by(piece.last, int(path[-1])) == path.tolist()
        assert budget is None or len(piece) <= budget


@settings(deadline=None, max_examples=40)
@given(questions())
def test_shared_tokens_stand_once(sequences: list[list[int]]) -> None:
    rooted = [sequence[:1] * 40 + sequence for sequence in sequences]  # enough in common to be one trie
    layout = lay_out(rooted)
    prefixes = {tuple(sequence[:end]) for sequence in rooted for end in range(1, len(sequence) + 1)}
    assert [len(piece) for piece in layout.pieces] == [len(prefixes)]


@settings(deadline=None, max_examples=40)
@given(questions())
def test_parent_is_the_longest_proper_prefix(sequences: list[list[int]]) -> None:
    sequences = [list(each) for each in dict.fromkeys(map(tuple, sequences))]
    for sequence, parent in zip(sequences, lay_out(sequences).parent, strict=True):
        above = [other for other in sequences if other != sequence and sequence[: len(other)] == other]
        assert (max(above, key=len) if above else None) == (sequences[parent] if parent >= 0 else None)


@settings(deadline=None, max_examples=40)
@given(questions(), budgets)
def test_with_overlap_every_slot_has_one_next_token(sequences: list[list[int]], budget: int | None) -> None:
    layout = lay_out(sequences, budget, overlap=1)
    following: dict[tuple[int, int], int] = {}
    for sequence, number, path in zip(sequences, layout.piece, layout.paths, strict=True):
        for slot, token in zip(path[:-1].tolist(), sequence[1:], strict=True):
            assert following.setdefault((number, slot), token) == token


def test_a_tree_beyond_the_budget_is_split_and_its_prefix_repeated() -> None:
    prompt = list(range(10, 30))
    layout = lay_out([[*prompt, branch, 7, 7] for branch in range(1, 9)], budget=30)
    assert [len(piece) for piece in layout.pieces] == [29, 29, 26]
    assert all(piece.tokens[:20].tolist() == prompt for piece in layout.pieces)


def test_limits_keep_a_shared_part_apart() -> None:
    sequences = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]]
    assert len(lay_out(sequences).pieces[0]) == 5
    assert len(lay_out(sequences, limits=[3, 3]).pieces[0]) == 7


def test_rows_hold_several_trees_and_none_sees_another() -> None:
    pieces = lay_out([[1] * 8, [2] * 4, [3] * 4, [4] * 3]).pieces
    rows = fill_rows(pieces, pad_token=99)
    assert rows.tokens.shape == (3, 8)
    mask = attention_mask(torch.as_tensor(rows.last), "sdpa")[:, 0]
    for row, tokens in enumerate(rows.tokens):
        for slot, token in enumerate(tokens):
            seen = tokens[mask[row, slot].numpy()]
            assert set(seen.tolist()) == {token}
            assert len(seen) == (1 if token == 99 else rows.positions[row, slot] + 1)
    assert fill_rows(pieces, budget=19).tokens.shape == (1, 19)


def test_masks_of_all_implementations_agree() -> None:
    last = torch.as_tensor(fill_rows(lay_out([[1, 2, 3], [1, 2, 4, 5], [7]]).pieces).last)
    seen = attention_mask(last, "sdpa")
    assert torch.equal(attention_mask(last, "eager") == 0, seen)
    sees = attention_mask(last, "flex_attention").mask_mod
    rows, width = last.shape
    flexible = [[[bool(sees(r, 0, q, k)) for k in range(width)] for q in range(width)] for r in range(rows)]
    assert torch.equal(torch.tensor(flexible)[:, None], seen)


WINDOWS = {
    "mistral": {"sliding_window": 64},
    "qwen2": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
    "phi3": {"sliding_window": 64},
    "gemma2": {},
    "gemma3_text": {},
}
"""Families with layers that see a window of their past alone: by these fields, or always."""


@pytest.mark.parametrize("family", WINDOWS)
def test_sliding_windows_are_refused_by_name_with_what_to_use_instead(family: str) -> None:
    config = AutoConfig.for_model(family, **WINDOWS[family])
    with pytest.raises(EngineError, match=rf"{family} uses sliding.*with full attention.*`mode: pairs`.*`mode: rows`"):
        check_attention(config)


def test_an_attention_that_takes_no_mask_is_refused_by_name() -> None:
    config = tiny_ppm().config
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(EngineError, match=r"flash_attention_2.*sdpa, eager, flex_attention"):
        check_attention(config)
