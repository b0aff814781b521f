"""One error type per boundary, each one sentence that says what happened, why, and what to do.

The command line turns any `RStarError` into that sentence and exit code 2; everything else is a bug and keeps its
traceback.
"""

from __future__ import annotations


class RStarError(Exception):
    """Base of every error a user can cause and can mend."""


class ConfigError(RStarError):
    """A recipe or an option is wrong. `problems` lists every finding, each with file and line."""

    def __init__(self, problems: list[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RStarError):
    """Questions, databases or gold labels cannot be used as they are."""


class SqlError(RStarError):
    """Text is not a query of the supported shape (it does not parse, or has a clause no step can carry)."""


class InfraError(RStarError):
    """The execution machinery itself failed; never evidence about a query."""


class EngineError(RStarError):
    """A policy or a PPM cannot be loaded, or cannot answer."""


class RunError(RStarError):
    """A run folder does not fit the recipe it is asked to continue, or a stage ended badly."""


class HubError(RStarError):
    """The Hugging Face Hub cannot be reached or refuses."""


class Interrupted(KeyboardInterrupt):
    """A search was asked to stop, and has finished what it had begun; the trees are on disk."""


class StorageError(RStarError):
    """An artefact could not be written; what stood there before is whole."""
