"""The lab's folders, in the formats that everything else reads: instruction data and a benchmark.

DATA/<Language>.parquet       rows in SEA-Instruct's columns (`data.format = "sea_instruct"`)
BENCHMARK/benchmark.json, items/<language>.jsonl, words/<language>.txt      what `dudi eval` reads
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.example import Example
from dudi.files import write_text
from dudi.lab.rows import TRAINED, answer, instruction_rows, item
from dudi.lab.sentences import answers
from dudi.lab.tasks import COMPETENCIES, TASKS, Key
from dudi.lab.words import READ, SLOT, load, sentences
from dudi.languages import LANGUAGES

ITEMS = {"sentiment": 200, "safety": 200, "grammar": 200}
"""Test items of a task in one language, where it is not `DEFAULT_ITEMS`: half of all labels are right by chance."""
DEFAULT_ITEMS = 100
DOMAINS = {
    "nlu": "Language_and_Communication",
    "nlg": "Translation_and_Localization",
    "nlr": "Mathematics_and_Logic",
    "safety": "Safety_and_Ethics",
    "linguistic-diagnostics": "Language_and_Communication",
    "instruction-following": "General_Instructions",
    "knowledge": "General_Knowledge",
}


def write_data(folder: Path, rows: int, seed: int = 0) -> None:
    """Instruction rows of every training language, one Parquet file each, in SEA-Instruct's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for l in TRAINED:
        table = [
            _instruct_row(task, example, number)
            for number, (task, example) in enumerate(instruction_rows(l, "train", rows, seed))
        ]
        random.Random(draw("order", l, seed)).shuffle(table)
        pq.write_table(pa.Table.from_pylist(table), folder / f"{LANGUAGES[l].name}.parquet")


def _instruct_row(task: str, example: Example, number: int) -> dict[str, Any]:
    """One row as SEA-Instruct has it: the conversation is a Python literal in a string."""
    name = LANGUAGES[example.l].name
    conversation = [*(m.as_dict() for m in example.x), {"role": "assistant", "content": example.y}]
    return {
        "conversations_id": f"lab-{example.l}-{number:05d}",
        "conversations": repr(conversation),
        "source": "lab",
        "turn_count": 2,
        "system_present": False,
        "prompt_primary_language": name,
        "prompt_language_category": "Monolingual",
        "prompt_primary_domain": DOMAINS[TASKS[task].competency],
        "prompt_primary_task": task.title().replace("-", "_"),
        "prompt_complexity": "Simple",
        "prompt_formality": "Neutral",
        "prompt_input_quality": "Excellent",
        "prompt_is_coherent": True,
        "prompt_is_natural": True,
        "prompt_sensitivity": "Safe",
        "prompt_region_scope": "['Southeast_Asia']",
        "prompt_requires_local_cultural_knowledge": False,
        "prompt_translated_from_english": False,
    }


def describe(name: str, max_new_tokens: int = 48, written: bool = False) -> dict[str, Any]:
    """benchmark.json of the lab's tasks. written: every answer is, also which of two sentences is right."""
    return {
        "name": name,
        "version": 1,
        "competencies": list(COMPETENCIES),
        "averaged": list(TRAINED),
        "translation": ["nlg"],
        "tasks": {
            name: {"competency": task.competency, "metric": "choice_loglik"}
            if task.behind and not written
            else {"competency": task.competency, "metric": task.metric, "max_new_tokens": max_new_tokens}
            for name, task in TASKS.items()
        },
    }


def write_benchmark(folder: Path, seed: int = 0, share: float = 1.0) -> None:
    """Test items of every language and task; `share` of the usual number, for quick looks."""
    items = {l: [one for task in TASKS for one in _items(task, l, seed, share)] for l in LANGUAGES}
    lay_out(folder, describe("lab"), items)


def lab_benchmark(model: str) -> Path:
    """The benchmark that `dudi eval` takes where none is given: the lab's, laid out beside the model's evaluations."""
    from dudi.evals.evaluate import default_output

    if not Path(model).expanduser().is_dir():
        raise DudiError(f"model: no folder {model!r}")
    folder = default_output(model, "lab-benchmark")
    write_benchmark(folder)
    return folder


def lay_out(folder: Path, description: Mapping[str, Any], items: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A benchmark folder: benchmark.json, items/<name>.jsonl, and words/<language>.txt, by which the language of a
    response is told."""
    write_text(folder / "benchmark.json", json.dumps(description, indent=1))
    for name, lines in items.items():
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
        write_text(folder / "items" / f"{name}.jsonl", text)
    for l in LANGUAGES:
        write_text(folder / "words" / f"{l}.txt", "\n".join(sorted(vocabulary(l))) + "\n")


def _items(name: str, l: str, seed: int, share: float) -> list[dict[str, Any]]:
    """The first `share` of the items of one task and language.

    Every item has another content. Of a task with fewer contents than are wanted each is asked in two phrasings.
    """
    task, words, rng = TASKS[name], load(l), random.Random(draw("test", name, l, seed))
    wanted = ITEMS.get(name, DEFAULT_ITEMS)
    seen: set[tuple[str, Key, str]] = set()
    contents: dict[Key, Key] = {}
    while len(contents) < wanted and (key := item(rng, name, l, "test", seen)) is not None:
        contents.setdefault(task.content(key), key)
    asked = []
    for key in contents.values():
        texts = task.ask(words, key)
        asked.append((key, rng.sample((*texts.train, *texts.test), 2)))
    if task.choices:  # labels by turns: any first part of the items has all of them
        labels = [answer(name, key, l) for key, _ in asked]
        turns = [labels[:place].count(label) for place, label in enumerate(labels)]
        asked = [one for _, one in sorted(zip(turns, asked, strict=True), key=lambda pair: pair[0])]
    pairs = [(key, texts[0]) for key, texts in asked]
    if len(asked) < wanted:
        pairs += [(key, texts[1]) for key, texts in asked]
    kept = pairs[: max(round(min(len(pairs), wanted) * share), 4)]
    return [
        benchmark_item(name, key, l, task.language(l, key), text, f"{name}-{l}-{number:03d}")
        for number, (key, text) in enumerate(kept)
    ]


def benchmark_item(
    name: str, key: Key, l: str, language: str, text: str, number: str, written: bool = False
) -> dict[str, Any]:
    """One line of items/*.jsonl: `text` asks in l for an answer in `language`. written: as `describe` has it."""
    task, words = TASKS[name], load(language)
    one: dict[str, Any] = {
        "id": number,
        "task": name,
        "language": l,
        "messages": [{"role": "user", "content": text}],
        "targets": list(dict.fromkeys((answer(name, key, l, language), *task.accepted(words, key)))),
        "response_language": language,
        "key": " ".join((name, *task.content(key))),
    }
    if task.choices:
        labels = words.words["label"]
        one["choices"] = [labels[c]["name"] if c in labels else c for c in task.choices]
    if task.behind and not written:
        right = task.choices.index(answer(name, key, l, language))
        one["choices"] = list(task.behind(words, key))
        one["targets"] = [one["choices"][right]]
    if task.among:
        one["choices"] = list(task.among(words, key))
    if task.constraints:
        one["constraints"] = task.constraints(words, key)
    return one


def vocabulary(l: str) -> set[str]:
    """Every word of a language's file and every text between slots: what a response in this language is made of."""
    words = load(l)
    found = {text for table in words.words.values() for word in table.values() for text in word.values()}
    for name, kind in READ.items():
        found.update(text for word in words.words[kind].values() for text in answers(words, name, {kind: word}))
    texts = {text for path, text in sentences(words.table) if path[0] != "prompt"} | found
    pieces = {piece.strip(" \n.,?!:;“”\"'") for text in texts for piece in SLOT.split(text)[::3]}
    spaced = LANGUAGES[l].script in ("Latin", "Tamil")
    return {p for piece in pieces for p in (piece.split() if spaced else [piece]) if p.strip(" \n.,?!:;“”\"'")}
