"""What a question template is, and the words that templates share.

A template is a name, a hardness, a share of the corpus, a few phrasings, and a function that draws one `Draft` (or
None where the domain or the draw does not fit). Every template works on every database that has its tables.

Guarantees: `sql` says what the phrasing says; a draft's `shortcuts` are queries that a lazy writer might give instead
(a condition or a limit forgotten), and the builder drops the draft when one of them gives the same rows; `unique`
is a query whose rows must be distinct, so that no tie leaves the order of the answer open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rstar_trl.data.demo.wording import Draw

Hardness = Literal["easy", "medium", "hard", "extra"]


@dataclass(frozen=True)
class Draft:
    """One drawn question: words for the slots of a phrasing, and its gold SQL."""

    slots: dict[str, str]
    sql: str
    shortcuts: tuple[str, ...] = ()
    unique: str = ""


@dataclass(frozen=True)
class Template:
    """`share` is relative to the other templates' shares."""

    name: str
    hardness: Hardness
    share: int
    phrasings: tuple[str, ...]
    draw: Callable[[Draw], Draft | None]


AVERAGE, TOTAL = ("average", "mean"), ("total", "combined")
LOWEST, HIGHEST = ("lowest", "smallest", "minimum"), ("highest", "largest", "maximum")
TOP, BOTTOM = ("highest", "largest"), ("lowest", "smallest")


def aggregate_words(draw: Draw, additive: bool) -> tuple[str, str]:
    """Words and name of an aggregate function; SUM only where a sum means something."""
    choices = [(AVERAGE, "AVG"), (LOWEST, "MIN"), (HIGHEST, "MAX")] + [(TOTAL, "SUM")] * additive
    words, function = draw.rng.choice(choices)
    return draw.rng.choice(words), function


def direction_words(draw: Draw) -> tuple[str, str]:
    words, keyword = draw.rng.choice(((TOP, "DESC"), (BOTTOM, "ASC")))
    return draw.rng.choice(words), keyword
