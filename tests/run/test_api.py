"""The Python interface: a recipe, rows and callbacks of one's own, an evaluation, the verbalizer's prompts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kit
import pytest
from datasets import Dataset
from kit.command import Dudi
from transformers import TrainerCallback

import dudi as package
from dudi.errors import DudiError
from dudi.example import Message
from dudi.run.pipeline import run
from dudi.signals import Mode

ROWS: list[dict[str, Any]] = [
    {"id": e.id, "language": e.l, "messages": [*(m.as_dict() for m in e.x), {"role": "assistant", "content": e.y}]}
    for e in kit.builtin()[::7]
]


class Counting(TrainerCallback):
    """How many steps it saw."""

    steps = 0

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.steps += 1


def small(dudi: Dudi) -> Any:
    return package.load_recipe(dudi.file, ["data.eval_rows_per_language=0", "training.eval_every=0"])


@pytest.mark.slow
def test_rows_and_callbacks_of_ones_own(dudi: Dudi) -> None:
    counting = Counting()
    folder = package.train(small(dudi), ROWS, callbacks=[counting], rehearsal=False)
    assert counting.steps == 4 and (folder / "2-dudi" / "model" / "model.safetensors").is_file()
    kept = [line for line in (folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == min(len(ROWS), 14)
    assert package.train(small(dudi), ROWS, resume=True) == folder


@pytest.mark.slow
def test_a_dataset_is_its_rows(dudi: Dudi) -> None:
    """The same rows as mappings and as a `Dataset`: the same sample, and the same numbers."""
    one = package.train(small(dudi), ROWS, output=dudi.folder / "rows", rehearsal=False)
    two = package.train(small(dudi), Dataset.from_list(ROWS), output=dudi.folder / "dataset", rehearsal=False)
    for name in ("data/train.jsonl", "2-dudi/metrics.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_what_cannot_be_rows(dudi: Dudi) -> None:
    with pytest.raises(DudiError, match="rows: expected mappings of plain values"):
        package.train(small(dudi), [{"messages": object()}])
    with pytest.raises(DudiError, match=r"rows\.jsonl: line 1"):
        package.train(small(dudi), [{"text": "no conversation"}])
    assert not dudi.out.exists()


def test_a_result_is_evaluated(dudi: Dudi, tmp_path: Path) -> None:
    from dudi.lab.artefacts import write_benchmark

    folder = run(small(dudi), say=lambda *_: None)
    write_benchmark(tmp_path / "benchmark", share=0.2)
    table = package.evaluate(str(folder / "2-dudi" / "model"), tmp_path / "benchmark", tmp_path / "eval", limit=1)
    assert table.overall.mean is not None or table.refused


def test_prompts() -> None:
    found = package.verbalize("Apa ibu kota Thailand?", "Bangkok.", "Indonesian", to="vi")
    assert found.l_z == "vi" and "Vietnam" in found.student[-1].content and "Bangkok." in found.teacher[-1].content
    plain = package.verbalize([Message("user", "Siapa?")], "Saya.", "id", mode=Mode.ENGLISH)
    assert plain.student == (Message("user", "Siapa?"),) and plain.l_z is None
    drawn = {package.verbalize("?", "!", "id", row=row).l_z for row in range(60)}
    assert drawn == {"en", "vi", "th", "ta", "tl", "ms", "my"}


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, dudi; dudi.load_recipe, dudi.verbalize; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        package.trian  # noqa: B018
