from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rstar_trl.errors import EngineError
from rstar_trl.policy.tokens import (
    check_path,
    encode_completion,
    encode_prompt,
    encode_step,
    first_line,
    load_tokenizer,
    plain,
    renderer,
)
from tests.policy.toys import merging_tokenizer

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "how many?"}]


@pytest.fixture(scope="module")
def tokenizer(llama_dir: Path) -> Any:
    return load_tokenizer(str(llama_dir))


def test_a_trajectory_is_its_steps_encoded_one_by_one(tokenizer: Any) -> None:
    steps = ("-- use singer\nFROM singer", "-- é ∑ 'it''s'\nWHERE name = 'Ann'", "SELECT name")
    ids = encode_completion(tokenizer, steps)
    assert ids == [
        *encode_step(tokenizer, steps[0], final=False),
        *encode_step(tokenizer, steps[1], final=False),
        *encode_step(tokenizer, steps[2], final=True),
    ]
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == "\n\n".join(steps)


def test_a_merging_tokenizer_still_cuts_at_the_step(tokenizer: Any) -> None:
    merging = merging_tokenizer()
    apart = encode_step(merging, "x", False) + encode_step(merging, "-- s", True)
    together = [*merging("x\n\n-- s", add_special_tokens=False)["input_ids"], merging.eos_token_id]
    assert encode_completion(merging, ("x", "-- s")) == apart != together


def test_nothing_special_is_added_to_a_prompt(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "how many?\n")
    assert tokenizer.decode(ids) == "how many?\n" and not set(ids) & set(tokenizer.all_special_ids)


def test_plain_prompts_and_chat_templates(llama_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    assert renderer(tokenizer)(MESSAGES) == plain(MESSAGES) == "Be brief.\n\nhow many?\n"
    begin = "{% if add_generation_prompt %}[ai] {% endif %}"
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}" + begin
    assert renderer(tokenizer)(MESSAGES) == "[system] Be brief.\n[user] how many?\n[ai] "


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none"), "./none", "~/none", "a/b/c"):
        with pytest.raises(EngineError, match="does not exist; check the path") as caught:
            check_path(path)
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match="no tokenizer could be loaded from") as caught:
        load_tokenizer(str(tmp_path / "empty"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_without_an_end_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_dir)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
