"""Random choices of tables, columns, conditions and values, each with its words and its SQL.

Guarantees: a choice depends on the random stream and the content alone; every condition holds for at least one row
of its table and uses a value as stored (its words may show text in lower case); words and SQL say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from rstar_trl.data.demo.content import Cell
from rstar_trl.data.demo.domains import Column, Content, Domain, Link, Table

LOWER_CASED = 0.08
"""How often a text value is written in lower case in the question."""


@dataclass(frozen=True)
class Condition:
    """`words` follow a plural noun ("whose age is above 30"); `sql` is a boolean expression."""

    words: str
    sql: str
    column: str


@dataclass(frozen=True)
class Pair:
    """Two conditions joined by `word` (and, or)."""

    first: Condition
    second: Condition
    word: str

    @property
    def words(self) -> str:
        return f"{self.first.words} {self.word} {self.second.words}"

    @property
    def sql(self) -> str:
        return f"{self.first.sql} {self.word.upper()} {self.second.sql}"


@dataclass(frozen=True)
class Columns:
    """Columns to show: their words, plural where asked, and their SQL."""

    words: str
    sql: str


class Draw:
    """All random choices for one question about one domain."""

    def __init__(self, rng: Random, domain: Domain, content: Content):
        self.rng, self.domain, self.content = rng, domain, content

    # --- tables and paths

    def table(self, labelled: bool = False) -> Table:
        """Any table, or one whose rows have a name."""
        return self.rng.choice([table for table in self.domain.tables if table.label or not labelled])

    def edge(self, labelled_parent: bool = False, labelled_child: bool = False) -> tuple[Table, Link, Table]:
        """A child, its foreign key, and the parent."""
        edges = [
            (child, link, self.domain.by_name[link.parent])
            for child in self.domain.tables
            for link in child.links
            if (child.label or not labelled_child) and (self.domain.by_name[link.parent].label or not labelled_parent)
        ]
        return self.rng.choice(edges)

    def star(self) -> tuple[Table, Link, Table, Link, Table] | None:
        """A link table with two different parents, in random order: child, link, parent, link, parent."""
        children = [table for table in self.domain.tables if len(table.links) == 2]
        if not children:
            return None
        child = self.rng.choice(children)
        first, second = self.rng.sample(child.links, 2)
        return child, first, self.domain.by_name[first.parent], second, self.domain.by_name[second.parent]

    def chain(self) -> tuple[Table, Link, Table, Link, Table] | None:
        """A grandchild, a child and a parent along two foreign keys."""
        paths = [
            (table, link, self.domain.by_name[link.parent], upper, self.domain.by_name[upper.parent])
            for table in self.domain.tables
            for link in table.links
            for upper in self.domain.by_name[link.parent].links
        ]
        return self.rng.choice(paths) if paths else None

    # --- columns

    def column(self, table: Table, *kinds: str, full: bool = False, additive: bool = False) -> Column | None:
        """A column of one of these kinds (any when none is given); `full`: one that holds no NULL."""
        found = [
            column
            for column in table.columns
            if (not kinds or column.kind in kinds)
            and not (full and column.nulls)
            and (column.additive or not additive)
        ]
        return self.rng.choice(found) if found else None

    def shown(self, table: Table, qualified: bool = False, plural: bool = False) -> Columns:
        """One column to show, or two; rows with a name show it more often than not."""
        rng, label = self.rng, table.label
        chosen = [label if label and rng.random() < 0.65 else rng.choice(table.columns)]
        others = [column for column in table.columns if column not in chosen]
        if rng.random() < 0.35:
            chosen.append(rng.choice(others))
        words = [self.noun(column) for column in chosen]
        return Columns(
            " and ".join(map(plural_of, words) if plural else words),
            ", ".join(reference(table, column, qualified) for column in chosen),
        )

    def noun(self, column: Column) -> str:
        """The column's first noun mostly, else a synonym."""
        return column.nouns[0] if self.rng.random() < 0.65 else self.rng.choice(column.nouns[1:])

    def thing(self, table: Table) -> str:
        return self._nouns(table)[0]

    def things(self, table: Table) -> str:
        return self._nouns(table)[1]

    def _nouns(self, table: Table) -> tuple[str, str]:
        return table.nouns[0] if self.rng.random() < 0.65 else self.rng.choice(table.nouns[1:])

    # --- conditions

    def condition(self, table: Table, qualified: bool = False, avoid: str = "") -> Condition:
        """One comparison on a column other than `avoid`."""
        rng = self.rng
        columns = [column for column in table.columns if column.name != avoid]
        weights = [0.35 if column.kind == "name" else 1.0 for column in columns]
        column = rng.choices(columns, weights)[0]
        noun, left = self.noun(column), reference(table, column, qualified)
        if column.nulls and rng.random() < 0.15:
            words, test = self._null_test()
            return Condition(words.format(noun=noun), f"{left} {test}", column.name)
        make = {"name": self._name_test, "category": self._category_test, "number": self._number_test}
        words, test = make.get(column.kind, self._date_test)(table, column)
        lead = rng.choice(("whose {noun} is {words}", "whose {noun} is {words}", "with {noun} {words}"))
        if column.kind == "name" and not test.startswith("="):
            lead = "whose {noun} {words}"
        return Condition(lead.format(noun=noun, words=words), f"{left} {test}", column.name)

    def both(self, table: Table) -> Pair:
        """Two conditions on different columns, joined by AND, or by OR less often."""
        first = self.condition(table)
        second = self.condition(table, avoid=first.column)
        return Pair(first, second, "and" if self.rng.random() < 0.7 else "or")

    def value(self, table: Table, column: Column) -> Cell:
        """A value that the column holds."""
        while True:
            value = self.rng.choice(self.content[table.name])[column.name]
            if value is not None:
                return value

    def _null_test(self) -> tuple[str, str]:
        if self.rng.random() < 0.5:
            return self.rng.choice(
                ("without a {noun}", "whose {noun} is missing", "whose {noun} is unknown")
            ), "IS NULL"
        return self.rng.choice(("that have a {noun}", "whose {noun} is known")), "IS NOT NULL"

    def _name_test(self, table: Table, column: Column) -> tuple[str, str]:
        value = str(self.value(table, column))
        roll = self.rng.random()
        if roll < 0.35:
            return self.said(value), f"= {literal(value)}"
        if roll < 0.7:
            return f"starts with {value[0]}", f"LIKE '{value[0]}%'"
        word = self.rng.choice(value.split())
        return f"{self.rng.choice(('contains', 'includes'))} {word}", f"LIKE {literal('%' + word + '%')}"

    def _category_test(self, table: Table, column: Column) -> tuple[str, str]:
        first, roll = self.value(table, column), self.rng.random()
        if roll < 0.68:
            return self.said(first), f"= {literal(first)}"
        if roll < 0.84:
            return f"not {self.said(first)}", f"!= {literal(first)}"
        second = first
        while second == first:
            second = self.value(table, column)
        return f"{self.said(first)} or {self.said(second)}", f"IN ({literal(first)}, {literal(second)})"

    def _number_test(self, table: Table, column: Column) -> tuple[str, str]:
        rng, roll = self.rng, self.rng.random()
        value = self.value(table, column)
        if roll < 0.38:
            return f"{rng.choice(('above', 'over', 'more than', 'greater than'))} {value}", f"> {value}"
        if roll < 0.72:
            return f"{rng.choice(('below', 'under', 'less than', 'smaller than'))} {value}", f"< {value}"
        if roll < 0.8:
            return f"at least {value}", f">= {value}"
        if roll < 0.88:
            return f"at most {value}", f"<= {value}"
        low, high = self._two(table, column)
        return f"between {low} and {high}", f"BETWEEN {low} AND {high}"

    def _date_test(self, table: Table, column: Column) -> tuple[str, str]:
        rng, roll = self.rng, self.rng.random()
        value = str(self.value(table, column))
        if roll < 0.4:
            return f"{rng.choice(('after', 'later than'))} {value}", f"> '{value}'"
        if roll < 0.8:
            return f"{rng.choice(('before', 'earlier than'))} {value}", f"< '{value}'"
        low, high = self._two(table, column)
        return f"between {low} and {high}", f"BETWEEN {literal(low)} AND {literal(high)}"

    def _two(self, table: Table, column: Column) -> tuple[Cell, Cell]:
        low, high = sorted((self.value(table, column), self.value(table, column)), key=str)
        if isinstance(low, int | float) and isinstance(high, int | float):
            low, high = min(low, high), max(low, high)
        return low, high

    def said(self, value: Cell) -> str:
        text = str(value)
        if len(text) <= 3:  # "a" for a blood type "A" would be no word of its own
            return text
        return text.lower() if self.rng.random() < LOWER_CASED else text


def reference(table: Table, column: Column, qualified: bool) -> str:
    return f"{table.name}.{column.name}" if qualified else column.name


def literal(value: Cell) -> str:
    """The value as SQL."""
    if isinstance(value, int | float):
        return str(value)
    return "'" + value.replace("'", "''") + "'"


def plural_of(noun: str) -> str:
    """English plural by rule; of "number of fans" the first word changes; nouns in -s stay."""
    head, of, tail = noun.partition(" of ") if " of " in noun else noun.partition(" in ")
    if head.endswith("s") and not head.endswith("ss"):
        return noun
    if head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "es" if head.endswith(("s", "x", "ch", "sh")) else "s"
    return head + of + tail
