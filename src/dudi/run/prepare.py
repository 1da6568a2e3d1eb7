"""A recipe's rows, tokenizer and templates, checked together before anything is written or a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from dudi.data.load import Rows as DataRows
from dudi.data.load import load_rows
from dudi.errors import DudiError
from dudi.models.load import check_model, load_config, load_tokenizer
from dudi.models.positions import check_positions
from dudi.recipe.read import Recipe
from dudi.signals import views
from dudi.text.chat import Chat, check_same_tokenizer, read_template
from dudi.text.verbalizer import Verbalizer
from dudi.training.window import Rows, encode_rows


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything that can be checked without loading a model."""

    recipe: Recipe
    chat: Chat
    data: DataRows
    train: Rows
    eval: Rows
    languages: tuple[str, ...]
    verbalizer: Verbalizer

    def lengths(self) -> dict[str, dict[str, float]]:
        """Per language: rows that train, rows left out (x too long), answers cut, characters per token; and, where
        there are any, rows with a special token in their text, which is read as text, and those left out as it cannot.
        """
        rows = [row.example.l for row in self.train.rows]
        return {
            l: {
                "rows": rows.count(l),
                "left_out": self.train.left_out[l],
                "cut": self.train.cut[l],
                "characters_per_token": round(self.train.characters[l] / max(self.train.tokens[l], 1), 3),
                **({"special_tokens_in_text": n} if (n := self.train.special[l]) else {}),
                **({"special_tokens_refused": n} if (n := self.train.refused[l]) else {}),
            }
            for l in self.languages
        }


def prepare(recipe: Recipe, data: DataRows | None = None) -> Prepared:
    """Read rows (unless given), tokenizers and templates, and check that they fit together; nothing is written.

    Raises `DudiError` with the first thing that is wrong.
    """
    chat = load_chat(recipe)
    data = data or load_rows(recipe.data, recipe.seed)
    languages = recipe.data.languages or tuple(sorted({e.l for e in data.train}))
    verbalizer = Verbalizer(languages, recipe.seed, recipe.data.template_folder)
    for view in views(recipe.build().signals):
        verbalizer.check(view, languages)
    train, held_out = (encode_rows(examples, chat, recipe.limits) for examples in (data.train, data.eval))
    if not train.rows and (refused := train.refused.total()):
        raise DudiError(
            f"no row is left: {refused} of {len(data.train)} hold special tokens that the tokenizer cannot read as"
            " text, the others are longer than limits.prompt"
        )
    if not train.rows:
        limit = recipe.limits.prompt
        raise DudiError(f"no row is left: all {len(data.train)} prompts are longer than limits.prompt = {limit} tokens")
    return Prepared(recipe, chat, data, train, held_out, languages, verbalizer)


def load_chat(recipe: Recipe) -> Chat:
    """The student's tokenizer with the template that the recipe names; all models are known to exist and to fit."""
    models = recipe.models
    checked = [(models.student, "models.student", models.student_revision)]
    if models.teacher is not None:
        checked.append((models.teacher, "models.teacher", models.teacher_revision))
    tokenizers = [load_tokenizer(path, what, models, revision) for path, what, revision in checked]
    student, teacher = tokenizers[0], tokenizers[1] if len(tokenizers) > 1 else None
    if teacher is not None:
        check_same_tokenizer(student, teacher)
    chat = Chat(student, read_template(recipe.chat.template, student, teacher), recipe.chat.kwargs)
    if recipe.cold_start.checkpoint is not None and recipe.build().cold_start:
        checked.append((recipe.cold_start.checkpoint, "cold_start.checkpoint", None))
    for path, what, revision in checked:
        check_model(path, what, models, revision, chat.vocab)
        check_positions(load_config(path, what, models, revision), recipe, what, teaches=what == "models.teacher")
    return chat
