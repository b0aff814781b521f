"""One attack or accident per promise of the sandbox."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rstar_trl.config import SandboxConfig
from rstar_trl.errors import InfraError
from rstar_trl.sql.execution import Execution, SqlJob
from rstar_trl.sql.sandbox import Sandbox, _Cache

ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r"
# One call of one function, minutes long: SQLite itself never looks up from it.
ENDLESS_OPERATOR = "SELECT instr(zeroblob(900000), CAST(zeroblob(450000) || 'x' AS BLOB)) FROM t, t, t, t"
WRITES = [
    "ATTACH 'other.sqlite' AS other",
    "VACUUM INTO 'copy.sqlite'",
    "VACUUM",
    "PRAGMA user_version = 7",
    "PRAGMA table_info(t)",
    "SELECT * FROM pragma_table_info('t')",
    "SELECT load_extension('evil.so')",
    "SELECT LOAD_EXTENSION('evil.so', 'main')",
    "WITH x AS (SELECT 1) DELETE FROM t",
    "DELETE FROM t",
    "UPDATE t SET a = 1",
    "INSERT INTO t VALUES (1, 'x')",
    "REPLACE INTO t VALUES (1, 'x')",
    "CREATE TABLE u (a)",
    "CREATE TEMP TABLE u (a)",
    "CREATE TABLE u AS SELECT * FROM t",
    "DROP TABLE t",
    "ALTER TABLE t ADD COLUMN c",
    "BEGIN",
    "SAVEPOINT s",
    "ANALYZE",
    "REINDEX",
    "SELECT 1; DROP TABLE t",
    "EXPLAIN SELECT 1",
    "/* */ -- x\n EXPLAIN QUERY PLAN SELECT 1",
]


@pytest.fixture
def database(tmp_path: Path) -> str:
    folder = tmp_path / "a folder, 100%25 ?#"
    folder.mkdir()
    path = folder / "data.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a INTEGER, b TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"name {i}") for i in range(100)])
    connection.close()
    return str(path)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    config = SandboxConfig(workers=1, timeout=0.5, max_rows=50, max_bytes=1_000_000, memory_mb=256)
    with Sandbox(config) as sandbox:
        yield sandbox


def one(sandbox: Sandbox, database: str, sql: str, probe: bool = False) -> Execution:
    return sandbox.run([SqlJob(database, sql, probe)])[0]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_answers_come_in_order_with_columns_and_values(sandbox: Sandbox, database: str) -> None:
    jobs = [SqlJob(database, f"SELECT a AS n, b, NULL, 0.5, x'00ff' FROM t WHERE a = {i}") for i in range(100)]
    executions = sandbox.run(jobs)
    assert [e.rows for e in executions] == [((i, f"name {i}", None, 0.5, b"\x00\xff"),) for i in range(100)]
    assert {e.verdict for e in executions} == {"ok"}
    assert executions[0].columns == ("n", "b", "NULL", "0.5", "x'00ff'")


def test_two_calls_run_beside_each_other_and_one_call_takes_all_that_is_free(database: str) -> None:
    with Sandbox(SandboxConfig(workers=2, timeout=1.5)) as pool:
        pool.run([SqlJob(database, f"SELECT {number}") for number in range(64)])
        with ThreadPoolExecutor(1) as threads:
            started = time.monotonic()
            slow = threads.submit(pool.run, [SqlJob(database, ENDLESS)])
            time.sleep(0.1)
            assert pool.run([SqlJob(database, "SELECT 100 + 1")])[0].rows == ((101,),)
            assert time.monotonic() - started < 1.0 and not slow.done()
            assert slow.result()[0].verdict == "timeout"


def test_several_workers_give_the_same_answers_as_one(database: str) -> None:
    jobs = [SqlJob(database, f"SELECT COUNT(*) FROM t WHERE a % {1 + i % 40} = {i % 3}") for i in range(200)]
    answers = []
    for workers in (1, 3):
        with Sandbox(SandboxConfig(workers=workers)) as pool:
            answers.append([(e.verdict, e.rows) for e in pool.run(jobs)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("sql", WRITES)
def test_everything_but_a_single_read_is_rejected_with_a_reason(sandbox: Sandbox, database: str, sql: str) -> None:
    execution = one(sandbox, database, sql)
    assert (execution.verdict, execution.rows) == ("rejected", None)
    assert len(execution.error.split()) >= 4


def test_database_is_byte_identical_and_no_file_appears(sandbox: Sandbox, database: str) -> None:
    def snapshot() -> dict[str, str]:
        folder = Path(database).parent
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before = snapshot()
    sandbox.run([SqlJob(database, sql, probe) for sql in [*WRITES, ENDLESS] for probe in (False, True)])
    assert snapshot() == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT value FROM json_each('[1, 2]')",
        "SELECT fullkey FROM json_tree('[1]')",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT n FROM r",
        "SELECT SUM(a) OVER (ORDER BY a) FROM t LIMIT 3",
        "VALUES (1), (2)",
        "SELECT 1; -- the end",
        "SELECT name FROM sqlite_master",
        "-- a comment\nSELECT explain FROM (SELECT 1 AS explain)",
    ],
)
def test_every_kind_of_reading_is_allowed(sandbox: Sandbox, database: str, sql: str) -> None:
    assert one(sandbox, database, sql).verdict == "ok"


@pytest.mark.parametrize(
    "sql", ["", "-- nothing", "SELEC 1", "SELECT * FROM nope", "SELECT ?", "SELECT 1\0", "SELECT '\ud800'", "(" * 5000]
)
def test_what_is_no_query_is_sql_error(sandbox: Sandbox, database: str, sql: str) -> None:
    execution = one(sandbox, database, sql)
    assert execution.verdict == "sql_error"
    assert execution.error and "\n" not in execution.error


def test_comments_cannot_make_the_explain_check_backtrack(sandbox: Sandbox, database: str) -> None:
    assert one(sandbox, database, "/* */ -- x\n" * 5000 + "SELECT 1").verdict == "ok"


def test_timeout_stops_infinite_loop_and_keeps_the_worker(sandbox: Sandbox, database: str) -> None:
    pids = sandbox.pids
    execution = one(sandbox, database, ENDLESS)
    assert execution.verdict == "timeout" and "0.5 s" in execution.error
    assert one(sandbox, database, "SELECT 1").rows == ((1,),)
    assert sandbox.pids == pids


def test_timeout_kills_infinite_loop(sandbox: Sandbox, database: str) -> None:
    pids = sandbox.pids
    jobs = [SqlJob(database, sql) for sql in ("SELECT 11", ENDLESS_OPERATOR, "SELECT 12")]
    assert [e.verdict for e in sandbox.run(jobs)] == ["ok", "timeout", "ok"]
    assert sandbox.pids != pids
    assert has_ended(pids[0])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT zeroblob(900000000)",
        "SELECT length(group_concat(hex(zeroblob(100000)))) FROM t",
        "SELECT COUNT(*) FROM (SELECT DISTINCT x.a, y.a, z.a, hex(randomblob(400000)) FROM t x, t y, t z)",
    ],
)
def test_memory_bomb_is_a_verdict_and_the_worker_goes_on(database: str, sql: str) -> None:
    with Sandbox(SandboxConfig(timeout=20, max_bytes=1_000_000, memory_mb=128)) as pool:
        pids = pool.pids
        assert one(pool, database, sql).verdict == "memory"
        assert one(pool, database, "SELECT COUNT(*) FROM t").rows == ((100,),)
        assert pool.pids == pids


def test_truncation_by_rows(sandbox: Sandbox, database: str) -> None:
    exact = one(sandbox, database, "SELECT a FROM t ORDER BY a LIMIT 50")
    more = one(sandbox, database, "SELECT a FROM t ORDER BY a LIMIT 51")
    assert (exact.verdict, more.verdict) == ("ok", "truncated")
    assert exact.rows == more.rows == tuple((i,) for i in range(50))
    assert "50 rows" in more.error


def test_truncation_by_bytes(sandbox: Sandbox, database: str) -> None:
    execution = one(sandbox, database, "SELECT zeroblob(300000) FROM t LIMIT 10")
    assert execution.verdict == "truncated"
    assert execution.rows is not None and len(execution.rows) == 3


def test_probe_fetches_one_row_and_leaves_no_lock(sandbox: Sandbox, database: str) -> None:
    assert one(sandbox, database, "SELECT a FROM t ORDER BY a", probe=True).rows == ((0,),)
    with sqlite3.connect(database, timeout=0) as connection:
        connection.execute("INSERT INTO t VALUES (1000, 'written beside an open sandbox')")
    connection.close()
    assert one(sandbox, database, "SELECT MAX(a) FROM t").rows == ((1000,),)


def test_undecodable_text_is_read_with_replacement(sandbox: Sandbox, database: str) -> None:
    assert one(sandbox, database, "SELECT CAST(x'41ff' AS TEXT)").rows == (("A\ufffd",),)


def test_infinity_survives(sandbox: Sandbox, database: str) -> None:
    assert one(sandbox, database, "SELECT 9e999, -9e999").rows == ((float("inf"), float("-inf")),)


def test_missing_database_is_infra_and_is_not_created(sandbox: Sandbox, tmp_path: Path) -> None:
    execution = one(sandbox, str(tmp_path / "missing.sqlite"), "SELECT 1")
    assert execution.verdict == "infra" and "missing.sqlite" in execution.error
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_databases_are_infra(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    (tmp_path / "text.sqlite").write_text("not a database " * 100)
    for path in (tmp_path, tmp_path / "empty.sqlite", tmp_path / "text.sqlite"):
        execution = one(sandbox, str(path), "SELECT 1")
        assert execution.verdict == "infra" and str(path) in execution.error


def test_locked_database_is_infra_and_readable_again_once_unlocked(sandbox: Sandbox, database: str) -> None:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert one(sandbox, database, "SELECT COUNT(*) FROM t").verdict == "infra"
    connection.execute("COMMIT")
    connection.close()
    assert one(sandbox, database, "SELECT COUNT(*) FROM t").rows == ((100,),)


def test_infra_is_tried_once_more_before_it_stands(sandbox: Sandbox, database: str) -> None:
    """A lock that goes away between the first try and the second costs no answer."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.35, lambda: connection.execute("COMMIT"))  # The first try waits 0.25 s for the lock.
    release.start()
    assert one(sandbox, database, "SELECT COUNT(*) + 1 FROM t").rows == ((101,),)
    release.join()
    connection.close()


def test_wal_database_is_read_without_files_beside_it(sandbox: Sandbox, database: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert one(sandbox, database, "SELECT COUNT(*) FROM t").rows == ((100,),)
    assert [path.name for path in Path(database).parent.iterdir()] == ["data.sqlite"]


def test_wal_database_with_unmerged_changes_is_infra_not_a_stale_answer(sandbox: Sandbox, database: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("DELETE FROM t")
    connection.commit()
    execution = one(sandbox, database, "SELECT COUNT(*) FROM t")
    connection.close()
    assert execution.verdict == "infra" and "wal_checkpoint" in execution.error


def test_idle_worker_killed_then_next_query_works(sandbox: Sandbox, database: str) -> None:
    os.kill(sandbox.pids[0], signal.SIGKILL)
    assert one(sandbox, database, "SELECT 21").rows == ((21,),)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_worker_killed_twice_on_a_query_is_infra_then_next_query_works(database: str, death: int) -> None:
    with Sandbox(SandboxConfig(timeout=30, workers=1)) as pool:
        answers: list[Execution] = []
        jobs = [SqlJob(database, sql) for sql in ("SELECT 1", ENDLESS, "SELECT 2")]
        thread = threading.Thread(target=lambda: answers.extend(pool.run(jobs)))
        thread.start()
        for _ in range(2):
            pid = pool.pids[0]
            assert wait_until(lambda: bool(pool._workers[0].batch) and pool._workers[0].batch[0][1] == ENDLESS)
            os.kill(pid, death)
            assert wait_until(lambda pid=pid: pool.pids[0] != pid)
        thread.join(30)
        assert [e.verdict for e in answers] == ["ok", "infra", "ok"]


def test_parent_exit_ends_workers(database: str) -> None:
    script = (
        "import os, sys; from rstar_trl.config import SandboxConfig; from rstar_trl.sql.sandbox import Sandbox\n"
        "from rstar_trl.sql.execution import SqlJob\n"
        "pool = Sandbox(SandboxConfig(workers=2)); pool.run([SqlJob(sys.argv[1], 'SELECT 1')])\n"
        "print(*pool.pids, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", script, database], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in parent.stdout.split()]
    assert parent.returncode == -signal.SIGKILL and len(pids) == 2
    assert wait_until(lambda: all(has_ended(pid) for pid in pids))


def test_workers_inherit_neither_environment_nor_descriptors(
    monkeypatch: pytest.MonkeyPatch, database: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    with open(tmp_path / "open.txt", "w") as file, Sandbox(SandboxConfig(workers=2)) as pool:
        os.set_inheritable(file.fileno(), True)
        pool.run([SqlJob(database, f"SELECT {i}") for i in range(10)])
        for pid in pool.pids:
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""
            targets = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
            assert len([t for t in targets if t.startswith("pipe:")]) == 2
            assert {t for t in targets if not t.startswith("pipe:")} <= {"/dev/null", database}


def test_worker_imports_only_the_standard_library() -> None:
    root = str(Path(__file__).resolve().parents[2])
    script = f"import sys; sys.path.append({root!r}); import rstar_trl.sql.worker; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in output.stdout.split()}
    assert packages - sys.stdlib_module_names - {"__main__"} == {"rstar_trl"}


def test_interrupted_call_does_not_shift_later_answers(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    with Sandbox(SandboxConfig()) as pool:
        monkeypatch.setattr(_Cache, "put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pool.run([SqlJob(database, f"SELECT {i}") for i in range(64)])
        monkeypatch.undo()
        assert [e.rows for e in pool.run([SqlJob(database, f"SELECT {i}") for i in (7, 8)])] == [((7,),), ((8,),)]


def test_threads_take_turns(database: str) -> None:
    answers: dict[int, list[object]] = {}
    with Sandbox(SandboxConfig(workers=2)) as pool:

        def ask(start: int) -> None:
            answers[start] = [e.rows for e in pool.run([SqlJob(database, f"SELECT {start + i}") for i in range(50)])]

        threads = [threading.Thread(target=ask, args=(start,)) for start in (0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {start: [((start + i,),) for i in range(50)] for start in (0, 1000, 2000)}


def test_cache_keeps_only_verdicts_a_rerun_would_give_and_stays_in_its_budget() -> None:
    cache = _Cache(10_000)
    for verdict in ("timeout", "memory", "truncated", "infra"):
        cache.put(("d", verdict, False), Execution(verdict), 10)  # type: ignore[arg-type]
    assert not cache.entries
    for i in range(1000):
        cache.put(("d", str(i), False), Execution("ok", ()), 100)
    assert cache.used <= 10_000 and cache.get(("d", "999", False)) and not cache.get(("d", "0", False))
    assert cache.used == sum(size for _, size in cache.entries.values())


def test_cached_answers_are_orders_of_magnitude_faster_than_the_query(database: str) -> None:
    with Sandbox(SandboxConfig(timeout=30)) as pool:
        slow = [SqlJob(database, "SELECT COUNT(*) FROM t x, t y, t z")]
        first = pool.run(slow)
        start = time.perf_counter()
        assert pool.run(slow * 1000) == first * 1000
        # Far above the few milliseconds it takes, far below 1,000 runs.
        assert time.perf_counter() - start < max(1.0, 100 * first[0].seconds)


def test_closed_sandbox_says_so(database: str) -> None:
    pool = Sandbox(SandboxConfig())
    pool.close()
    pool.close()
    with pytest.raises(InfraError, match="closed"):
        pool.run([SqlJob(database, "SELECT 1")])
