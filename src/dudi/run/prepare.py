"""A recipe's rows, tokenizer and templates, checked together before anything is written or a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dudi.data.formats import SEA_INSTRUCT
from dudi.data.load import Rows as DataRows
from dudi.data.load import load_rows
from dudi.data.settings import parts_of
from dudi.errors import DudiError
from dudi.models.load import check_model, embeddings, eos_ids, load_config, load_tokenizer, own_tokenizer
from dudi.models.positions import check_positions
from dudi.models.quantised import check_backend, check_plain
from dudi.recipe.schema import Limits, Recipe
from dudi.run.limits import Verbalizing, kept_and_left_out
from dudi.run.paths import check_adapter, check_quantization, named, quantised
from dudi.run.settings import check_limits
from dudi.run.shares import shares_of_languages
from dudi.signals import LossOn, Mode, judged, views
from dudi.text.chat import Chat, read_template
from dudi.text.special_tokens import Specials
from dudi.text.verbalizer import Verbalizer
from dudi.text.vocabulary import check_same_tokenizer
from dudi.training.phases import Phases
from dudi.training.tokens import Encoding, encodings, key_of, read_encodings, write_encodings
from dudi.training.window import Rows, encode_rows


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything that can be checked without loading a model."""

    recipe: Recipe
    """With its limits filled in."""
    given: Recipe
    """As it was given: what a run's folder holds, and what it is resumed with."""
    chat: Chat
    data: DataRows
    train: Rows
    eval: Rows
    languages: tuple[str, ...]
    verbalizer: Verbalizer
    said: tuple[str, ...] = ()
    """What the limits, the template and the tokenizer do to the rows, in lines to be read before the run begins."""
    tokens: tuple[tuple[str, str | None, list[Encoding]], ...] = ()

    def keep_tokens(self, folder: Path) -> None:
        """Write the rows' token ids, for the next start of this run."""
        for file, key, ids in self.tokens:
            if key is not None:
                write_encodings(folder / file, key, ids)

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


def prepare(
    recipe: Recipe, data: DataRows | None = None, kept: Path | None = None, phases: Phases | None = None
) -> Prepared:
    """Read rows (unless given), tokenizers and templates, and check that they fit together; nothing is written.

    kept: where an earlier start kept the rows' token ids. phases: told of the time. The recipe that is returned has
    its limits filled in. Raises `DudiError` with the first thing that is wrong.
    """
    phases = phases or Phases()
    check_adapter(recipe)
    check_quantization(recipe)
    with phases.outside("reading", "reading the rows"):
        chat, configs = load_chat(recipe)
        data = data or load_rows(recipe.data, recipe.seed)
        verbalizer = _checked(recipe, data)
    with phases.outside("tokenizing", "tokenizing the rows"):
        return _tokenized(recipe, chat, configs, data, verbalizer, kept)


def _checked(recipe: Recipe, data: DataRows) -> Verbalizer:
    """The verbalizer of these rows, with everything that can be known of them as text checked."""
    _check_weights(recipe, data)
    languages = recipe.data.languages or tuple(sorted({e.l for e in data.train}))
    check_limits(recipe.limits, languages)
    verbalizer = Verbalizer(languages, recipe.seed, recipe.data.template_folder)
    for view in views(recipe.to_method().signals):
        verbalizer.check(view, languages)
    return verbalizer


def _tokenized(
    recipe: Recipe,
    chat: Chat,
    configs: Mapping[str, Any],
    data: DataRows,
    verbalizer: Verbalizer,
    kept: Path | None,
) -> Prepared:
    """The rows as token ids, and what the limits do to them."""
    limits, languages = recipe.limits, recipe.data.languages or verbalizer.languages
    tokens = tuple(_tokens(recipe, chat, data, kept))
    bad_rows = recipe.data.bad_rows  # a row that cannot be read is an error where a broken one is
    skips = all(part.data.format == SEA_INSTRUCT for part in parts_of(recipe.data))
    strict = bad_rows == "error" or (bad_rows is None and not skips)
    train, held_out = (
        encode_rows(examples, chat, limits, strict, ids)
        for examples, (_, _, ids) in zip((data.train, data.eval), tokens, strict=True)
    )
    if not train.rows:
        raise DudiError(_none_left(train, len(data.train), limits))
    lines = [*data.report.notes, *(one.line() for one in data.report.sources)]
    lines += kept_and_left_out(train, languages, limits, "training")
    lines += shares_of_languages(recipe, languages, train.rows)
    if data.eval:
        lines += kept_and_left_out(held_out, languages, limits, "evaluation")
    signals = recipe.to_method().signals
    for view in views(signals):
        if view.verbalizer is not Mode.NONE:
            verbalizing = Verbalizing(chat, verbalizer, view, view in judged(signals))
            limits = verbalizing.limits(limits, [*train.rows, *held_out.rows])
            lines += verbalizing.lost(limits, train.rows) + verbalizing.lost(limits, held_out.rows, held_out=True)
    given = recipe
    if limits != recipe.limits:
        recipe = recipe.model_copy(update={"limits": limits})
        _check_positions(recipe, configs)
    return Prepared(recipe, given, chat, data, train, held_out, languages, verbalizer, tuple(lines), tokens)


def _tokens(
    recipe: Recipe, chat: Chat, data: DataRows, kept: Path | None
) -> Iterator[tuple[str, str | None, list[Encoding]]]:
    """The training rows and the evaluation rows as token ids: (file, key, ids). kept: a folder of an earlier start."""
    all_answers = _reads_all_answers(recipe)
    for name, examples in (("train", data.train), ("eval", data.eval)):
        file, key = f"tokens-{name}.npz", key_of(examples, chat, all_answers)
        found = None if kept is None else read_encodings(kept / file, key)
        yield file, key, encodings(examples, chat, all_answers) if found is None else found


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


def load_chat(recipe: Recipe) -> tuple[Chat, dict[str, Any]]:
    """The student's tokenizer with the template that the recipe names, and the models' configs by their keys; all
    models are known to exist and to fit."""
    models, checked = recipe.models, named(recipe)
    for key, bits in quantised(recipe).items():
        check_backend(key, bits)
    both = {what: one for what, one in checked.items() if what.startswith("models.")}
    tokenizers = [load_tokenizer(path, what, models, revision) for what, (path, revision) in both.items()]
    configs = {what: load_config(path, what, models, revision) for what, (path, revision) in checked.items()}
    student, teacher = tokenizers[0], tokenizers[1] if len(tokenizers) > 1 else None
    special = Specials(student).ids
    stops = {id for what, (path, rev) in both.items() for id in eos_ids(configs[what], path, what, rev, special)}
    template = read_template(recipe.chat.template, student, teacher)
    chat = Chat(student, template, recipe.chat.kwargs, stops, recipe.chat.merge_system)
    if teacher is not None:
        chat.limit(check_same_tokenizer(student, teacher))
    for what, (path, revision) in checked.items():
        chat.limit(embeddings(configs[what], path, what))
        if what not in both and (own := own_tokenizer(path, what, models)) is not None:
            chat.limit(check_same_tokenizer(student, own, what))
        check_model(configs[what], path, what, models, revision, chat.vocab, trained=what != "models.teacher")
    if models.teacher is not None and models.teacher_quantization is not None:
        check_plain(configs["models.teacher"], models.teacher, "models.teacher_quantization")
    _check_positions(recipe, configs)
    return chat, configs


def _check_positions(recipe: Recipe, configs: Mapping[str, Any]) -> None:
    for what, config in configs.items():
        check_positions(config, recipe, what, teaches=what == "models.teacher")
