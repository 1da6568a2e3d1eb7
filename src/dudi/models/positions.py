"""How far a model can count: its positions against the lengths that a recipe makes it read.

Learned positions end in an IndexError, rotary ones are run past in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dudi.errors import DudiError
from dudi.methods import Teacher
from dudi.recipe.schema import LimitName, Limits, Recipe
from dudi.signals import Mode, Response, View, judged, views

LENGTHS = ("max_position_embeddings", "max_seq_len")
"""What configs call it: everybody's, and MPT's, whose biases are a table of that length."""


def positions(config: Any) -> int | None:
    """Positions that a model knows; None where there is no end to them (ALiBi, recurrent models)."""
    config = config.get_text_config(decoder=True)
    known = next((found for name in LENGTHS if (found := getattr(config, name, None))), None)
    if not isinstance(known, int) or isinstance(known, bool) or known < 1:
        return None
    rope = getattr(config, "rope_parameters", None)
    for table in (rope, *rope.values()) if isinstance(rope, Mapping) else ():  # one, or one for each kind of layer
        if isinstance(table, Mapping):  # scaled (YaRN): some configs keep saying the length before it
            before, factor = table.get("original_max_position_embeddings"), table.get("factor")
            if isinstance(before, int) and isinstance(factor, int | float):
                known = max(known, int(before * factor))
    return known


def check_positions(config: Any, recipe: Recipe, what: str, teaches: bool) -> None:
    """Raises `DudiError` where a model is to read more tokens than it has positions, with the key to change.

    what: the model's key; teaches: it reads as the teacher does (z), else as the student does (x and p_z).
    """
    known = positions(config)
    for keys, length in () if known is None else lengths(recipe, teaches):
        if known is not None and length > known:
            raise DudiError(
                f"{what}: the model has {known:,} positions, but may have to read {length:,} tokens"
                f" ({' + '.join(keys)}): lower {keys[0]}"
            )


def lengths(recipe: Recipe, teaches: bool) -> list[tuple[tuple[str, ...], int]]:
    """(limits whose sum it is, the longest sequence of that kind) of what the student, or who judges it, reads.

    A language's limits count where the recipe names languages or a table names them.
    """
    limits = recipe.limits
    sums: set[tuple[LimitName, ...]] = set()
    for method in (recipe.to_method(), recipe.cold_start_method()):
        if method is None:
            continue
        judges = method.needs_larger_teacher if teaches else method.teacher is Teacher.EMA
        sums |= {_sum_of(view, teaches=True) for view in judged(method.signals) if judges}
        sums |= {_sum_of(view, teaches=False) for view in views(method.signals) if not teaches}
        if judges and method.stored is Response.TEACHER:  # it writes the answers to x
            sums.add(("prompt", "rollout"))
    languages = _languages(limits, recipe.data.languages)
    found = [(names, max(_length(limits, names, l) for l in languages)) for names in sorted(sums)]
    found.sort(key=lambda one: -one[1])  # what has to change most comes first
    return [(tuple(f"limits.{name}" for name in names), length) for names, length in found]


def _languages(limits: Limits, named: tuple[str, ...]) -> set[str]:
    """Languages that the limits tell apart."""
    tables = [value for value in vars(limits).values() if isinstance(value, dict)]
    return set(named) or {"default"}.union(*tables)


def _sum_of(view: View, teaches: bool) -> tuple[LimitName, ...]:
    """The limits that bound what is read of a view."""
    rewritten = view.verbalizer is not Mode.NONE
    if teaches and rewritten:
        return "teacher_prompt", "rollout"
    if not (view.response.sampled or view.response.stored):
        return ("total",)
    return ("prompt", "verbalizer", "rollout") if rewritten else ("prompt", "rollout")


def _length(limits: Limits, names: tuple[LimitName, ...], language: str) -> int:
    return sum(limits.of(name, language) for name in names)
