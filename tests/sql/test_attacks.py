"""Every case of `tests/sql_attacks/*.sql` gets its verdict, and nothing else happens: no byte of the database changes,
no file appears, nobody is called over the network, no worker is left behind, the next query works, the parent does not
grow."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import re
import select
import socket
import sqlite3
import subprocess
import sys
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

    def text(self, ground: Ground) -> str:
        sql = re.sub(r"<<(\d+) x (.*?)>>", lambda found: found[2] * int(found[1]), self.sql)
        sql = sql.replace("{secret}", str(ground.secret)).replace("{folder}", str(ground.folder))
        host, port = ground.listener.getsockname()
        sql = sql.replace("{server}", f"{host}:{port}")
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


def files(folder: Path) -> dict[str, str]:
    """Digests of the files in a folder, and the names of what lies where a worker stands."""
    found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    return found | {str(path): "" for path in Path("/").iterdir()}


@dataclass
class Ground:
    """Where an attack is fought: a database, a folder it must not write to, a file it must not read, and a server on
    the network that it must not call."""

    sandbox: Sandbox
    database: str
    missing: str
    folder: Path
    secret: Path
    listener: socket.socket

    def job(self, case: Case) -> SqlJob:
        if case.sql == "{missing}":
            return SqlJob(self.missing, "SELECT 1")
        return SqlJob(self.database, case.text(self))

    def was_called(self) -> bool:
        return bool(select.select([self.listener], [], [], 0)[0])


def check(ground: Ground, case: Case) -> None:
    before = files(ground.folder)
    started = time.monotonic()
    execution = ground.sandbox.run([ground.job(case)])[0]
    elapsed = time.monotonic() - started
    assert execution.verdict in case.verdicts, execution
    assert bool(execution.unstable) is case.unstable or execution.verdict != "ok", execution
    assert SECRET not in repr(execution.rows)
    assert execution.verdict in ("ok", "truncated") or (execution.error and "\n" not in execution.error)
    assert elapsed < CONFIG.timeout + 1 or os.getloadavg()[0] > os.cpu_count()  # type: ignore[operator]
    assert files(ground.folder) == before
    assert not ground.was_called()
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
    with socket.create_server(("127.0.0.1", 0)) as listener, Sandbox(CONFIG) as sandbox:
        yield Ground(sandbox, database, missing, folder, secret, listener)
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


@pytest.mark.parametrize("engine", ["sqlite", "duckdb", "postgres"])
def test_after_the_whole_corpus_nothing_is_left(engine: str, request: pytest.FixtureRequest) -> None:
    """All of it at once, bombs included: no byte is changed, no file made, no process left, no memory kept."""
    ground: Ground = request.getfixturevalue(f"{engine}_ground")
    corpus = cases(engine)
    before, others = files(ground.folder), _children()
    with Sandbox(dataclasses.replace(CONFIG, workers=2, timeout=0.3)) as sandbox:
        # Measured from the end of the first time on: what that needed for good, like the cache of results, is no leak.
        resident = []
        for _ in range(2):
            assert len(sandbox.run([ground.job(case) for case in corpus])) == len(corpus)
            gc.collect()
            resident.append(_resident())
        pids = sandbox.pids
    assert resident[1] - resident[0] < 16_000, f"the parent grows: {resident} kB"
    assert files(ground.folder) == before
    assert not ground.was_called()
    assert _children() == others and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_uses_no_network_and_starts_no_process() -> None:
    script = (
        "import sys; sys.path.append(sys.argv[1]); import socket, subprocess, os\n"
        "from rstar_trl.sql.engine import Limits; from rstar_trl.sql.worker import _restrict\n"
        "_restrict(Limits(1, 1, 1, 512))\n"
        "for act in (socket.socket, lambda: subprocess.run(['true']), os.fork, lambda: os.system('true')):\n"
        "    try: act(); print('done')\n"
        "    except PermissionError as error: print(error)"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, root], capture_output=True, text=True, check=True
    )
    lines = ended.stdout.splitlines()
    assert len(lines) == 4 and all("uses no network and starts no process" in line for line in lines), ended.stdout


def _children() -> int:
    return len(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def _resident() -> int:
    """Memory of this process in kB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
