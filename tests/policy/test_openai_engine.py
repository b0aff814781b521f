"""The engine over HTTP, against a real server on loopback that does what a test says."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rstar_trl.config import EngineConfig
from rstar_trl.errors import ConfigError, EngineError
from rstar_trl.policy.interface import Candidate, ProposeRequest, Refused
from rstar_trl.policy.openai_engine import HOPELESS, OpenAIEngine
from rstar_trl.policy.openai_format import CONTINUE
from tests.openai_server import Response, chat, completion, serving

OPEN: list[OpenAIEngine] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def engine(*urls: str, tokenizer: Any = None, **values: Any) -> OpenAIEngine:
    config = EngineConfig(kind="openai", urls=list(urls), **{"retries": 1, "timeout": 10.0, "patience": 0.0, **values})
    OPEN.append(OpenAIEngine(config, "toy", 20, tokenizer))
    return OPEN[-1]


def ask(prompt: str = "q?\n", steps: tuple[str, ...] = (), n: int = 1, seed: int = 5) -> ProposeRequest:
    return ProposeRequest(prompt, steps, n, 0.7, seed)


def texts(answer: list[Candidate] | Refused) -> list[str]:
    assert isinstance(answer, list), answer
    return [candidate.text for candidate in answer]


def always(*steps: str, **values: Any) -> Callable[[dict[str, Any]], Response]:
    return lambda body: Response(completion(*steps[: body["n"]], **values))


# --- what is asked, what is read ---------------------------------------------------------------------------------


def test_request_holds_prompt_and_steps_and_all_that_samples_them() -> None:
    with serving(always("FROM a", "FROM b")) as server:
        (answer,) = engine(server.url, options={"top_p": 0.9, "logprobs": None}).propose([ask(steps=("FROM x",), n=2)])
    assert texts(answer) == ["FROM a", "FROM b"]
    assert server.paths == ["/v1/completions"]
    assert server.bodies == [
        {
            "model": "toy",
            "prompt": "q?\nFROM x\n\n",
            "n": 2,
            "max_tokens": 20,
            "temperature": 0.7,
            "seed": 5,
            "stop": ["\n\n"],
            "top_p": 0.9,
        }
    ]


def test_tokenizer_renders_and_sends_the_tokens_that_training_saw(llama_dir: Any) -> None:
    from rstar_trl.policy.tokens import encode_prompt, encode_step, load_tokenizer

    tokenizer = load_tokenizer(str(llama_dir))
    with serving(always("FROM a")) as server:
        engine(server.url, tokenizer=tokenizer).propose([ask(steps=("FROM singer",))])
        engine(server.url, tokenizer=tokenizer, token_ids=False).propose([ask(steps=("FROM singer",))])
    ids = encode_prompt(tokenizer, "q?\n") + encode_step(tokenizer, "FROM singer", final=False)
    assert [body["prompt"] for body in server.bodies] == [ids, "q?\nFROM singer\n\n"]


def test_logprob_is_the_steps_own_and_tokens_are_all_that_were_generated() -> None:
    tokens = {"tokens": ["FROM", " a", "\n\n", "SELECT"], "token_logprobs": [-1.0, -0.5, -0.25, -4.0]}
    with serving(always("FROM a\n\nSELECT", logprobs=tokens)) as server:
        (answer,) = engine(server.url).propose([ask()])
    assert answer == [Candidate("FROM a", -1.75, 4, "step", prefix_tokens=10)]


def test_a_logprob_that_is_left_out_is_not_certain() -> None:
    tokens = {"tokens": ["FROM", " a", "\n\n"], "token_logprobs": [None, -0.5, -0.25]}
    with serving(always("FROM a", logprobs=tokens)) as server:
        (answer,) = engine(server.url).propose([ask()])
    assert isinstance(answer, list) and answer[0].logprob is None


def test_a_share_that_fails_is_asked_for_again() -> None:
    """Of a request that a server which ignores `n` answers step by step."""
    failed: list[int] = []

    def reply(body: dict[str, Any]) -> Response:
        if body["prompt"] == "again\n" and not failed:
            failed.append(body["seed"])
            return Response({"error": "boom"}, 500)
        return Response(completion(f"FROM t{body['seed']}"))

    with serving(reply) as server:
        api = engine(server.url, retries=0)
        api.propose([ask(n=2)])
        (answer,) = api.propose([ask("again\n", n=3)])
    assert len(failed) == 1 and len(set(texts(answer))) == 3


def test_without_logprobs_none_is_told_and_tokens_are_shared_out() -> None:
    with serving(always("a b c d", "a b")) as server:
        (answer,) = engine(server.url).propose([ask(n=2)])
    assert isinstance(answer, list)
    assert [(each.logprob, each.tokens) for each in answer] == [(None, 4), (None, 2)]


@pytest.mark.parametrize(
    ("choice", "finish"),
    [
        ({"stop_reason": "\n\n"}, "step"),
        ({"stop_reason": None}, "eos"),
        ({"matched_stop": "\n\n"}, "step"),
        ({"matched_stop": 2}, "eos"),
        ({"text": "SELECT a\n\n"}, "step"),
        ({"finish_reason": "length"}, "length"),
    ],
)
def test_what_ended_a_step_is_read_in_each_servers_way(choice: dict[str, Any], finish: str) -> None:
    blank: dict[str, Any] = {"text": "SELECT a", "finish_reason": "stop"}
    with serving(lambda body: Response({"choices": [blank | choice]})) as server:
        (answer,) = engine(server.url).propose([ask()])
    assert isinstance(answer, list)
    assert (answer[0].text, answer[0].finish) == ("SELECT a", finish)
    assert len(server.bodies) == 1


def test_server_that_does_not_say_what_ended_a_step_is_no_longer_asked_to_stop() -> None:
    """A hosted API: told to stop, it gives no way to tell the delimiter from the end; left alone, the text tells."""

    def respond(body: dict[str, Any]) -> Response:
        whole = "FROM a\n\nSELECT b" if len(body["messages"]) == 1 else "SELECT b"
        return Response(chat(whole.partition("\n\n")[0] if body.get("stop") else whole))

    with serving(respond) as server:
        api = engine(server.url, endpoint="chat")
        answers = [api.propose([ask(steps=steps)])[0] for steps in ((), ("FROM a",))]
    assert [(each.text, each.finish) for (each,) in answers] == [("FROM a", "step"), ("SELECT b", "eos")]  # type: ignore[misc]
    assert [body.get("stop") for body in server.bodies] == [["\n\n"], None, None]


@pytest.mark.parametrize("prefill", [False, True])
def test_chat_shows_the_steps_as_the_assistants_own(prefill: bool) -> None:
    with serving(lambda body: Response(chat("```sql\n-- b\nSELECT b\n```"))) as server:
        (answer,) = engine(server.url, endpoint="chat", prefill=prefill).propose([ask(steps=("FROM a",))])
    assert texts(answer) == ["-- b\nSELECT b"]
    body = server.bodies[-1]
    shown = [(each["role"], each["content"]) for each in body["messages"]]
    assert shown[:2] == [("user", "q?\n"), ("assistant", "FROM a\n\n")]
    assert shown[2:] == ([] if prefill else [("user", CONTINUE)])
    assert body.get("continue_final_message") == (True if prefill else None)
    assert server.paths[0] == "/v1/chat/completions"


# --- n -----------------------------------------------------------------------------------------------------------


def test_server_that_ignores_n_is_asked_n_times_with_other_seeds() -> None:
    with serving(lambda body: Response(completion(f"FROM t{body['seed']}"))) as server:
        api = engine(server.url)
        first, second = (api.propose([ask(n=4, seed=seed)])[0] for seed in (5, 50))
    assert isinstance(first, list) and first[0].prefix_tokens == 40, "a prompt that is sent again is paid again"
    assert texts(first) == ["FROM t5", "FROM t6", "FROM t7", "FROM t8"]
    assert texts(second) == ["FROM t50", "FROM t51", "FROM t52", "FROM t53"]
    assert [body["n"] for body in server.bodies] == [4, 1, 1, 1, 1, 1, 1, 1]


def test_missing_candidates_are_asked_for_again_and_then_left_missing() -> None:
    with serving(lambda body: Response(completion(*["FROM a", "FROM b"][: body["n"]]))) as server:
        (answer,) = engine(server.url).propose([ask(n=8)])
    assert len(texts(answer)) == 6 and [body["n"] for body in server.bodies] == [8, 6, 4]


def test_too_many_candidates_are_cut() -> None:
    with serving(lambda body: Response(completion("FROM a", "FROM b", "FROM c"))) as server:
        assert texts(engine(server.url).propose([ask(n=2)])[0]) == ["FROM a", "FROM b"]


def test_no_candidate_at_all_is_refused() -> None:
    with serving(lambda body: Response(completion())) as server:
        assert engine(server.url).propose([ask()]) == [Refused("the server returned no candidate")]


# --- one request fails, the others go on -------------------------------------------------------------------------


def only(prompt: str, response: Response) -> Callable[[dict[str, Any]], Response]:
    return lambda body: response if body["prompt"] == prompt else Response(completion("FROM a"))


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (
            Response({"error": {"message": "maximum context length is 9 tokens"}}, 400),
            "400: maximum context length is 9",
        ),
        (Response({"error": "boom"}, 500, {"retry-after-ms": "1"}), "the server answered 500"),
        (Response('{"choices": [{"te'), "malformed: it is not JSON"),
        (Response({"choices": [{"no": "text"}]}), "malformed: a choice cannot be read"),
        (Response([]), "malformed: it has no list of choices"),
        (Response({}, seconds=60.0), "did not answer within 2 s, 0 retries"),
    ],
)
def test_what_goes_wrong_for_one_request_is_its_own(response: Response, reason: str) -> None:
    prompts = [f"q{i}\n" for i in range(6)]
    with serving(only("q2\n", response)) as server:
        api = engine(server.url, retries=0 if response.seconds else 1, timeout=2.0 if response.seconds else 10.0)
        answers = api.propose([ask(prompt) for prompt in prompts])
    refused = answers.pop(2)
    assert isinstance(refused, Refused) and reason in refused.reason and "\n" not in refused.reason
    assert [texts(answer) for answer in answers] == [["FROM a"]] * 5


def test_malformed_json_is_asked_for_again() -> None:
    answers = iter([Response("{"), Response(completion("FROM a"))])
    with serving(lambda body: next(answers)) as server:
        assert texts(engine(server.url).propose([ask()])[0]) == ["FROM a"]


def test_429_is_repeated_no_earlier_than_the_server_says() -> None:
    answers = iter([Response({}, 429, {"Retry-After": "0.4"}), Response(completion("FROM a"))])
    with serving(lambda body: next(answers)) as server:
        started = time.monotonic()
        assert texts(engine(server.url).propose([ask()])[0]) == ["FROM a"]
        assert time.monotonic() - started >= 0.4


def test_open_requests_are_as_many_as_allowed_and_no_more() -> None:
    all_here = threading.Barrier(4)

    def respond(body: dict[str, Any]) -> Response:
        all_here.wait(60)
        return Response(completion("FROM a"))

    with serving(respond) as server:
        answers = engine(server.url, concurrency=4, timeout=60).propose([ask(f"q{i}\n") for i in range(12)])
    assert [texts(answer) for answer in answers] == [["FROM a"]] * 12 and server.most_open == 4


def test_slow_answers_do_not_hold_the_others() -> None:
    release = threading.Event()

    def respond(body: dict[str, Any]) -> Response:
        if body["prompt"] == "slow\n":
            release.wait(60)
        return Response(completion("FROM a"))

    with serving(respond) as server:
        api = engine(server.url, concurrency=4, timeout=60)
        slow = api.submit(ask("slow\n"))
        others = [api.submit(ask(f"q{i}\n")) for i in range(20)]
        assert all(texts(other.result()) == ["FROM a"] for other in others)
        assert not slow.done()
        release.set()
        assert texts(slow.result()) == ["FROM a"]


# --- the whole engine is gone ------------------------------------------------------------------------------------


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_server_that_is_down_is_an_engine_error_that_names_it() -> None:
    url = free_port()
    with pytest.raises(EngineError, match=f"No server answers .{url}: .* finished work is kept"):
        engine(url, retries=0).propose([ask()])


def test_one_server_of_two_takes_over_and_each_question_stays_with_one() -> None:
    prompts = [f"q{i}\n" for i in range(6)]
    with serving(always("FROM a")) as one, serving(always("FROM a")) as two:
        api = engine(one.url, two.url)
        for steps in ((), ("FROM a",)):
            api.propose([ask(prompt, steps) for prompt in prompts])
    for server in (one, two):
        first, second = ({body["prompt"][:3] for body in part} for part in (server.bodies[:3], server.bodies[3:]))
        assert first == second and len(first) == 3
    with serving(always("FROM a")) as up:
        answers = engine(free_port(), up.url, retries=0).propose([ask(prompt) for prompt in prompts])
    assert [texts(answer) for answer in answers] == [["FROM a"]] * 6


def test_nothing_but_failures_is_an_engine_error() -> None:
    with serving(lambda body: Response({"error": "boom"}, 500)) as server, pytest.raises(EngineError) as raised:
        engine(server.url, retries=0).propose([ask(f"q{i}\n") for i in range(2 * HOPELESS)])
    assert "requests in a row failed (last: the server answered 500: boom)" in str(raised.value)


def test_a_server_that_never_gives_a_candidate_is_an_engine_error() -> None:
    with serving(lambda body: Response(completion())) as server, pytest.raises(EngineError, match="no candidate"):
        api = engine(server.url, retries=0)
        for i in range(2 * HOPELESS):
            api.propose([ask(f"q{i}\n")])


def test_numbers_out_of_all_bounds_are_a_malformed_answer() -> None:
    reply = Response({**completion("FROM a"), "usage": {"prompt_tokens": math.inf, "completion_tokens": 3}})
    with serving(lambda body: reply) as server:
        (answer,) = engine(server.url, retries=0).propose([ask()])
    assert isinstance(answer, Refused) and "malformed" in answer.reason


def test_one_prompt_that_fails_whole_stops_nothing_however_many_steps_it_asked_for() -> None:
    """A server that ignores `n` is asked for each step by itself; together they are still one request."""

    def reply(body: dict[str, Any]) -> Response:
        return Response({"error": "boom"}, 500) if "bad" in body["prompt"] else Response(completion("FROM a"))

    with serving(reply) as server:
        api = engine(server.url, retries=0)
        api.propose([ask(n=2)])
        good, bad = api.propose([ask(n=2), ask("bad\n", n=2 * HOPELESS)])
    assert texts(good) == ["FROM a", "FROM a"]
    assert bad == Refused("the server answered 500: boom")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not take the key in the environment variable TOY_KEY"),
        (404, "no completions of the model toy"),
        (429, "lower `engine.concurrency`"),
    ],
)
def test_what_no_later_request_will_mend_stops_the_run(
    status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the key, which the server repeats, is in no message."""
    monkeypatch.setenv("TOY_KEY", "sk-secret")
    failure = Response({"error": {"message": "not with sk-secret"}}, status, {"retry-after-ms": "1"})
    with serving(lambda body: failure) as server, pytest.raises(EngineError) as raised:
        engine(server.url, api_key_env="TOY_KEY").propose([ask()])
    assert words in str(raised.value) and "sk-secret" not in str(raised.value)
    assert server.headers[0]["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"urls": []}, "`engine.urls` is needed"),
        ({"urls": ["localhost:8000"]}, "write it as http://localhost:8000/v1"),
        ({"urls": ["http://me:word@host/v1"]}, "must hold no password"),
        ({"urls": ["http://host/v1"], "concurrency": 0}, "concurrency must be at least 1"),
        ({"urls": ["http://host/v1"], "patience": -1.0}, "retries and patience not negative"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineConfig(kind="openai", **values)
