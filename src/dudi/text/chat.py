"""Messages <-> token ids through a model's own chat template.

Only the template decides what a turn looks like (default system prompt, thinking block, date); nothing of it is known
here. A conversation is rendered once and tokenized once. The prompt is what the template renders with a generation
prompt, the response is what it renders after that, up to and with the token that ends the turn, which is also where
rollouts stop; where each of them ends is a place in that one text (`dudi.text.borders`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.files import write_text
from dudi.text.borders import Pieces
from dudi.text.rendering import left_out, read_template_file, render
from dudi.text.special_tokens import Specials
from dudi.text.template import MERGE_SYSTEM, NO_DATE, merged, no_template, with_values

KWARGS = "chat_kwargs.json"
"""Beside a saved tokenizer: the `chat.kwargs` that are written into its template."""
_TOGETHER = 256
"""Rows tokenized in one call."""
_FIX_DATE = (
    "set chat.template to a copy of it with a date in place of strftime_now",
    'fix it, such as chat.kwargs = { date_string = "26 Jul 2024" }',
)
_PROBE = (Message("user", "?"),)
_PROBES = (_PROBE, (Message("system", "!"), *_PROBE))


@dataclass(frozen=True)
class _Span:
    """An assistant turn in a rendered text: text[start:end], and whether the token that ends the turn stands there."""

    start: int
    end: int
    closed: bool


class Chat:
    """One tokenizer with one chat template.

    stops: what the models' own generation configs stop at. merge_system: a system turn stands at the head of the first
    user turn, for templates that refuse one.
    turn_end: id of the token that ends an answer; stop_ids: ids at which a rollout stops; vocab: number of token ids
    (model heads may be padded beyond it). Raises `DudiError` where the template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        kwargs: Mapping[str, Any],
        stops: Iterable[int] = (),
        merge_system: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template
        self.kwargs = dict(kwargs)
        self.specials = Specials(tokenizer)
        self.pieces = Pieces(tokenizer, self.specials)
        if not isinstance(self.template, str):
            raise DudiError(
                'the tokenizer has no chat template (base models have none): set chat.template to "teacher" with a'
                " models.teacher that has one, or to the path of a Jinja file"
            )
        if merge_system and MERGE_SYSTEM not in self.template:
            self.template = MERGE_SYSTEM + self.template
        self.vocab = max(tokenizer.get_vocab().values()) + 1
        prompt = self._render(_PROBE, True, trial=True)
        self._check_template()
        full = self._render((*_PROBE, Message("assistant", "0")), False, trial=True)
        if not full.startswith(prompt) or "0" not in full[len(prompt) :]:
            raise DudiError(
                f"the chat template does not continue its own generation prompt, which ends with {prompt[-20:]!r}: it"
                " cannot be trained with; set chat.kwargs where it has a switch for this, such as enable_thinking ="
                " false, or chat.template to a copy that does"
            )
        ended = self._render(_PROBE, False, trial=True)
        self._opening = len(prompt) - len(ended) if prompt.startswith(ended) else 0
        self._read_end(full[len(prompt) :].rpartition("0")[2])
        eos = self.turn_end if tokenizer.eos_token_id is None else tokenizer.eos_token_id  # an id may be 0
        self.stop_ids = tuple(sorted(id for id in {self.turn_end, eos, *stops} if 0 <= id < self.vocab))
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.turn_end

    def _check_template(self) -> None:
        """That the template writes the same every day, and can be saved with its `chat.kwargs` in it."""
        assert self.template is not None
        saved = self.saved_template
        for probe in _PROBES:
            try:
                text = self._render(probe, True, trial=True)
            except DudiError:
                continue  # a turn that it refuses
            if "strftime_now" in self.template and self._rendered(NO_DATE + self.template, self.kwargs, probe) is None:
                raise DudiError(
                    "the chat template prints today's date, so that the same run differs from day to day: "
                    + _FIX_DATE["date_string" in self.template]
                )
            if self._rendered(saved, {}, probe) != text:
                raise DudiError(
                    f"chat.kwargs ({', '.join(self.kwargs)}) cannot be written into the chat template: a model trained"
                    " with them would be asked without them"
                )

    @property
    def saved_template(self) -> str:
        """The template that goes with the result: without any arguments it writes what it wrote in training."""
        assert self.template is not None
        return with_values(self.template, self.kwargs, self.tokenizer.special_tokens_map)

    def _read_end(self, tail: str) -> None:
        """How an answer ends, from what the template writes after one: the text before the turn-end token (Llama-2's
        space), and that token, which is the tokenizer's EOS where the template has none."""
        self.tail = tail
        place = self.specials.first(tail)
        self._lead = "" if place is None else tail[:place]
        end = None if place is None else self.specials.at(tail, place)
        self._closing, turn_end = end or ("", self.tokenizer.eos_token_id)
        if turn_end is None:
            raise DudiError("neither the chat template nor the tokenizer has a token that ends an answer (eos_token)")
        self.turn_end: int = turn_end

    def limit(self, ids: int) -> None:
        """Use no token from id `ids` on, where all of those are added ones (a placeholder for images, another member's
        tool tokens): models have no embedding for them, and heads are cut there. A text that holds one is refused.

        Where ordinary tokens are among them, nothing is done: the model is of another tokenizer.
        """
        beyond = [id for id in self.tokenizer.get_vocab().values() if id >= ids]
        if ids >= self.vocab or not all(id in self.tokenizer.added_tokens_decoder for id in beyond):
            return
        self.vocab = ids
        for probe in (self._render(_PROBE, True), self._render((*_PROBE, Message("assistant", "0")), False)):
            self._known(self.specials.encode(probe), "the chat template writes")
        self._known([self.turn_end], "an answer ends with")
        self.stop_ids = tuple(id for id in self.stop_ids if id < ids)
        self.pad = self.pad if self.pad < ids else self.turn_end

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt: all turns, and the opening of the answer."""
        return self._known(self._ids(self._render(messages, True)))

    def response(self, x: Sequence[Message], y: str) -> list[int]:
        """The ids of y after the prompt x, with the token that ends the turn."""
        return self.row(x, y)[1]

    def row(self, x: Sequence[Message], y: str) -> tuple[list[int], list[int]]:
        """The ids of x, as `prompt` gives them, and of y, as `response` does. Raises `DudiError` for a row that the
        template or the tokenizer refuses."""
        return self._row(*self._answer((*x, Message("assistant", y))))

    def rows(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], list[int]] | DudiError]:
        """The same for each row, many at a time; an error is given in place of a row that is refused."""
        for start in range(0, len(examples), _TOGETHER):
            rendered: list[tuple[str, _Span] | DudiError] = []
            for example in examples[start : start + _TOGETHER]:
                try:
                    rendered.append(self._answer((*example.x, Message("assistant", example.y))))
                except DudiError as error:
                    rendered.append(error)
            self.specials.ahead(text[: span.end] for one in rendered if isinstance(one, tuple) for text, span in [one])
            for one in rendered:
                try:
                    yield one if isinstance(one, DudiError) else self._row(*one)
                except DudiError as error:
                    yield error

    def _row(self, text: str, span: _Span) -> tuple[list[int], list[int]]:
        prompt, content = self.pieces(text[: span.end], [span.start])
        self._known([*prompt, *content])
        return prompt, [*content, self.turn_end]

    def conversation(self, x: Sequence[Message], y: str) -> tuple[list[int], list[int]]:
        """The ids of a whole conversation and the positions of all assistant tokens in it (turn ends included).

        An earlier turn has its end where the template writes one; y has it always, as in `response`.
        """
        messages = (*x, Message("assistant", y))
        whole, last = self._answer(messages)
        turns = [k for k, message in enumerate(x) if message.role == "assistant"]
        spans = [*(self._earlier(whole, messages[: k + 1]) for k in turns), last]
        pieces = self.pieces(whole[: last.end], [place for span in spans for place in (span.start, span.end)][:-1])
        ids: list[int] = []
        targets: list[int] = []
        for k, piece in enumerate(pieces):
            if k % 2:
                assert not spans[k // 2].closed or pieces[k + 1][0] in self.specials.ids
                targets += range(len(ids), len(ids) + len(piece) + spans[k // 2].closed)
            ids += piece
        targets.append(len(ids))
        return [*self._known(ids), self.turn_end], targets

    def special_text(self, example: Example) -> str | None:
        """The first special token that stands in a row's text, where it is read as text."""
        return self.specials.in_row(example)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included: for people to read, never to be tokenized again."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def save(self, folder: str | Path) -> None:
        """Tokenizer and template files, so that the result is asked with the template it was trained with."""
        self.tokenizer.chat_template = self.saved_template
        self.tokenizer.save_pretrained(str(folder))
        if self.kwargs:
            write_text(Path(folder) / KWARGS, json.dumps(self.kwargs, indent=1, ensure_ascii=False))

    def _answer(self, messages: Sequence[Message]) -> tuple[str, _Span]:
        """A rendered conversation, and its last turn in it. Raises `DudiError` where the template refuses it, or leaves
        out a part of it."""
        try:
            return self._written(messages)
        except DudiError as error:
            if messages[0].role != "system" or len(messages) < 3 or not self._takes(merged(messages)):
                raise
            raise DudiError(f"{error}; chat.merge_system (--merge-system) puts a system turn into the user's") from None

    def _takes(self, messages: Sequence[Message]) -> bool:
        try:
            self._written(messages)
        except DudiError:
            return False
        return True

    def _written(self, messages: Sequence[Message]) -> tuple[str, _Span]:
        marked = self._marked(messages)
        prompt, full = self._render(messages[:-1], True), self._render(messages, False)
        if not full.startswith(prompt) or not full.endswith(self.tail) or len(full) < len(prompt) + len(self.tail):
            raise DudiError("the chat template does not continue its own generation prompt for this conversation")
        if role := left_out(marked[:-1], prompt):
            raise DudiError(f"the chat template leaves out or rewrites the text of a turn ({role})")
        # As a user's, since nothing of y may be missing; reasoning may begin in the opening (`<think>`).
        if left_out([{**marked[-1], "role": "user"}], full[len(prompt) - self._opening :]):
            raise DudiError("the chat template leaves out or rewrites a part of the answer")
        return full, _Span(len(prompt), len(full) - len(self.tail) + len(self._lead), False)

    def _earlier(self, whole: str, messages: Sequence[Message]) -> _Span:
        """The last of some turns, in the rendering of a conversation that goes on after it."""
        text, span = self._answer(messages)
        end = len(text) - len(self.tail)
        if whole[:end] != text[:end]:
            raise DudiError(
                "the chat template writes earlier turns in another way once a conversation goes on, so their loss"
                ' cannot be taken in one pass: use loss_on = "last"'
            )
        if self._closing and whole.startswith(self._lead + self._closing, end):
            return _Span(span.start, span.end, True)
        end_token = self.specials.at(whole, end)  # some end a turn with the token that opens the next
        return _Span(span.start, end, end_token is not None and end_token[1] in self.stop_ids)

    def _render(self, messages: Sequence[Message], prompt: bool, trial: bool = False) -> str:
        """The template's text; special tokens that stand in messages are marked in it (`dudi.text.special_tokens`)."""
        assert self.template is not None
        return render(self.tokenizer, self.template, self._marked(messages), prompt, self.kwargs, trial)

    def _marked(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        return [{"role": m.role, "content": self.specials.mark(m.content)} for m in messages]

    def _rendered(self, template: str, kwargs: Mapping[str, Any], messages: Sequence[Message]) -> str | None:
        """What another template writes for a prompt; None where it refuses."""
        try:
            return render(self.tokenizer, template, [m.as_dict() for m in messages], True, kwargs, trial=True)
        except DudiError:
            return None

    def _ids(self, text: str) -> list[int]:
        return self.specials.encode(text)

    def _known(self, ids: list[int], where: str = "the text holds") -> list[int]:
        """The ids, all of which the models know. Raises `DudiError`."""
        highest = max(ids, default=0)
        if highest >= self.vocab:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise DudiError(f"{where} {token!r}, a token that not all models of this run have")
        return ids


def read_template(choice: str, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None) -> str | None:
    """The template that `chat.template` names: "teacher", "student", or a file."""
    if choice == "student" or (choice == "teacher" and teacher is None):
        return student.chat_template
    if choice == "teacher":
        assert teacher is not None
        return teacher.chat_template
    try:
        return read_template_file(Path(choice))
    except (OSError, ValueError):
        raise no_template(choice) from None
