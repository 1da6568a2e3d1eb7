"""How many bad inputs there are, and by which way they are given."""

from __future__ import annotations

import ast
from pathlib import Path

import test_bad_checkpoints
import test_bad_environment
import test_bad_input
import test_bad_models
import test_chat
import test_config
import test_security
import test_verbalizer

TESTS = Path(__file__).parents[1]


def entries(file: str, table: str) -> int:
    """The entries of a table of cases in a test file of another folder."""
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == table for t in targets):
            value = node.value  # type: ignore[attr-defined]
            return len(value.keys if isinstance(value, ast.Dict) else value.elts)
    raise AssertionError(f"{file} has no table {table}")


AREAS = {
    "schema: wrong types": len(list(test_config.wrong_types())),
    "schema: out of range": len(list(test_config.out_of_range())),
    "schema: misspelt keys": len(test_config.KEYS),
    "rows": len(test_bad_input.ROWS) + entries("data/test_chat_data.py", "BAD") + len(test_security.BOMBS),
    "verbalizer templates": len(test_verbalizer.BAD),
    "chat templates": len(test_chat.REFUSED) + len(test_security.ESCAPES),
    "models": len(test_bad_input.MODELS) + len(test_bad_models.CONFIGS) + len(test_bad_models.TOKENIZERS),
    "weights": len(test_security.WEIGHTS),
    "checkpoints": len(test_bad_checkpoints.LISTS) + len(test_bad_checkpoints.GARBAGE),
    "benchmark folders": entries("evals/test_eval_bench.py", "BAD") + entries("evals/test_eval_bench.py", "FILES"),
    "eval arguments": entries("evals/test_eval_evaluate.py", "ARGUMENTS"),
    "report": entries("report/test_report_bad_input.py", "RUNS") + entries("report/test_report_bad_input.py", "EVALS"),
}


def test_there_are_many_in_every_area() -> None:
    assert min(AREAS.values()) >= 10, AREAS
    assert sum(n for area, n in AREAS.items() if not area.startswith("schema")) >= 120, AREAS
    assert sum(AREAS.values()) >= 400, AREAS


def test_ten_go_through_the_real_command() -> None:
    assert len({tuple(argv) for argv, _ in test_bad_input.REAL}) >= 10
    assert test_bad_environment.dudi
