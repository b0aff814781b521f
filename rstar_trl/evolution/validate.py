"""Checks a recipe's data before any time is spent on it: everything is loaded and every gold query is run.

Nothing is written outside a temporary folder. Quarantined questions are not an error: a run does without them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from rstar_trl.evolution.recipe import LoadedRecipe
from rstar_trl.io import write_json, write_jsonl

MAX_LISTED = 20
"""Quarantined questions that are printed one by one."""


def validate(loaded: LoadedRecipe) -> str:
    """What a run of the recipe would train and evaluate on, and what it would quarantine and why."""
    from rstar_trl.data.loaders import load_corpus
    from rstar_trl.sql.audit import read_quarantine
    from rstar_trl.sql.gold import prepare
    from rstar_trl.sql.sandbox import Sandbox

    data = loaded.recipe.data
    with tempfile.TemporaryDirectory() as scratch:
        corpus = load_corpus(data, Path(scratch))
        listed = read_quarantine(Path(data.quarantine)) if data.quarantine else {}
        with Sandbox(loaded.recipe.sandbox) as sandbox:
            prepared = prepare(corpus, sandbox, data.label_fraction, data.seed, listed)
    labelled = sum(question.gold_sql is not None for question in prepared.train)
    reasons = Counter(_kind(each.reason) for each in prepared.quarantine)
    lines = [
        f"{loaded.path}: {corpus.name}, {len(corpus.databases)} databases",
        f"train: {len(prepared.train)} questions, {labelled} with gold SQL, the others with its result alone",
        f"eval: {len(prepared.eval)} questions",
        f"quarantine: {len(prepared.quarantine)} questions",
        *(f"  {count} x {reason}" for reason, count in reasons.most_common()),
        *(f"  {each.split} {each.question_id}: {each.reason}" for each in prepared.quarantine[:MAX_LISTED]),
    ]
    hidden = len(prepared.quarantine) - MAX_LISTED
    return "\n".join([*lines, *([f"  ... and {hidden} more"] if hidden > 0 else [])])


def audit(loaded: LoadedRecipe, out: Path) -> str:
    """Audits every gold query of the recipe's data; writes the quarantine list to `out` and returns the findings."""
    from rstar_trl.data.loaders import load_corpus
    from rstar_trl.sql.audit import audit as run
    from rstar_trl.sql.sandbox import Sandbox

    data = loaded.recipe.data
    with tempfile.TemporaryDirectory() as scratch, Sandbox(loaded.recipe.sandbox) as sandbox:
        corpus = load_corpus(data, Path(scratch))
        findings = run(corpus, sandbox, Path(scratch) / "shuffled", data.seed)
    listed = [finding for finding in findings if finding.quarantined]
    write_jsonl(out, (vars(finding) for finding in listed))
    kinds = Counter(finding.kind for finding in findings)
    lines = [
        f"{corpus.name}: {len(corpus.train) + len(corpus.eval)} questions, {len(corpus.databases)} databases",
        *(f"  {count} x {kind}" for kind, count in kinds.most_common()),
        *(f"  {each.split} {each.question_id}: {each.kind}: {each.reason}" for each in findings[:MAX_LISTED]),
        *([f"  ... and {len(findings) - MAX_LISTED} more"] if len(findings) > MAX_LISTED else []),
        f"{out}: {len(listed)} to quarantine; name it as `data.quarantine` in the recipe",
    ]
    return "\n".join(lines)


def variants(loaded: LoadedRecipe, per_db: int, out: Path) -> str:
    """Makes variants of every database of the recipe's data in `out`, and says what they tell apart."""
    from rstar_trl.data.loaders import load_corpus
    from rstar_trl.sql.sandbox import Sandbox
    from rstar_trl.sql.variants import choose_all

    data = loaded.recipe.data
    with tempfile.TemporaryDirectory() as scratch, Sandbox(loaded.recipe.sandbox) as sandbox:
        corpus = load_corpus(data, Path(scratch))
        chosen = choose_all(corpus, per_db, out, sandbox, data.seed)
    write_json(
        out / "variants.json",
        {
            db_id: {
                "near_misses": len(each.pairs),
                "distinguishable": len(each.distinguishable),
                "told_apart": each.told_apart,
            }
            for db_id, each in chosen.items()
        },
    )
    total = sum(len(each.distinguishable) for each in chosen.values())
    lines = [f"{out}: variants of {len(chosen)} databases; name it as `data.variants`, with `verify: variants`"]
    lines.append(f"near-misses that anything here tells apart: {total}")
    for count in range(per_db + 1):
        known = sum(each.told_apart[min(count, len(each.told_apart) - 1)] for each in chosen.values())
        name = "the database alone" if count == 0 else f"with {count} variants"
        lines.append(f"  {name}: {known} ({100 * known / max(1, total):.1f} %)")
    return "\n".join(lines)


def write_demo(folder: Path, seed: int) -> str:
    """Writes the demo corpus as a folder that `data.source: jsonl` reads: two JSONL files and the databases."""
    from rstar_trl.data.demo.build import build_demo

    corpus = build_demo(folder, seed)
    for split, questions in (("train", corpus.train), ("eval", corpus.eval)):
        rows = (
            {"id": q.id, "db_id": q.db_id, "question": q.question, "evidence": q.evidence, "gold_sql": q.gold_sql}
            for q in questions
        )
        write_jsonl(folder / f"{split}.jsonl", rows)
    return f"{folder}: {len(corpus.train)} training and {len(corpus.eval)} evaluation questions about " + ", ".join(
        sorted(corpus.databases)
    )


def show(loaded: LoadedRecipe, limit: int) -> str:
    """The first `limit` training questions with the prompt a policy reads and their gold SQL."""
    from rstar_trl.data.loaders import load_corpus
    from rstar_trl.policy.prompting import Prompter

    with tempfile.TemporaryDirectory() as scratch:
        corpus = load_corpus(loaded.recipe.data, Path(scratch))
        prompter = Prompter(corpus.databases, loaded.recipe.prompt)
        shown = [f"[{q.id}]\n{prompter.prompt(q)}\n=> {q.gold_sql or '(no SQL)'}" for q in corpus.train[:limit]]
    head = f"{corpus.name}: {len(corpus.train)} train, {len(corpus.eval)} eval, {len(corpus.databases)} databases"
    return "\n\n".join([head, *shown])


def _kind(reason: str) -> str:
    """The reason without what is particular to one question."""
    return reason.split(":")[0]
