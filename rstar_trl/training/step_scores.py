"""A score at every step of many trees, in one forward pass of a plain sequence-classification model.

`AutoModelForSequenceClassification` pools one position of a row. Here the whole row of outputs is read through the
place where its loss would be computed, inside the model's own forward, so that wrappers (DDP, DeepSpeed, FSDP, PEFT,
autocast) see an ordinary call. Guarantees: the scores are those of one forward pass per prefix, up to rounding; the
model is left as it was. Does not support classifiers with a forward of their own (BERT, GPT-2): they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GenericForSequenceClassification

from rstar_trl.errors import DataError, EngineError
from rstar_trl.policy.tokens import encode_prompt, encode_step
from rstar_trl.search.tree import Tree
from rstar_trl.training.packing import attention_mask, check_attention, fill_rows, lay_out

ROW_TOKENS = 4096
"""Tokens a row of packed trees may have, unless told otherwise."""


def classifier(model: Any) -> Any:
    """The sequence classifier inside whatever wraps it; one that cannot score steps is an `EngineError`."""
    found = next((part for part in model.modules() if isinstance(part, GenericForSequenceClassification)), None)
    if found is None or found.num_labels != 1:
        raise EngineError(
            f"{type(model).__name__} cannot score the steps of a tree; use a decoder loaded by "
            "AutoModelForSequenceClassification with num_labels=1 (Llama, Qwen2, Qwen3, Mistral, Gemma, Phi, ...)."
        )
    return found


def forward_scores(
    model: Any,
    attention: str,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    last: torch.Tensor,
    ends: torch.Tensor,
) -> torch.Tensor:
    """The scores [steps] at flat slots `ends` of packed rows (the other tensors are [rows, width])."""
    with _loss_reads_scores(classifier(model)):
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask(last, attention),
            position_ids=position_ids,
            labels=ends,
            use_cache=False,
        )
    return output.loss


@torch.inference_mode()
def score_steps(
    model: Any, tokenizer: Any, trees: Sequence[Tree], row_tokens: int = ROW_TOKENS
) -> list[list[float | None]]:
    """The raw score of every node of every tree, as `PPMTrainer` trains it; None for the root, which is no step.

    All trees go through one forward pass: give as many as memory allows. A finished node is scored at its
    end-of-sequence token. A trajectory longer than `row_tokens` is a `DataError`.
    """
    attention = check_attention(classifier(model).config)
    sequences: list[list[int]] = []
    for tree in trees:
        prefixes = [encode_prompt(tokenizer, tree.prompt)]
        parents = set(tree.parent)
        for node in range(1, len(tree)):
            final = tree.terminal[node] and not tree.error[node] and node not in parents
            before = prefixes[tree.parent[node]]
            prefixes.append(before + encode_step(tokenizer, tree.text[node], final=final))
        sequences += prefixes[1:]
    if not sequences:
        return [[None] for _ in trees]
    if (longest := max(map(len, sequences))) > row_tokens:
        raise DataError(f"a trajectory has {longest} tokens and a row may have {row_tokens}; raise `row_tokens`.")
    layout = lay_out(sequences, row_tokens)
    rows = fill_rows(layout.pieces, row_tokens if attention == "flex_attention" else None)
    ends = [int(rows.offsets[piece] + path[-1]) for piece, path in zip(layout.piece, layout.paths, strict=True)]
    arrays = (rows.tokens, rows.positions, rows.last, ends)
    was_training = model.training
    scores = forward_scores(
        model.eval(), attention, *(torch.as_tensor(each, device=model.device) for each in arrays)
    ).tolist()
    model.train(was_training)
    values = iter(scores)
    return [[None, *(next(values) for _ in range(len(tree) - 1))] for tree in trees]


def _read(logits: torch.Tensor, labels: torch.Tensor, **unused: Any) -> torch.Tensor:
    return logits.flatten()[labels].float()


@contextmanager
def _loss_reads_scores(model: Any) -> Iterator[None]:
    model.loss_function = _read
    try:
        yield
    finally:
        del model._loss_function
