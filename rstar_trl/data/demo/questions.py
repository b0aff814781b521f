"""All templates of the demo, and the drawing of questions from them.

Guarantees: the same seed gives the same questions; no question text and no query (white space normalised) occurs
twice; every gold query runs, returns between 1 and `MAX_ROWS` rows that are not all NULL or one zero, and gives other
rows than each of its template's shortcuts.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping
from random import Random

from rstar_trl.data.demo.domains import Content, Domain
from rstar_trl.data.demo.joined import JOINED
from rstar_trl.data.demo.nested import NESTED
from rstar_trl.data.demo.single import SINGLE
from rstar_trl.data.demo.template import Draft, Template
from rstar_trl.data.demo.wording import Draw
from rstar_trl.data.question import Question

TEMPLATES: tuple[Template, ...] = SINGLE + JOINED + NESTED
MAX_ROWS = 60
ATTEMPTS = 40
"""Draws per wanted question before the next template takes over."""


def make_questions(
    domains: Mapping[str, tuple[Domain, Content, sqlite3.Connection]],
    count: int,
    seed: int,
    hardness: Collection[str] | None = None,
) -> list[Question]:
    """`count` questions in random order, spread over databases and over templates by their shares."""
    rng = Random(f"{seed}/questions")
    wanted = [template for template in TEMPLATES if hardness is None or template.hardness in hardness]
    shares = [template for template in wanted for _ in range(template.share)]
    names, seen, found = sorted(domains), set[str](), list[Question]()
    turn = 0
    while len(found) < count:
        template, name = shares[turn % len(shares)], names[turn // len(shares) % len(names)]
        turn += 1
        domain, content, connection = domains[name]
        for _ in range(ATTEMPTS):
            question = _draw(rng, template, Draw(rng, domain, content), connection, seen)
            if question is not None:
                found.append(question)
                break
    rng.shuffle(found)
    return found


def _draw(
    rng: Random, template: Template, draw: Draw, connection: sqlite3.Connection, seen: set[str]
) -> Question | None:
    draft = template.draw(draw)
    if draft is None:
        return None
    text = rng.choice(template.phrasings).format(**draft.slots)
    text = text[0].upper() + text[1:]
    keys = {" ".join(text.split()).lower(), f"{draw.domain.name} {' '.join(draft.sql.split())}"}
    if keys & seen or not _sound(draft, connection):
        return None
    seen |= keys
    meta = {"template": template.name, "hardness": template.hardness}
    return Question(id="", db_id=draw.domain.name, question=text, gold_sql=draft.sql, meta=meta)


def _sound(draft: Draft, connection: sqlite3.Connection) -> bool:
    rows = connection.execute(draft.sql).fetchmany(MAX_ROWS + 1)
    if not 1 <= len(rows) <= MAX_ROWS or not any(cell for row in rows for cell in row):
        return False
    if draft.unique:
        keys = connection.execute(draft.unique).fetchall()
        if len(set(keys)) < len(keys):
            return False
    ordered = "ORDER BY" in draft.sql and "LIMIT" not in draft.sql
    return all(not _same(rows, connection.execute(sql).fetchall(), ordered) for sql in draft.shortcuts)


def _same(rows: list[tuple], others: list[tuple], ordered: bool) -> bool:
    return rows == others if ordered else Counter(rows) == Counter(others)
