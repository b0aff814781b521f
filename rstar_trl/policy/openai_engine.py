"""An engine over HTTP: any server that speaks OpenAI's completions or chat completions (vLLM, SGLang, llama.cpp,
`transformers serve`, hosted APIs).

Guarantees: at most `concurrency` requests are open at once; `n` candidates come back or were asked for again;
timeouts, 429 and 5xx are retried with growing pauses, or as long as `Retry-After` says; a server that then cannot be
reached, cuts its answer short or says that it is not ready is waited for (`servers`), and what it was asked is asked
again; what goes wrong for one request alone is its `Refused`. `EngineError` (the run stops, finished trees are on
disk) when no server answers for `patience` seconds, the key is not taken, the model is not there, the rate limit
holds, or nothing but failures comes back. The API key is read from the environment and is in no message.
Does not guarantee the same answer for the same seed: that is the server's to keep.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import lru_cache
from typing import Any

import openai

from rstar_trl.config import EngineConfig
from rstar_trl.errors import EngineError
from rstar_trl.policy.interface import Answer, ProposeRequest, Refused
from rstar_trl.policy.loop import LoopEngine
from rstar_trl.policy.openai_format import (
    PATHS,
    SEEDS,
    Choice,
    MalformedReply,
    Reply,
    chat_body,
    completion_body,
    finish_of,
    read_reply,
    to_candidates,
    with_options,
)
from rstar_trl.policy.servers import GO_ON, Down, Servers, no_server
from rstar_trl.policy.tokens import DELIMITER, encode_prompt, encode_step, first_line, plain, renderer

ATTEMPTS = 3
"""Times a request is sent before fewer candidates than asked for, or none, are accepted; and times it may find one
server down before that is taken to be the request's own doing."""

HOPELESS = 8
"""Requests in a row that fail, with nothing answered in between, after which the engine is taken to be gone."""

NOT_READY = (502, 503, 504)
"""What servers that load a model answer, and proxies for those that are not there."""

CONNECT = 10.0
"""Seconds a connection may take."""

PROBE = ProposeRequest("Hello\n", (), 1, 1.0, 0)


class _Declined(Exception):
    """This request failed for good; the text is its reason. `fault`: of the server, not of what it was asked."""

    def __init__(self, reason: str, fault: bool = False):
        super().__init__(reason)
        self.fault = fault


class OpenAIEngine(LoopEngine):
    """Implements `rstar_trl.policy.interface.ConcurrentEngine` over one or more servers of one model."""

    def __init__(self, config: EngineConfig, model: str, max_step_tokens: int, tokenizer: Any = None):
        """`model`: the name it is served under; `tokenizer` renders prompts, which are plain text without one."""
        super().__init__(config.concurrency)
        self.config, self.model, self.max_step_tokens = config, model, max_step_tokens
        self._tokenizer = tokenizer
        self._render = renderer(tokenizer) if tokenizer is not None else plain
        self._key = os.environ.get(config.api_key_env)
        self._clients = {
            url: openai.AsyncOpenAI(
                base_url=url,
                api_key=self._key or "none",
                timeout=openai.Timeout(config.timeout, connect=min(CONNECT, config.timeout)),
                max_retries=config.retries,
            )
            for url in config.urls
        }
        self._slots = asyncio.Semaphore(config.concurrency)
        self._servers = Servers(config.urls, config.patience, self._probe)
        self._failures = 0
        self._ignores_n = False
        self._tells_ends: bool | None = None
        if tokenizer is not None:
            self._encode_prompt = lru_cache(4096)(lambda text: encode_prompt(tokenizer, text))
            self._encode_step = lru_cache(65536)(lambda text: encode_step(tokenizer, text, final=False))

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt by the tokenizer's chat template where there is one, else the messages' plain contents."""
        return self._render(messages)

    def check(self) -> None:
        """Asks every server for one token, with all the fields of a real request.

        So a model, a key or a field that a server does not take is an `EngineError` before a question is spent on it.
        It waits for no server (a mistyped address would look like one that restarts): where none answers, that is an
        `EngineError` too; where some do, the others may come later.
        """
        self.wait_for(self._check())

    def close(self) -> None:
        """Closes connections too."""
        self.wait_for(self._cancel_all())
        for client in self._clients.values():
            self.wait_for(client.close())
        super().close()

    async def _check(self) -> None:
        down = {}
        for url in self._clients:
            try:
                read_reply(await self._send(url, self._probe_body()), self.config.endpoint, stopped=True)
            except Down as error:
                down[url] = str(error)
            except (_Declined, MalformedReply) as error:
                raise EngineError(f"{url} cannot be used: {error}; mend `engine`.") from error
        if len(down) == len(self._clients):
            raise no_server(down)
        for url, reason in down.items():
            self._servers.lost(url, reason)

    async def _probe(self, url: str) -> None:
        """Asks for one token, once; raises `Down` for whatever is wrong."""
        try:
            client = self._clients[url].with_options(max_retries=0)
            data = await client.post(PATHS[self.config.endpoint], cast_to=object, body=self._probe_body())
            read_reply(data, self.config.endpoint, stopped=True)
        except openai.APIStatusError as error:
            raise Down(f"it answers {error.status_code}: {self._said(error)}") from error
        except (openai.OpenAIError, MalformedReply, ValueError) as error:
            raise Down(first_line(error.__cause__ or error)) from error

    def _probe_body(self) -> dict[str, Any]:
        return with_options(self._body(PROBE, 0, 1, stopped=True) | {"max_tokens": 1}, self.config.options)

    async def answer(self, request: ProposeRequest) -> Answer:
        """See `LoopEngine.answer`."""
        try:
            stopped = self._tells_ends is not False
            choices, prompt_tokens = await self._sample(request, stopped)
            if stopped and self._tells_ends is None and not self._learn_ends(choices):
                stopped = False
                choices, prompt_tokens = await self._sample(request, stopped)
        except _Declined as error:
            self._failures += error.fault
            if error.fault and self._failures >= HOPELESS:
                raise EngineError(
                    f"{self._failures} requests in a row failed (last: {error}); mend that, {GO_ON}."
                ) from error
            return Refused(str(error))
        return list(to_candidates(choices, stopped, prompt_tokens))

    def _learn_ends(self, choices: list[Choice]) -> bool:
        """Whether the server tells a step's end from the trajectory's.

        Where it does not, steps are generated to the token limit and cut here, which costs tokens but is never wrong.
        """
        ends = [finish_of(choice, stopped=True) for choice in choices if choice.finish != "length"]
        if ends:
            self._tells_ends = None not in ends
        return self._tells_ends is not False

    async def _sample(self, request: ProposeRequest, stopped: bool) -> tuple[list[Choice], int]:
        """Choices with the prompt tokens read for them; `_Declined` when there are none."""
        choices: list[Choice] = []
        prompt_tokens = 0
        problem = _Declined("the server returned no candidate", fault=True)
        left = list(range(request.n))
        for _ in range(ATTEMPTS):
            shares = [(i, 1) for i in left] if self._ignores_n else [(left[0], len(left))]
            asked = [self._ask(request, first, size, stopped) for first, size in shares]
            final = False
            for (first, _), reply in zip(shares, await asyncio.gather(*asked, return_exceptions=True), strict=True):
                if isinstance(reply, Reply):
                    choices += reply.choices
                    prompt_tokens += reply.prompt_tokens
                    left = [i for i in left if not first <= i < first + len(reply.choices)]
                elif isinstance(reply, _Declined):
                    problem, final = reply, True
                elif isinstance(reply, MalformedReply):
                    problem = _Declined(str(reply), fault=True)
                else:
                    raise reply
            if not left or (final and not choices):
                break
        if not choices:
            raise problem
        return choices[: request.n], prompt_tokens

    async def _ask(self, request: ProposeRequest, first: int, size: int, stopped: bool) -> Reply:
        """Asks for candidates `first` to `first + size` of a request; each has a seed of its own."""
        body = with_options(self._body(request, first, size, stopped), self.config.options)
        async with self._slots:
            data = await self._post(request.prompt, body)
        try:
            reply = read_reply(data, self.config.endpoint, stopped)
        except MalformedReply as error:
            raise MalformedReply(f"the server's answer is malformed: {error}") from error
        if reply.choices:
            self._failures = 0
        self._ignores_n |= size > 1 and len(reply.choices) == 1
        return reply

    def _body(self, request: ProposeRequest, first: int, size: int, stopped: bool) -> dict[str, Any]:
        if self.config.endpoint == "chat":
            body = chat_body(request, self.config.prefill)
        else:
            body = completion_body(request, self._ids(request))
        return body | {
            "model": self.model,
            "n": size,
            "max_tokens": self.max_step_tokens,
            "temperature": request.temperature,
            "seed": (request.seed + first) % SEEDS,
            "stop": [DELIMITER] if stopped else None,
        }

    def _ids(self, request: ProposeRequest) -> list[int] | None:
        if self._tokenizer is None or not self.config.token_ids:
            return None
        ids = list(self._encode_prompt(request.prompt))
        for step in request.steps:
            ids += self._encode_step(step)
        return ids

    async def _post(self, prompt: str, body: dict[str, Any]) -> Any:
        """The decoded answer of the prompt's own server, or of the next one that is up."""
        losses: Counter[str] = Counter()
        while True:
            url = await self._servers.pick(prompt)
            try:
                return await self._send(url, body)
            except Down as error:
                self._servers.lost(url, str(error))
                losses[url] += 1
                if losses[url] == ATTEMPTS:
                    reason = f"{url} went down at each of {ATTEMPTS} attempts (last: {error})"
                    raise _Declined(reason, fault=True) from error

    async def _send(self, url: str, body: dict[str, Any]) -> Any:
        try:
            return await self._clients[url].post(PATHS[self.config.endpoint], cast_to=object, body=body)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            # The client has one type for all timeouts; the cause tells a host that is not there from a slow answer.
            if isinstance(error, openai.APITimeoutError) and type(cause).__name__ != "ConnectTimeout":
                reason = f"the server did not answer within {self.config.timeout:g} s, {self.config.retries} retries"
                raise _Declined(reason, fault=True) from error
            raise Down(first_line(cause)) from error
        except openai.APIStatusError as error:
            if error.status_code in NOT_READY:
                raise Down(f"it answers {error.status_code}: {self._said(error)}") from error
            raise self._refusal(url, error) from error
        except ValueError as error:
            raise MalformedReply("the server's answer is malformed: it is not JSON") from error

    def _refusal(self, url: str, error: openai.APIStatusError) -> Exception:
        said = self._said(error)
        if error.status_code in (401, 403):
            given = "does not take the key" if self._key else "wants a key, and there is none"
            return EngineError(f"{url} {given} in the environment variable {self.config.api_key_env}; set it.")
        if error.status_code == 404:
            return EngineError(
                f"{url} has no {self.config.endpoint} of the model {self.model} ({said}); mend `engine`."
            )
        if error.status_code == 429:
            return EngineError(f"{url} takes no more requests ({said}); lower `engine.concurrency`, {GO_ON}.")
        reason = f"the server answered {error.status_code}: {said}"
        return _Declined(reason, fault=error.status_code >= 500)

    def _said(self, error: openai.APIStatusError) -> str:
        """A server's own words, on one line, without the key."""
        body = error.body
        words = (body.get("message") or body.get("detail") if isinstance(body, dict) else body) or error.message
        words = " ".join(str(words).split())[:300]
        return words.replace(self._key, "***") if self._key else words
