"""As much of the Hub's HTTP interface as a push needs, on loopback: real requests, kept for a test to look at."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """`repos` maps `model/name` or `dataset/name` to its files; `refuse` is a status every request gets."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: int = 0
    refuse: int = 0


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that lives as long as the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.refuse:
                self._answer({"error": "Invalid username or password."}, hub.refuse)
            else:
                self._answer(_post(hub, self.path.split("?")[0], body))

        def _answer(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _post(hub: Hub, path: str, body: bytes) -> Any:
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked.get('type') or 'model'}/{asked.get('organization', 'me')}/{asked['name'].split('/')[-1]}"
        hub.repos.setdefault(name, {})
        hub.private[name] = asked.get("visibility") == "private" or asked.get("private") is True
        return {"url": f"{hub.url}/{name.removeprefix('model/').replace('dataset/', 'datasets/')}"}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    _, _, kind, owner, name, what, _ = path.split("/")
    repo = f"{kind.removesuffix('s')}/{owner}/{name}"
    if what == "preupload":
        files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
        return {"files": files}
    assert what == "commit"
    for line in map(json.loads, body.splitlines()):
        if line["key"] == "file":
            hub.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    hub.commits += 1
    return {
        "commitUrl": f"{hub.url}/{owner}/{name}/commit/1",
        "commitOid": "1" * 40,
        "pullRequestUrl": None,
        "success": True,
    }
