"""YAML into dataclasses, strictly: every unknown key and wrong type is found, with file, line and a suggestion.

Guarantees: all problems of a file are reported at once (`ConfigError.problems`); duplicate keys are problems; values
are never coerced except int to float and YAML 1.1's `1e-3` (which it reads as text) to float. Only safe YAML is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from rstar_trl.errors import ConfigError

T = TypeVar("T")
Lines = dict[tuple[str, ...], int]


@dataclasses.dataclass(frozen=True)
class Document:
    """A parsed file: plain values, and the line each key stands on (keyed by its path from the root)."""

    path: str
    data: dict[str, Any]
    lines: Lines

    def at(self, key: tuple[str, ...]) -> str:
        """`file:line` of a key, or of its nearest parent that has one."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines[key]}" if key in self.lines else self.path


def load(path: Path | str) -> Document:
    """Reads a YAML file whose root is a mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give the path of a recipe file.") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', error)}).") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: the root must be a mapping of keys to values.")
    lines: Lines = {}
    problems: list[str] = []
    _index(node, (), lines, problems, str(path))
    if problems:
        raise ConfigError(problems)
    return Document(str(path), yaml.safe_load(text), lines)


def override(document: Document, assignments: list[str]) -> Document:
    """Applies `dotted.key=value` assignments (the value is YAML) over a document, as `--set` does."""
    data = _copy(document.data)
    lines = dict(document.lines)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: write it as key=value, for example --set data.path=/data/spider.")
        parts = tuple(key.split("."))
        target = data
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {assignment}: {part} is not a section, so nothing can be set below it.")
        target[parts[-1]] = yaml.safe_load(text)
        for depth in range(1, len(parts) + 1):
            lines.pop(parts[:depth], None)
    return Document(document.path, data, lines)


def build(cls: type[T], document: Document) -> T:
    """Turns a document into a dataclass instance, or raises `ConfigError` with every problem found."""
    problems: list[str] = []
    value = _build(cls, document.data, (), document, problems)
    if problems:
        raise ConfigError(problems)
    return value


def unknown_key(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """The sentence for an unknown key, with the nearest known one."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(known))}."
    return f"unknown key `{name}`; {hint}"


def _index(node: yaml.Node, key: tuple[str, ...], lines: Lines, problems: list[str], path: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for name_node, value_node in node.value:
            name = str(name_node.value)
            line = name_node.start_mark.line + 1
            if name in seen:
                problems.append(f"{path}:{line}: key `{name}` is given twice; delete one.")
            seen.add(name)
            lines[(*key, name)] = line
            _index(value_node, (*key, name), lines, problems, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key, str(index))] = item.start_mark.line + 1
            _index(item, (*key, str(index)), lines, problems, path)


def _build(cls: Any, data: Any, key: tuple[str, ...], document: Document, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        problems.append(f"{document.at(key)}: `{'.'.join(key)}` must be a mapping, not {_name(data)}.")
        return None
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values = {}
    for name, item in data.items():
        if name not in fields:
            problems.append(f"{document.at((*key, str(name)))}: {unknown_key(str(name), list(fields))}")
            continue
        values[name] = _value(hints[name], item, (*key, name), document, problems)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            problems.append(f"{document.at(key)}: key `{'.'.join((*key, name))}` is missing.")
    if problems:
        return None
    try:
        return cls(**values)
    except ConfigError as error:
        problems.extend(f"{document.at(key)}: {problem}" for problem in error.problems)
        return None


def _value(hint: Any, item: Any, key: tuple[str, ...], document: Document, problems: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return item
    if origin in (Union, types.UnionType):
        if item is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) == 1:
            return _value(inner[0], item, key, document, problems)
        if any(isinstance(item, arg) for arg in inner):
            return item
    elif origin is Literal:
        if item in args:
            return item
        close = difflib.get_close_matches(str(item), [str(arg) for arg in args], n=1)
        hint_text = f"; did you mean `{close[0]}`?" if close else "."
        choices = ", ".join(str(arg) for arg in args)
        problems.append(f"{document.at(key)}: `{'.'.join(key)}` must be one of {choices}, not {item!r}{hint_text}")
        return None
    elif origin in (list, tuple) and isinstance(item, list):
        items = [_value(args[0], part, (*key, str(i)), document, problems) for i, part in enumerate(item)]
        return tuple(items) if origin is tuple else items
    elif origin is dict and isinstance(item, dict):
        return {str(name): _value(args[1], part, (*key, str(name)), document, problems) for name, part in item.items()}
    elif dataclasses.is_dataclass(hint):
        return _build(hint, item, key, document, problems)
    elif hint is float and isinstance(item, int | float | str) and not isinstance(item, bool):
        try:
            return float(item)
        except ValueError:
            pass
    elif isinstance(hint, type) and isinstance(item, hint) and not (hint is int and isinstance(item, bool)):
        return item
    problems.append(f"{document.at(key)}: `{'.'.join(key)}` must be {_type_name(hint)}, not {_name(item)} ({item!r}).")
    return None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _name(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "empty"}.get(type(value), type(value).__name__)


def _type_name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in args if arg is not type(None))
    if origin in (list, tuple):
        return f"a list of {_type_name(args[0])}"
    if origin is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
