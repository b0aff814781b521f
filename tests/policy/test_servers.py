"""Servers that restart, on real sockets: stopped and started again on the same port while an engine or search runs."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rstar_trl.config import EngineConfig, SearchConfig
from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Refused
from rstar_trl.policy.openai_engine import HOPELESS, OpenAIEngine
from rstar_trl.search.scheduler import run_searches
from rstar_trl.sql.sandbox import Sandbox
from tests.openai_server import Respond, Response, Server, completion, serving
from tests.policy.test_openai_engine import ask, free_port, texts
from tests.scripted import make_task, without_time

SOON = 20.0
"""Seconds after which a test gives up on what should take one or two."""


@contextmanager
def engine(*urls: str, **values: Any) -> Iterator[OpenAIEngine]:
    settings = {"retries": 0, "timeout": 10.0, "patience": SOON, **values}
    with closing(OpenAIEngine(EngineConfig(kind="openai", urls=list(urls), **settings), "toy", 20)) as opened:
        yield opened


def well(body: dict[str, Any]) -> Response:
    return Response(completion("FROM a"))


def port_of(url: str) -> int:
    return int(url.rsplit(":")[-1].partition("/")[0])


def until(condition: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < SOON
        time.sleep(0.02)


class Restarting:
    """A server that can be stopped and started again on its port; runs until the block ends."""

    def __init__(self, respond: Respond):
        self.respond, self.port = respond, 0

    def __enter__(self) -> Restarting:
        self.start()
        self.url, self.port = self.server.url, port_of(self.server.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._running = serving(self.respond, self.port)
        self.server = self._running.__enter__()

    def stop(self) -> None:
        self._running.__exit__(None, None, None)


def failing_for(seconds: float, failure: Response, respond: Respond = well) -> Respond:
    """Answers by `failure` for a while after the first request, and by `respond` then."""
    began: list[float] = []

    def answer(body: dict[str, Any]) -> Response:
        began.append(time.monotonic())
        return failure if time.monotonic() - began[0] < seconds else respond(body)

    return answer


# --- a search whose server restarts ----------------------------------------------------------------------------------


def scripted(body: dict[str, Any]) -> Response:
    """A policy over the singers, drawn by the request's seed, slow enough to be caught at work."""
    _, _, steps = body["prompt"].partition("?\n")
    options = ["SELECT name", "SELECT age"] if steps else ["FROM singer", "FROM concert", "FROM nowhere"]
    chosen = random.Random(body["seed"]).choices(options, k=body["n"])
    return Response(completion(*chosen, stop_reason=None if steps else "\n\n"), seconds=0.02)


def searched(url: str, database: Path, sandbox: Sandbox) -> dict[str, Any]:
    tasks = [make_task(database, name=f"q{i}", seed=i) for i in range(12)]
    found: dict[str, Any] = {}
    with engine(url, concurrency=8, retries=1) as api:
        api.check()
        config = SearchConfig(num_candidates=3, simulations=4)
        run_searches(tasks, config, api, None, sandbox, lambda tree: found.update({tree.question_id: tree}))
    assert not any("failures" in tree.meta for tree in found.values())
    return {name: without_time(tree) for name, tree in found.items()}


def test_search_waits_for_a_server_that_restarts_and_finds_the_same_trees(
    small_database: Path, shared_sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(scripted) as server:
        expected = searched(server.url, small_database, shared_sandbox)
    capfd.readouterr()

    at_work = threading.Event()

    def respond(body: dict[str, Any]) -> Response:
        if len(restarting.server.bodies) > 20:
            at_work.set()
        return scripted(body)

    def restart() -> None:
        assert at_work.wait(SOON)
        restarting.stop()
        time.sleep(1.5)
        restarting.start()

    with Restarting(respond) as restarting:
        helper = threading.Thread(target=restart, daemon=True)
        helper.start()
        found = searched(restarting.url, small_database, shared_sandbox)
        helper.join()
        assert restarting.server.bodies, "the search ended before the restart"
    assert found == expected
    told = capfd.readouterr().err
    assert told.count("waiting for a server for up to 20 s") == 1 and told.count("answers again") == 1


# --- one server ------------------------------------------------------------------------------------------------------


def test_server_that_never_comes_back_stops_the_run_within_its_bound() -> None:
    started = time.monotonic()
    with engine(free_port(), patience=1.5) as api, pytest.raises(EngineError) as raised:
        api.propose([ask(f"q{i}\n") for i in range(30)])
    assert 1.5 <= time.monotonic() - started < 6
    assert "No server has answered for 2 s (http://" in str(raised.value)
    assert "finished work is kept" in str(raised.value)


def test_without_patience_it_stops_at_once() -> None:
    started = time.monotonic()
    with engine(free_port(), patience=0) as api, pytest.raises(EngineError, match="No server answers"):
        api.propose([ask()])
    assert time.monotonic() - started < 1


def test_host_that_takes_no_connection_is_down_and_no_slow_answer() -> None:
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            held = waiting.enter_context(socket.socket())
            held.setblocking(False)
            held.connect_ex(("127.0.0.1", port))
        api = waiting.enter_context(engine(f"http://127.0.0.1:{port}/v1", timeout=0.5, patience=0))
        with pytest.raises(EngineError, match="No server answers"):
            api.propose([ask()])


@pytest.mark.parametrize(
    "failure",
    [
        Response({"error": {"message": "Loading model"}}, 503),
        Response("<html>Bad Gateway</html>", 502, {"Content-Type": "text/html"}),
        Response({}, 0),
        Response(completion("FROM nowhere"), cut=True),
    ],
    ids=["loading", "proxy", "hang-up", "cut"],
)
def test_what_a_restart_looks_like_is_waited_for(failure: Response) -> None:
    """More requests than would be hopeless in a row; none of them is refused."""
    with serving(failing_for(0.5, failure)) as server, engine(server.url) as api:
        answers = api.propose([ask(f"q{i}\n") for i in range(2 * HOPELESS)])
    assert [texts(answer) for answer in answers] == [["FROM a"]] * 2 * HOPELESS


def test_one_waiter_asks_whether_the_server_is_back() -> None:
    """Of 40 requests those that were under way see it fail; after that it gets one probe after 1 s and one after 2."""
    with serving(failing_for(2.0, Response({}, 503))) as server, engine(server.url, concurrency=5) as api:
        answers = api.propose([ask(f"q{i}\n") for i in range(40)])
    assert [texts(answer) for answer in answers] == [["FROM a"]] * 40
    assert len(server.bodies) <= 5 + 2 + 40
    assert sum(body["max_tokens"] == 1 for body in server.bodies) == 2


def test_request_that_brings_its_server_down_each_time_is_refused_and_the_others_go_on() -> None:
    def respond(body: dict[str, Any]) -> Response:
        return Response({}, 0) if body["prompt"] == "q2\n" else well(body)

    with serving(respond) as server, engine(server.url) as api:
        answers = api.propose([ask(f"q{i}\n") for i in range(5)])
    refused = answers.pop(2)
    assert isinstance(refused, Refused) and "went down at each of 3 attempts" in refused.reason
    assert [texts(answer) for answer in answers] == [["FROM a"]] * 4


def test_request_errors_are_no_restart() -> None:
    """500 is about what was asked: it is refused at once, and nobody waits."""
    started = time.monotonic()
    with serving(lambda body: Response({"error": "boom"}, 500)) as server, engine(server.url) as api:
        (answer,) = api.propose([ask()])
    assert isinstance(answer, Refused) and time.monotonic() - started < 1


# --- several servers -------------------------------------------------------------------------------------------------


def test_the_other_server_takes_over_and_gives_back(capfd: pytest.CaptureFixture[str]) -> None:
    prompts = [f"q{i}\n" for i in range(10)]

    def asked(server: Server) -> set[str]:
        return {body["prompt"] for body in server.bodies if body["prompt"] in prompts}

    def propose() -> float:
        started = time.monotonic()
        assert [texts(answer) for answer in api.propose([ask(prompt) for prompt in prompts])] == [["FROM a"]] * 10
        return time.monotonic() - started

    with Restarting(well) as first, serving(well) as steady, engine(first.url, steady.url) as api:
        propose()
        own = asked(first.server)
        assert len(own) == 5 and asked(steady) == set(prompts) - own
        first.stop()
        assert propose() < 1 and asked(steady) == set(prompts)
        first.start()
        until(lambda: len(first.server.bodies) == 1)
        until(lambda: propose() < 1 and asked(first.server) == own)
        steady.bodies.clear()
        assert propose() < 1 and asked(steady) == set(prompts) - own
    told = capfd.readouterr().err
    assert told.count("the others take its questions until it does") == 1 and told.count("answers again") == 1


# --- before the first question ---------------------------------------------------------------------------------------


def test_check_waits_for_nobody() -> None:
    started = time.monotonic()
    with engine(free_port(), patience=300) as api, pytest.raises(EngineError, match="No server answers"):
        api.check()
    assert time.monotonic() - started < 1


def test_server_that_is_late_joins_those_that_passed_the_check() -> None:
    late = free_port()
    with serving(well) as steady, engine(late, steady.url) as api:
        api.check()
        with serving(well, port_of(late)) as joined:
            until(lambda: len(joined.bodies) == 1)
            until(lambda: bool(api.propose([ask(f"q{i}\n") for i in range(4)])) and len(joined.bodies) >= 3)
