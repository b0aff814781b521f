"""Templates with HAVING, subqueries and set operations."""

from __future__ import annotations

from rstar_trl.data.demo.joined import join
from rstar_trl.data.demo.template import Draft, Template
from rstar_trl.data.demo.wording import Draw, plural_of, reference


def having_count(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "category")
    if column is None:
        return None
    test = draw.condition(table, avoid=column.name) if draw.rng.random() < 0.5 else None
    (word, sign), k = _more_or_fewer(draw), draw.rng.randint(2, 25)
    slots = {"cols": plural_of(draw.noun(column)), "than": f"{word} {k}", "things": draw.things(table)}
    slots["cond"] = f" {test.words}" if test else ""
    sql, where = f"SELECT {column.name} FROM {table.name}", f" WHERE {test.sql}" if test else ""
    tail = f"GROUP BY {column.name} HAVING COUNT(*) {sign} {k}"
    shortcuts = (f"{sql}{where} GROUP BY {column.name}", *([f"{sql} {tail}"] * bool(test)))
    return Draft(slots, f"{sql}{where} {tail}", shortcuts)


def _more_or_fewer(draw: Draw) -> tuple[str, str]:
    return draw.rng.choice((("more than", ">"), ("fewer than", "<"), ("at least", ">=")))


def having_average(draw: Draw) -> Draft | None:
    table = draw.table()
    column, number = draw.column(table, "category"), draw.column(table, "number")
    if column is None or number is None:
        return None
    value, word = draw.value(table, number), draw.rng.choice(("average", "mean"))
    relation, sign = draw.rng.choice((("above", ">"), ("over", ">"), ("below", "<"), ("under", "<")))
    slots = {"cols": plural_of(draw.noun(column)), "avg": word, "num": draw.noun(number)}
    slots |= {"things": draw.things(table), "than": f"{relation} {value}"}
    sql = f"SELECT {column.name} FROM {table.name} GROUP BY {column.name}"
    return Draft(slots, f"{sql} HAVING AVG({number.name}) {sign} {value}", (sql,))


def join_having(draw: Draw) -> Draft:
    child, link, parent = draw.edge(labelled_parent=True)
    assert parent.label is not None
    (word, sign), k = _more_or_fewer(draw), draw.rng.randint(2, 9)
    test = draw.condition(child, qualified=True) if draw.rng.random() < 0.5 else None
    slots = {"cols": plural_of(draw.noun(parent.label)), "parents": draw.things(parent), "than": f"{word} {k}"}
    slots |= {"things": draw.things(child), "cond": f" {test.words}" if test else ""}
    where = f" WHERE {test.sql}" if test else ""
    sql = f"SELECT {reference(parent, parent.label, True)} FROM {join(child, link, parent)}"
    tail, having = f"GROUP BY {parent.name}.id", f"HAVING COUNT(*) {sign} {k}"
    shortcuts = (f"{sql}{where} {tail}", *([f"{sql} {tail} {having}"] * bool(test)))
    return Draft(slots, f"{sql}{where} {tail} {having}", shortcuts)


def versus_average(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "number")
    if column is None:
        return None
    shown = draw.shown(table, plural=True)
    relation, sign = draw.rng.choice((("above", ">"), ("greater than", ">"), ("below", "<"), ("less than", "<")))
    inner = draw.condition(table, avoid=column.name) if draw.rng.random() < 0.6 else None
    slots = {"cols": shown.words, "things": draw.things(table), "num": draw.noun(column), "than": relation}
    slots["cond"] = f" of {draw.things(table)} {inner.words}" if inner else ""
    sql, where = f"SELECT {shown.sql} FROM {table.name}", f" WHERE {inner.sql}" if inner else ""
    average = f"SELECT AVG({column.name}) FROM {table.name}"
    outer = f"{sql} WHERE {column.name} {sign}"
    return Draft(slots, f"{outer} ({average}{where})", (sql, *([f"{outer} ({average})"] * bool(inner))))


def extreme_value(draw: Draw) -> Draft | None:
    table = draw.table(labelled=True)
    column = draw.column(table, "number")
    if column is None or table.label is None:
        return None
    test, shown = draw.condition(table, avoid=column.name), draw.shown(table, plural=True)
    word, function = draw.rng.choice((("highest", "MAX"), ("largest", "MAX"), ("lowest", "MIN"), ("smallest", "MIN")))
    slots = {"cols": shown.words, "things": draw.things(table), "num": draw.noun(column), "top": word}
    slots["cond"] = f"{draw.things(table)} {test.words}"
    relation, sign = draw.rng.choice((("above", ">"), ("below", "<"), ("equal to", "=")))
    slots["than"] = relation
    outer = f"SELECT {shown.sql} FROM {table.name} WHERE {column.name} {sign}"
    inner = f"SELECT {function}({column.name}) FROM {table.name}"
    return Draft(slots, f"{outer} ({inner} WHERE {test.sql})", (f"{outer} ({inner})",))


def without_children(draw: Draw) -> Draft:
    child, link, parent = draw.edge()
    shown = draw.shown(parent, plural=True)
    test = draw.condition(child) if draw.rng.random() < 0.75 else None
    slots = {"cols": shown.words, "parents": draw.things(parent), "things": draw.things(child)}
    slots["cond"] = f" {test.words}" if test else ""
    inner, where = f"SELECT {link.column} FROM {child.name}", f" WHERE {test.sql}" if test else ""
    sql = f"SELECT {shown.sql} FROM {parent.name}"
    shortcuts = (sql, *([f"{sql} WHERE id NOT IN ({inner})"] * bool(test)))
    return Draft(slots, f"{sql} WHERE id NOT IN ({inner}{where})", shortcuts)


def count_without(draw: Draw) -> Draft:
    child, link, parent = draw.edge()
    test = draw.condition(child, qualified=True)
    slots = {"parents": draw.things(parent), "things": draw.things(child), "cond": f" {test.words}"}
    own = f"{child.name}.{link.column} = {parent.name}.id"
    sql = f"SELECT COUNT(*) FROM {parent.name}"
    outer = f"{sql} WHERE NOT EXISTS (SELECT 1 FROM {child.name} WHERE {own}"
    return Draft(slots, f"{outer} AND {test.sql})", (sql, f"{outer})"))


def set_operation(keyword: str, draw: Draw) -> Draft | None:
    """Values of one column among rows of one condition, combined with those of another."""
    table = draw.table()
    column = draw.column(table, "category") if keyword != "UNION" else draw.column(table, "category", "name")
    if column is None:
        return None
    first = draw.condition(table, avoid=column.name)
    second = draw.condition(table, avoid=column.name)
    sql = f"SELECT {column.name} FROM {table.name} WHERE"
    slots = {"cols": plural_of(draw.noun(column)), "things": draw.things(table)}
    slots |= {"first": first.words, "second": second.words}
    sides = (f"SELECT DISTINCT {column.name} FROM {table.name} WHERE {test.sql}" for test in (first, second))
    return Draft(slots, f"{sql} {first.sql} {keyword} {sql} {second.sql}", tuple(sides))


def union(draw: Draw) -> Draft | None:
    return set_operation("UNION", draw)


def intersect(draw: Draw) -> Draft | None:
    return set_operation("INTERSECT", draw)


def difference(draw: Draw) -> Draft | None:
    return set_operation("EXCEPT", draw)


NESTED: tuple[Template, ...] = (
    Template(
        "having_count",
        "hard",
        3,
        (
            "Which {cols} have {than} {things}{cond}?",
            "List the {cols} with {than} {things}{cond}.",
            "Find the {cols} that have {than} {things}{cond}.",
            "Show all {cols} for which there are {than} {things}{cond}.",
        ),
        having_count,
    ),
    Template(
        "having_average",
        "hard",
        2,
        (
            "Which {cols} have {things} whose {avg} {num} is {than}?",
            "List the {cols} where the {avg} {num} of {things} is {than}.",
            "Find the {cols} with {avg} {num} of {things} {than}.",
            "Show all {cols} for which the {avg} {num} of {things} is {than}.",
        ),
        having_average,
    ),
    Template(
        "join_having",
        "hard",
        3,
        (
            "List the {cols} of {parents} with {than} {things}{cond}.",
            "What are the {cols} of {parents} that have {than} {things}{cond}?",
            "Show the {cols} of all {parents} having {than} {things}{cond}.",
            "Find {parents} with {than} {things}{cond} and give their {cols}.",
        ),
        join_having,
    ),
    Template(
        "versus_average",
        "hard",
        3,
        (
            "List the {cols} of {things} whose {num} is {than} the average{cond}.",
            "What are the {cols} of {things} with {num} {than} the average{cond}?",
            "Show the {cols} of all {things} whose {num} is {than} the mean{cond}.",
            "Find {things} with {num} {than} the average{cond} and give their {cols}.",
        ),
        versus_average,
    ),
    Template(
        "extreme_value",
        "extra",
        2,
        (
            "List the {cols} of {things} whose {num} is {than} the {top} of {cond}.",
            "What are the {cols} of {things} with {num} {than} the {top} of all {cond}?",
            "Show the {cols} of all {things} whose {num} is {than} the {top} among {cond}.",
            "Find {things} with {num} {than} the {top} of {cond} and give their {cols}.",
        ),
        extreme_value,
    ),
    Template(
        "without_children",
        "hard",
        3,
        (
            "List the {cols} of {parents} that have no {things}{cond}.",
            "What are the {cols} of {parents} without any {things}{cond}?",
            "Show the {cols} of all {parents} with no {things}{cond}.",
            "Find {parents} that do not have {things}{cond} and give their {cols}.",
        ),
        without_children,
    ),
    Template(
        "count_without",
        "extra",
        2,
        (
            "How many {parents} have no {things}{cond}?",
            "Count the {parents} without any {things}{cond}.",
            "What is the number of {parents} with no {things}{cond}?",
            "Give the count of {parents} that do not have {things}{cond}.",
        ),
        count_without,
    ),
    Template(
        "union",
        "hard",
        2,
        (
            "List the different {cols} of {things} {first} together with those {second}.",
            "Show the {cols} of {things} {first} or else {second}, without repeats.",
            "Which {cols} occur for {things} {first} or for {things} {second}?",
            "Combine the {cols} of {things} {first} with the {cols} of {things} {second}.",
        ),
        union,
    ),
    Template(
        "intersect",
        "extra",
        2,
        (
            "Which {cols} occur both for {things} {first} and for {things} {second}?",
            "List the {cols} shared by {things} {first} and {things} {second}.",
            "Show {cols} that {things} {first} have in common with {things} {second}.",
            "Find the {cols} found among {things} {first} and also among {things} {second}.",
        ),
        intersect,
    ),
    Template(
        "except",
        "extra",
        2,
        (
            "Which {cols} occur for {things} {first} but not for {things} {second}?",
            "List the {cols} of {things} {first} that no {things} {second} have.",
            "Show {cols} of {things} {first}, except those of {things} {second}.",
            "Find the {cols} found among {things} {first} but never among {things} {second}.",
        ),
        difference,
    ),
)
