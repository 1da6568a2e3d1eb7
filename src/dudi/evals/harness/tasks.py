"""What lm-eval is asked: its own tasks in our languages, or the multiple-choice items of a benchmark folder. No torch.

A cell is one task in one language. Local tasks are written as lm-eval reads them, a YAML file and a JSONL file each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dudi.errors import DudiError, unknown
from dudi.evals.bench import Benchmark
from dudi.evals.metrics import METRICS
from dudi.evals.metrics.exact import exact
from dudi.files import write_text
from dudi.records import Description, Item, Task

METRIC = "acc"
"""lm-eval's accuracy: the choice with the highest log p, summed over its tokens, is the right one."""
FAMILIES: dict[str, dict[str, str]] = {
    "belebele": {
        "id": "belebele_ind_Latn",
        "vi": "belebele_vie_Latn",
        "th": "belebele_tha_Thai",
        "ta": "belebele_tam_Taml",
        "tl": "belebele_tgl_Latn",
        "ms": "belebele_zsm_Latn",
        "my": "belebele_mya_Mymr",
    },
    "xcopa": {"id": "xcopa_id", "vi": "xcopa_vi", "th": "xcopa_th", "ta": "xcopa_ta"},
    "xnli": {"vi": "xnli_vi", "th": "xnli_th"},
    "global_mmlu": {
        "id": "global_mmlu_full_id",
        "vi": "global_mmlu_full_vi",
        "tl": "global_mmlu_full_fil",
        "ms": "global_mmlu_full_ms",
    },
    "include": {
        "id": "include_base_44_indonesian",
        "vi": "include_base_44_vietnamese",
        "ta": "include_base_44_tamil",
        "tl": "include_base_44_tagalog",
        "ms": "include_base_44_malay",
    },
}
"""By the name that `--tasks` gives: language -> what lm-eval calls the task, or the group of tasks."""


@dataclass(frozen=True)
class Cell:
    """One task in one language. name: lm-eval's, of a task or a group; refused: why it cannot be asked."""

    task: str
    language: str
    name: str
    refused: str | None = None


def chosen(names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of families (`belebele`: all its languages) and of single tasks (`belebele_tha_Thai`); commas part
    names too. Raises `DudiError` for a name that is neither."""
    single = {name: Cell(family, l, name) for family, row in FAMILIES.items() for l, name in row.items()}
    found: dict[str, Cell] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if name in FAMILIES:
            found |= {cell.name: cell for cell in single.values() if cell.task == name}
        elif name in single:
            found[name] = single[name]
        else:
            raise DudiError(f"--tasks: {unknown(name, [*FAMILIES, *single], 'task')}")
    return tuple(found.values())


def column(name: str) -> str:
    """What a competency is called here: its scores are accuracies, and belong into no column of other scores."""
    return f"{name} ({METRIC})"


def hub_description(cells: Iterable[Cell]) -> Description:
    """How scores of lm-eval's own tasks are averaged: each family is a column of its own."""
    cells = tuple(cells)
    families = tuple(dict.fromkeys(cell.task for cell in cells))
    return Description(
        name="lm-eval",
        version=1,
        competencies=tuple(map(column, families)),
        averaged=tuple(dict.fromkeys(cell.language for cell in cells)),
        tasks={family: Task(competency=column(family), metric=METRIC) for family in families},
    )


def local_benchmark(bench: Benchmark, limit: int | None) -> Benchmark:
    """What of a benchmark lm-eval can be asked: its items with choices. Raises `DudiError` where there are none."""
    d = bench.description
    tasks = {
        name: task.model_copy(update={"metric": METRIC, "max_new_tokens": None, "competency": column(task.competency)})
        for name, task in d.tasks.items()
        if "choices" in METRICS[task.metric].needs
    }
    items = tuple(item for item in bench.limited(limit) if item.task in tasks)
    if not items:
        raise DudiError(
            f"benchmark {bench.name!r}: lm-eval compares choices, and no task has any: {', '.join(d.tasks)}"
        )
    there = {task.competency for task in tasks.values()}
    languages = {item.language for item in items}
    description = d.model_copy(
        update={
            "tasks": tasks,
            "competencies": tuple(column(one) for one in d.competencies if column(one) in there),
            "translation": tuple(column(one) for one in d.translation if column(one) in there),
            "averaged": tuple(l for l in d.averaged if l in languages) or tuple(sorted(languages)),
        }
    )
    return replace(bench, description=description, items=items)


def write_tasks(bench: Benchmark, folder: Path) -> tuple[Cell, ...]:
    """The tasks of a folder for lm-eval's `include_path`: <name>.yaml and <name>.jsonl for each task and language."""
    cells = []
    for number, ((task, language), items) in enumerate(bench.cells.items()):
        name = re.sub(r"[^A-Za-z0-9_]+", "_", f"dudi_{number}_{task}_{language}")
        longer = sum(len(item.messages) > 1 for item in items)
        if longer:
            why = (
                f"{longer} of {len(items)} items have more than one message, which a local task of lm-eval cannot hold"
            )
            cells.append(Cell(task, language, name, why))
            continue
        data = folder / f"{name}.jsonl"
        write_text(data, "".join(json.dumps(row(item), ensure_ascii=False) + "\n" for item in items))
        write_text(folder / f"{name}.yaml", json.dumps(config(name, data), indent=1))  # JSON is YAML
        cells.append(Cell(task, language, name))
    return tuple(cells)


def row(item: Item) -> Mapping[str, object]:
    """A line of JSONL: the one message as text, the choices, the place of the right one."""
    assert item.choices is not None
    label = [exact(choice, item.targets) for choice in item.choices].index(1.0)  # checked: exactly one is right
    return {"id": item.id, "text": item.messages[0].content, "choices": list(item.choices), "label": label}


def config(name: str, data: Path) -> Mapping[str, object]:
    """A task's YAML. Texts are columns, so that braces in them are no template."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
