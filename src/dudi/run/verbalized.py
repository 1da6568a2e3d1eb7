"""`dudi verbalize`: x, y, p_z and z of one row, exactly as each model reads them, with token counts.

Without a recipe there is no tokenizer: then the turns themselves are shown, of a row that ships with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dudi.data.load import load_rows
from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.languages import language_code
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe
from dudi.run.prepare import load_chat
from dudi.signals import Mode, View, judged, views
from dudi.text.verbalizer import Verbalized, Verbalizer


@dataclass(frozen=True)
class Shown:
    """One text: what it is, who reads it, its tokens (None: no tokenizer), and the text with every special token."""

    name: str
    reader: str
    tokens: int | None
    text: str


def verbalized(recipe: Recipe, row: int, to: str | None, mode: Mode | None) -> tuple[str, list[Shown]]:
    """A heading and the four texts of training row `row` (0 is the first), in epoch 0. `to` forces l_z."""
    chat, _ = load_chat(recipe)
    examples = load_rows(recipe.data, recipe.seed).train
    example, v, heading = _rewritten(recipe, examples, row, to, mode)

    def shown(name: str, reader: str, ids: list[int]) -> Shown:
        return Shown(name, reader, len(ids), chat.decode(ids))

    return heading, [
        shown("x", "student and teacher", chat.prompt(example.x)),
        shown("y", "response", chat.response(example.x, example.y)),
        shown("p_z" + (" = x" if v.student == example.x else ""), "student", chat.prompt(v.student)),
        shown("z" + (" = x" if v.teacher == example.x else ""), "teacher", chat.prompt(v.teacher)),
    ]


def verbalized_plainly(row: int, to: str | None, mode: Mode | None) -> tuple[str, list[Shown]]:
    """The same of a row that ships with the package, as turns, under DuDi's own settings."""
    table = {"name": "verbalize", "method": {"name": "dudi"}, "models": {"student": "none", "teacher": "none"}}
    recipe = parse_recipe({**table, "data": {"source": "builtin"}}, "verbalize")
    example, v, heading = _rewritten(recipe, load_rows(recipe.data, recipe.seed).train, row, to, mode)

    def shown(name: str, reader: str, turns: Sequence[Message]) -> Shown:
        return Shown(name, reader, None, "\n".join(f"[{turn.role}] {turn.content}" for turn in turns))

    return heading, [
        shown("x", "student and teacher", example.x),
        shown("y", "response", [Message("assistant", example.y)]),
        shown("p_z", "student", v.student),
        shown("z", "teacher", v.teacher),
    ]


def _rewritten(
    recipe: Recipe, examples: Sequence[Example], row: int, to: str | None, mode: Mode | None
) -> tuple[Example, Verbalized, str]:
    """A row, its prompts, and a heading."""
    if not 0 <= row < len(examples):
        raise DudiError(f"--row {row}: the data has rows 0 to {len(examples) - 1}")
    example = examples[row]
    languages = recipe.data.languages or tuple(sorted({e.l for e in examples}))
    view = _view(recipe, mode)
    if to is not None:
        to = language_code(to)
        if view.verbalizer not in (Mode.CROSSLINGUAL, Mode.MIX):
            raise DudiError(f"--to {to}: mode {view.verbalizer.value!r} chooses no language; use --mode crosslingual")
        if to == example.l:
            raise DudiError(f"--to {to}: the row is in {to!r} itself; l_z is another language")
        view = View(view.response, Mode.CROSSLINGUAL, view.include_english)
    v = Verbalizer(languages, recipe.seed, recipe.data.template_folder)(view, example, 0, row, to)
    heading = f"row {row} ({example.id}), l = {example.l}, mode = {view.verbalizer.value}, l_z = {v.l_z or '-'}"
    return example, v, heading


def _view(recipe: Recipe, mode: Mode | None) -> View:
    """The method's on-policy view, or one in the mode asked for."""
    signals = recipe.to_method().signals
    found = [view for view in judged(signals) if view.response.sampled]
    view = found[0] if found else views(signals)[0]
    return view if mode is None else View(view.response, mode, view.include_english)
