"""Files that survive a kill: atomic writes and append-only JSONL.

Guarantees: `write_text` and `write_json` leave either the old file or the new one, never a part; `append_jsonl` writes
one line per call with one system call, and `read_jsonl` skips lines that a kill has torn and says how many. A write
that fails raises `StorageError` with path and bytes. Does not guarantee: ordering between processes that append to
one file (each process owns its file), nor durability against power loss (`fsync` is not called per line).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rstar_trl.errors import DataError, StorageError


def write_text(path: Path | str, text: str) -> None:
    """Replaces `path` by `text` atomically (UTF-8, lone surrogates escaped), making parent folders."""
    path = Path(path)
    data = text.encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _storage_error(path, data, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _storage_error(path, data, error) from error


def write_json(path: Path | str, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Replaces `path` by one JSON line per row, atomically."""
    write_text(path, "".join(_line(row) for row in rows))


def append_jsonl(path: Path | str, row: dict[str, Any]) -> None:
    """Appends one JSON line in a single write, so that a kill can only tear the last line.

    A file that a kill left without its final newline first gets one: the torn line stays alone and is skipped.
    """
    path = Path(path)
    data = _line(row).encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    data = b"\n" + data
            written = file.write(data)
            if written != len(data):
                os.ftruncate(file.fileno(), end)
                raise OSError(28, "No space left on device")
    except OSError as error:
        raise _storage_error(path, data, error) from error


def read_jsonl(path: Path | str) -> tuple[list[dict[str, Any]], int]:
    """Returns the rows that parse and the number of torn lines. A missing file is an empty one."""
    path = Path(path)
    if not path.exists():
        return [], 0
    rows, torn = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            torn += 1
    return rows, torn


def iter_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(line number, row)` of a file that a person wrote: a line that is no JSON object is an error."""
    path = Path(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is not valid JSON ({error}); fix or delete the line.") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number} holds {type(row).__name__}, not a JSON object; write one a line.")
            yield number, row


def read_json(path: Path | str) -> Any:
    """Parses a JSON file; a missing or broken one is a `DataError` that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); fix or replace the file.") from error


def digest(value: Any) -> str:
    """A short stable fingerprint of any JSON-able value (SHA-256, 16 hex digits; dict order does not matter)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, 16 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n"


def _storage_error(path: Path, data: bytes, error: OSError) -> StorageError:
    return StorageError(
        f"{path} could not be written ({len(data)} bytes: {error.strerror}); "
        "free space or fix the permissions and run the same command again, finished work is kept."
    )
