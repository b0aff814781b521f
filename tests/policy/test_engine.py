"""The engine against a plain loop: one forward pass per token, no batch, no cache, no branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, StableLmConfig, StableLmForCausalLM

from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Candidate, ProposeRequest, Refused
from rstar_trl.policy.tokens import encode_prompt, encode_step
from rstar_trl.policy.transformers_engine import TransformersEngine, load_policy
from tests.policy.toys import build, merging_tokenizer, one_by_one, random_model

LONGEST = 24
FROM, WHERE = "-- use singer\nFROM singer", "-- keep rows by age\nWHERE age > 30"
REQUESTS = [
    ProposeRequest("singer: id, name, age\nhow many singers?\n", (), 5, 1.0, 11),
    ProposeRequest("singer: id, name, age\nhow many singers?\n", (FROM,), 5, 1.0, 12),
    ProposeRequest("singer: id, name, age\nhow many singers?\n", (FROM, WHERE), 5, 0.7, 13),
    ProposeRequest("concert: id, title\nwhich titles?\n", (), 3, 1.3, 14),
    ProposeRequest("concert: id, title\nwhich titles?\n", ("FROM concert",), 5, 1.0, 15),
    ProposeRequest("", (FROM,), 1, 1.0, 16),
]


def same(found: list[Candidate], expected: list[Candidate]) -> None:
    assert [(c.text, c.tokens, c.finish) for c in found] == [(c.text, c.tokens, c.finish) for c in expected]
    assert [c.logprob for c in found] == pytest.approx([c.logprob for c in expected], abs=1e-3)


def same_as_a_plain_loop(engine: TransformersEngine, requests: list[ProposeRequest]) -> list[Any]:
    """The engine's answers, which must be those of `one_by_one`."""
    answers = engine.propose(requests)
    for request, found in zip(requests, answers, strict=True):
        assert not isinstance(found, Refused)
        same(found, one_by_one(engine.model, engine.tokenizer, request, engine.max_step_tokens))
    return answers


def engine_of(folder: Path, **options: Any) -> TransformersEngine:
    loaded = TransformersEngine.load(str(folder), max_step_tokens=LONGEST)
    return TransformersEngine(loaded.model, loaded.tokenizer, LONGEST, **options)


def passes_of(engine: TransformersEngine) -> list[int]:
    """Fills with the number of tokens of each forward pass."""
    passes: list[int] = []
    engine.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: passes.append(args[0].numel()))
    return passes


def test_candidates_equal_those_of_a_plain_loop(policy_dir: Path) -> None:
    engine = engine_of(policy_dir)
    answers = same_as_a_plain_loop(engine, REQUESTS[:5])
    assert [len(found) for found in answers] == [request.n for request in REQUESTS[:5]]
    assert len({candidate.text for found in answers for candidate in found}) > 5


def test_greedy_is_the_arg_max_of_every_step(policy_dir: Path) -> None:
    engine = engine_of(policy_dir)
    requests = [ProposeRequest(r.prompt, r.steps, 1, 0.0, r.seed) for r in REQUESTS[:5]]
    same_as_a_plain_loop(engine, requests)


def test_alone_in_a_batch_cold_or_warm_the_answer_is_the_same(policy_dir: Path) -> None:
    engine = engine_of(policy_dir)
    cold = engine.propose(REQUESTS[:5])
    computed = engine.prompt_tokens
    warm = engine.propose(REQUESTS[:5][::-1])[::-1]
    assert engine.prompt_tokens - computed < computed
    small = engine_of(policy_dir, rows_per_batch=1, cache_bytes=0)
    for request, first, second in zip(REQUESTS[:5], cold, warm, strict=True):
        same(second, first)
        same(engine_of(policy_dir).propose([request])[0], first)
        same(small.propose([request])[0], first)


def test_same_prefix_twice_in_a_batch_keeps_its_streams_apart(policy_dir: Path) -> None:
    engine = engine_of(policy_dir)
    twice = [ProposeRequest(REQUESTS[1].prompt, (FROM,), 4, 1.0, seed) for seed in (1, 2, 1)]
    first, other, again = engine.propose(twice)
    same(first, again)
    assert [c.text for c in first] != [c.text for c in other]


def test_a_step_ends_inside_a_merged_token() -> None:
    """Tokens that hold the delimiter in their middle, or that make it only together, end a step where it stands."""
    tokenizer = merging_tokenizer()
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert any("\n\n" in piece.strip("\n") or piece.startswith("\n\n-") for piece in pieces)
    model = random_model("llama", len(tokenizer), initializer_range=0.05)
    engine = TransformersEngine(model, tokenizer, 6)
    requests = [ProposeRequest("x", (), 8, 1.0, seed) for seed in range(30)]
    answers = same_as_a_plain_loop(engine, requests)
    assert not any("\n\n" in candidate.text for found in answers for candidate in found)
    finishes = {candidate.finish for found in answers for candidate in found}
    assert finishes == {"step", "eos", "length"}


def test_nothing_is_computed_for_a_sibling_that_has_ended() -> None:
    """Every token goes through the model's layers once; the last of a step is not read at all."""
    tokenizer = merging_tokenizer()
    engine = TransformersEngine(random_model("llama", len(tokenizer), initializer_range=0.05), tokenizer, 12)
    passes = passes_of(engine)
    answers = engine.propose([ProposeRequest("x" * (1 + seed % 3), (), 8, 1.0, seed) for seed in range(20)])
    tokens = [candidate.tokens for found in answers for candidate in found]
    assert len(set(tokens)) > 6
    assert sum(passes) == engine.prompt_tokens + sum(tokens) - len(tokens)


def test_a_node_that_is_asked_again_reads_one_token(llama_dir: Path) -> None:
    engine = engine_of(llama_dir)
    first = engine.propose([REQUESTS[2]])[0]
    computed = engine.prompt_tokens
    assert computed > 20
    again = engine.propose([REQUESTS[2]])[0]
    assert engine.prompt_tokens == computed + 1
    same(again, first)  # type: ignore[arg-type]


def test_requests_for_about_as_many_steps_share_a_pass(llama_dir: Path) -> None:
    engine = engine_of(llama_dir)
    requests = [ProposeRequest(REQUESTS[0].prompt, (), 4 + i % 4, 1.0, i) for i in range(8)]
    passes = passes_of(engine)
    engine.propose(requests)
    assert len(passes) <= LONGEST
    same_as_a_plain_loop(engine, requests)


def test_a_long_prefix_is_not_sampled_beside_short_ones(llama_dir: Path) -> None:
    """Each row of a pass has as much room as its longest."""
    engine = engine_of(llama_dir)
    widths: list[tuple[int, int]] = []
    engine.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append((kwargs["attention_mask"].shape[0], kwargs["attention_mask"].shape[-1])),
        with_kwargs=True,
    )
    long = ProposeRequest("how many singers are there? " * 20, (), 1, 1.0, 1)
    engine.propose([long, *(ProposeRequest(f"{i}?", (), 1, 1.0, i) for i in range(10))])
    assert {rows for rows, width in widths if width > 60} == {1} and max(rows for rows, _ in widths) == 10


def test_logprob_is_at_temperature_one_whatever_the_sampling(policy_dir: Path) -> None:
    """The same text drawn hot and cold has one log-probability."""
    engine = engine_of(policy_dir)
    seen: dict[tuple[str, str], set[float]] = {}
    for temperature in (0.3, 0.6, 1.0):
        for found in engine.propose([ProposeRequest(REQUESTS[0].prompt, (FROM,), 16, temperature, 5)]):
            for candidate in found:
                seen.setdefault((candidate.text, candidate.finish), set()).add(round(candidate.logprob, 3))
    assert any(len(values) for values in seen.values())
    assert all(max(values) - min(values) < 5e-3 for values in seen.values())


def test_nothing_asked_is_nothing_answered(llama_dir: Path) -> None:
    assert engine_of(llama_dir).propose([]) == []


def test_missing_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "gone", tmp_path / "empty"):
        with pytest.raises(EngineError) as caught:
            TransformersEngine.load(str(path))
        assert str(path) in str(caught.value) and "check the path" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_model_with_sliding_windows_is_refused(llama_dir: Path) -> None:
    tokenizer = engine_of(llama_dir).tokenizer
    model = random_model("mistral", len(tokenizer), sliding_window=32)
    with pytest.raises(EngineError, match="mistral"):
        TransformersEngine(model, tokenizer)


def test_model_of_another_attention_is_refused(llama_dir: Path) -> None:
    tokenizer = engine_of(llama_dir).tokenizer
    model = random_model("llama", len(tokenizer))
    model.set_attn_implementation("eager")
    with pytest.raises(EngineError, match="attn_implementation=eager`; load it with `sdpa`"):
        TransformersEngine(model, tokenizer)


def test_model_with_an_attention_of_its_own_is_refused(llama_dir: Path) -> None:
    config = FalconConfig(vocab_size=340, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(
        EngineError, match=r"the attention of falcon cannot share a prefix .* serve this one over HTTP"
    ):
        TransformersEngine(FalconForCausalLM(config), engine_of(llama_dir).tokenizer)


def test_layers_that_pass_no_arguments_on_work_like_the_others() -> None:
    tokenizer = merging_tokenizer()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = StableLmConfig(vocab_size=len(tokenizer), intermediate_size=48, **shape)
    torch.manual_seed(0)
    engine = TransformersEngine(StableLmForCausalLM(config), tokenizer, 8)
    requests = [ProposeRequest("x" * (1 + seed), (), 4, 1.0, seed) for seed in range(5)]
    same_as_a_plain_loop(engine, requests)


def test_adapter_folder_equals_the_merged_model(llama_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_policy(str(llama_dir), "float32")
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merged: Any = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = load_policy(str(tmp_path / "adapter"), "float32")
    assert type(loaded) is type(merged)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        found, expected = loaded(ids).logits, load_policy(str(tmp_path / "merged"), "float32")(ids).logits
        plain = load_policy(str(llama_dir), "float32")(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_mistral_with_full_attention_works_like_the_others(tmp_path: Path) -> None:
    folder = build("mistral", tmp_path, sliding_window=None)
    engine = engine_of(folder)
    same_as_a_plain_loop(engine, REQUESTS[1:2])


def test_a_prefix_the_model_cannot_read_is_refused_and_the_others_are_answered(llama_dir: Path) -> None:
    engine = engine_of(llama_dir)
    long = ProposeRequest("how many singers are there? " * 60, (), 2, 1.0, 1)
    first, refused, empty = engine.propose([REQUESTS[1], long, ProposeRequest("", (), 2, 1.0, 1)])
    same(first, engine_of(llama_dir).propose([REQUESTS[1]])[0])  # type: ignore[arg-type]
    assert isinstance(refused, Refused) and "more than the 512 that the model reads" in refused.reason
    assert empty == Refused("the prompt is empty")


def test_candidates_say_how_many_tokens_they_follow(llama_dir: Path) -> None:
    engine = engine_of(llama_dir)
    for request, found in zip(REQUESTS, engine.propose(REQUESTS), strict=True):
        expected = len(encode_prompt(engine.tokenizer, request.prompt))
        expected += sum(len(encode_step(engine.tokenizer, text, final=False)) for text in request.steps)
        assert not isinstance(found, Refused) and {c.prefix_tokens for c in found} == {expected}
