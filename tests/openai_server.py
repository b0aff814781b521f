"""A small HTTP server on loopback that speaks OpenAI's format, and everything a test tells it to get wrong."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What is sent: a body (text as it stands, anything else as JSON), a status, headers, after `seconds`.

    Status 0 hangs up without a word, as a server does that dies; `cut` does so half way through the body.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: bool = False


Respond = Callable[[dict[str, Any]], Response]


@dataclass
class Server:
    """A running server, and what it was asked."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    open: int = 0
    most_open: int = 0


@contextmanager
def serving(respond: Respond, port: int = 0) -> Iterator[Server]:
    """Serves until the block ends, then cuts every connection. `respond` gets decoded bodies, several at once."""
    lock, ended = threading.Lock(), threading.Event()
    connections: set[socket.socket] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.bodies.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.paths.append(self.path)
                server.open += 1
                server.most_open = max(server.most_open, server.open)
            response = respond(body)
            ended.wait(response.seconds)
            content = response.body if isinstance(response.body, str) else json.dumps(response.body)
            with lock:
                server.open -= 1
            if response.status == 0:
                self.close_connection = True
                return
            try:
                self.send_response(response.status)
                for name, value in {"Content-Type": "application/json", **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.close_connection |= response.cut
                self.wfile.write(content.encode()[: len(content) // 2 if response.cut else None])
            except OSError:
                pass  # the client did not wait

        def log_message(self, *_: Any) -> None: ...

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # all of a test's connections may come at once

        def get_request(self) -> Any:
            connection, address = super().get_request()
            connections.add(connection)
            return connection, address

    listener = Listener(("127.0.0.1", port), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}/v1")
    threading.Thread(target=listener.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()
    try:
        yield server
    finally:
        ended.set()
        listener.shutdown()
        listener.server_close()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def completion(*texts: str, **values: Any) -> dict[str, Any]:
    """An answer of the completions endpoint, as vLLM writes it: each step ended by its delimiter."""
    choice = {"finish_reason": "stop", "stop_reason": "\n\n", "logprobs": None, **values}
    return {
        "choices": [{"index": index, "text": text, **choice} for index, text in enumerate(texts)],
        "usage": {"prompt_tokens": 10, "completion_tokens": sum(len(text.split()) for text in texts)},
    }


def chat(*texts: str, **values: Any) -> dict[str, Any]:
    """An answer of the chat endpoint, as a hosted API writes it: nothing says what ended a text."""
    answer = completion(*texts, **values)
    for choice in answer["choices"]:
        choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        del choice["stop_reason"]
    return answer
