"""A recipe's rows, tokenizer and templates, checked together before anything is written or a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dudi.data.load import Rows as DataRows
from dudi.data.load import load_rows
from dudi.errors import DudiError
from dudi.example import Example
from dudi.models.load import check_model, embeddings, eos_ids, load_config, load_tokenizer
from dudi.models.positions import check_positions
from dudi.recipe.schema import Limits, Recipe
from dudi.run.limits import Verbalizing, check_limits, kept_and_left_out
from dudi.signals import LossOn, Mode, judged, views
from dudi.text.chat import Chat, check_same_tokenizer, read_template
from dudi.text.special_tokens import Specials
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
    said: tuple[str, ...] = ()
    """What the limits, the template and the tokenizer do to the rows, in lines to be read before the run begins."""

    def lengths(self) -> dict[str, dict[str, Any]]:
        """Per language: rows that train, rows left out (x too long), answers cut, characters per token; and, where
        there are any, rows with a special token in their text, which is read as text, and rows refused, with reasons.
        """
        rows = [row.example.l for row in self.train.rows]
        return {
            l: {
                "rows": rows.count(l),
                "left_out": self.train.left_out[l],
                "cut": self.train.cut[l],
                "characters_per_token": round(self.train.characters[l] / max(self.train.tokens[l], 1), 3),
                **({"special_tokens_in_text": n} if (n := self.train.special[l]) else {}),
                **({"refused": dict(self.train.reasons[l])} if self.train.refused[l] else {}),
            }
            for l in self.languages
        }


def prepare(recipe: Recipe, data: DataRows | None = None) -> Prepared:
    """Read rows (unless given), tokenizers and templates, and check that they fit together; nothing is written.

    The recipe that is returned has its limits filled in. Raises `DudiError` with the first thing that is wrong.
    """
    chat = load_chat(recipe)
    data = data or load_rows(recipe.data, recipe.seed)
    _check_weights(recipe, data)
    languages = recipe.data.languages or tuple(sorted({e.l for e in data.train}))
    limits = recipe.limits
    check_limits(limits, languages)
    verbalizer = Verbalizer(languages, recipe.seed, recipe.data.template_folder)
    for view in views(recipe.to_method().signals):
        verbalizer.check(view, languages)
    train, held_out = (_encoded(recipe, chat, examples) for examples in (data.train, data.eval))
    if not train.rows:
        raise DudiError(_none_left(train, len(data.train), limits))
    lines = kept_and_left_out(train, languages, limits, "training")
    if data.eval:
        lines += kept_and_left_out(held_out, languages, limits, "evaluation")
    signals = recipe.to_method().signals
    for view in views(signals):
        if view.verbalizer is not Mode.NONE:
            verbalizing = Verbalizing(chat, verbalizer, view, view in judged(signals))
            limits = verbalizing.limits(limits, [*train.rows, *held_out.rows])
            lines += verbalizing.lost(limits, train.rows)
    recipe = recipe.model_copy(update={"limits": limits})
    return Prepared(recipe, chat, data, train, held_out, languages, verbalizer, tuple(lines))


def _encoded(recipe: Recipe, chat: Chat, examples: Sequence[Example]) -> Rows:
    """The rows as token ids; one that cannot be is an error where a broken row is one (`data.bad_rows`)."""
    given = recipe.data.bad_rows
    strict = given == "error" or (given is None and recipe.data.format != "sea_instruct")
    return encode_rows(examples, chat, recipe.limits, strict, _reads_all_answers(recipe))


def _reads_all_answers(recipe: Recipe) -> bool:
    """Whether a stage is trained on every answer of a conversation."""
    methods = (recipe.cold_start_method(), recipe.to_method())
    signals = [signal for method in methods if method is not None for signal in method.signals]
    return any(view.loss_on is LossOn.ALL_ASSISTANT for view in views(signals))


def _none_left(rows: Rows, total: int, limits: Limits) -> str:
    refused = sum(rows.reasons.values(), Counter[str]())
    if not refused:
        return f"no row is left: all {total} prompts are longer than limits.prompt = {limits.prompt} tokens"
    reason, _ = refused.most_common(1)[0]
    return (
        f"no row is left: {refused.total()} of {total} are refused ({reason}), the others are longer than limits.prompt"
    )


def _check_weights(recipe: Recipe, data: DataRows) -> None:
    """Raises `DudiError` where answers that the data gives weight 0 would be trained on."""
    row = next((example for example in data.train if example.untrained), None)
    if row is not None and _reads_all_answers(recipe):
        raise DudiError(
            f'row {row.id!r} has earlier answers of weight 0, and loss_on = "all_assistant" would train on them:'
            ' use loss_on = "last", or data.ignore = ["weight"] to train on all answers'
        )


def load_chat(recipe: Recipe) -> Chat:
    """The student's tokenizer with the template that the recipe names; all models are known to exist and to fit."""
    models = recipe.models
    checked = [(models.student, "models.student", models.student_revision)]
    if models.teacher is not None:
        checked.append((models.teacher, "models.teacher", models.teacher_revision))
    tokenizers = [load_tokenizer(path, what, models, revision) for path, what, revision in checked]
    student, teacher = tokenizers[0], tokenizers[1] if len(tokenizers) > 1 else None
    special = Specials(student).ids
    stops = {id for path, what, revision in checked for id in eos_ids(path, what, models, revision, special)}
    template = read_template(recipe.chat.template, student, teacher)
    chat = Chat(student, template, recipe.chat.kwargs, stops, recipe.chat.merge_system)
    if teacher is not None:
        chat.limit(check_same_tokenizer(student, teacher))
    if recipe.cold_start.checkpoint is not None and recipe.to_method().cold_start:
        checked.append((recipe.cold_start.checkpoint, "cold_start.checkpoint", None))
    for path, what, revision in checked:
        chat.limit(embeddings(path, what, models, revision))
        check_model(path, what, models, revision, chat.vocab)
        check_positions(load_config(path, what, models, revision), recipe, what, teaches=what == "models.teacher")
    return chat
