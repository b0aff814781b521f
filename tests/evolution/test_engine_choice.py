"""A recipe and the command line choose who proposes steps; a model behind a server is measured as it stands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rstar_trl import cli
from rstar_trl.config import EngineConfig, ModelConfig
from rstar_trl.errors import EngineError
from rstar_trl.evolution.dry_run import describe
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.io import read_jsonl
from rstar_trl.policy.engines import open_engine
from tests.openai_server import Response, completion, serving
from tests.scripted import make_database

RECIPE = """\
name: baseline
output_dir: {folder}/run
engine: {kind: openai, urls: [{url}], model: toy, retries: 0, patience: 1, concurrency: 2}
data: {source: jsonl, path: {folder}/data}
search: {num_candidates: 2, simulations: 2, trees_in_flight: 1, answer: majority}
evaluation:
  methods: [greedy, majority, mcts]
  price_per_million_tokens: 2.0
  price_per_million_prompt_tokens: 1.0
"""
QUESTIONS = 5


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the recipe for a server, over questions whose answer is always the same."""
    (tmp_path / "data/databases").mkdir(parents=True)
    make_database(tmp_path / "data/databases/music.sqlite")
    for split in ("train", "eval"):
        rows = ({"db_id": "music", "question": f"{i}?", "gold_sql": "SELECT name FROM singer"} for i in range(5))
        (tmp_path / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def recipe(url: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace("{folder}", str(tmp_path)).replace("{url}", url))
        return path

    return recipe


def knows_the_answer(body: dict[str, Any]) -> Response:
    if body["prompt"].endswith("FROM singer\n\n"):
        return Response(completion(*["SELECT name"] * body["n"], stop_reason=None))
    return Response(completion(*["FROM singer"] * body["n"]))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Gives a command in this process; returns its exit code and what it said."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rstar-trl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def test_served_model_is_measured_as_it_stands_with_tokens_and_money(
    write: Callable[[str], Path], run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    with serving(knows_the_answer) as server:
        code, said = run("evolve", write(server.url), "--in-process")
    assert code == 0, said
    metrics = json.loads((tmp_path / "run/round-0/eval/metrics.json").read_text())
    for method in ("greedy", "majority", "mcts"):
        found = metrics[method]
        assert found["execution_accuracy"] == 1.0 and found["prompt_tokens_per_question"] > 0
        spent = 2.0 * found["tokens_per_question"] + 1.0 * found["prompt_tokens_per_question"]
        assert found["price_per_question"] == pytest.approx(spent / 1e6)
    # Two steps a question, and a request for each: 10 prompt tokens at a time, as this server counts.
    assert metrics["greedy"]["prompt_tokens_per_question"] == 20
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["data", "round-0"]


def test_server_that_dies_stops_the_run_with_its_trees_saved_and_the_same_command_goes_on(
    write: Callable[[str], Path], run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    def dies(body: dict[str, Any]) -> Response:
        return knows_the_answer(body) if len(server.bodies) <= 5 else Response("", status=0)

    with serving(dies) as server:
        code, said = run("evolve", write(server.url), "--in-process")
    assert code == 2 and "Traceback" not in said
    assert f"No server has answered for 1 s ({server.url}: " in said and "finished work is kept" in said
    trees = tmp_path / "run/round-0/eval/greedy-0.jsonl"
    saved = [row["question_id"] for row in read_jsonl(trees)[0]]
    assert len(saved) == 2
    with serving(knows_the_answer) as server:
        code, said = run("evolve", write(server.url), "--in-process", "--set", "evaluation.methods=[greedy, mcts]")
        assert code == 2 and "evaluation.methods" in said, "a changed setting is still refused"
        code, said = run("evolve", write(server.url), "--in-process")
    assert code == 0, said
    assert sorted(row["question_id"] for row in read_jsonl(trees)[0]) == [f"eval-{i}" for i in range(QUESTIONS)]
    greedy = [body for body in server.bodies if body["temperature"] == 0 and body["prompt"].endswith("?\n")]
    assert len(greedy) == QUESTIONS - 2


def test_request_that_a_server_never_takes_stops_the_run_before_any_question(
    write: Callable[[str], Path], run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    with serving(lambda body: Response({"error": {"message": "no logprobs here"}}, 400)) as server:
        code, said = run("evolve", write(server.url), "--in-process")
    assert code == 2 and f"{server.url} cannot be used: the server answered 400: no logprobs here" in said
    assert len(server.bodies) == 1 and not list((tmp_path / "run/round-0/eval").glob("greedy*"))


def test_error_for_one_question_is_on_its_tree_and_the_others_are_answered(
    write: Callable[[str], Path], run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    def respond(body: dict[str, Any]) -> Response:
        if "\n3?\n" in body["prompt"]:
            return Response({"error": {"message": "maximum context length is 9 tokens"}}, 400)
        return knows_the_answer(body)

    with serving(respond) as server:
        code, said = run("evolve", write(server.url), "--in-process", "--set", "evaluation.methods=[greedy]")
    assert code == 0, said
    trees = {row["question_id"]: row for row in read_jsonl(tmp_path / "run/round-0/eval/greedy-0.jsonl")[0]}
    assert "maximum context length is 9 tokens" in json.dumps(trees["eval-3"]["meta"])
    assert [name for name, tree in trees.items() if tree["answer"] is None] == ["eval-3"]


def test_key_is_in_no_file_of_a_run(
    write: Callable[[str], Path],
    run: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    with serving(knows_the_answer) as server:
        code, said = run("evolve", write(server.url), "--in-process", "--set", "evaluation.methods=[greedy]")
    assert code == 0 and server.headers[0]["authorization"] == "Bearer sk-secret-of-mine"
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and "sk-secret-of-mine" not in said
    assert not [path for path in files if b"sk-secret-of-mine" in path.read_bytes()]


def test_ask_takes_a_served_model_without_any_folder(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    database = make_database(tmp_path / "music.sqlite")
    with serving(knows_the_answer) as server:
        code, said = run(
            *("ask", "which names?", "--db", database, "--engine", "openai", "--set", "engine.model=toy"),
            *("--set", f"engine.urls=[{server.url}]", "--set", "search.simulations=2"),
        )
    assert code == 0 and "SQL: SELECT name FROM singer" in said, said
    code, said = run("ask", "which names?", "--db", database)
    assert code == 2 and "--set engine.model=NAME" in said


def test_any_recipe_becomes_a_baseline_and_its_run_does_not(write: Callable[[str], Path]) -> None:
    loaded = load_recipe(write("http://localhost:8000/v1"), ["rounds=[{guide: reward}]"])
    assert [stage.name for stage in plan(loaded.recipe)] == ["data", "round-0/eval"]
    assert "toy answers as it stands (openai); nothing is trained" in describe(loaded)
    trained = "model={from_scratch: {architecture: llama}}"
    own = plan(load_recipe(write("http://localhost:8000/v1"), ["engine.model=null", trained]).recipe)
    embedded = plan(load_recipe(write("http://localhost:8000/v1"), ["engine={}", trained]).recipe)
    assert own[-1].config["engine"]["kind"] == "openai" and "engine" not in embedded[-1].config
    assert "urls" not in own[-1].config["engine"]


@pytest.mark.parametrize("kind", ["openai", "vllm"])
def test_engine_whose_package_is_missing_says_what_to_install(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)  # what Python itself notes for a module that is not to be had
    config = EngineConfig(kind=kind, model="toy", urls=["http://localhost:1/v1"])
    with (
        pytest.raises(EngineError, match=rf"pip install 'rstar-trl\[{kind}\]'"),
        open_engine(config, ModelConfig(), "", 9),
    ):
        pass
