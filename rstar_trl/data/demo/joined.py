"""Templates about two and three tables, joined along foreign keys.

The FROM clause always starts at the child and joins towards its parents: `FROM album JOIN singer ON album.singer_id =
singer.id`; columns are qualified by full table names.
"""

from __future__ import annotations

from rstar_trl.data.demo.domains import Link, Table
from rstar_trl.data.demo.template import Draft, Template, aggregate_words, direction_words
from rstar_trl.data.demo.wording import Condition, Draw, plural_of, reference


def join(child: Table, link: Link, parent: Table) -> str:
    return f"{child.name} {joining(child, link, parent)}"


def joining(child: Table, link: Link, parent: Table) -> str:
    return f"JOIN {parent.name} ON {child.name}.{link.column} = {parent.name}.id"


def belonging(draw: Draw, link: Link, parent: Table, test: Condition) -> str:
    """The parent's condition as words about the child: "by singers whose age is above 30"."""
    return f"{draw.rng.choice(link.words)} {draw.things(parent)} {test.words}"


def join_select(draw: Draw) -> Draft:
    child, link, parent = draw.edge()
    shown, test = draw.shown(child, qualified=True, plural=True), draw.condition(parent, qualified=True)
    slots = {"cols": shown.words, "things": draw.things(child), "of": belonging(draw, link, parent, test)}
    sql = f"SELECT {shown.sql} FROM {join(child, link, parent)}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql,))


def join_two_conditions(draw: Draw) -> Draft:
    child, link, parent = draw.edge()
    shown = draw.shown(child, qualified=True, plural=True)
    own, test = draw.condition(child, qualified=True), draw.condition(parent, qualified=True)
    slots = {"cols": shown.words, "things": draw.things(child), "of": belonging(draw, link, parent, test)}
    slots["things"] += f" {own.words}"
    sql = f"SELECT {shown.sql} FROM {join(child, link, parent)}"
    sides = (f"{sql} WHERE {own.sql}", f"{sql} WHERE {test.sql}")
    return Draft(slots, f"{sql} WHERE {own.sql} AND {test.sql}", sides)


def join_select_both(draw: Draw) -> Draft | None:
    child, link, parent = draw.edge(labelled_parent=True)
    label = parent.label
    assert label is not None
    column = child.label or draw.column(child)
    assert column is not None
    side = draw.rng.choice((child, parent))
    test = draw.condition(side, qualified=True)
    thing, other = draw.thing(child), draw.thing(parent)
    slots = {"pair": f"{thing} {draw.noun(column)} and the {other} {draw.noun(label)}", "things": draw.things(child)}
    slots["of"] = test.words if side is child else belonging(draw, link, parent, test)
    sql = f"SELECT {reference(child, column, True)}, {reference(parent, label, True)} FROM {join(child, link, parent)}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql,))


def join_count(draw: Draw) -> Draft:
    child, link, parent = draw.edge()
    test = draw.condition(parent, qualified=True)
    slots = {"things": draw.things(child), "of": belonging(draw, link, parent, test)}
    sql = f"SELECT COUNT(*) FROM {join(child, link, parent)}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql,))


def join_aggregate(draw: Draw) -> Draft | None:
    child, link, parent = draw.edge()
    column = draw.column(child, "number")
    if column is None:
        return None
    (word, function), test = aggregate_words(draw, column.additive), draw.condition(parent, qualified=True)
    slots = {"agg": word, "num": draw.noun(column), "things": draw.things(child)}
    sql = f"SELECT {function}({reference(child, column, True)}) FROM {join(child, link, parent)}"
    return Draft({**slots, "of": belonging(draw, link, parent, test)}, f"{sql} WHERE {test.sql}", (sql,))


def join_distinct(draw: Draw) -> Draft:
    child, link, parent = draw.edge(labelled_parent=True)
    assert parent.label is not None
    column = parent.label if draw.rng.random() < 0.6 else draw.rng.choice(parent.columns)
    test = draw.condition(child, qualified=True)
    slots = {"cols": plural_of(draw.noun(column)), "parents": draw.things(parent)}
    slots |= {"things": draw.things(child), "cond": test.words}
    tail = f"{reference(parent, column, True)} FROM {join(child, link, parent)}"
    shortcuts = (f"SELECT DISTINCT {tail}", f"SELECT {tail} WHERE {test.sql}")
    return Draft(slots, f"SELECT DISTINCT {tail} WHERE {test.sql}", shortcuts)


def join_group(draw: Draw) -> Draft | None:
    child, link, parent = draw.edge(labelled_parent=True)
    label, test = parent.label, draw.condition(parent, qualified=True)
    assert label is not None
    number = draw.column(child, "number")
    words, value = "number", "COUNT(*)"
    if number is not None and draw.rng.random() < 0.5:
        agg, function = aggregate_words(draw, number.additive)
        words, value = f"{agg} {draw.noun(number)}", f"{function}({reference(child, number, True)})"
    slots = {"parents": draw.things(parent), "cond": test.words, "name": draw.noun(label)}
    slots |= {"value": words, "things": draw.things(child)}
    sql = f"SELECT {reference(parent, label, True)}, {value} FROM {join(child, link, parent)}"
    tail = f"GROUP BY {parent.name}.id"
    return Draft(slots, f"{sql} WHERE {test.sql} {tail}", (f"{sql} {tail}",))


def join_group_top(draw: Draw) -> Draft:
    child, link, parent = draw.edge(labelled_parent=True)
    assert parent.label is not None
    test = draw.condition(child, qualified=True) if draw.rng.random() < 0.7 else None
    word, keyword = draw.rng.choice((("most", "DESC"), ("fewest", "ASC"))) if test is None else ("most", "DESC")
    slots = {"parent": draw.thing(parent), "name": draw.noun(parent.label), "most": word, "things": draw.things(child)}
    slots["cond"] = f" {test.words}" if test else ""
    where = f" WHERE {test.sql}" if test else ""
    tail = f"FROM {join(child, link, parent)}{where} GROUP BY {parent.name}.id ORDER BY COUNT(*) {keyword}"
    sql = f"SELECT {reference(parent, parent.label, True)} {tail}"
    shortcuts = (sql, *([f"{sql.replace(where, '')} LIMIT 1"] * bool(test)))
    return Draft(slots, f"{sql} LIMIT 1", shortcuts, f"SELECT COUNT(*) {tail} LIMIT 2")


def join_top(draw: Draw) -> Draft | None:
    child, link, parent = draw.edge()
    column = draw.column(child, "number", full=True)
    if column is None:
        return None
    test, shown = draw.condition(parent, qualified=True), draw.shown(child, qualified=True)
    (word, keyword), k = direction_words(draw), draw.rng.randint(1, 5)
    slots = {"cols": shown.words, "top": word, "num": draw.noun(column)}
    slots["things"] = f"{k} {draw.things(child)}" if k > 1 else draw.thing(child)
    slots["cond"] = f" among those {belonging(draw, link, parent, test)}"
    order = f"ORDER BY {reference(child, column, True)} {keyword}"
    sql = f"SELECT {shown.sql} FROM {join(child, link, parent)}"
    unique = f"SELECT {reference(child, column, True)} FROM {join(child, link, parent)} WHERE {test.sql} {order}"
    shortcuts = (f"{sql} {order} LIMIT {k}", f"{sql} WHERE {test.sql} {order}")
    return Draft(slots, f"{sql} WHERE {test.sql} {order} LIMIT {k}", shortcuts, f"{unique} LIMIT {k + 1}")


# --- three tables ------------------------------------------------------------------------------------------------


def star_select(draw: Draw) -> Draft | None:
    path = draw.star()
    if path is None:
        return None
    child, link, parent, other, second = path
    shown = draw.shown(child, qualified=True, plural=True)
    test, test2 = draw.condition(parent, qualified=True), draw.condition(second, qualified=True)
    slots = {"cols": shown.words, "things": draw.things(child), "of": belonging(draw, link, parent, test)}
    slots["of"] += f" and {belonging(draw, other, second, test2)}"
    return _star(draw, path, slots, shown.sql, test, test2)


def star_count(draw: Draw) -> Draft | None:
    path = draw.star()
    if path is None:
        return None
    child, link, parent, other, second = path
    test, test2 = draw.condition(parent, qualified=True), draw.condition(second, qualified=True)
    slots = {"things": draw.things(child), "of": belonging(draw, link, parent, test)}
    slots["of"] += f" and {belonging(draw, other, second, test2)}"
    return _star(draw, path, slots, "COUNT(*)", test, test2)


def _star(
    draw: Draw,
    path: tuple[Table, Link, Table, Link, Table],
    slots: dict[str, str],
    shown: str,
    test: Condition,
    test2: Condition,
) -> Draft:
    child, link, parent, other, second = path
    sql = f"SELECT {shown} FROM {join(child, link, parent)} {joining(child, other, second)}"
    sides = (f"{sql} WHERE {test.sql}", f"{sql} WHERE {test2.sql}")
    return Draft(slots, f"{sql} WHERE {test.sql} AND {test2.sql}", sides)


def star_distinct(draw: Draw) -> Draft | None:
    """The parents that meet, through a link table, a parent of the other kind that fulfils a condition."""
    path = draw.star()
    if path is None or path[2].label is None:
        return None
    child, link, parent, other, second = path
    assert parent.label is not None
    test = draw.condition(second, qualified=True)
    slots = {"cols": plural_of(draw.noun(parent.label)), "parents": draw.things(parent), "things": draw.things(child)}
    slots["cond"] = belonging(draw, other, second, test)
    tail = f"{reference(parent, parent.label, True)} FROM {join(child, link, parent)} {joining(child, other, second)}"
    shortcuts = (f"SELECT DISTINCT {tail}", f"SELECT {tail} WHERE {test.sql}")
    return Draft(slots, f"SELECT DISTINCT {tail} WHERE {test.sql}", shortcuts)


def chain_select(draw: Draw) -> Draft | None:
    """Rows by a condition on their parent's parent."""
    path = draw.chain()
    if path is None:
        return None
    child, link, middle, upper, top = path
    shown, test = draw.shown(child, qualified=True, plural=True), draw.condition(top, qualified=True)
    of = f"{draw.rng.choice(link.words)} {draw.things(middle)} {belonging(draw, upper, top, test)}"
    slots = {"cols": shown.words, "things": draw.things(child), "of": of}
    sql = f"SELECT {shown.sql} FROM {join(child, link, middle)} {joining(middle, upper, top)}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql,))


LIST = (
    "List the {cols} of {things} {of}.",
    "What are the {cols} of {things} {of}?",
    "Show the {cols} for all {things} {of}.",
    "Give me the {cols} of the {things} {of}.",
    "Which {cols} belong to {things} {of}?",
)
COUNT = (
    "How many {things} {of} are there?",
    "Count the {things} {of}.",
    "What is the number of {things} {of}?",
    "Give the count of {things} {of}.",
)
DISTINCT = (
    "List the different {cols} of {parents} that have {things} {cond}.",
    "What are the distinct {cols} of {parents} with {things} {cond}?",
    "Show the {cols} of {parents} having {things} {cond}, without repeats.",
    "Give the different {cols} of all {parents} that have any {things} {cond}.",
)

JOINED: tuple[Template, ...] = (
    Template("join_select", "medium", 6, LIST, join_select),
    Template("join_two_conditions", "hard", 3, LIST, join_two_conditions),
    Template(
        "join_select_both",
        "medium",
        4,
        (
            "Show the {pair} for all {things} {of}.",
            "List the {pair} of each of the {things} {of}.",
            "For {things} {of}, what are the {pair}?",
            "Give the {pair} for {things} {of}.",
        ),
        join_select_both,
    ),
    Template("join_count", "medium", 4, COUNT, join_count),
    Template(
        "join_aggregate",
        "medium",
        4,
        (
            "What is the {agg} {num} of {things} {of}?",
            "Find the {agg} {num} of all {things} {of}.",
            "For {things} {of}, what is the {agg} {num}?",
            "Give the {agg} {num} over {things} {of}.",
        ),
        join_aggregate,
    ),
    Template("join_distinct", "medium", 3, DISTINCT, join_distinct),
    Template(
        "join_group",
        "hard",
        4,
        (
            "For {parents} {cond}, show the {name} and the {value} of their {things}.",
            "Show the {name} and the {value} of {things} for each of the {parents} {cond}.",
            "List {parents} {cond} by {name}, each with the {value} of {things}.",
            "What are the {name} and the {value} of {things} for all {parents} {cond}?",
        ),
        join_group,
    ),
    Template(
        "join_group_top",
        "hard",
        3,
        (
            "What is the {name} of the {parent} with the {most} {things}{cond}?",
            "Show the {name} of the {parent} that has the {most} {things}{cond}.",
            "Which {parent} has the {most} {things}{cond}? Give the {name}.",
            "Find the {parent} with the {most} {things}{cond} and show the {name}.",
        ),
        join_group_top,
    ),
    Template(
        "join_top",
        "hard",
        3,
        (
            "Show the {cols} of the {things} with the {top} {num}{cond}.",
            "What is the {cols} of the {things} with the {top} {num}{cond}?",
            "Give the {cols} of the {things} that have the {top} {num}{cond}.",
            "Find the {things} with the {top} {num}{cond} and show the {cols}.",
        ),
        join_top,
    ),
    Template("star_select", "hard", 3, LIST, star_select),
    Template("star_count", "hard", 3, COUNT, star_count),
    Template("star_distinct", "hard", 3, DISTINCT, star_distinct),
    Template("chain_select", "hard", 3, LIST, chain_select),
)
