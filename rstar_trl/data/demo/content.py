"""Makers of cell values: small pools of words and number ranges, drawn from a given random stream.

Pools are shared between domains on purpose (a city is a city everywhere), so that what is learned about a column in
one database carries over to the next. Some names hold apostrophes and spaces, as real ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from random import Random

Cell = int | float | str
Maker = Callable[[Random], Cell]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Ana Ben Carla Diego Elena Felix Grace Hugo Ines Jonas Kira Leo Maria Nils Olga Pavel Quinn Rosa Sam Tara "
    "Uma Victor Wanda Yusuf Zoe Amir Bella Chen Dora Emil"
)
LAST = _words(
    "Adams Brown Costa Diaz Evans Fischer Garcia Hansen Ito Jensen Kim Lopez Moreau Novak O'Brien O'Neil D'Angelo "
    "Patel Rossi Silva Tanaka Usman Vega Weber Young Zhang"
)
ADJECTIVES = _words(
    "Silent Golden Broken Hidden Little Crimson Distant Frozen Gentle Hollow Iron Lucky Midnight Northern Open "
    "Quiet Rising Second Velvet Wild"
)
NOUNS = _words(
    "River Garden Window Mountain Letter Harbor Engine Mirror Forest Summer Bridge Candle Island Shadow Signal "
    "Stone Voyage Winter Farmer's Widow's"
)

CITIES = ("Oslo", "Lima", "Paris", "Cairo", "Boston", "New York", "Madrid", "Kyoto", "Austin", "St. John's")
COUNTRIES = ("Norway", "Peru", "France", "Egypt", "United States", "Spain", "Japan", "Brazil", "India", "Canada")


def person(rng: Random) -> str:
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def title(rng: Random) -> str:
    noun = rng.choice(NOUNS)
    return f"{rng.choice(ADJECTIVES)} {noun}" + (f" {rng.choice(NOUNS[:18])}" if noun.endswith("'s") else "")


def named(kinds: tuple[str, ...]) -> Maker:
    """Names of places and firms: a surname or an adjective, and what it is ("O'Brien Arena")."""
    return lambda rng: f"{rng.choice(LAST + ADJECTIVES)} {rng.choice(kinds)}"


def pick(values: tuple[str, ...]) -> Maker:
    """Skewed draws: early values are about three times as common as late ones, so that group sizes differ."""
    weights = [1.5 - i / len(values) for i in range(len(values))]
    return lambda rng: rng.choices(values, weights)[0]


def whole(low: int, high: int, step: int = 1) -> Maker:
    return lambda rng: rng.randrange(low, high + 1, step)


def tenths(low: int, high: int) -> Maker:
    """Reals with one decimal, from `low` to `high`."""
    return lambda rng: rng.randint(low * 10, high * 10) / 10


def day(first: int, last: int) -> Maker:
    """ISO dates from the year `first` to the end of the year `last`."""
    start, end = date(first, 1, 1), date(last, 12, 31)
    return lambda rng: (start + timedelta(days=rng.randint(0, (end - start).days))).isoformat()
