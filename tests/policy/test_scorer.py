"""The scorer against a plain forward pass over every prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Refused, ScoreRequest
from rstar_trl.policy.ppm_scorer import PPMScorer
from rstar_trl.policy.tokens import encode_prompt, encode_step, load_tokenizer

PROMPTS = ("singer: id, name, age\nhow many singers?\n", "concert: id\nwhich titles?\n")
FROM, WHERE, SELECT = "-- use singer\nFROM singer", "-- keep rows by age\nWHERE age > 30", "SELECT COUNT(*)"
REQUESTS = [
    *(ScoreRequest(prompt, (FROM,), False) for prompt in PROMPTS),
    *(ScoreRequest(prompt, (other,), False) for prompt in PROMPTS for other in ("FROM concert", "FROM t")),
    ScoreRequest(PROMPTS[0], (FROM, WHERE), False),
    ScoreRequest(PROMPTS[0], (FROM, SELECT), True),
    ScoreRequest(PROMPTS[0], (FROM, SELECT), False),
    ScoreRequest(PROMPTS[0], (FROM, WHERE, SELECT), True),
    ScoreRequest(PROMPTS[1], ("SELECT 1",), True),
]


@pytest.fixture(scope="module")
def ppm_dir(policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppm")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(policy_dir, num_labels=1, dtype=torch.float32)
    model.score.weight.data.normal_()
    model.save_pretrained(folder)
    load_tokenizer(str(policy_dir)).save_pretrained(folder)
    return folder


@torch.inference_mode()
def plainly(folder: Path, request: ScoreRequest) -> float:
    tokenizer = load_tokenizer(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = encode_prompt(tokenizer, request.prompt)
    for index, text in enumerate(request.steps):
        ids += encode_step(tokenizer, text, final=request.final and index == len(request.steps) - 1)
    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(model.score(hidden))


def test_scores_equal_a_plain_forward_of_each_prefix(ppm_dir: Path) -> None:
    expected = [plainly(ppm_dir, request) for request in REQUESTS]
    assert len({round(value, 3) for value in expected}) == len(expected), "the prefixes should differ"
    scorer = PPMScorer.load(str(ppm_dir))
    assert scorer.score(REQUESTS) == pytest.approx(expected, abs=1e-3)
    assert scorer.score(REQUESTS[::-1]) == pytest.approx(expected[::-1], abs=1e-3)
    one_by_one = PPMScorer.load(str(ppm_dir))
    assert [one_by_one.score([request])[0] for request in REQUESTS] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("rows_per_batch", "cache_bytes"), [(1, 0), (2, 10_000), (128, 1 << 20)])
def test_batch_and_cache_do_not_change_a_score(ppm_dir: Path, rows_per_batch: int, cache_bytes: int) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(ppm_dir, dtype=torch.float32)
    scorer = PPMScorer(loaded, load_tokenizer(str(ppm_dir)), rows_per_batch, cache_bytes)
    expected = PPMScorer.load(str(ppm_dir)).score(REQUESTS)
    for _ in range(2):
        assert scorer.score(REQUESTS) == pytest.approx(expected, abs=1e-3)


def test_no_prefix_is_scored_twice(ppm_dir: Path) -> None:
    """Siblings share their prompt, in a batch and later; a child reads its own step alone."""
    scorer, tokenizer = PPMScorer.load(str(ppm_dir)), load_tokenizer(str(ppm_dir))
    passes: list[int] = []
    scorer.backbone.get_input_embeddings().register_forward_pre_hook(lambda _, args: passes.append(args[0].numel()))

    def step(text: str) -> int:
        return len(encode_step(tokenizer, text, final=False))

    scorer.score([ScoreRequest(PROMPTS[0], (text,), False) for text in (FROM, "FROM concert")])
    assert sum(passes) == len(encode_prompt(tokenizer, PROMPTS[0])) + step(FROM) + step("FROM concert")
    for steps in ((FROM, WHERE), ("FROM t",), (FROM, WHERE, SELECT)):
        passes.clear()
        scorer.score([ScoreRequest(PROMPTS[0], steps, False)])
        assert sum(passes) == step(steps[-1])


def test_nothing_asked_is_nothing_answered(ppm_dir: Path) -> None:
    assert PPMScorer.load(str(ppm_dir)).score([]) == []


def test_what_is_no_ppm_is_one_sentence(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        PPMScorer.load(str(tmp_path / "gone"))
    model = AutoModelForSequenceClassification.from_pretrained(llama_dir, num_labels=3, dtype=torch.float32)
    model.save_pretrained(tmp_path / "three")
    load_tokenizer(str(llama_dir)).save_pretrained(tmp_path / "three")
    with pytest.raises(EngineError, match="3 labels; a PPM has exactly one"):
        PPMScorer.load(str(tmp_path / "three"))


def test_a_trajectory_the_ppm_cannot_read_is_refused_and_the_others_are_scored(ppm_dir: Path) -> None:
    scorer = PPMScorer.load(str(ppm_dir))
    long = ScoreRequest(PROMPTS[0] * 60, (FROM,), False)
    first, refused, second = scorer.score([REQUESTS[0], long, REQUESTS[1]])
    assert isinstance(refused, Refused) and "that the PPM reads" in refused.reason
    assert [first, second] == pytest.approx([plainly(ppm_dir, request) for request in REQUESTS[:2]], abs=1e-3)


def test_a_tokenizer_of_another_model_is_named(ppm_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(ppm_dir, dtype=torch.float32)
    tokenizer = load_tokenizer(str(ppm_dir))
    tokenizer.add_tokens([f"<other {number}>" for number in range(500)])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="do not belong together"):
        PPMScorer.load(str(tmp_path))
