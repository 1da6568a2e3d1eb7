"""Rows that SEA-HELM scored: read, and held against the score that its results file gives. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dudi.errors import DudiError

PERCENT = ("normalized_metricx_wmt24_scores",)
"""Metrics whose rows are 0..100; those of the others are 0..1."""
MEANS = ("normalized_f1", "normalized_metricx_wmt24_scores", "overall_lang_normalized_acc")
"""Metrics that are the plain mean of their rows, times 100."""
NEAR = 1e-6


@dataclass(frozen=True)
class Row:
    """One question. value: 0..1; None where it was not scored. finished: where the file says so."""

    response: str | None
    value: float | None
    label: str | None
    prompt: str
    """A digest of the messages but the model's own: in a conversation of several turns, its answers are among them."""
    finished: bool | None = None
    turns: tuple[float, ...] = ()
    """The values whose mean `value` is, where each turn of a conversation was scored by itself."""


def read_rows(file: Path) -> tuple[Row, ...]:
    """The rows of one task. Raises `DudiError` with file and line."""
    return tuple(_row(entry, f"{file}: line {number}") for number, entry in enumerate(_lines(file), 1))


def read_responses(file: Path) -> list[str | None]:
    """The answers of a response file of v1.2."""
    return [entry.get("responses") for entry in _lines(file)]


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.split("\n") if line.strip()]
    except OSError as error:
        raise DudiError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DudiError(f"{file}: not valid JSON lines: {error}") from None
    if not all(isinstance(entry, dict) for entry in found):
        raise DudiError(f"{file}: expected a JSON object a line")
    return found


def _row(entry: dict[str, Any], where: str) -> Row:
    responses = entry.get("responses")
    response = responses[0] if isinstance(responses, list) and responses else responses
    scores = entry.get("individual_scores")
    turns: tuple[float, ...] = ()
    value = None
    if isinstance(scores, dict) and scores:
        name, score = next(iter(scores.items()))
        at, best = f"{where}: individual_scores.{name}", 100 if name in PERCENT else 1
        if isinstance(score, list) and score:
            turns = tuple(_number(one, at) / best for one in score)
            value = math.fsum(turns) / len(turns)
        elif score is not None:
            value = _number(score, at) / best
    label, reasons = entry.get("label"), entry.get("finish_reasons")
    asked = json.dumps(_asked(entry.get("conversations")), ensure_ascii=False, sort_keys=True)
    return Row(
        response=response if isinstance(response, str) else None,
        value=value,
        label=str(label) if isinstance(label, str | int) else None,
        prompt=hashlib.sha256(asked.encode()).hexdigest(),
        finished=reasons[0] == "stop" if isinstance(reasons, list) and reasons else None,
        turns=turns,
    )


def _asked(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    return [one for one in messages if not (isinstance(one, dict) and one.get("role") == "assistant")]


def _number(score: Any, where: str) -> float:
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise DudiError(f"{where}: expected a number, found {str(score)[:40]!r}")
    return float(score)


def check_rows(rows: Sequence[Row], metric: str, score: float, where: str) -> None:
    """Raises `DudiError` where rows and score are not of the same scoring, as far as rows alone can tell."""
    found = recomputed(rows, metric)
    if found is not None and abs(found - score) > NEAR:
        raise DudiError(f"{where}: {metric} is {score:.6f}, but its {len(rows)} rows give {found:.6f}: they are stale")


def recomputed(rows: Sequence[Row], metric: str) -> float | None:
    """The score by its rows; None where it takes more than the rows say (phenomena of minimal pairs, ROUGE)."""
    values = [row.value for row in rows if row.value is not None]
    if not values:
        return None
    if metric in MEANS:
        return 100 * sum(values) / len(values)
    labels = [row.label for row in rows]
    if metric == "normalized_accuracy" and None not in labels and len(values) == len(rows):
        return balanced(labels, values)
    return None


def balanced(labels: Sequence[str | None], values: Sequence[float], k: int | None = None) -> float:
    """Balanced accuracy over the labels that occur, with chance taken off: max((BA - 1/k) / (1 - 1/k), 0) * 100.

    k: the number of choices; by default of the labels that occur.
    """
    of, right = Counter(labels), Counter[str | None]()
    for label, value in zip(labels, values, strict=True):
        right[label] += value  # type: ignore[assignment]
    chance = 1 / (k or len(of))
    if chance == 1:
        return 0.0
    accuracy = sum(right[label] / of[label] for label in of) / len(of)
    return 100 * max((accuracy - chance) / (1 - chance), 0.0)
