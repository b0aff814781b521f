"""Runs a stage as processes of its own through `accelerate launch`.

Guarantees: a stage ends when its parent does, even when that is killed (`follow_parent`); the sentence of a user error
inside a stage reaches the caller as a `StageError` with exit code 2; Ctrl-C reaches this process alone, which ends the
stage or lets it finish what it has begun (`interrupt`). Does not restart anything: a stage resumes when the same
command is given again. The terminal's other keys do not reach a stage either: Ctrl-Z stops the parent alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rstar_trl.errors import RunError
from rstar_trl.evolution import interrupt
from rstar_trl.evolution.plan import Stage
from rstar_trl.evolution.recipe import LoadedRecipe

ERROR_FILE = "RSTAR_TRL_ERROR_FILE"
"""Environment variable naming the file in which a launched stage leaves the sentence of a user error."""


PATIENCE = timedelta(days=1)
"""How long a process waits for the others, while one of them runs every gold query of a large data set, say. Dead
processes do not need it: their launcher ends the rest, or the queue of a search finds out."""


class StageError(RunError):
    """A launched stage failed; `code` is the exit code the whole run should end with."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Processes:
    """This process among those that accelerate started: `rank` of `world`."""

    rank: int
    world: int
    launched: bool

    @classmethod
    def from_environment(cls) -> Processes:
        """Reads what torchrun and accelerate leave in the environment."""
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), launched)

    @property
    def first(self) -> bool:
        """True in the one process that writes what all share."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every process is here; the first time also joins them and binds each to its own device."""
        if self.world == 1:
            return
        import torch
        from accelerate import PartialState

        if not torch.distributed.is_initialized():
            # Without `cpu=True` accelerate takes processes that have no accelerator for so many runs of one process.
            deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
            PartialState(cpu=not torch.accelerator.is_available() and not deepspeed, timeout=PATIENCE)
        if torch.cuda.is_available():
            torch.distributed.barrier(device_ids=[torch.cuda.current_device()])
        else:
            torch.distributed.barrier()


def arguments(loaded: LoadedRecipe, stage: Stage) -> list[str]:
    """What follows `accelerate` on the launch line of a stage."""
    config = loaded.accelerate_config
    line = ["launch", *(["--config_file", str(config)] if config else []), "-m", "rstar_trl"]
    line += [stage.command, "--config", str(loaded.path), "--round", str(stage.round)]
    for assignment in loaded.assignments:
        line += ["--set", assignment]
    return line


def launch_line(loaded: LoadedRecipe, stage: Stage) -> str:
    """The command a person would type to run the stage alone."""
    return shlex.join(["accelerate", *arguments(loaded, stage)])


def launch(loaded: LoadedRecipe, stage: Stage) -> None:
    """Runs the stage to its end; raises `StageError` when it fails, and ends it when this process is interrupted.

    A stage that searches ends its trees in flight first; after it `KeyboardInterrupt` is raised as for the others.
    """
    with tempfile.TemporaryDirectory() as scratch:
        error_file = Path(scratch) / "error"
        environment = {**os.environ, ERROR_FILE: str(error_file), interrupt.WORD: scratch}
        environment.setdefault("OMP_NUM_THREADS", str(_threads(loaded)))
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments(loaded, stage)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        try:
            with interrupt.handling(signal.SIGTERM, _interrupt), interrupt.passing_on(Path(scratch)) as asked:
                code = child.wait()
        except KeyboardInterrupt:
            _end(child)
            raise
        if error_file.exists():
            raise StageError(error_file.read_text(encoding="utf-8"), 2)
        if asked():
            raise KeyboardInterrupt
    if code != 0:
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise StageError(
            f"Stage {stage.name} {reason}; its own output above says why. "
            "Give the same command again to go on from where it stopped.",
            code if code > 0 else 128 - code,
        )


def follow_parent() -> None:
    """In a launched stage: end at once when the parent is gone, so that no orphan writes into a resumed run.

    The parent holds the other end of standard input and never writes to it, so its end is ours.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _threads(loaded: LoadedRecipe) -> int:
    """CPU threads per process. Accelerate's own default is 1, which halves a two-core machine."""
    import yaml

    config = loaded.accelerate_config
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config else {}
    return max(1, (os.cpu_count() or 1) // int(settings.get("num_processes", 1)))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(child: subprocess.Popen[bytes]) -> None:
    """Passes the interrupt on, and gives the stage half a minute to put its work away."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=30)
            return
