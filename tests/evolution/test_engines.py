"""A data set whose databases are no SQLite files, from its rows to a search: DuckDB and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rstar_trl.cli import app
from rstar_trl.config import PromptConfig, SandboxConfig, SearchConfig
from rstar_trl.data.loaders import load_corpus
from rstar_trl.errors import DataError, InfraError
from rstar_trl.evolution.launch import Processes
from rstar_trl.evolution.plan import plan
from rstar_trl.evolution.recipe import LoadedRecipe, load_recipe
from rstar_trl.evolution.run_data import RunData, load_data, prepare_data
from rstar_trl.io import read_jsonl
from rstar_trl.policy.bootstrap import bootstrap_rows
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.run import search_questions
from rstar_trl.sql.sandbox import Sandbox
from rstar_trl.sql.steps import parse_step, sql_from_steps
from tests.postgres_server import Server
from tests.scripted import ScriptedEngine, end, step

CREATE = (
    "CREATE TABLE singer (id INTEGER PRIMARY KEY, name VARCHAR(20), age INTEGER, score DECIMAL(4, 2), born DATE)",
    'CREATE TABLE concert (id INTEGER PRIMARY KEY, "HomeTown" VARCHAR(20), singer_id INTEGER REFERENCES singer (id))',
    "INSERT INTO singer VALUES (1, 'Ann', 30, 1.5, '1990-01-02'), (2, 'Bo', 41, NULL, NULL), (3, NULL, 17, 2, NULL)",
    "INSERT INTO concert VALUES (1, 'York', 1), (2, 'New York', 2)",
)
# Written for SQLite, and so not runnable as they stand.
GOLD = (
    "SELECT IFNULL(name, 'nobody') FROM singer WHERE age > 20",
    "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.id = T2.singer_id WHERE T2.HomeTown = 'York'",
    "SELECT `age` FROM singer ORDER BY age DESC LIMIT 1",
)


@pytest.fixture
def duckdb_url(tmp_path: Path) -> str:
    duckdb = pytest.importorskip("duckdb", reason="the extra duckdb is not installed")
    with duckdb.connect(str(tmp_path / "music.duckdb")) as connection:
        for sql in CREATE:
            connection.execute(sql)
    return "duckdb://music.duckdb"


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    import psycopg

    with psycopg.connect(postgres_server.url("owner", "postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE songs")
        connection.execute("CREATE ROLE pupil LOGIN")
    with psycopg.connect(postgres_server.url("owner", "songs"), autocommit=True) as connection:
        for sql in CREATE:
            connection.execute(sql)
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO pupil")
    yield postgres_server.url("pupil", "songs")
    with psycopg.connect(postgres_server.url("owner", "postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE songs WITH (FORCE)")
        connection.execute("DROP ROLE pupil")


def write_data(folder: Path, url: str, gold: tuple[str, ...]) -> None:
    rows = [
        {"id": f"q{i}", "db_id": "music", "database": url, "question": f"York {i}?", "gold_sql": sql}
        for i, sql in enumerate(gold)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval.jsonl").write_text(json.dumps({**rows[0], "id": "e"}) + "\n")


@pytest.fixture
def make(tmp_path: Path, write_recipe: Callable[..., Path], minimal: str) -> Callable[..., LoadedRecipe]:
    """A loaded recipe over a data set whose only database is `url`."""

    def build(url: str, gold: tuple[str, ...] = GOLD, dialect: str = "sqlite", more: str = "") -> LoadedRecipe:
        write_data(tmp_path, url, gold)
        options = f"source: jsonl, path: {tmp_path}, dialect: {dialect}, label_fraction: 1.0"
        return load_recipe(write_recipe(f"{minimal}data: {{{options}}}\n{more}"))

    return build


def prepared(loaded: LoadedRecipe) -> RunData:
    stage = plan(loaded.recipe)[0]
    prepare_data(loaded, stage, Processes(0, 1, False))
    return load_data(stage.folder)


@pytest.mark.parametrize("engine", ["duckdb", "postgres"])
def test_data_set_goes_from_its_rows_to_a_search(
    engine: str, make: Callable[..., LoadedRecipe], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded = make(request.getfixturevalue(f"{engine}_url"), (*GOLD, "SELECT nope FROM singer", "SELECT ("))
    data = prepared(loaded)

    assert data.dialect == engine
    assert data.train[0].gold_sql == "SELECT COALESCE(name, 'nobody') FROM singer WHERE age > 20"
    results = [question.gold_result for question in data.train]
    assert [result and result.rows for result in results] == [(("Ann",), ("Bo",)), (("Ann",),), ((41,),)]
    quarantined, _ = read_jsonl(loaded.folder / "data/quarantine.jsonl")
    reasons = {row["question_id"]: row["reason"] for row in quarantined}
    assert set(reasons) == {"q3", "q4"} and "nope" in reasons["q3"] and "does not parse" in reasons["q4"]

    prompter = Prompter(data.databases, PromptConfig(instructions=False))
    prompt = prompter.prompt(data.train[0])
    for part in ("singer(id integer primary key, name ", "concert.singer_id = singer.id", "HomeTown = 'York'"):
        assert part in prompt
    assert ('"HomeTown"' in prompt) is (engine == "postgres"), (
        "where names are read in lower case, this one needs quotes"
    )

    rows = bootstrap_rows(data.train, prompter.prompt, data.dialect)
    steps = [tuple(map(parse_step, row["completion"].split("\n\n"))) for row in rows]
    # What a policy would be taught is what it is rewarded for.
    script = {
        (): [step("FROM singer"), step("FROM nowhere"), step("FROM pg_read_file('/etc/passwd') AS f")],
        ("FROM singer",): [step("WHERE age > 20"), end("DELETE FROM singer")],
        ("FROM singer", "WHERE age > 20"): [end("SELECT COALESCE(name, 'nobody')"), end("SELECT age")],
    }
    with Sandbox(SandboxConfig()) as sandbox:
        summary = search_questions(
            data.train[:1],
            engine=ScriptedEngine(script),
            scorer=None,
            sandbox=sandbox,
            prompter=prompter,
            databases=data.databases,
            config=SearchConfig(num_candidates=3, simulations=6),
            mode="train",
            seed=0,
            out=tmp_path / "trees.jsonl",
            dialect=data.dialect,
        )
    assert (summary.solved, summary.infra) == (1, 0)
    (tree,), _ = read_jsonl(tmp_path / "trees.jsonl")
    assert {"ok", "sql_error"} <= set(tree["verdict"]) and tree["reward"].count(1.0) == 1
    assert sql_from_steps(steps[0], engine).startswith("SELECT COALESCE(")


@pytest.mark.parametrize("engine", ["duckdb", "postgres"])
def test_data_set_is_audited(engine: str, make: Callable[..., LoadedRecipe], request: pytest.FixtureRequest) -> None:
    loaded = make(request.getfixturevalue(f"{engine}_url"), (*GOLD, "SELECT nope FROM singer", "SELECT random()"))
    out = loaded.path.parent / "list.jsonl"
    ended = CliRunner().invoke(app, ["data", "audit", str(loaded.path), "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert "1 databases" in ended.output and "1 x failed" in ended.output and "1 x non-deterministic" in ended.output
    assert {row["question_id"] for row in read_jsonl(out)[0]} == {"q3", "q4"}


def test_gold_of_the_engines_own_dialect_stays_as_it_is(make: Callable[..., LoadedRecipe], duckdb_url: str) -> None:
    sql = "FROM singer SELECT   MAX(age)"
    loaded = make(duckdb_url, (sql,), dialect="null")
    assert load_corpus(loaded.recipe.data, loaded.folder).dialect == "duckdb"
    (question,) = prepared(loaded).train
    assert question.gold_sql == sql and question.gold_result is not None and question.gold_result.rows == ((41,),)


def test_variants_of_what_is_no_sqlite_file_are_refused(make: Callable[..., LoadedRecipe], duckdb_url: str) -> None:
    with pytest.raises(DataError, match="variants are made of SQLite files, and the databases of jsonl are duckdb"):
        prepared(make(duckdb_url, more="verify: variants\n"))


def test_server_that_is_down_is_named_without_its_password(make: Callable[..., LoadedRecipe]) -> None:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    url = "postgresql://me:hidden@127.0.0.1:1/shop"
    with pytest.raises(
        InfraError, match=r"postgresql://me@127\.0\.0\.1/shop cannot be used.*run the same command"
    ) as caught:
        prepared(make(url))
    assert "hidden" not in str(caught.value)
    loaded = make(url)
    ended = CliRunner().invoke(app, ["data", "show", str(loaded.path)])
    assert isinstance(ended.exception, DataError) and "postgresql://me@127.0.0.1/shop cannot be read" in str(
        ended.exception
    )


def test_role_that_could_write_is_refused(
    make: Callable[..., LoadedRecipe], postgres_url: str, postgres_server: Server
) -> None:
    with pytest.raises(InfraError, match=r"the role owner of .* is refused: it is a superuser"):
        prepared(make(postgres_server.url("owner", "songs")))


def test_engines_are_not_mixed_in_a_data_set(
    make: Callable[..., LoadedRecipe], duckdb_url: str, tmp_path: Path
) -> None:
    loaded = make(duckdb_url)
    row = {"db_id": "shop", "database": "postgresql://me@127.0.0.1/shop", "question": "?", "gold_sql": "SELECT 1"}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"several engines .*; make a data set for each"):
        load_corpus(loaded.recipe.data, tmp_path)


def test_unknown_engine_is_located(make: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train\.jsonl:1: mysql:// is no engine that can be used; the known ones are sqlite"
    ):
        load_corpus(make("mysql://me@localhost/shop").recipe.data, tmp_path)
