"""Every key of a recipe changes something: the table names another value for each, and what it changes.

A new key without an entry fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import kit
import pytest
import torch
from kit.adapters import merged_start, quantised_loads
from kit.additions.echo import Echo
from kit.recipes import leaves
from kit.served import SERVED, asked
from kit.world import World
from safetensors.torch import load_file
from torch import Tensor

import dudi.loss.head
import dudi.models.load
import dudi.recipe.schema
import dudi.rollouts
import dudi.run.pipeline
from dudi.errors import DudiError
from dudi.files import read_lines
from dudi.loss.head import Head
from dudi.models.result import complete
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe
from dudi.rollouts import ENGINES, Sampling
from dudi.training.job import arguments
from dudi.training.trainer import DistillationTrainer
from dudi.training.window import Row


@dataclass(frozen=True)
class Entry:
    """value: another value than the base recipe's; probe: what it must change; base: what else stands in both."""

    value: Any
    probe: Callable[[World, dict[str, Any]], Any]
    base: Mapping[str, Any] = field(default_factory=dict)


# ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def saved_recipe(w: World, table: dict[str, Any]) -> str:
    return (w.start(table)[2] / "recipe.toml").read_text(encoding="utf-8")


def run_folder(w: World, table: dict[str, Any]) -> str:
    folder = w.start(table)[2]
    assert (folder / "recipe.toml").is_file()
    return str(folder)


def loaded_rows(w: World, table: dict[str, Any]) -> Any:
    """Rows that train and that are set aside, or what the data is refused with."""
    try:
        job = w.start(table)[0]
    except DudiError as error:
        return str(error)
    return [
        [(row.index, row.example.x, row.example.y, row.example.l) for row in rows] for rows in (job.rows, job.eval_rows)
    ]


def windows(w: World, table: dict[str, Any]) -> Any:
    """All token ids of one step on the first rows, in their own order: prompts, responses, dropped rows."""
    job = w.start(table)[0]
    rows: list[Row] = list(job.rows[:3]) + list(job.rows[-3:])
    built = job.builder.build(job.student.eval(), job.method.signals, rows, [1.0] * 6, 0)
    items = {v.name: [i and (i.student, i.teacher, i.response) for i in found] for v, found in built.items.items()}
    return items, dict(built.dropped)


def windows_by_either_engine(w: World, table: dict[str, Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "echo", Echo)
        return windows(w, table)


def graph_asked_for(w: World, table: dict[str, Any]) -> list[bool]:
    """What the engine is told, on a machine that has a CUDA device; elsewhere true is refused."""
    told: list[bool] = []

    def local(sampling: Sampling) -> Echo:
        told.append(sampling.cuda_graph)
        return Echo(sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.rollouts, "check_graph", lambda asked: None)
        patch.setitem(ENGINES, "local", local)
        w.start(table)
    return told


def first_rows(w: World, table: dict[str, Any]) -> Any:
    return [row.index for row in DistillationTrainer(w.start(table)[0]).window_rows(0)[1]]


def model_loads(w: World, table: dict[str, Any]) -> Any:
    job, loads, _ = w.start(table)
    return loads, float(job.student.get_input_embeddings().weight.detach().double().sum())


def teacher_weights(w: World, table: dict[str, Any]) -> float:
    teacher = w.start(table)[0].teacher
    assert teacher is not None
    return float(teacher.get_input_embeddings().weight.detach().double().sum())


def dropout_kept(w: World, table: dict[str, Any]) -> float:
    """The student's dropout as it trains, where its config has some."""
    job = w.start(table)[0]
    attention = job.student.base_model.layers[0].self_attn
    attention.attention_dropout = 0.5
    DistillationTrainer(job)
    return float(attention.attention_dropout)


def saved_dtype(w: World, table: dict[str, Any]) -> set[torch.dtype]:
    """Of the weights of a result."""
    folder = w.folder / "result"
    w.start(table)[0].student.save_pretrained(folder)
    complete(folder, parse_recipe(table, "test").models, True)
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


def processes_of_loads(w: World, table: dict[str, Any]) -> list[Any]:
    """Over how many of two processes each model is loaded, as the first of the two sees it."""
    found: list[Any] = []
    real = dudi.run.pipeline.load_model

    def load(path: str, what: str, *rest: Any) -> Any:
        found.append((what, rest[4]))
        return real(path, what, *rest[:4])

    two = SimpleNamespace(is_main_process=True, num_processes=2, process_index=0, wait_for_everyone=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.run.pipeline, "load_model", load)
        patch.setattr(dudi.run.pipeline, "PartialState", lambda cpu: two)
        w.start(table)
    return found


def tokenizer_loads(w: World, table: dict[str, Any]) -> Any:
    """Revisions and trust, as tokenizers and configurations are asked for."""
    seen = []

    def spy(real: Any) -> Any:
        def load(path: str, **kwargs: Any) -> Any:
            seen.append((path, kwargs["revision"], kwargs["trust_remote_code"]))
            return real(path, **kwargs)

        return SimpleNamespace(from_pretrained=load)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AutoTokenizer", "AutoConfig"):
            patch.setattr(dudi.models.load, name, spy(getattr(dudi.models.load, name).from_pretrained))
        return w.start(table)[1], seen


def student_form(w: World, table: dict[str, Any]) -> Any:
    job = w.start(table)[0]
    return job.student.dtype, job.autocast, job.student.config._attn_implementation


def trainer_arguments(w: World, table: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments(w.start(table)[0]).to_dict().items() if k not in ("output_dir", "logging_dir")}


def micro_batches(w: World, table: dict[str, Any]) -> int:
    made = DistillationTrainer(w.start(table)[0])
    calls: list[int] = []
    inner = made._micro_batch
    made._micro_batch = lambda *a: calls.append(len(a[2])) or inner(*a)  # type: ignore[func-returns-value,method-assign]
    kit.step(made)
    return len(calls)


def chunk_sizes(w: World, table: dict[str, Any]) -> set[int]:
    """The largest pieces in which response positions meet the heads."""
    made = DistillationTrainer(w.start(table)[0])
    seen: set[int] = set()
    real = dudi.loss.head.Head.product

    def product(head: Head, hidden: Tensor) -> Tensor:
        seen.add(len(hidden))
        return real(head, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.loss.head.Head, "product", product)
        kit.step(made)
    return {max(seen)}


def checkpointed(w: World, table: dict[str, Any]) -> bool:
    student = DistillationTrainer(w.start(table)[0]).student
    return any(getattr(module, "gradient_checkpointing", False) for module in student.modules())


def logged_steps(w: World, table: dict[str, Any]) -> list[int]:
    return [line["step"] for line in read_lines(w.train(table)[1] / "metrics.jsonl") if "eval" not in line]


def evaluated_steps(w: World, table: dict[str, Any]) -> list[int]:
    return [line["step"] for line in read_lines(w.train(table)[1] / "metrics.jsonl") if "eval" in line]


def measured_steps(w: World, table: dict[str, Any]) -> list[int]:
    return [line["step"] for line in read_lines(w.train(table)[1] / "metrics.jsonl") if "measure" in line]


def saved_checkpoints(w: World, table: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in w.train(table)[1].glob("checkpoint-*"))


def generation_file(w: World, table: dict[str, Any]) -> str:
    """`generation_config.json` as it is saved."""
    job = w.start(table)[0]
    job.student.save_pretrained(w.folder / "saved")
    return (w.folder / "saved" / "generation_config.json").read_text()


def first_method(w: World, table: dict[str, Any]) -> Any:
    return w.start(table)[0].method


def repeating(w: World, table: dict[str, Any]) -> list[bool]:
    """Whether only operations that repeat are allowed, when the trainer is made."""
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        real = torch.use_deterministic_algorithms
        patch.setattr(torch, "use_deterministic_algorithms", lambda on, **k: seen.append(on) or real(on, **k))
        w.start(table)
    assert not torch.are_deterministic_algorithms_enabled()
    return seen


def refused(w: World, table: dict[str, Any]) -> str:
    """What a run is refused with, if it is."""
    try:
        w.start(table)
    except DudiError as error:
        return str(error)
    return ""


TRAINING: dict[str, Entry] = {
    "lr": Entry(1e-4, trainer_arguments),
    "batch": Entry(2, first_rows),
    "epochs": Entry(3.0, trainer_arguments),
    "max_steps": Entry(3, logged_steps),
    "schedule": Entry("cosine", trainer_arguments),
    "warmup_steps": Entry(1, trainer_arguments),
    "weight_decay": Entry(0.1, trainer_arguments),
    "max_grad_norm": Entry(0.5, trainer_arguments),
    "equalize": Entry("tokens", first_rows),
    "micro_batch": Entry(1, micro_batches),
    "micro_batch_tokens": Entry(500, micro_batches),
    "gradient_checkpointing": Entry(True, checkpointed),
    "head_chunk": Entry(7, chunk_sizes),
    "log_every": Entry(2, logged_steps),
    "overlap_every": Entry(2, measured_steps),
    "eval_every": Entry(1, evaluated_steps, {"data.eval_rows_per_language": 1}),
    "save_every": Entry(1, saved_checkpoints),
    "keep_checkpoints": Entry(1, saved_checkpoints, {"training.save_every": 1}),
    "cache": Entry("disk", lambda w, table: len([*(w.train(table)[1] / "cache").glob("*")])),
    "cache_limit": Entry(1e-5, refused, {"training.cache": "memory"}),
    "report_to": Entry(("nobody",), refused),
    "deterministic": Entry(True, repeating),
    "dropout": Entry(True, dropout_kept, {"method": {"name": "sft"}}),
}
SAMPLES = {"generation.do_sample": True}
SEA = {"data.source": "@sea", "data.format": "sea_instruct", "data.languages": ("id",), "method": {"name": "gkd"}}
SOURCE = {"data.sources.source": "@data.jsonl"}
COLD = {"cold_start.method": {"name": "sft"}}
PAPER = {"paper": {"table": "2", "average": 10.1}}
ADAPTER = {"adapter.r": 4}
ENTRIES: dict[str, Entry] = {
    "name": Entry("other", run_folder),
    "description": Entry("why", saved_recipe),
    "seed": Entry(1, windows),
    "output": Entry("@runs/elsewhere", run_folder),
    "method": Entry({"name": "sft"}, first_method),
    "cold_start.method": Entry({"name": "dft"}, first_method, COLD),
    "cold_start.checkpoint": Entry("@other", model_loads, COLD),
    **{
        f"cold_start.training.{k}": Entry(
            e.value, lambda w, table: w.start(table)[0].training, {**e.base, "method": {"name": "dudi"}, **COLD}
        )
        for k, e in TRAINING.items()
    },
    "cold_start.training.report_to": Entry(("nobody",), refused, {**COLD, "method": {"name": "dudi"}}),
    "models.student": Entry("@other", model_loads),
    "models.teacher": Entry("@teacher2", teacher_weights),
    "models.student_revision": Entry("abc", tokenizer_loads),
    "models.teacher_revision": Entry("abc", tokenizer_loads),
    "models.trust_remote_code": Entry(True, tokenizer_loads),
    "models.precision": Entry("float64", student_form),
    "models.attention": Entry("eager", student_form),
    "models.save_dtype": Entry("bfloat16", saved_dtype),
    "models.teacher_sharding": Entry("shard", processes_of_loads),
    "models.teacher_quantization": Entry("8bit", quantised_loads),
    "adapter.quantization": Entry("4bit", quantised_loads, ADAPTER),
    "adapter.r": Entry(2, merged_start, ADAPTER),
    "adapter.lora_alpha": Entry(3.0, merged_start, ADAPTER),
    "adapter.target_modules": Entry(("q_proj",), merged_start, ADAPTER),
    "adapter.use_rslora": Entry(True, merged_start, ADAPTER),
    "adapter.use_dora": Entry(True, merged_start, ADAPTER),
    "chat.template": Entry("@chat.jinja", windows),
    "chat.kwargs": Entry({"note": "hi"}, windows, {"chat.template": "@chat.jinja"}),
    "chat.merge_system": Entry(True, windows),
    "data.source": Entry("@few.jsonl", loaded_rows),
    "data.sources.source": Entry("@few.jsonl", loaded_rows, SOURCE),
    "data.sources.format": Entry("alpaca", loaded_rows, SOURCE),
    "data.sources.columns": Entry(
        {"prompt": "other"}, loaded_rows, {"data.sources.source": "@pairs.jsonl", "data.languages": ()}
    ),
    "data.sources.language": Entry(
        "ms", loaded_rows, {"data.sources.source": "@plain.jsonl", "data.language": "id", "data.languages": ()}
    ),
    "data.sources.revision": Entry("v2", World.revisions, SOURCE),
    "data.sources.weight": Entry(1.5, loaded_rows, SOURCE),
    "data.format": Entry("sea_instruct", loaded_rows, {**SEA, "data.format": "chat"}),
    "data.revision": Entry("v2", World.revisions),
    "data.split": Entry("test", loaded_rows, {"data.source": "@splits"}),
    "data.languages": Entry(("id",), loaded_rows),
    "data.language": Entry(
        "ms", loaded_rows, {"data.source": "@plain.jsonl", "data.language": "id", "data.languages": ()}
    ),
    "data.rows_per_language": Entry(2, loaded_rows),
    "data.quality_filter": Entry(False, loaded_rows, SEA),
    "data.bad_rows": Entry("skip", loaded_rows, {"data.source": "@broken.jsonl"}),
    "data.eval_rows_per_language": Entry(1, loaded_rows),
    "data.columns": Entry({"prompt": "other"}, loaded_rows, {"data.source": "@pairs.jsonl", "data.languages": ()}),
    "data.ignore": Entry(("name",), loaded_rows, {"data.source": "@named.jsonl", "data.bad_rows": "skip"}),
    "data.eval_source": Entry("@few.jsonl", loaded_rows),
    "data.template_folder": Entry("@templates", windows),
    "limits.prompt": Entry(60, loaded_rows),
    "limits.verbalizer": Entry(1, windows, {"limits.prompt": 80}),
    "limits.total": Entry(150, windows, {"limits.prompt": 100}),
    "limits.rollout": Entry(3, windows),
    "limits.teacher_prompt": Entry(250, windows),
    "rollouts.engine": Entry("echo", windows_by_either_engine),
    "rollouts.temperature": Entry(0.3, windows),
    "rollouts.cuda_graph": Entry(True, graph_asked_for),
    **{f"rollouts.{name}": Entry(value, asked, base) for name, (value, base) in SERVED.items()},
    **{f"training.{name}": entry for name, entry in TRAINING.items()},
    "generation.do_sample": Entry(True, generation_file),
    "generation.temperature": Entry(0.5, generation_file, SAMPLES),
    "generation.top_p": Entry(0.9, generation_file, SAMPLES),
    "generation.max_new_tokens": Entry(99, generation_file),
    "paper.table": Entry("3", saved_recipe, PAPER),
    "paper.average": Entry(9.0, saved_recipe, PAPER),
    "paper.languages": Entry({"id": 12.0}, saved_recipe, PAPER),
}


def seen_before(world: World, entry: Entry, seen: dict[str, Any]) -> Any:
    """What a probe sees of the base recipe, and sees again."""
    key = f"{entry.probe.__name__} {entry.base}"
    if key not in seen:
        seen[key], again = (entry.probe(world, world.table(entry.base)) for _ in range(2))
        assert again == seen[key], f"{key}: not repeatable"
    return seen[key]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """By probe and base recipe."""
    return {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_every_recipe_key_has_an_entry() -> None:
    found = set(leaves(Recipe))
    assert found - ENTRIES.keys() == set(), "a new key of a recipe: name what it changes"
    assert ENTRIES.keys() - found == set(), "a key that is gone"


@pytest.mark.parametrize("key", ENTRIES)
def test_every_recipe_key_changes_something(world: World, seen: dict[str, Any], key: str) -> None:
    entry = ENTRIES[key]
    before = seen_before(world, entry, seen)
    assert entry.probe(world, world.table({**entry.base, key: entry.value})) != before, f"{key} changes nothing"
