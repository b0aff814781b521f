"""One process of a shared search, for tests: `python -m tests.search.queue_process '{"folder": ...}'`.

Started by `accelerate launch` it joins that launch; else it meets the others by files in the folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rstar_trl.config import PromptConfig, SandboxConfig, SearchConfig
from rstar_trl.data.question import GoldResult, Question
from rstar_trl.errors import Interrupted, RunError
from rstar_trl.evolution.interrupt import draining
from rstar_trl.evolution.launch import Processes
from rstar_trl.policy.interface import Candidate, ProposeRequest
from rstar_trl.policy.prompting import Prompter
from rstar_trl.search.together import search_together
from rstar_trl.sql.sandbox import Sandbox
from tests.scripted import NAMES, Script, ScriptedEngine, end, step

SCRIPT: Script = {
    (): [step("FROM singer"), step("FROM concert"), step("FROM nowhere")],
    ("FROM singer",): [end("SELECT name"), end("SELECT age")],
    ("FROM concert",): [end("SELECT title")],
}


@dataclass(frozen=True)
class Settings:
    """`delay` is the seconds a request for steps takes this process; `lease` those a silent process keeps its own."""

    folder: str
    database: str
    rank: int = 0
    world: int = 1
    questions: int = 24
    delay: float = 0.0
    lease: float = 60.0
    in_flight: int = 128


@dataclass
class Meeting:
    """Processes that wait for each other by files: what a launcher's process group is to real runs."""

    folder: Path
    rank: int
    world: int
    meetings: int = 0

    def barrier(self) -> None:
        self.meetings += 1
        (self.folder / f"{self.meetings}-{self.rank}.here").touch()
        while len(list(self.folder.glob(f"{self.meetings}-*.here"))) < self.world:
            time.sleep(0.005)


class SlowEngine(ScriptedEngine):
    """Takes its time for every request of a batch."""

    def __init__(self, delay: float):
        super().__init__(SCRIPT, draw=True)
        self.delay = delay

    def propose(self, requests: list[ProposeRequest]) -> list[list[Candidate]]:
        time.sleep(self.delay * len(requests))
        return super().propose(requests)


def search(settings: Settings) -> None:
    """Searches the questions with whoever else does."""
    folder = Path(settings.folder)
    launched = Processes.from_environment()
    peers = launched if launched.launched else Meeting(folder, settings.rank, settings.world)
    (folder / f"{peers.rank}.pid").write_text(str(os.getpid()))
    databases = {"music": Path(settings.database)}
    gold = GoldResult(NAMES)
    with Sandbox(SandboxConfig(workers=1)) as sandbox, draining(launched) as stop:
        search_together(
            [Question(f"q{i:02}", "music", f"names {i}?", gold_result=gold) for i in range(settings.questions)],
            folder=folder,
            name="trees",
            peers=peers,
            lease=settings.lease,
            stop=stop,
            engine=SlowEngine(settings.delay),
            scorer=None,
            sandbox=sandbox,
            prompter=Prompter(databases, PromptConfig()),
            databases=databases,
            config=SearchConfig(num_candidates=3, simulations=4, trees_in_flight=settings.in_flight),
            mode="train",
            seed=5,
        )


if __name__ == "__main__":
    try:
        search(Settings(**json.loads(sys.argv[1])))
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Interrupted:
        sys.exit(130)
