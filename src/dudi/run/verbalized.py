"""`dudi verbalize`: x, y, p_z and z of one row, exactly as each model reads them, with token counts."""

from __future__ import annotations

from dataclasses import dataclass

from dudi.data.load import load_rows
from dudi.errors import DudiError
from dudi.languages import language_code
from dudi.recipe.schema import Recipe
from dudi.run.prepare import load_chat
from dudi.signals import Mode, View, judged, views
from dudi.text.verbalizer import Verbalizer


@dataclass(frozen=True)
class Shown:
    """One text: what it is, who reads it, its tokens, and the text with every special token."""

    name: str
    reader: str
    tokens: int
    text: str


def verbalized(recipe: Recipe, row: int, to: str | None, mode: Mode | None) -> tuple[str, list[Shown]]:
    """A heading and the four texts of training row `row` (0 is the first), in epoch 0. `to` forces l_z."""
    chat = load_chat(recipe)
    examples = load_rows(recipe.data, recipe.seed).train
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
    texts = [
        ("x", "student and teacher", chat.prompt(example.x)),
        ("y", "response", chat.response(example.x, example.y)),
    ]
    same_p, same_z = v.student == example.x, v.teacher == example.x
    texts.append(("p_z" + (" = x" if same_p else ""), "student", chat.prompt(v.student)))
    texts.append(("z" + (" = x" if same_z else ""), "teacher", chat.prompt(v.teacher)))
    heading = f"row {row} ({example.id}), l = {example.l}, mode = {view.verbalizer.value}, l_z = {v.l_z or '-'}"
    return heading, [Shown(name, reader, len(ids), chat.decode(ids)) for name, reader, ids in texts]


def _view(recipe: Recipe, mode: Mode | None) -> View:
    """The method's on-policy view, or one in the mode asked for."""
    signals = recipe.to_method().signals
    found = [view for view in judged(signals) if view.response.sampled]
    view = found[0] if found else views(signals)[0]
    return view if mode is None else View(view.response, mode, view.include_english)
