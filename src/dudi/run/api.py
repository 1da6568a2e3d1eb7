"""The Python interface: what the command line does, with rows, callbacks and monitors of your own.

    import dudi

    recipe = dudi.load_recipe("qwen2.5-0.5b/dudi", ["training.micro_batch=4"])
    folder = dudi.train(recipe, rows=dataset, output="runs/mine")
    table = dudi.evaluate(str(folder / "2-dudi" / "model"), Path("benchmark"), Path("runs/mine/eval"))
    prompts = dudi.verbalize("Apa ibu kota Thailand?", "Bangkok.", "id", to="vi")

`dudi.NAME` loads what NAME needs only when it is asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.languages import ENGLISH, LANGUAGES, language_code
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.signals import Mode, Response, View
from dudi.text.verbalizer import Verbalized, Verbalizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

    from dudi.training.monitors import Monitor

SOURCE = "python/rows"
"""What a run's recipe names as its source where the rows were handed over by a program."""


@dataclass(frozen=True)
class _Handed:
    """Rows that are in memory, as the data loader knows a data set on the hub: one file."""

    name: str
    content: bytes

    def listing(self, repo: str, revision: str | None) -> tuple[str, list[str]]:
        return "in memory", [self.name]

    def open(self, repo: str, revision: str, path: str) -> BinaryIO:
        return io.BytesIO(self.content)


def train(
    recipe: Recipe | str | Path,
    rows: Dataset | Iterable[Mapping[str, Any]] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    monitors: Sequence[Monitor] = (),
    rehearsal: bool = True,
) -> Path:
    """Run a recipe; returns the run's folder, whose last stage holds the result in `model/`.

    rows: in place of `data.source`, a `datasets.Dataset` or mappings in any form that `dudi data check` reads; with a
    `language` each, or one for all in `data.language`. callbacks: transformers' own, of every training. monitors: see
    `dudi.training.monitors`. rehearsal: every stage on a few rows first. Raises `DudiError` for whatever the command
    line would refuse.
    """
    from dudi.data.load import load_rows
    from dudi.run.pipeline import run

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if output is not None:
        recipe = recipe.model_copy(update={"output": str(output)})
    data = None
    if rows is not None:
        handed = recipe.data.model_copy(update={"source": SOURCE, "sources": (), "format": "chat", "revision": None})
        recipe = recipe.model_copy(update={"data": handed})
        data = load_rows(recipe.data, recipe.seed, _handed(rows))
    return run(recipe, resume, monitors, callbacks, data=data, rehearsal=rehearsal)


def _handed(rows: Dataset | Iterable[Mapping[str, Any]]) -> _Handed:
    """Rows as the bytes of a file: a `Dataset` keeps its column types, anything else becomes JSON lines."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    if isinstance(rows, Dataset):
        buffer, table = io.BytesIO(), rows.with_format("arrow")[:]
        pq.write_table(table.replace_schema_metadata(rows.features.arrow_schema.metadata), buffer)
        return _Handed("rows.parquet", buffer.getvalue())
    try:
        lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
    except (TypeError, ValueError) as error:
        raise DudiError(f"rows: expected mappings of plain values, such as JSON has ({error})") from None
    return _Handed("rows.jsonl", "".join(lines).encode())


def verbalize(
    x: str | Sequence[Message],
    y: str,
    language: str,
    to: str | None = None,
    mode: Mode | str = Mode.CROSSLINGUAL,
    languages: Sequence[str] = (),
    seed: int = 0,
    row: int = 0,
) -> Verbalized:
    """The verbalizer's prompts of one row: p_z (`student`) and z (`teacher`) as messages, and l_z.

    x: the question, or all turns before the answer y; language: theirs; to: forces l_z, which is otherwise drawn among
    `languages` (by default the seven that are trained on) and English by (seed, row).
    """
    turns = (Message("user", x),) if isinstance(x, str) else tuple(x)
    view = View(Response.Y_TILDE, Mode(mode))
    example = Example(turns, y, language_code(language), "verbalize")
    wanted = None if to is None else language_code(to)
    return Verbalizer([*(languages or set(LANGUAGES) - {ENGLISH}), example.l], seed)(view, example, 0, row, wanted)
