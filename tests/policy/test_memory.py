"""Running out of memory, on real models whose forward pass does so beyond a number of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rstar_trl.config import SearchConfig
from rstar_trl.policy.branches import PrefixCache
from rstar_trl.policy.interface import ProposeRequest, Refused, ScoreRequest
from rstar_trl.policy.memory import MemoryLimit, is_shortage
from rstar_trl.policy.ppm_scorer import PPMScorer
from rstar_trl.policy.tokens import load_tokenizer
from rstar_trl.search.scheduler import run_searches
from rstar_trl.search.tree import Tree
from rstar_trl.sql.sandbox import Sandbox
from tests.policy.test_engine import engine_of, same
from tests.policy.toys import SmallDevice
from tests.scripted import ScriptedEngine, end, make_task, step

FROM, WHERE = "-- use singer\nFROM singer", "-- keep rows by age\nWHERE age > 30"
STEPS = ((), (FROM,), (FROM, WHERE))
PROMPT, LONG = "singer: id, name, age\nhow many singers?\n", "concert: id, title, year\nwhich titles? " * 8
REQUESTS = [ProposeRequest(PROMPT, STEPS[i % 3], 4, 1.0, i) for i in range(20)]
TOO_LONG = ProposeRequest(LONG, (), 4, 1.0, 99)
SCORES = [ScoreRequest(f"{PROMPT}{i % 5}\n", (FROM, f"WHERE age > {i}"), False) for i in range(30)]
SCORES_TOO_LONG = ScoreRequest(LONG, (FROM,), True)


def scorer_of(folder: Path, **options: Any) -> PPMScorer:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    return PPMScorer(model, load_tokenizer(str(folder)), **options)


def room_for(folder: Path, request: ProposeRequest) -> int:
    """Tokens in the largest forward pass that a request needs alone."""
    engine = engine_of(folder)
    device = SmallDevice(engine.model, 10**9)
    engine.propose([request])
    return device.largest


# --- what a failed pass leaves ---------------------------------------------------------------------------------------


def test_the_limit_halves_where_a_pass_fails_and_grows_back() -> None:
    memory = MemoryLimit(PrefixCache(1000))

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert memory.attempt(8, 800, fail) is None and memory.most == 400
    assert memory.attempt(4, 400, lambda: "found") == "found" and 400 < memory.most < 410
    for _ in range(80):
        memory.attempt(4, 400, lambda: "found")
    assert memory.most > 800
    before = memory.most
    assert memory.attempt(1, 5000, fail) is None and memory.most == before, "one large request is no rule for others"


def test_other_errors_pass_and_leave_the_prefixes() -> None:
    memory = MemoryLimit(PrefixCache(1000))
    memory.cache.put(("p",), torch.zeros(10))

    def fail() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        memory.attempt(2, 10, fail)
    assert memory.cache.bytes == 40


def test_a_shortage_of_the_cpus_memory_is_one_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_shortage(caught.value)
    assert not is_shortage(RuntimeError("shape mismatch"))


# --- the engine ------------------------------------------------------------------------------------------------------


def test_batches_that_do_not_fit_are_halved_and_the_answers_stay(llama_dir: Path) -> None:
    engine, expected = engine_of(llama_dir), engine_of(llama_dir).propose(REQUESTS)
    device = SmallDevice(engine.model, 3 * room_for(llama_dir, REQUESTS[2]))
    for found, wanted in zip(engine.propose(REQUESTS), expected, strict=True):
        same(found, wanted)  # type: ignore[arg-type]
    assert 2 <= device.failures <= 6 and not device.held
    before = device.failures
    for found, wanted in zip(engine.propose(REQUESTS[::-1])[::-1], expected, strict=True):
        same(found, wanted)  # type: ignore[arg-type]
    assert device.failures - before <= 1, "what did not fit is tried again at every call"


def test_a_request_that_never_fits_is_refused_and_the_others_are_answered(llama_dir: Path) -> None:
    engine, expected = engine_of(llama_dir), engine_of(llama_dir).propose(REQUESTS)
    device = SmallDevice(engine.model, room_for(llama_dir, REQUESTS[2]))
    answers = engine.propose([*REQUESTS[:7], TOO_LONG, *REQUESTS[7:]])
    refused = answers.pop(7)
    assert isinstance(refused, Refused) and len(refused.reason.splitlines()) == 1
    assert "need more memory than the device has, even alone; show less of the schema" in refused.reason
    for found, wanted in zip(answers, expected, strict=True):
        same(found, wanted)  # type: ignore[arg-type]
    assert device.failures and not device.held


def test_prefixes_kept_are_given_up_before_a_request_is(llama_dir: Path) -> None:
    """The room that a prefix cache takes is what the next request lacks."""
    engine = engine_of(llama_dir)
    engine.propose([TOO_LONG])
    full = engine.cache.bytes

    def while_all_that_is_kept(*_: Any) -> None:
        if engine.cache.bytes >= full:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine.model.register_forward_pre_hook(while_all_that_is_kept)
    (answer,) = engine.propose(REQUESTS[:1])
    same(answer, engine_of(llama_dir).propose(REQUESTS[:1])[0])  # type: ignore[arg-type]
    assert 0 < engine.cache.bytes < full


def test_prefixes_are_right_after_a_pass_failed_half_way(llama_dir: Path) -> None:
    """The prompts are read and kept, then generation fails: what is kept must be true and within its bound."""
    engine = engine_of(llama_dir, cache_bytes=60_000)
    cold = engine_of(llama_dir).propose(REQUESTS)
    SmallDevice(engine.model, 2 * room_for(llama_dir, REQUESTS[2]))
    for _ in range(2):
        for found, wanted in zip(engine.propose(REQUESTS), cold, strict=True):
            same(found, wanted)  # type: ignore[arg-type]
        kept = sum(segment.nbytes for segment in engine.cache._segments.values())
        assert engine.cache.bytes == kept <= 60_000


# --- the scorer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [60, 200])
def test_scores_are_those_of_a_device_with_room(llama_dir: Path, tokens: int) -> None:
    """At 60 tokens not even the children of one node fit into one pass."""
    expected = scorer_of(llama_dir).score(SCORES)
    scorer = scorer_of(llama_dir)
    device = SmallDevice(scorer.backbone, tokens)
    for _ in range(2):
        assert scorer.score(SCORES) == pytest.approx(expected, abs=1e-3)
    assert device.failures and not device.held


def test_a_trajectory_that_never_fits_is_refused_and_the_others_are_scored(llama_dir: Path) -> None:
    expected = scorer_of(llama_dir).score(SCORES)
    scorer = scorer_of(llama_dir)
    SmallDevice(scorer.backbone, 80)
    scores = scorer.score([*SCORES[:4], SCORES_TOO_LONG, *SCORES[4:]])
    refused = scores.pop(4)
    assert isinstance(refused, Refused) and "need more memory to be scored than the device has" in refused.reason
    assert scores == pytest.approx(expected, abs=1e-3)


# --- the search ------------------------------------------------------------------------------------------------------


def searched(database: Path, sandbox: Sandbox, engine: Any, scorer: Any = None) -> dict[str, Tree]:
    trees: list[Tree] = []
    prompts = {"q1": PROMPT, "long": LONG, "q2": PROMPT}
    tasks = [
        dataclasses.replace(make_task(database, name=name, use_ppm=scorer is not None), prompt=prompt)
        for name, prompt in prompts.items()
    ]
    config = SearchConfig(num_candidates=3, simulations=4, max_step_tokens=24)
    run_searches(tasks, config, engine, scorer, sandbox, trees.append)
    return {tree.question_id: tree for tree in trees}


def failures(tree: Tree) -> Sequence[Any]:
    return tree.meta.get("failures", [])


def test_search_records_what_the_policy_had_no_room_for(
    llama_dir: Path, small_database: Path, shared_sandbox: Sandbox
) -> None:
    expected = searched(small_database, shared_sandbox, engine_of(llama_dir))
    engine = engine_of(llama_dir)
    SmallDevice(engine.model, 140)
    found = searched(small_database, shared_sandbox, engine)
    assert not failures(expected["long"]) and len(expected["long"]) > 1
    ((node, reason),) = failures(found["long"])
    assert node == 0 and "need more memory than the device has" in reason and len(found["long"]) == 1
    for name in ("q1", "q2"):
        assert found[name].text == expected[name].text and not failures(found[name])


def test_search_records_what_the_ppm_had_no_room_for(
    llama_dir: Path, small_database: Path, shared_sandbox: Sandbox
) -> None:
    def engine() -> ScriptedEngine:
        return ScriptedEngine({(): [step("FROM singer")], ("FROM singer",): [end("SELECT name"), end("SELECT age")]})

    expected = searched(small_database, shared_sandbox, engine(), scorer_of(llama_dir))
    scorer = scorer_of(llama_dir)
    SmallDevice(scorer.backbone, 100)
    found = searched(small_database, shared_sandbox, engine(), scorer)
    reasons = failures(found["long"])
    assert reasons and all("need more memory to be scored" in reason for _, reason in reasons)
    assert found["long"].value[1] is None and expected["long"].value[1] is not None
    for name in ("q1", "q2"):
        assert (found[name].text, found[name].visits) == (expected[name].text, expected[name].visits)
        assert found[name].value[1:] == pytest.approx(expected[name].value[1:], abs=1e-3)
