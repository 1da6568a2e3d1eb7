"""Examples and views -> Blocks: verbalize, sample, tokenize, count, pad.

`Rows` holds the training rows as token ids within their limits. `build_window` makes everything one optimizer step of
this process reads: for each view and row an `Item`, whose response is the gold y, a stored text, or sampled now, all
sampled views in one call. `collate` pads some of its rows into Blocks of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.example import Example
from dudi.loss.prefix import padded
from dudi.loss.scores import Block, Reading
from dudi.recipe.schema import Limits
from dudi.rollouts import Engine, Request, Rollout
from dudi.signals import LossOn, Signal, View, judged, views
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training.tokens import Encoding, encodings


@dataclass(frozen=True)
class Row:
    """One training row as token ids. index: its number in the data, which keys its random numbers; x: the prompt;
    y: the answer with its turn end, or cut on the right without one (`y_cut`); turns: the whole conversation and the
    positions of all its answers, where these are trained on."""

    index: int
    example: Example
    x: tuple[int, ...]
    y: tuple[int, ...]
    y_cut: bool
    turns: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Rows:
    """Rows within their limits, and per language what the limits did and how dense the tokens are."""

    rows: tuple[Row, ...]
    left_out: Counter[str]  # x longer than limits.prompt
    cut: Counter[str]  # y cut at limits.total
    tokens: Counter[str]
    characters: Counter[str]
    special: Counter[str] = field(default_factory=Counter)  # with a special token in their text, read as text
    refused: Counter[str] = field(default_factory=Counter)  # that template or tokenizer refuse: left out
    reasons: dict[str, Counter[str]] = field(default_factory=dict)  # why, by language


def encode_rows(
    examples: Sequence[Example],
    chat: Chat,
    limits: Limits,
    strict: bool = False,
    kept: Sequence[Encoding] | None = None,
) -> Rows:
    """x and y of every row as token ids, within the limits. x too long: the row is left out; y too long: cut on the
    right, without its end. A question is never cut.

    A row that the template or the tokenizer refuses is left out and counted, or, if `strict`, a `DudiError` that names
    it. kept: the rows' token ids, where they are known.
    """
    found = Rows((), Counter(), Counter(), Counter(), Counter())
    rows = []
    encoded = encodings(examples, chat) if kept is None else kept
    for index, (example, one) in enumerate(zip(examples, encoded, strict=True)):
        found.special[example.l] += chat.special_text(example) is not None
        if one.refused is not None:
            if strict:
                raise DudiError(f'{example.id}: {one.refused}; data.bad_rows = "skip" leaves such rows out')
            found.refused[example.l] += 1
            found.reasons.setdefault(example.l, Counter())[one.refused] += 1
            continue
        found.tokens[example.l] += len(one.y) - 1
        found.characters[example.l] += len(example.y)
        if len(one.x) > limits.of("prompt", example.l):
            found.left_out[example.l] += 1
            continue
        room = max(limits.of("total", example.l) - len(one.x), 1)
        found.cut[example.l] += len(one.y) > room
        rows.append(Row(index, example, one.x, one.y[:room], len(one.y) > room, one.turns))
    return replace(found, rows=tuple(rows))


@dataclass(frozen=True)
class Item:
    """One row through one view: what the student reads, what the teacher reads, the response, and which positions of
    student prompt + response carry loss (all of the response, unless `targets` says otherwise)."""

    student: tuple[int, ...]
    teacher: tuple[int, ...] | None
    response: tuple[int, ...]
    finished: bool
    l_z: str | None = None
    targets: tuple[int, ...] | None = None

    @property
    def counted(self) -> int:
        """How many positions those are."""
        return len(self.response) if self.targets is None else len(self.targets)


@dataclass
class Window:
    """All rows of one optimizer step of this process.

    weight: by row 1, or 0 for rows that only fill up the batch; items: by view, one for each row, None where the row
    has no such view; dropped: (view name, language) -> rows without a term because p_z or z is too long.
    """

    rows: list[Row]
    weight: list[float]
    items: dict[View, list[Item | None]]
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def counts(self, signals: Sequence[Signal]) -> dict[str, float]:
        """For each signal, the tokens (or rows, for sequence signals) that count, in this window."""
        return {s.name: s.count(self.items, self.weight) for s in signals}

    def micro_batches(self, rows: int, tokens: int) -> Iterator[list[int]]:
        """Row numbers, at most `rows` and at most `tokens` padded student tokens at a time (one row always fits).

        Longest rows first: rows of a micro-batch are of similar lengths, and memory shows at once whether it is enough.
        """
        sizes = [[len(i.student) + len(i.response) if i else 0 for i in items] for items in self.items.values()]
        batch: list[int] = []
        widest = [0] * len(sizes)
        for row in sorted(range(len(self.rows)), key=lambda row: -sum(size[row] for size in sizes)):
            wider = [max(w, size[row]) for w, size in zip(widest, sizes, strict=True)]
            if batch and (len(batch) == rows or (len(batch) + 1) * sum(wider) > tokens):
                yield batch
                batch, wider = [], [size[row] for size in sizes]
            batch.append(row)
            widest = wider
        if batch:
            yield batch


@dataclass(frozen=True)
class WindowBuilder:
    """What turns rows into a window. stored: row index -> the response a generation stage wrote for it; salt: keeps
    the random numbers of evaluation and generation apart from those of training."""

    chat: Chat
    verbalizer: Verbalizer
    limits: Limits
    engine: Engine
    seed: int
    stored: Mapping[int, Rollout] = field(default_factory=dict)
    salt: str = "train"

    def build(
        self, model: PreTrainedModel, signals: Sequence[Signal], rows: list[Row], weight: list[float], epoch: int
    ) -> Window:
        """Verbalize, then sample all sampled views of all rows in one call, on token ids throughout."""
        window = Window(rows, weight, {})
        scored = judged(signals)
        requests: list[Request] = []
        waiting: list[tuple[View, int, Item]] = []
        for view in views(signals):
            items: list[Item | None] = []
            for place, row in enumerate(rows):
                item = self._item(view, row, epoch, view in scored, window)
                items.append(item)
                if item is not None and view.response.sampled:
                    key = (self.salt, self.seed, epoch, row.index, view.name)
                    requests.append(Request(item.student, key, self.limits.of("rollout", row.example.l)))
                    waiting.append((view, place, item))
            window.items[view] = items
        for (view, place, item), rollout in zip(waiting, self.engine(model, requests), strict=True):
            window.items[view][place] = Item(item.student, item.teacher, rollout.ids, rollout.finished, item.l_z)
        return window

    def fixed(self, signals: Sequence[Signal], rows: Sequence[Row]) -> Window:
        """Rows through those views that are the same in every epoch (`View.fixed`): nothing is sampled."""
        scored = judged(signals)
        window = Window([*rows], [1.0] * len(rows), {})
        for view in views(signals):
            if view.fixed:
                window.items[view] = [self._item(view, row, 0, view in scored, window) for row in rows]
        return window

    def _item(self, view: View, row: Row, epoch: int, judged: bool, window: Window) -> Item | None:
        """A row through a view; sampled responses are filled in later."""
        if view.loss_on is LossOn.ALL_ASSISTANT:
            return self._conversation(row)
        student, teacher, l_z = row.x, row.x, None
        if view.verbalizer.value != "none":
            v = self.verbalizer(view, row.example, epoch, row.index)
            student = row.x if v.student == row.example.x else tuple(self.chat.prompt(v.student))
            teacher, l_z = tuple(self.chat.prompt(v.teacher)), v.l_z
            l = row.example.l
            room = self.limits.of("prompt", l) + self.limits.of("verbalizer", l)
            longer = self.limits.verbalizer is not None and len(student) > room
            if longer or (judged and len(teacher) > self.limits.of("teacher_prompt", l)):
                window.dropped[view.name, l] += 1
                return None
        response, finished = row.y, not row.y_cut
        if view.response.stored:
            response, finished = self.stored[row.index].ids, self.stored[row.index].finished
        return Item(student, teacher if judged else None, response, finished, l_z)

    def _conversation(self, row: Row) -> Item:
        """Loss on every assistant turn: the whole conversation is scored, within limits.total."""
        ids, targets = row.turns or self.chat.conversation(row.example.x, row.example.y)
        room = self.limits.of("total", row.example.l)
        kept = tuple(t for t in targets if t < room)
        return Item(tuple(ids[: targets[0]]), None, tuple(ids[targets[0] : room]), not row.y_cut, targets=kept)


def collate(window: Window, places: Sequence[int], pad: int, device: torch.device) -> dict[View, Block]:
    """Pad some rows of a window into Blocks. Views that none of them has are left out."""
    blocks = {}
    for view, items in window.items.items():
        chosen = [(k, item) for k, place in enumerate(places) if (item := items[place]) is not None]
        if not chosen:
            continue
        targets = [
            range(len(i.student), len(i.student) + len(i.response)) if i.targets is None else i.targets
            for _, i in chosen
        ]
        whole = [i.student + i.response for _, i in chosen]
        read = [(i.student, i.response) for _, i in chosen]
        student = _reading(read, [[t - 1 for t in ts] for ts in targets], pad, device)
        teacher = None
        if chosen[0][1].teacher is not None:
            prompts = [i.teacher or () for _, i in chosen]
            ends = [[len(p) - 1 + t for t in range(len(i.response))] for p, (_, i) in zip(prompts, chosen, strict=True)]
            same = all(p == i.student for p, (_, i) in zip(prompts, chosen, strict=True))
            both = [(p, i.response) for p, (_, i) in zip(prompts, chosen, strict=True)]
            teacher = student if same else _reading(both, ends, pad, device)
        weight = [window.weight[places[k]] for k, _ in chosen]
        lengths = torch.tensor([len(ts) for ts in targets], device=device)
        blocks[view] = Block(
            view,
            student,
            teacher,
            labels=_flat([[ids[t] for t in ts] for ids, ts in zip(whole, targets, strict=True)], device),
            row=torch.tensor([k for k, _ in chosen], device=device).repeat_interleave(lengths),
            position=_flat([range(len(ts)) for ts in targets], device),
            weight=torch.tensor(weight, device=device).repeat_interleave(lengths),
            rows=len(places),
        )
    return blocks


def _reading(
    both: list[tuple[tuple[int, ...], tuple[int, ...]]], predicts: list[list[int]], pad: int, device: torch.device
) -> Reading:
    """both: prompt and response of each sequence."""
    ids = [prompt + response for prompt, response in both]
    table = padded(ids, pad, device)
    flat = _flat([[b * table.shape[1] + t for t in ts] for b, ts in enumerate(predicts)], device)
    return Reading(table, flat, tuple(prompt for prompt, _ in both), tuple(response for _, response in both))


def _flat(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.long, device=device)
