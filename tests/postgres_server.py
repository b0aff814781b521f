"""A real PostgreSQL server for tests: started on loopback in a folder of its own, stopped and deleted at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMITED = "reader"


@dataclass(frozen=True)
class Server:
    """Where it listens; `superuser` is the role that owns everything."""

    port: int
    superuser: str

    def url(self, role: str = LIMITED, database: str = "attacked") -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"


def binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`: on the path, or where Debian keeps it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def reason_to_skip() -> str:
    """Why no server can be started here; empty when one can."""
    if binaries() is None:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


@contextmanager
def running() -> Iterator[Server]:
    """Starts a server with trust authentication on a free loopback port."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    programs = binaries()
    assert programs is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(*command: str) -> None:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        ended = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **user
        )
        assert ended.returncode == 0, ended.stderr

    data = str(folder / "data")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=20"
    control = (str(programs / "pg_ctl"), "-D", data, "-w", "-t", "60")
    try:
        call(str(programs / "initdb"), "-D", data, "-U", "owner", "--auth=trust", "-E", "UTF8", "--no-sync")
        call(*control, "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield Server(port, "owner")
        finally:
            call(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
