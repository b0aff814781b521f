from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rstar_trl.errors import ConfigError, EngineError
from rstar_trl.io import file_digest
from rstar_trl.policy.from_scratch import build_base, model_config, train_tokenizer
from tests.policy.toys import SHAPE, TEXTS, build


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.iterdir()}


def test_same_texts_spec_and_seed_give_the_same_folder(tmp_path: Path) -> None:
    first, again = (build("llama", tmp_path / name) for name in ("first", "again"))
    assert digests(first) == digests(again)
    build_base({"architecture": "llama", "vocab_size": 340, **SHAPE}, TEXTS, tmp_path / "other", seed=2)
    differing = {name for name, value in digests(tmp_path / "other").items() if value != digests(first)[name]}
    assert differing == {"model.safetensors"}


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_what_is_built_loads_as_it_was_built(architecture: str, tmp_path: Path) -> None:
    build(architecture, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(tokenizer) <= 340
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_a_tokenizer_that_would_be_replaced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loads its own tokenizer for `qwen2`"):
        build("qwen2", tmp_path)


def test_a_model_that_cannot_be_searched_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="mistral"):
        build("mistral", tmp_path, sliding_window=32)
    assert not list(tmp_path.iterdir())


def test_wrong_specs_name_every_field() -> None:
    with pytest.raises(ConfigError, match="no model type `lama`"):
        model_config("lama", {})
    with pytest.raises(ConfigError) as caught:
        model_config("llama", {"hiden_size": 1, "num_layer": 2})
    assert len(caught.value.problems) == 2 and "did you mean `hidden_size`" in caught.value.problems[0]


@pytest.mark.parametrize("text", ["FROM t\n\nSELECT a", "x\n\n-- y\n", "(\n\n\n)", "a\n\n  b", "é\n\n'q'", " \n\n "])
def test_newlines_never_merge_with_anything_else(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS * 20 + [text] * 50, 500)
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) == text or "é" in text
    assert all(set(piece) == {"\n"} for piece in pieces if "\n" in piece)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_blank_line_between_steps_is_one_token_of_its_own() -> None:
    tokenizer = train_tokenizer(TEXTS * 20, 500)
    blank = tokenizer("\n\n")["input_ids"]
    assert len(blank) == 1
    for left, right in (("FROM t", "-- x\nSELECT a"), ("WHERE a = 'b'", "SELECT (1)"), ("LIMIT 10", "2")):
        together = tokenizer(f"{left}\n\n{right}")["input_ids"]
        assert together == tokenizer(left)["input_ids"] + blank + tokenizer(right)["input_ids"]


def test_digits_are_read_in_pairs() -> None:
    tokenizer = train_tokenizer(["2014 2014 2014"] * 50, 500)
    assert [tokenizer.decode([token]) for token in tokenizer("in 2014")["input_ids"]][-3:] == [" ", "20", "14"]


@pytest.mark.parametrize("value", ["2014-05-06", "704", "Rosa Weber", "W"])
def test_a_value_is_spelled_alike_after_a_space_and_after_a_quote(value: str) -> None:
    tokenizer = train_tokenizer([f"whose value is {value}", f"WHERE value = '{value}'"] * 50, 500)
    spelled, asked, written = (tokenizer(text)["input_ids"] for text in (value, f"is {value}", f"= '{value}"))
    assert asked[-len(spelled) :] == written[-len(spelled) :] == spelled
