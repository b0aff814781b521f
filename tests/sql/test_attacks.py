"""Every case of `tests/sql_attacks/*.sql` gets its verdict, and nothing else happens: no byte of the database changes,
no file appears, no worker is left behind, the next query works, the parent does not grow."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rstar_trl.config import SandboxConfig
from rstar_trl.sql import sandbox as sandbox_module
from rstar_trl.sql.execution import SqlJob
from rstar_trl.sql.sandbox import Sandbox
from tests.postgres_server import LIMITED, Server

CONFIG = SandboxConfig(workers=1, timeout=0.7, max_rows=5_000, max_bytes=4_000_000, memory_mb=768)
HEADER = re.compile(r"^--- (\w+) ([\w|]+)( unstable)?: (.+)$", re.MULTILINE)
SECRET = "the host's own secret"


@dataclass(frozen=True)
class Case:
    """One attack: `sql` as it stands in the file, with its placeholders."""

    engine: str
    verdicts: frozenset[str]
    unstable: bool
    name: str
    sql: str

    def text(self, secret: Path, folder: Path) -> str:
        sql = re.sub(r"<<(\d+) x (.*?)>>", lambda found: found[2] * int(found[1]), self.sql)
        sql = sql.replace("{secret}", str(secret)).replace("{folder}", str(folder))
        sql = sql.replace("{{", "{").replace("}}", "}")
        if sql.startswith("<<escape>>"):
            sql = sql.removeprefix("<<escape>>").encode().decode("unicode_escape")
        return sql


def cases(engine: str) -> list[Case]:
    found = []
    for path in sorted((Path(__file__).parents[1] / "sql_attacks").glob("*.sql")):
        parts = HEADER.split(path.read_text(encoding="utf-8"))
        assert not parts[0].strip(), f"{path} has text before its first case"
        for name, verdicts, unstable, title, sql in zip(*(parts[i::5] for i in range(1, 6)), strict=True):
            found.append(Case(name, frozenset(verdicts.split("|")), bool(unstable), title, sql.strip("\n")))
    assert len({(case.engine, case.name) for case in found}) == len(found), "two cases have the same name"
    return [case for case in found if case.engine == engine]


def files(*folders: Path) -> dict[str, str]:
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@dataclass
class Ground:
    """Where an attack is fought: a database, a folder it must not write to, a file it must not read."""

    sandbox: Sandbox
    database: str
    missing: str
    folder: Path
    secret: Path


def check(ground: Ground, case: Case) -> None:
    database, sql = ground.database, case.text(ground.secret, ground.folder)
    if case.sql == "{missing}":
        database, sql = ground.missing, "SELECT 1"
    before = files(ground.folder)
    started = time.monotonic()
    execution = ground.sandbox.run([SqlJob(database, sql)])[0]
    elapsed = time.monotonic() - started
    assert execution.verdict in case.verdicts, execution
    assert bool(execution.unstable) is case.unstable or execution.verdict != "ok", execution
    assert SECRET not in repr(execution.rows)
    assert execution.verdict in ("ok", "truncated") or (execution.error and "\n" not in execution.error)
    assert elapsed < CONFIG.timeout + 1 or os.getloadavg()[0] > os.cpu_count()  # type: ignore[operator]
    assert files(ground.folder) == before
    again = ground.sandbox.run([SqlJob(ground.database, f"SELECT COUNT(*) + {time.monotonic_ns()} * 0 FROM t")])[0]
    assert (again.verdict, again.rows) == ("ok", ((100,),))


def make_sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a INTEGER, b TEXT)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"name {i}") for i in range(100)])
    connection.execute("CREATE TABLE big (a INTEGER, b TEXT)")
    connection.executemany("INSERT INTO big VALUES (?, ?)", [(i, f"text {i}" * 5) for i in range(5_000)])
    columns = ", ".join(f"c{i} INTEGER" for i in range(115))
    connection.execute(f"CREATE TABLE wide ({columns})")
    connection.execute(f"INSERT INTO wide VALUES ({', '.join(map(str, range(115)))})")
    connection.execute("CREATE TABLE odd (broken TEXT, nul TEXT, raw BLOB)")
    connection.execute("INSERT INTO odd VALUES (CAST(x'41ff42' AS TEXT), 'a' || char(0) || 'b', x'00ff')")
    connection.commit()
    connection.close()


@contextmanager
def ground(folder: Path, database: str, missing: str) -> Iterator[Ground]:
    secret = folder / "secret.csv"
    secret.write_text(SECRET)
    with Sandbox(CONFIG) as sandbox:
        yield Ground(sandbox, database, missing, folder, secret)
        pids = sandbox.pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture(scope="module")
def sqlite_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("attacked")
    make_sqlite(folder / "data.sqlite")
    with ground(folder, str(folder / "data.sqlite"), str(folder / "missing.sqlite")) as found:
        yield found


@pytest.fixture(scope="module")
def duckdb_ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    duckdb = pytest.importorskip("duckdb", reason="the extra duckdb is not installed")
    folder = tmp_path_factory.mktemp("attacked")
    with duckdb.connect(str(folder / "data.duckdb")) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS a, 'name ' || range AS b FROM range(100)")
    url = f"duckdb://{folder}/data.duckdb"
    with ground(folder, url, f"duckdb://{folder}/missing.duckdb") as found:
        yield found


@pytest.fixture(scope="module")
def postgres_ground(tmp_path_factory: pytest.TempPathFactory, postgres_server: Server) -> Iterator[Ground]:
    import psycopg

    with psycopg.connect(postgres_server.url("owner", "postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE attacked")
        connection.execute(f"CREATE ROLE {LIMITED} LOGIN")
        connection.execute("CREATE ROLE writer LOGIN")
    with psycopg.connect(postgres_server.url("owner"), autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT a, 'name ' || a AS b FROM generate_series(0, 99) AS a")
        connection.execute("CREATE SEQUENCE numbers")
        connection.execute(f"GRANT SELECT ON t TO {LIMITED}")
        connection.execute(f"GRANT USAGE ON SEQUENCE numbers TO {LIMITED}")
        connection.execute("GRANT SELECT, INSERT ON t TO writer")
    folder = tmp_path_factory.mktemp("attacked")
    with ground(folder, postgres_server.url(), postgres_server.url(database="missing")) as found:
        yield found


@pytest.mark.parametrize("case", cases("sqlite"), ids=lambda case: case.name)
def test_sqlite_attack_gets_its_verdict(case: Case, sqlite_ground: Ground) -> None:
    check(sqlite_ground, case)


@pytest.mark.parametrize("case", cases("duckdb"), ids=lambda case: case.name)
def test_duckdb_attack_gets_its_verdict(case: Case, duckdb_ground: Ground) -> None:
    check(duckdb_ground, case)


@pytest.mark.parametrize("case", cases("postgres"), ids=lambda case: case.name)
def test_postgres_attack_gets_its_verdict(case: Case, postgres_ground: Ground) -> None:
    check(postgres_ground, case)


def test_postgres_is_as_it_was_and_no_session_is_left(postgres_ground: Ground, postgres_server: Server) -> None:
    import psycopg

    pids = postgres_ground.sandbox.pids
    with psycopg.connect(postgres_server.url("owner"), autocommit=True) as connection:

        def count(sql: str) -> int:
            return connection.execute(sql).fetchone()[0]  # type: ignore[index]

        for _ in range(50):  # A session whose client was killed is noticed within half a second.
            left = count(f"SELECT COUNT(*) FROM pg_stat_activity WHERE usename = '{LIMITED}'")
            if not left:
                break
            time.sleep(0.1)
        assert left == 0
        assert count("SELECT COUNT(*) FROM pg_largeobject_metadata") == 0
        assert count("SELECT COUNT(*) FROM pg_class WHERE relname = 'u'") == 0
        assert connection.execute("SELECT last_value, is_called FROM numbers").fetchone() == (1, False)
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("role", "reason"),
    [("owner", "superuser"), ("writer", "it may write to t"), ("nobody", "cannot be used")],
)
def test_postgres_refuses_roles_that_could_do_harm(
    postgres_ground: Ground, postgres_server: Server, role: str, reason: str
) -> None:
    (execution,) = postgres_ground.sandbox.run([SqlJob(postgres_server.url(role), "SELECT 1")])
    assert execution.verdict == "infra" and reason in execution.error


def test_postgres_server_that_is_down_is_infra_and_named_without_its_password(sqlite_ground: Ground) -> None:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    (execution,) = sqlite_ground.sandbox.run([SqlJob("postgresql://me:hidden@127.0.0.1:1/shop", "SELECT 1")])
    assert execution.verdict == "infra" and "hidden" not in execution.error
    assert "postgresql://me@127.0.0.1/shop cannot be used" in execution.error


def test_an_engine_that_is_not_installed_is_infra_and_says_what_to_install(
    sqlite_ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "_packages", list)
    with Sandbox(CONFIG) as sandbox:
        (execution,) = sandbox.run([SqlJob("duckdb:///x.duckdb", "SELECT 1")])
    assert execution.verdict == "infra" and "pip install 'rstar-trl[duckdb]'" in execution.error


@pytest.mark.parametrize("engine", ["sqlite", "duckdb", "postgres"])
def test_values_arrive_the_same_from_every_engine(engine: str, request: pytest.FixtureRequest) -> None:
    found: Ground = request.getfixturevalue(f"{engine}_ground")
    sql = "SELECT a, b, a * 0.5, CAST(a AS VARCHAR(9)), NULL, CAST(a AS INTEGER) FROM t WHERE a = 3"
    (execution,) = found.sandbox.run([SqlJob(found.database, sql)])
    assert execution.rows == ((3, "name 3", 1.5, "3", None, 3),)
    assert [type(value) for value in execution.rows[0]] == [int, str, float, str, type(None), int]


def test_odd_values_arrive_by_one_policy(sqlite_ground: Ground) -> None:
    (execution,) = sqlite_ground.sandbox.run([SqlJob(sqlite_ground.database, "SELECT broken, nul, raw FROM odd")])
    assert execution.rows == (("A\ufffdB", "a\x00b", b"\x00\xff"),)


def test_unstable_results_are_not_answered_from_the_cache(sqlite_ground: Ground) -> None:
    job = SqlJob(sqlite_ground.database, "SELECT random()")
    first, second = (sqlite_ground.sandbox.run([job])[0] for _ in range(2))
    assert first.rows != second.rows


def test_corpus_in_bulk_leaves_no_process_and_no_memory_behind(sqlite_ground: Ground) -> None:
    """Three more times through what ends at once; the bombs have had their turn above."""
    ground = sqlite_ground
    jobs = [
        SqlJob(ground.database, case.text(ground.secret, ground.folder))
        for case in cases("sqlite")
        if not case.verdicts & {"timeout", "memory", "truncated", "infra"}
    ]
    before = files(ground.folder), _children(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(3):
        ground.sandbox.run([SqlJob(job.database, f"{job.sql}\n-- {number}") for job in jobs])
    after = files(ground.folder), _children(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 10_000, "the parent has grown by more than 10 MB"


def _children() -> int:
    return len(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())
