"""Random trees of token ids, tiny models of several families, and the slow computation to compare with."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st

from rstar_trl.policy.from_scratch import model_config
from rstar_trl.training.packing import attention_mask, check_attention
from rstar_trl.training.ppm_trees import Settings, TreeCollator, pack_questions, tree_loss
from rstar_trl.training.step_scores import forward_scores

VOCABULARY = 40
PAD = 0
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "mistral": {"sliding_window": None},
    "gemma": {"head_dim": 8},
    "phi": {},
}
"""Families whose layers use full attention, and what their tiny configs need beside the common shape."""

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": 1,
    # Wide weights, so that what a token sees matters to what comes out.
    "initializer_range": 0.3,
}


def tiny_config(family: str, **fields: Any) -> Any:
    return model_config(family, {**SHAPE, **FAMILIES[family], **fields})


def tiny_ppm(family: str = "llama", attention: str = "sdpa", **fields: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    config = tiny_config(family, **fields)
    config.num_labels = 1
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()


def tiny_policy(family: str = "llama", attention: str = "sdpa", **fields: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family, **fields), attn_implementation=attention).eval()


token_lists = st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=6)


@st.composite
def questions(draw: Any) -> list[list[int]]:
    """The paths to the nodes of a random tree: a prompt, then steps below random earlier nodes."""
    paths = [draw(st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=12))]
    for _ in range(draw(st.integers(2, 9))):
        paths.append(draw(st.sampled_from(paths)) + draw(token_lists))
    return paths[1:]


@st.composite
def pairs(draw: Any, count: int = 3) -> list[dict[str, Any]]:
    """Encoded preference rows of up to `count` questions, some of which have prompt and steps in common."""
    rows, paths = [], draw(questions())
    for number in range(draw(st.integers(1, count))):
        if number and draw(st.booleans()):
            paths = draw(questions())
        for _ in range(draw(st.integers(1, 6))):
            chosen, rejected = draw(st.sampled_from(paths)), draw(st.sampled_from(paths))
            weight, margin = draw(st.sampled_from([0.25, 0.5, 1.0])), draw(st.sampled_from([0.0, 0.5, 2.0]))
            row = {"question_id": f"q{number}", "chosen_ids": chosen, "rejected_ids": rejected}
            rows.append({**row, "weight": weight, "margin": margin})
    if all(row["chosen_ids"] == row["rejected_ids"] for row in rows):
        rows[0]["rejected_ids"] = rows[0]["chosen_ids"] + [2]
    return rows


def random_pairs(seed: int, count: int = 3, prompt: int = 12) -> list[dict[str, Any]]:
    """Like `pairs`, from a seed: four siblings at each of three depths, and a pair of every two neighbours."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(size: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (size,), generator=generator).tolist()

    rows = []
    for number in range(count):
        path = tokens(prompt + number)
        for depth in range(3):
            siblings = [path + tokens(3 + depth) for _ in range(4)]
            for chosen, rejected in pairwise(siblings):
                row = {"question_id": f"q{number}", "chosen_ids": chosen, "rejected_ids": rejected}
                rows.append({**row, "weight": 0.5 + 0.5 * (depth == 1), "margin": 0.5 * depth})
            path = siblings[0]
    return rows


def packed_loss(model: Any, rows: list[dict[str, Any]], row_tokens: int = 256, **terms: Any) -> torch.Tensor:
    """The loss of tree mode over all rows in one batch."""
    return batch_loss(model, packed_batch(rows, row_tokens), **terms)


def packed_batch(rows: list[dict[str, Any]], row_tokens: int) -> dict[str, torch.Tensor]:
    """All rows as one batch of tree mode."""
    columns, _ = pack_questions(rows, Settings(row_tokens, weighted=True, use_margin=True), "test")
    examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return TreeCollator(PAD)(examples)


def batch_loss(model: Any, batch: dict[str, torch.Tensor], **terms: Any) -> torch.Tensor:
    """The loss of tree mode over a batch."""
    places = (batch[name] for name in ("input_ids", "position_ids", "last", "ends"))
    return tree_loss(forward_scores(model, check_attention(model.config), *places), batch, **terms)


def unpacked_loss(model: Any, rows: list[dict[str, Any]], center: float | None = None) -> torch.Tensor:
    """The same from one unpadded forward pass per side."""
    rows = [row for row in rows if row["chosen_ids"] != row["rejected_ids"]]
    mean = sum(row["weight"] for row in rows) / len(rows)
    total = torch.zeros(())
    for row in rows:
        chosen, rejected = (
            model(input_ids=torch.tensor([row[side]])).logits[0, 0] for side in ("chosen_ids", "rejected_ids")
        )
        total = total - row["weight"] / mean * torch.nn.functional.logsigmoid(chosen - rejected - row["margin"])
        total = total + (center or 0.0) * (chosen + rejected) ** 2
    return total / len(rows)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(model: Any, packed: torch.Tensor, unpacked: torch.Tensor) -> None:
    """Loss within 1e-5 relative, gradients within 1e-4."""
    torch.testing.assert_close(packed, unpacked, rtol=1e-5, atol=1e-6)
    found, expected = gradients(model, packed), gradients(model, unpacked)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


# --- trajectories, for the policy ------------------------------------------------------------------------------------


@st.composite
def trajectory_rows(draw: Any) -> list[dict[str, Any]]:
    """Questions with trajectories that branch anywhere, some of whose tokens carry no label."""
    rows: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = draw(st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=12))
        if rows and draw(st.booleans()):
            prompt = rows[-1]["input_ids"][0][: len(prompt)]  # questions may have their prompt in common
        steps = [[*path[len(prompt) :], 1] for path in draw(questions())]
        masks = [[*(draw(st.booleans()) for _ in step[1:]), True] for step in steps]
        rows.append(
            {
                "input_ids": [prompt + step for step in steps],
                "labels": [
                    [-100] * len(prompt) + [token if keep else -100 for token, keep in zip(step, mask, strict=True)]
                    for step, mask in zip(steps, masks, strict=True)
                ],
                "weight": [draw(st.sampled_from([0.5, 1.0, 1.5])) for _ in steps],
            }
        )
    return rows


def separate_loss(model: Any, rows: list[dict[str, Any]], weighted: bool = False) -> torch.Tensor:
    """The mean loss of every labelled token, each sequence computed for itself."""
    total, count = torch.zeros(()), 0
    for row in rows:
        for ids, labels, weight in zip(row["input_ids"], row["labels"], row["weight"], strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            targets = torch.tensor(labels[1:])
            loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            total = total + loss * (weight if weighted else 1.0)
            count += int((targets != -100).sum())
    return total / count


def collated_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The mean loss of a collator's batch, for either trainer."""
    mask = attention_mask(batch["last"], "sdpa") if "last" in batch else batch["attention_mask"]
    given = {name: batch[name] for name in ("input_ids", "position_ids")}
    logits = model(**given, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    targets = batch.get("targets", batch["shift_labels"]).flatten()
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    weights = batch["loss_weights"].flatten() if "loss_weights" in batch else torch.ones(())
    return (weights * loss).sum() / (batch["shift_labels"] != -100).sum()
