"""The page of a run: complete in itself, true to the manifests, and safe to open."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from rstar_trl.errors import RunError
from rstar_trl.evolution.manifest import Manifest, write
from rstar_trl.io import write_jsonl, write_text
from rstar_trl.report import chart, page, write_report
from rstar_trl.search.tree import Tree

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Tags, attributes and text, as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one round, its second one under way; every text a model or a user wrote is hostile."""
    folder = tmp_path / "run"
    model = {"from_scratch": {"architecture": "llama"}}
    rounds = [{"guide": "reward"}, {"guide": "ppm"}]
    recipe = {"name": EVIL, "output_dir": "elsewhere", "model": model, "rounds": rounds}
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe))
    for number, accuracy in ((0, 0.25), (1, 0.5)):
        metrics = {"greedy": {"execution_accuracy": accuracy, "tokens_per_question": 30, "seconds_per_question": 0.5}}
        write(folder / f"round-{number}/eval", Manifest("eval", {}, {}, {}, metrics, 0, 75.0))
    found = {"solved_so_far": 30, "train_questions": 40, "num_processes": 8}
    write(folder / "round-1/search", Manifest("search", {}, {}, {}, found, 0, 3700.0))
    write_jsonl(folder / "data/quarantine.jsonl", [{"question_id": "q9", "split": "train", "reason": EVIL}])
    trees = []
    for name, reward in (("q1", 1.0), ("q2", -1.0)):
        tree = Tree(name, "music", f"music\nHow many {EVIL}?\n")
        leaf = tree.add(0, f"-- thought\nSELECT '{EVIL}'", terminal=True, reward=reward, visits=3, q=reward)
        tree.answer = leaf
        trees.append(tree.record())
    write_jsonl(folder / "round-1/search/trees-0.jsonl", trees)
    return folder


def test_page_shows_what_the_manifests_say(run: Path) -> None:
    read = Reader(page(run))
    assert read.open == []
    for fact in ("llama from random weights", "30/40", "25.0", "50.0", "1 h 1 min", "Quarantine: 1 questions"):
        assert fact in read.text
    assert "q1 (solved)" in read.text and "q2 (not solved)" in read.text and "SELECT '" in read.text
    assert read.tags.count("svg") == 2 and read.tags.count("details") == 2


def test_page_loads_nothing_and_runs_nothing(run: Path) -> None:
    read = Reader(page(run))
    assert "script" not in read.tags and read.sources == []
    assert read.text.count(EVIL) >= 6


def test_a_run_without_a_finished_round_has_a_page_too(run: Path) -> None:
    for path in run.glob("round-*/eval/manifest.json"):
        path.unlink()
    assert "No round is evaluated yet." in page(run)
    for path in run.rglob("*.jsonl"):
        path.unlink()
    assert "Trees of round" not in page(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_chart_places_percentages_in_order() -> None:
    read = chart("t", {"a": [(0, 0.0), (1, 50.0), (2, 100.0)]})
    points = read.split('points="')[1].split('"')[0].split()
    xs, ys = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2)
