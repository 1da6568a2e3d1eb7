"""What a model is worth in a second stage: on held-out items in other phrasings, or on those it was trained on.

As a teacher, for every mode of the verbalizer: how often its answer to z is in the language asked for, and how often it
is right; and whether the demonstration helps: the log-probability of the right answer in l_z after z, beside that after
p_z, which asks for the same without showing y. As a student: how often what it samples after p_z is in l_z. By the
product's own evaluation, from a benchmark folder for each.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.evals.evaluate import evaluate, writing
from dudi.evals.respond import Responder, load_responder
from dudi.example import Example, Message
from dudi.files import read_lines, write_text
from dudi.lab.artefacts import benchmark_item, describe, lay_out
from dudi.lab.rows import TRAINED, Split, answer, item
from dudi.lab.tasks import TASKS, Key
from dudi.lab.words import load
from dudi.lock import locked
from dudi.recipe.read import load_recipe
from dudi.records import Table
from dudi.signals import Mode, Response, View
from dudi.strict import read_one
from dudi.text.verbalizer import Verbalizer

MODES = (Mode.NONE, Mode.ENGLISH, Mode.MULTILINGUAL, Mode.CROSSLINGUAL)
RESULT = "measure.json"


@dataclass(frozen=True)
class Asked:
    """One item with its task and key."""

    task: str
    key: Key
    row: Example

    def item(self, text: str, l_z: str | None) -> dict[str, Any]:
        """The row as a benchmark's item: `text` asks for an answer in l_z, or else in the task's own language."""
        language = l_z or TASKS[self.task].language(self.row.l, self.key)
        return benchmark_item(self.task, self.key, self.row.l, language, text, self.row.id, written=True)


def items_of(part: Split, each: int, seed: int = 0) -> Iterator[Asked]:
    """Items of every language and task: of the training part in phrasings of training, or else in those of the test."""
    for l in TRAINED:
        for name, task in TASKS.items():
            rng, seen = random.Random(draw("measure", name, l, seed)), set[tuple[str, Key, str]]()
            number, before = 0, ""
            while number < each and (key := item(rng, name, l, part, seen)) is not None:
                y = answer(name, key, l)
                if task.choices and y == before:
                    continue  # labels by turns: balanced accuracy needs both
                ways = task.ask(load(l), key)
                text = rng.choice(ways.train if part == "train" else ways.test)
                yield Asked(name, key, Example((Message("user", text),), y, l, f"{name}-{l}-{number:03d}"))
                number, before = number + 1, y


def measure(
    model: str, folder: Path, each: int = 6, part: Split = "test", say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Share in the asked language, score by what is read, gain by the demonstration; also as measure.json.

    An earlier measurement of the same model in `folder` is replaced, that of another is left. Raises `DudiError`.
    """
    responder = load_responder(model)  # one that cannot be read is refused before anything is written
    with writing(folder), locked(folder):
        _make_room(folder / RESULT, model)
        rows, verbalizer = list(items_of(part, each)), Verbalizer(TRAINED)
        found: dict[str, Any] = {"model": model, "part": part, "each": each, "items": len(rows), "modes": {}}
        languages = {one.row.id: one.row.l for one in rows}
        for mode in MODES:
            table = ask(model, folder, mode.value, read_by("teacher", rows, verbalizer, mode), say)
            found["modes"][mode.value] = {
                **shares(folder / f"eval-{mode.value}", languages),
                "score": {l: table.by_language[l].mean for l in TRAINED},
                "overall": table.overall.mean,
            }
        found["rollouts"] = rollouts(model, folder, rows, verbalizer, say)
        found["demonstration"] = demonstration(responder, rows, verbalizer)
        write_text(folder / RESULT, json.dumps(found, indent=1))
    return found


def _make_room(result: Path, model: str) -> None:
    """Take an earlier measurement of this model away, so that none is left beside the answers of a later one."""
    if result.exists():
        if (theirs := read_one(dict[str, Any], result).get("model")) != model:
            raise DudiError(f"{result}: a measurement of {theirs or 'another model'}; give another --output")
        result.unlink()


def shares(evaluation: Path, groups: Mapping[str, str]) -> dict[str, Any]:
    """Of an evaluation's answers whose language can be told, the share in the one asked for: by group, and of all; and
    how many they are. groups: of each item."""
    told: dict[str, list[bool]] = {group: [] for group in dict.fromkeys(groups.values())}
    for line in read_lines(evaluation / "responses-0.jsonl"):
        if line["in_language"] is not None:
            told[groups[line["id"]]].append(line["in_language"])
    everything = [one for given in told.values() for one in given]
    return {
        "in_language": {group: _mean(given) for group, given in told.items()},
        "told": {group: len(given) for group, given in told.items()},
        "all": _mean(everything),
    }


def _mean(given: list[bool]) -> float | None:
    return sum(given) / len(given) if given else None


def read_by(
    reader: Literal["teacher", "student"], rows: list[Asked], verbalizer: Verbalizer, mode: Mode
) -> list[dict[str, Any]]:
    """What the teacher (x or z) or the student (x or p_z) reads in one mode, as items of the row's language."""
    items = []
    for number, asked in enumerate(rows):
        read = verbalizer(View(Response.Y_TILDE, mode), asked.row, 0, number)
        prompt = read.teacher if reader == "teacher" else read.student
        items.append(asked.item(prompt[-1].content, read.l_z))
    return items


def ask(
    model: str,
    folder: Path,
    name: str,
    items: list[dict[str, Any]],
    say: Callable[[str], None],
    temperature: float = 0.0,
) -> Table:
    """The evaluation FOLDER/eval-NAME on a benchmark of these items, FOLDER/NAME."""
    lay_out(folder / name, describe(f"lab-{name}", 64, written=True), {"items": items})
    return evaluate(model, folder / name, folder / f"eval-{name}", temperature=temperature, say=say, overwrite=True)


def rollouts(
    model: str, folder: Path, rows: list[Asked], verbalizer: Verbalizer, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Share of sampled answers to p_z that are in l_z, by l_z, at the temperature of the lab's DuDi."""
    items = read_by("student", rows, verbalizer, Mode.CROSSLINGUAL)
    ask(model, folder, "p_z", items, say, load_recipe("lab/dudi").rollouts.temperature)
    return shares(folder / "eval-p_z", {item["id"]: item["response_language"] for item in items})


def demonstration(responder: Responder, rows: list[Asked], verbalizer: Verbalizer) -> dict[str, Any]:
    """Mean log-probability of the right answer in l_z after z and after p_z, and how often z is the better one."""
    chat, view = responder.chat, View(Response.Y_TILDE, Mode.CROSSLINGUAL)
    with_y: list[float] = []
    without_y: list[float] = []
    for number, asked in enumerate(rows):
        read = verbalizer(view, asked.row, 0, number)
        y = answer(asked.task, asked.key, asked.row.l, read.l_z)
        for prompt, scores in ((read.teacher, with_y), (read.student, without_y)):
            scores.append(log_prob(responder, chat.prompt(prompt), chat.response(prompt, y)))
    better = sum(a > b for a, b in zip(with_y, without_y, strict=True))
    n = len(rows)
    return {"after_z": sum(with_y) / n, "after_p_z": sum(without_y) / n, "z_better": better / n}


@torch.no_grad()
def log_prob(responder: Responder, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt), in nats."""
    ids = torch.tensor([prompt + response], device=responder.model.device)
    logits = responder.model(input_ids=ids, logits_to_keep=len(response) + 1).logits[0, :-1]
    chosen = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
    return float(chosen.sum())
