"""Attention in blocks of queries against SDPA over the whole square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rstar_trl.training.block_attention import BLOCK, NAME, use_blocks
from rstar_trl.training.packing import attention_mask, check_attention, fill_rows, lay_out
from tests.training import test_sft_tree
from tests.training.trees import gradients, tiny_policy

CPU = torch.device("cpu")


def packed() -> dict[str, torch.Tensor]:
    """Two trees of more than two blocks each, one row each, of which one is padded."""
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for prompt in (2 * BLOCK - 40, BLOCK + 100):
        first = torch.randint(2, 40, (prompt,), generator=generator).tolist()
        sequences += [first + torch.randint(2, 40, (60,), generator=generator).tolist() for _ in range(3)]
    rows = fill_rows(lay_out(sequences).pieces)
    mask = attention_mask(torch.as_tensor(rows.last), "sdpa")
    tokens, positions = torch.as_tensor(rows.tokens), torch.as_tensor(rows.positions)
    return {"input_ids": tokens, "position_ids": positions, "attention_mask": mask}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_give_the_same_outputs_and_gradients(checkpointing: bool) -> None:
    plain, blocks = (tiny_policy("qwen2", max_position_embeddings=2 * BLOCK + 200) for _ in range(2))
    use_blocks(blocks, CPU)
    assert blocks.config._attn_implementation == NAME and check_attention(blocks.config) == "sdpa"
    if checkpointing:
        blocks.gradient_checkpointing_enable()
        blocks.train()
    losses = [model(**packed(), use_cache=False).logits.square().mean() for model in (plain, blocks)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    expected, found = gradients(plain, losses[0]), gradients(blocks, losses[1])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_a_batch_without_a_square_mask_goes_to_sdpa_as_it_is() -> None:
    plain, blocks = tiny_policy(), tiny_policy()
    use_blocks(blocks, CPU)
    prompt = torch.arange(2, 30)[None]
    one, other = (model.generate(prompt, max_new_tokens=8, do_sample=False) for model in (plain, blocks))
    assert torch.equal(one, other)


def test_only_sdpa_on_a_cpu_is_replaced() -> None:
    eager, elsewhere = tiny_policy(attention="eager"), tiny_policy()
    use_blocks(eager, CPU)
    use_blocks(elsewhere, torch.device("cuda"))
    assert (eager.config._attn_implementation, elsewhere.config._attn_implementation) == ("eager", "sdpa")


def test_a_saved_model_knows_nothing_of_blocks(tiny_model_dir: str, tmp_path: Path) -> None:
    trainer: Any = test_sft_tree.make(tiny_model_dir, tmp_path)
    assert trainer.model.config._attn_implementation == NAME
    trainer.save_model(str(tmp_path / "saved"))
    assert NAME not in (tmp_path / "saved/config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config._attn_implementation == "sdpa"
