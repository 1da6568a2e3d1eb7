"""`training.equalize` against the rows: whether it names the languages trained on, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dudi.errors import DudiError
from dudi.recipe.schema import Recipe, Training
from dudi.recipe.stages import COLD_START, Train, plan
from dudi.training.shares import Shares
from dudi.training.window import Row


def shares_of_languages(recipe: Recipe, languages: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """What each stage makes of the languages' shares, in lines to be said; nothing where it is told to make nothing.

    Raises `DudiError` for a table that has not exactly the languages trained on.
    """
    told: dict[tuple[str, int], tuple[str, Training]] = {}
    for stage in plan(recipe):
        if isinstance(stage, Train) and stage.training.equalize != "none":
            key = "cold_start.training.equalize" if stage.name == COLD_START else "training.equalize"
            told[str(stage.training.equalize), stage.training.batch] = key, stage.training  # once, where inherited
    return [line for key, training in told.values() for line in _lines(key, training, languages, rows)]


def _lines(key: str, training: Training, languages: Sequence[str], rows: Sequence[Row]) -> list[str]:
    asked = training.equalize
    if isinstance(asked, dict):
        _check(key, asked, languages)
    tokens: Counter[str] = Counter()
    for row in rows:
        tokens[row.example.l] += len(row.y)
    if len(tokens) == 1:
        return [f"{key} changes nothing: every training row is in {next(iter(tokens))}"]
    share = {l: 1.0 if isinstance(asked, str) else asked[l] for l in tokens}
    parts = [
        f"{l} {share[l] / sum(share.values()):.1%} (of the tokens of y: {n / tokens.total():.1%})"
        for l, n in sorted(tokens.items())
    ]
    return [f"{key}: shares of each step's loss: {', '.join(parts)}", *_missing(key, training, rows, sorted(tokens))]


def _missing(key: str, training: Training, rows: Sequence[Row], languages: Sequence[str]) -> list[str]:
    """Which languages full steps lack, as an epoch deals the rows out."""
    order = Shares.of(training.equalize, languages).dealt(range(len(rows)), rows)
    dealt, batch = [rows[number].example.l for number in order], training.batch
    steps = [set(dealt[start : start + batch]) for start in range(0, len(dealt) - batch + 1, batch)]
    without = {l: sum(l not in step for step in steps) for l in languages}
    return [
        f"{key}: {n} of {len(steps)} steps an epoch have no row in {l}, which has {dealt.count(l)}: the other languages"
        " share those; a larger training.batch makes fewer steps"
        for l, n in without.items()
        if n
    ]


def _check(key: str, asked: dict[str, float], languages: Sequence[str]) -> None:
    trained = ", ".join(sorted(languages))
    if missing := sorted(set(languages) - set(asked)):
        raise DudiError(f"{key}: no share for {', '.join(missing)}; give one to each language trained on ({trained})")
    if unknown := sorted(set(asked) - set(languages)):
        raise DudiError(f"{key}: a share for {', '.join(unknown)}, which is not trained on (trained on: {trained})")
