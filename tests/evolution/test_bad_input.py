"""What a user can get wrong, at the command line: one sentence with what, why and what to do, and exit code 2."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rstar_trl import cli
from rstar_trl.io import read_jsonl
from tests.scripted import make_database

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: own
output_dir: {folder}/run
model:
  from_scratch:
    architecture: llama
    vocab_size: 400
    hidden_size: 16
    num_hidden_layers: 1
    num_attention_heads: 2
    intermediate_size: 32
data:
  source: jsonl
  path: {folder}/data
  label_fraction: 1.0
sft: {max_steps: 1, save_strategy: "no", disable_tqdm: true}
evaluation: {methods: [greedy]}
rounds:
  - guide: reward
"""
SQL = ("SELECT name FROM singer", "SELECT title FROM concert", "SELECT COUNT(*) FROM singer")

Row = dict[str, Any]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over a small data set of its own, both fit to be run."""
    (tmp_path / "data/databases").mkdir(parents=True)
    make_database(tmp_path / "data/databases/music.sqlite")
    write_rows(tmp_path, "train", [row(i) for i in range(6)])
    write_rows(tmp_path, "eval", [row(i) for i in range(3)])
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("{folder}", str(tmp_path)))
    return path


def row(number: int, **values: Any) -> Row:
    return {"db_id": "music", "question": f"question {number}?", "gold_sql": SQL[number % 3], **values}


def write_rows(folder: Path, split: str, rows: list[Row]) -> None:
    (folder / f"data/{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


class Line:
    """Gives a command in this process and returns what was said on standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.delenv(cli.DEBUG, raising=False)

    def fails(self, *arguments: str | Path) -> str:
        self.monkeypatch.setattr(sys, "argv", ["rstar-trl", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = self.capsys.readouterr().err
        assert ended.value.code == 2, said
        assert "Traceback" not in said
        progress = ("started", "kept", "it/s]")
        lines = [each for each in said.splitlines() if each and not each.endswith(progress)]
        lines = [each for each in lines if ": finished in" not in each]
        assert len(lines) == 1, said
        return lines[0]

    def works(self, *arguments: str | Path) -> str:
        self.monkeypatch.setattr(sys, "argv", ["rstar-trl", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            cli.main()
        return self.capsys.readouterr().out


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(monkeypatch, capsys)


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process holds the database exclusively."""
    hold = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(database)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.kill()
        holder.wait()


def test_the_recipe_itself_is_fine(line: Line, recipe: Path) -> None:
    said = line.works("validate", recipe)
    assert "train: 6 questions" in said and "quarantine: 0 questions" in said


def test_missing_databases(line: Line, recipe: Path) -> None:
    (recipe.parent / "data/databases/music.sqlite").unlink()
    for command in ("validate", "evolve"):
        said = line.fails(command, recipe)
        assert "no question of jsonl has its database" in said and "put the databases there" in said


def test_missing_database_to_ask(line: Line, recipe: Path) -> None:
    (recipe.parent / "model").mkdir()
    (recipe.parent / "model/config.json").write_text("{}")
    said = line.fails("ask", "how many?", "--db", recipe.parent / "gone.sqlite", "--model", recipe.parent / "model")
    assert "gone.sqlite does not exist; check the path" in said


def test_locked_database(line: Line, recipe: Path) -> None:
    """A lock passes, a quarantine stays: nothing is set aside, and the same command works afterwards."""
    with locked(recipe.parent / "data/databases/music.sqlite"):
        for command in ("validate", "evolve"):
            said = line.fails(command, recipe)
            assert "music.sqlite" in said and "locked" in said and "run" in said
    assert not (recipe.parent / "run/data/manifest.json").exists()
    assert "quarantine: 0 questions" in line.works("validate", recipe)


def test_one_locked_database_of_two(line: Line, recipe: Path) -> None:
    make_database(recipe.parent / "data/databases/other.sqlite")
    write_rows(recipe.parent, "train", [row(0), row(1), row(2, db_id="other")])
    with locked(recipe.parent / "data/databases/other.sqlite"):
        said = line.fails("validate", recipe)
    assert "other.sqlite" in said and "locked" in said


def test_question_about_an_unknown_database_is_set_aside(line: Line, recipe: Path) -> None:
    write_rows(recipe.parent, "train", [row(0), row(1, db_id="films"), row(2)])
    said = line.works("validate", recipe)
    assert "quarantine: 1 questions" in said and "train train-1: unknown database 'films'" in said
    write_rows(recipe.parent, "train", [row(0, db_id="films"), row(1, db_id="films")])
    said = line.fails("validate", recipe)
    assert "None of the 2 training questions" in said and "unknown database 'films'" in said and "mend" in said


def test_gold_sql_that_fails_is_set_aside(line: Line, recipe: Path) -> None:
    bad = [row(0, gold_sql="SELECT height FROM singer"), row(1, gold_sql="DROP TABLE singer"), row(2)]
    write_rows(recipe.parent, "train", bad)
    said = line.works("validate", recipe)
    assert "train: 1 questions" in said and "quarantine: 2 questions" in said
    assert "no such column: height" in said and "train train-1: gold SQL: rejected" in said
    write_rows(recipe.parent, "train", bad[:1])
    assert "gold SQL: sql_error: no such column: height); mend the data" in line.fails("evolve", recipe)


def test_empty_data_set(line: Line, recipe: Path) -> None:
    write_rows(recipe.parent, "train", [])
    assert "train.jsonl holds no question; write one JSON object a line" in line.fails("evolve", recipe)
    said = line.fails("validate", recipe, "--set", "data={source: demo, train_size: 0, eval_size: 0}")
    assert "no question" in said


def test_rows_that_are_no_questions(line: Line, recipe: Path) -> None:
    data = recipe.parent / "data/train.jsonl"
    data.write_text('{"db_id": "music", "question": "a?"}\nnot json\n')
    assert "train.jsonl:2 is not valid JSON" in line.fails("validate", recipe)
    data.write_text('{"db_id": "music"}\n')
    assert "train.jsonl:1" in line.fails("validate", recipe)


WRONG = """\
name: own
output_dir: run
model:
  from_scratch: {architecture: llama}
data:
  sourc: demo
search:
  simulations: many
  c_punct: 2
sft:
  learning_rat: 1.0e-3
  max_steps: [1]
rounds:
  - guide: gold
    search: {num_candidate: 3}
"""


def test_every_wrong_key_and_type_is_listed_with_its_line(recipe: Path) -> None:
    """Seven mistakes, seven lines."""
    recipe.write_text(WRONG)
    command = [sys.executable, "-m", "rstar_trl", "evolve", str(recipe), "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    said = ended.stderr.strip().splitlines()
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    expected = {
        6: "did you mean `source`",
        8: "simulations",
        9: "did you mean `c_puct`",
        11: "did you mean `learning_rate`",
        12: "max_steps",
        14: "guide",
        15: "did you mean `num_candidates`",
    }
    assert len(said) == len(expected), ended.stderr
    for number, words in expected.items():
        assert any(f"{recipe}:{number}:" in each and words in each for each in said), (number, ended.stderr)


def test_model_path_that_does_not_exist(line: Line, recipe: Path) -> None:
    gone = recipe.parent / "no-model"
    text = recipe.read_text()
    recipe.write_text(
        text[: text.index("model:")] + f"model: {{name_or_path: {gone}}}\n" + text[text.index("data:") :]
    )
    said = line.fails("evolve", recipe, "--in-process")
    assert f"there is no folder {gone}; give a model folder" in said


def test_run_folder_of_another_recipe(line: Line, recipe: Path) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: someone else's\n")
    (run / "precious").write_text("work")
    said = line.fails("evolve", recipe, "--in-process")
    assert "holds a run of the recipe `someone else's`, not of `own`" in said and "give another output_dir" in said
    assert (run / "precious").read_text() == "work"
    assert (run / "recipe.yaml").read_text() == "name: someone else's\n"


def test_debug_shows_the_traceback(line: Line, recipe: Path) -> None:
    line.monkeypatch.setenv(cli.DEBUG, "")
    line.monkeypatch.setattr(sys, "argv", ["rstar-trl", "validate", str(recipe.parent / "gone.yaml"), "--debug"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "Traceback" in line.capsys.readouterr().err


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB: too small for the model, large enough for what comes before it."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=300k") != 0:
        pytest.skip(f"mounting a small file system needs root ({os.strerror(ctypes.get_errno())})")
    try:
        yield place
    finally:
        libc.umount2(os.fsencode(place), 2)


def test_full_disk_keeps_what_is_finished(small_disk: Path, line: Line, recipe: Path) -> None:
    """Filled between two stages; once there is room, the same command goes on and redoes nothing."""
    output = f"output_dir={small_disk}/run"
    wide = "model.from_scratch.hidden_size=64"
    said = line.fails("evolve", recipe, "--in-process", "--set", output, "--set", wide)
    assert "No space left on device" in said and "free space" in said
    manifest = small_disk / "run/data/manifest.json"
    made = manifest.stat().st_mtime_ns
    assert len(read_jsonl(small_disk / "run/data/train.jsonl")[0]) == 6
    assert not (small_disk / "run/base/manifest.json").exists()
    again = line.fails("evolve", recipe, "--in-process", "--set", output, "--set", wide)
    assert "space" in again and manifest.stat().st_mtime_ns == made


def test_a_tree_that_does_not_fit_leaves_the_file_whole(small_disk: Path) -> None:
    from rstar_trl.errors import StorageError
    from rstar_trl.io import append_jsonl

    path = small_disk / "trees.jsonl"
    written = 0
    with pytest.raises(StorageError, match=r"No space left on device.*free space"):
        while True:
            append_jsonl(path, {"number": written, "text": "x" * 30_000})
            written += 1
    rows, torn = read_jsonl(path)
    assert [each["number"] for each in rows] == list(range(written)) and written > 3
    assert torn == 0


def test_a_file_size_limit_reads_like_a_full_disk(tmp_path: Path) -> None:
    """The same promise where nothing may be mounted: the system refuses to let the file grow."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from rstar_trl.errors import StorageError\n"
        "from rstar_trl.io import append_jsonl, write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "folder = Path(sys.argv[1])\n"
        "write_text(folder / 'kept', 'old')\n"
        "for write in (lambda: write_text(folder / 'kept', 'x' * 60_000),\n"
        "              lambda: [append_jsonl(folder / 'rows', {'n': n, 'x': 'y' * 9000}) for n in range(9)]):\n"
        "    try:\n"
        "        write()\n"
        "    except StorageError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("could not be written") == 2 and ended.stdout.count("free space") == 2
    assert (tmp_path / "kept").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "rows"]
    rows, torn = read_jsonl(tmp_path / "rows")
    assert [each["n"] for each in rows] == list(range(5)) and torn == 0
