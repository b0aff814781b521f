"""The final table reads manifests and nothing else."""

from __future__ import annotations

from rstar_trl.evolution.table import COLUMNS, render_table


def test_table_has_one_row_per_round_and_dashes_for_what_was_not_measured() -> None:
    full = {"execution_accuracy": 0.625, "valid_sql": 0.9, "tokens_per_question": 321.4, "seconds_per_question": 0.25}
    rows = [
        {"round": 0, "solved": None, "train_questions": None, "methods": {"greedy": {**full, "valid_sql": 0.5}}},
        {"round": 1, "solved": 30, "train_questions": 40, "methods": dict.fromkeys(("greedy", "mcts"), full)},
    ]
    head, rule, cold, first, *_ = render_table(rows).splitlines()
    assert len({len(head), len(rule), len(cold), len(first)}) == 1
    assert all(column in head for column in COLUMNS)
    assert cold.split() == ["0", "-", "62.5", "-", "-", "-", "50.0", "321", "0.25"]
    assert first.split() == ["1", "30/40", "62.5", "-", "-", "62.5", "90.0", "321", "0.25"]
