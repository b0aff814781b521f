"""Progress: few plain lines in a log, one live line on a terminal, silence on other ranks."""

from __future__ import annotations

import io

from rstar_trl.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_gets_a_line_per_tenth_of_the_work() -> None:
    log = io.StringIO()
    with Progress(1000, "search", stream=log) as progress:
        for done in range(1, 1001):
            progress.update(done, solved=done, dead_ends=2 * done, tokens=10 * done)
    lines = log.getvalue().splitlines()
    assert len(lines) == 10 and "\r" not in log.getvalue()
    assert lines[-1].startswith("search: 1000/1000, 1000 solved, 2000 dead ends, ") and lines[-1].endswith("0 s left")


def test_terminal_gets_one_line_rewritten() -> None:
    screen = Terminal()
    with Progress(1000, "search", stream=screen) as progress:
        for done in range(1, 1001):
            progress.update(done)
    assert screen.getvalue().count("\n") == 1 and 1 <= screen.getvalue().count("\r") < 20


def test_other_ranks_are_silent() -> None:
    log = io.StringIO()
    with Progress(10, "search", enabled=False, stream=log) as progress:
        progress.update(10)
    assert log.getvalue() == ""


def test_begin_starts_over_under_another_label() -> None:
    log = io.StringIO()
    with Progress(10, "greedy", stream=log) as progress:
        progress.update(10)
        progress.begin("mcts")
        progress.update(1)
    assert [line.split(",")[0] for line in log.getvalue().splitlines()] == ["greedy: 10/10", "mcts: 1/10"]


def test_durations_read_as_a_person_says_them() -> None:
    assert [duration(s) for s in (42, 200, 18_600)] == ["42 s", "3 min 20 s", "5 h 10 min"]
