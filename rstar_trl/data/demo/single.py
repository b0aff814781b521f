"""Templates about one table: filters, counts, aggregates, groups, orders."""

from __future__ import annotations

from rstar_trl.data.demo.template import Draft, Template, aggregate_words, direction_words
from rstar_trl.data.demo.wording import Draw, Pair, plural_of


def select_filter(draw: Draw) -> Draft:
    table = draw.table()
    shown, test = draw.shown(table, plural=True), draw.condition(table)
    slots = {"cols": shown.words, "things": draw.things(table), "cond": test.words}
    sql = f"SELECT {shown.sql} FROM {table.name}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql,))


def select_two_filters(draw: Draw) -> Draft:
    table = draw.table()
    shown, test = draw.shown(table, plural=True), draw.both(table)
    slots = {"cols": shown.words, "things": draw.things(table)}
    return _with_parts(slots, f"SELECT {shown.sql} FROM {table.name}", test)


def _with_parts(slots: dict[str, str], sql: str, test: Pair) -> Draft:
    """A draft whose shortcuts leave out one of two conditions."""
    sides = (f"{sql} WHERE {test.first.sql}", f"{sql} WHERE {test.second.sql}")
    return Draft({**slots, "cond": test.words}, f"{sql} WHERE {test.sql}", (sql, *sides))


def select_distinct(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "category")
    if column is None:
        return None
    test = draw.condition(table, avoid=column.name)
    slots = {"cols": plural_of(draw.noun(column)), "things": draw.things(table), "cond": test.words}
    sql = f"SELECT DISTINCT {column.name} FROM {table.name}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql, f"SELECT {column.name} FROM {table.name} WHERE {test.sql}"))


def count_filter(draw: Draw) -> Draft:
    table = draw.table()
    test = draw.condition(table)
    sql = f"SELECT COUNT(*) FROM {table.name}"
    return Draft({"things": draw.things(table), "cond": test.words}, f"{sql} WHERE {test.sql}", (sql,))


def count_two_filters(draw: Draw) -> Draft:
    table = draw.table()
    test = draw.both(table)
    return _with_parts({"things": draw.things(table)}, f"SELECT COUNT(*) FROM {table.name}", test)


def count_distinct(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "category")
    if column is None:
        return None
    test = draw.condition(table, avoid=column.name)
    slots = {"cols": plural_of(draw.noun(column)), "things": draw.things(table), "cond": test.words}
    sql = f"SELECT COUNT(DISTINCT {column.name}) FROM {table.name}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql, f"SELECT COUNT(*) FROM {table.name} WHERE {test.sql}"))


def aggregate(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "number")
    if column is None:
        return None
    (word, function), test = aggregate_words(draw, column.additive), draw.condition(table, avoid=column.name)
    slots = {"agg": word, "num": draw.noun(column), "things": draw.things(table), "cond": test.words}
    sql = f"SELECT {function}({column.name}) FROM {table.name}"
    return Draft(slots, f"{sql} WHERE {test.sql}", (sql,))


def two_aggregates(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "number")
    if column is None:
        return None
    (first, f1), (second, f2) = aggregate_words(draw, column.additive), aggregate_words(draw, column.additive)
    if f1 == f2:
        return None
    test = draw.condition(table, avoid=column.name)
    slots = {"agg": f"{first} and {second}", "num": draw.noun(column), "things": draw.things(table)}
    sql = f"SELECT {f1}({column.name}), {f2}({column.name}) FROM {table.name}"
    return Draft({**slots, "cond": test.words}, f"{sql} WHERE {test.sql}", (sql,))


def top_k(draw: Draw) -> Draft | None:
    table = draw.table(labelled=True)
    column = draw.column(table, "number", full=True)
    if column is None:
        return None
    test = draw.condition(table, avoid=column.name) if draw.rng.random() < 0.5 else None
    (word, keyword), k = direction_words(draw), draw.rng.randint(1, 5)
    shown, where = draw.shown(table), f" WHERE {test.sql}" if test else ""
    slots = {"cols": shown.words, "top": word, "num": draw.noun(column)}
    slots["cond"] = f" among those {test.words}" if test else ""
    slots["things"] = f"{k} {draw.things(table)}" if k > 1 else draw.thing(table)
    sql = f"SELECT {shown.sql} FROM {table.name}{where} ORDER BY {column.name} {keyword}"
    unique = f"SELECT {column.name} FROM {table.name}{where} ORDER BY {column.name} {keyword} LIMIT {k + 1}"
    return Draft(slots, f"{sql} LIMIT {k}", (sql, *([sql.replace(where, "") + f" LIMIT {k}"] * bool(test))), unique)


def order_all(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "number", "date", full=True)
    if column is None:
        return None
    test, shown = draw.condition(table, avoid=column.name), draw.shown(table)
    words, keyword = draw.rng.choice(
        ((("descending", "falling"), "DESC"), (("ascending", "rising"), "ASC")),
    )
    slots = {"cols": plural_of(shown.words), "things": draw.things(table), "cond": test.words}
    slots |= {"num": draw.noun(column), "way": draw.rng.choice(words)}
    sql = f"SELECT {shown.sql} FROM {table.name} WHERE {test.sql}"
    unique = f"SELECT {column.name} FROM {table.name} WHERE {test.sql}"
    return Draft(slots, f"{sql} ORDER BY {column.name} {keyword}", (sql,), unique)


def group_count(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "category")
    if column is None:
        return None
    test = draw.condition(table, avoid=column.name)
    slots = {"cat": draw.noun(column), "things": draw.things(table), "cond": test.words}
    sql = f"SELECT {column.name}, COUNT(*) FROM {table.name}"
    return Draft(slots, f"{sql} WHERE {test.sql} GROUP BY {column.name}", (f"{sql} GROUP BY {column.name}",))


def group_aggregate(draw: Draw) -> Draft | None:
    table = draw.table()
    column, number = draw.column(table, "category"), draw.column(table, "number")
    if column is None or number is None:
        return None
    word, function = aggregate_words(draw, number.additive)
    test = draw.condition(table, avoid=column.name) if draw.rng.random() < 0.5 else None
    slots = {"cat": draw.noun(column), "agg": word, "num": draw.noun(number), "things": draw.things(table)}
    slots["cond"] = f" {test.words}" if test else ""
    sql, where = (
        f"SELECT {column.name}, {function}({number.name}) FROM {table.name}",
        f" WHERE {test.sql}" if test else "",
    )
    return Draft(slots, f"{sql}{where} GROUP BY {column.name}", (f"{sql} GROUP BY {column.name}",) * bool(test))


def group_top(draw: Draw) -> Draft | None:
    table = draw.table()
    column = draw.column(table, "category")
    if column is None:
        return None
    test = draw.condition(table, avoid=column.name) if draw.rng.random() < 0.6 else None
    word, keyword = draw.rng.choice((("most", "DESC"), ("fewest", "ASC")))
    slots = {"cat": draw.noun(column), "most": word, "things": draw.things(table)}
    slots["cond"] = f" {test.words}" if test else ""
    where = f" WHERE {test.sql}" if test else ""
    tail = f"FROM {table.name}{where} GROUP BY {column.name} ORDER BY COUNT(*) {keyword}"
    sql = f"SELECT {column.name} {tail}"
    shortcuts = (sql, *([f"{sql.replace(where, '')} LIMIT 1"] * bool(test)))
    return Draft(slots, f"{sql} LIMIT 1", shortcuts, f"SELECT COUNT(*) {tail} LIMIT 2")


LIST = (
    "List the {cols} of {things} {cond}.",
    "What are the {cols} of all {things} {cond}?",
    "Show the {cols} for {things} {cond}.",
    "Find {things} {cond} and give their {cols}.",
    "Give me the {cols} of every one of the {things} {cond}.",
)
COUNT = (
    "How many {things} are there {cond}?",
    "Count the {things} {cond}.",
    "What is the number of {things} {cond}?",
    "Give the count of {things} {cond}.",
)
AGGREGATE = (
    "What is the {agg} {num} of {things} {cond}?",
    "Find the {agg} {num} of all {things} {cond}.",
    "For {things} {cond}, what is the {agg} {num}?",
    "Give the {agg} {num} over {things} {cond}.",
)

SINGLE: tuple[Template, ...] = (
    Template("select_filter", "easy", 9, LIST, select_filter),
    Template("select_two_filters", "medium", 6, LIST, select_two_filters),
    Template(
        "select_distinct",
        "easy",
        3,
        (
            "List the different {cols} of {things} {cond}.",
            "What are the distinct {cols} of {things} {cond}?",
            "Which different {cols} do {things} {cond} have?",
            "Show the {cols} of {things} {cond} without repeats.",
        ),
        select_distinct,
    ),
    Template("count_filter", "easy", 6, COUNT, count_filter),
    Template("count_two_filters", "medium", 3, COUNT, count_two_filters),
    Template(
        "count_distinct",
        "medium",
        2,
        (
            "How many different {cols} do {things} {cond} have?",
            "Count the distinct {cols} of {things} {cond}.",
            "What is the number of different {cols} among {things} {cond}?",
            "Give the count of distinct {cols} for {things} {cond}.",
        ),
        count_distinct,
    ),
    Template("aggregate", "easy", 6, AGGREGATE, aggregate),
    Template("two_aggregates", "medium", 3, AGGREGATE, two_aggregates),
    Template(
        "top_k",
        "medium",
        5,
        (
            "Show the {cols} of the {things} with the {top} {num}{cond}.",
            "What is the {cols} of the {things} with the {top} {num}{cond}?",
            "Give the {cols} of the {things} that have the {top} {num}{cond}.",
            "Find the {things} with the {top} {num}{cond} and show the {cols}.",
        ),
        top_k,
    ),
    Template(
        "order_all",
        "medium",
        3,
        (
            "List the {cols} of {things} {cond} in {way} order of {num}.",
            "Show {cols} of {things} {cond}, sorted by {num} in {way} order.",
            "For {things} {cond}, give the {cols} by {way} {num}.",
            "What are the {cols} of {things} {cond}, ordered by {way} {num}?",
        ),
        order_all,
    ),
    Template(
        "group_count",
        "medium",
        3,
        (
            "For each {cat}, how many {things} {cond} are there?",
            "Count the {things} {cond} for each {cat}.",
            "Show every {cat} and the number of {things} {cond}.",
            "How many {things} {cond} are there per {cat}? Show {cat} and count.",
        ),
        group_count,
    ),
    Template(
        "group_aggregate",
        "medium",
        3,
        (
            "For each {cat}, what is the {agg} {num} of {things}{cond}?",
            "Show every {cat} and the {agg} {num} of its {things}{cond}.",
            "What is the {agg} {num} of {things}{cond} per {cat}? Show {cat} and {num}.",
            "List each {cat} with the {agg} {num} of {things}{cond}.",
        ),
        group_aggregate,
    ),
    Template(
        "group_top",
        "hard",
        2,
        (
            "Which {cat} has the {most} {things}{cond}?",
            "What is the {cat} with the {most} {things}{cond}?",
            "Find the {cat} that has the {most} {things}{cond}.",
            "Name the {cat} for which there are the {most} {things}{cond}.",
        ),
        group_top,
    ),
)
