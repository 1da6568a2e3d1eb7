"""`dudi plan` says before a run what the run says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.command import Dudi
from safetensors import safe_open
from transformers import TrainerCallback

import dudi.run.plan.devices
import dudi.run.plan.shapes
from dudi.errors import DudiError
from dudi.models.sharding import bytes_here
from dudi.run import pipeline
from dudi.run.plan.devices import DEVICES, Device, choose
from dudi.run.plan.memory import Memory
from dudi.run.plan.plan import Plan, plan
from dudi.run.plan.seconds import Time
from dudi.run.plan.show import parts
from dudi.run.plan.traced import Trace, traced
from dudi.training.trainer import DistillationTrainer

DUDI = {"name": "dudi"}
TIGHT = {"prompt": 60, "verbalizer": 40, "total": 100, "rollout": 4, "teacher_prompt": 220}
STEPS = {"max_steps": 2, "save_every": 1}
TRACES: dict[tuple[str, Any], Trace] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module")
def planned(folder: Path) -> Plan:
    return plan(runs.recipe(folder, DUDI, training=STEPS), "h200", price=2.0)


@pytest.fixture(autouse=True)
def trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most plans here are of the same two models."""

    def once(config: Any, *how: Any) -> Trace:
        key = (config.to_json_string(), how)
        if key not in TRACES:
            TRACES[key] = traced(config, *how)
        return TRACES[key]

    monkeypatch.setattr(dudi.run.plan.shapes, "traced", once)


def bytes_of(memory: Memory) -> dict[str, int]:
    return {item.name.split(",")[0]: int(item.bytes) for item in memory.items}


# ── what is read and cut ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_numbers_of_rows_are_those_that_the_run_writes_and_says(folder: Path) -> None:
    recipe = runs.recipe(folder, DUDI, output="tight", number=40, limits=TIGHT, training={**STEPS, "cache": "memory"})
    said: list[str] = []
    planned = plan(recipe, "cpu")
    run = pipeline.run(recipe, say=said.append)
    assert planned.lengths == json.loads((run / "lengths.json").read_text(encoding="utf-8"))
    first = said.index(planned.said[0])
    assert [line.strip() for line in said[first : first + len(planned.said)]] == list(planned.said)
    text = "\n".join(planned.said)
    assert "left out" in text and "answers cut" in text and "lose their y_tilde term" in text and "cache: " in text
    assert sum(one["left_out"] for one in planned.lengths.values()) > 3


def test_proposed_limits_cut_at_most_two_percent(folder: Path) -> None:
    recipe = runs.recipe(folder, DUDI, number=40, limits=TIGHT, training=STEPS)
    proposed = plan(recipe, "h200").proposed
    table = {
        name: {"default": max(of[name] for of in proposed.values()), **{l: of[name] for l, of in proposed.items()}}
        for name in ("prompt", "total", "teacher_prompt")
    }
    after = plan(runs.recipe(folder, DUDI, number=40, limits={**table, "rollout": 4}, training=STEPS), "h200")
    for one in after.lengths.values():
        assert one["left_out"] + one["cut"] <= 0.02 * (one["rows"] + one["left_out"])
    assert not any("lose" in line for line in after.said)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class Weighed(TrainerCallback):
    """The bytes of a trainer's tensors while it trains."""

    def __init__(self, trainer: DistillationTrainer, title: str, found: dict[str, dict[str, int]]) -> None:
        self.trainer, self.of = trainer, found.setdefault(title.split(": ")[1], {})

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        grads = [p.grad for p in self.trainer.student.parameters() if p.grad is not None]
        self.of["gradients"] = sum(g.numel() * g.element_size() for g in grads)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        made, job = self.trainer, self.trainer.job
        kept = [t for values in made.optimizer.state.values() for name, t in values.items() if name != "step"]
        self.of["AdamW's moments"] = sum(t.numel() * t.element_size() for t in kept)
        for name, model in (
            ("student", job.student),
            ("teacher", job.teacher),
            ("reference R", job.reference),
            ("copy that decodes", made.decoder.copy),
            ("moving average of the student", made.ema and made.ema.model),
        ):
            if model is not None:
                self.of[name] = bytes_here(model)


@pytest.mark.parametrize(
    "method, precision",
    [
        ("dudi", "bfloat16"),
        pytest.param("dudi", "float32", marks=pytest.mark.slow),
        pytest.param("sdft", "float32", marks=pytest.mark.slow),
        pytest.param("sdft", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_weights_gradients_and_moments_are_those_of_the_trainer(tmp_path: Path, method: str, precision: str) -> None:
    kit.save(tmp_path / "student", kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32, tied=False), kit.tokenizer())
    kit.save(tmp_path / "teacher", kit.model(2, hidden=64, dtype=torch.float32), kit.tokenizer())
    recipe = runs.recipe(tmp_path, {"name": method}, models={"precision": precision}, training=STEPS, number=4)
    found: dict[str, dict[str, int]] = {}
    kit.watched(recipe, lambda made, title: Weighed(made, title, found))
    stages = plan(recipe, "h200").stages
    assert [stage.memory.stage for stage in stages] == list(found) and len(found) == 2
    for stage in stages:
        wanted = found[stage.memory.stage]
        have = bytes_of(stage.memory)
        assert {name: have.get(name) for name in wanted} == wanted
        names: set[str] = {"student", "gradients", "AdamW's moments", "teacher", "reference R", "copy that decodes"}
        assert {*have} & {*names, "moving average of the student"} == {*wanted}


def test_several_devices_share_rows_and_a_sharded_teacher(folder: Path) -> None:
    def stage(gpus: int, sharding: str) -> dict[str, int]:
        recipe = runs.recipe(folder, DUDI, models={"teacher_sharding": sharding}, training={**STEPS, "micro_batch": 8})
        return bytes_of(plan(recipe, "h100", gpus).stages[-1].memory)

    one, two, sharded = stage(1, "shard"), stage(2, "replicate"), stage(2, "shard")
    assert two["teacher"] == one["teacher"] == 2 * sharded["teacher"]
    assert sharded["teacher's head"] > 0 and "teacher's head" not in one
    assert two["gradients in DDP's buckets"] == two["gradients"]
    assert two["rollouts: keys and values"] < one["rollouts: keys and values"]
    assert two["activations"] < one["activations"]


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────
def small_device(monkeypatch: pytest.MonkeyPatch, memory: float) -> None:
    monkeypatch.setitem(DEVICES, "l4", Device("l4", "a small one", memory, 1e12, 1e12, 1e11))


def test_what_does_not_fit_is_said_with_what_makes_it_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {**STEPS, "micro_batch": 4}
    before = plan(runs.recipe(folder, {"name": "sft"}, training=changes), "h200").stages[0]
    assert before.micro_batch == before.largest == 4 and before.memory.phase == "student"
    small_device(monkeypatch, 0.6 * before.memory.peak / 0.92)
    (fault,) = plan(runs.recipe(folder, {"name": "sft"}, training=changes), "l4").faults
    advice = fault.split("set training.micro_batch = ")
    assert len(advice) == 2 and "stage 'sft' needs" in fault and "\n" not in fault
    changes["micro_batch"] = int(advice[1])
    assert 0 < changes["micro_batch"] < 4
    assert plan(runs.recipe(folder, {"name": "sft"}, training=changes), "l4").faults == ()
    changes["micro_batch"] += 1
    assert plan(runs.recipe(folder, {"name": "sft"}, training=changes), "l4").faults


def test_checkpointing_is_the_next_advice_and_a_larger_device_the_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {**STEPS, "micro_batch": 1}
    peak = [
        plan(runs.recipe(folder, {"name": "sft"}, training={**changes, "gradient_checkpointing": on}), "h200").stages[0]
        for on in (False, True)
    ]
    assert peak[1].memory.peak < peak[0].memory.peak
    small_device(monkeypatch, (peak[0].memory.peak + peak[1].memory.peak) / 2 / 0.92)
    (fault,) = plan(runs.recipe(folder, {"name": "sft"}, training=changes), "l4").faults
    assert "set training.gradient_checkpointing = true and training.micro_batch = " in fault
    small_device(monkeypatch, 0.5 * peak[1].memory.peak)
    (fault,) = plan(runs.recipe(folder, {"name": "sft"}, training=changes), "l4").faults
    assert fault.endswith("take a device with more memory, or smaller models")


def test_a_full_disk_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dudi.run.plan.disk.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    (fault,) = plan(runs.recipe(folder, DUDI, training=STEPS), "h200").faults
    assert "1,000" in fault or "0.0 MB free" in fault
    assert "lower training.keep_checkpoints" in fault


# ── time and disk ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_time_grows_with_steps_and_a_cache_saves_what_it_keeps(folder: Path) -> None:
    def times(**training: Any) -> Time:
        return plan(runs.recipe(folder, DUDI, training=training), "h200").stages[-1].time

    one, three, cached = times(epochs=1.0), times(epochs=3.0), times(epochs=3.0, cache="memory")
    assert (one.steps, three.steps) == (3, 9)
    for name in ("rollout", "teacher", "reference", "student", "backward", "optimizer"):
        assert three.seconds[name] == pytest.approx(3 * one.seconds[name])
    assert "caching" not in three.seconds and "evaluation" not in three.seconds
    for name in ("teacher", "reference"):
        assert 0 < cached.seconds[name] < three.seconds[name]
    saved = sum(three.seconds[name] - cached.seconds[name] for name in ("teacher", "reference"))
    assert cached.seconds["caching"] == pytest.approx(saved / 3, rel=0.3)  # read once, and not three times


def test_a_coin_costs_what_its_sides_cost_on_average(folder: Path) -> None:
    def rollout(lam: float) -> float:
        recipe = runs.recipe(folder, {"name": "gkd", "lam": lam}, training=STEPS)
        return plan(recipe, "h200").stages[-1].time.seconds.get("rollout", 0.0)

    assert rollout(0.0) == 0.0
    assert rollout(0.25) == pytest.approx(rollout(1.0) / 4)


def test_a_generation_stage_is_planned_too(folder: Path) -> None:
    stages = plan(runs.recipe(folder, {"name": "seqkd"}, training=STEPS), "h200").stages
    assert [stage.memory.stage for stage in stages][-2:] == ["seqkd-responses", "seqkd"]
    assert (
        stages[-2].micro_batch is None and {*stages[-2].time.seconds} == {"generation"} and stages[-2].time.steps == 3
    )
    assert "teacher" in bytes_of(stages[-2].memory) and "teacher" not in bytes_of(stages[-1].memory)


@pytest.mark.slow
def test_checkpoints_and_results_are_as_large_as_planned(folder: Path, tmp_path: Path) -> None:
    recipe = runs.recipe(folder, DUDI, training={**STEPS, "keep_checkpoints": 2}, models={"save_dtype": "bfloat16"})
    recipe = recipe.model_copy(update={"output": str(tmp_path / "run")})
    items = plan(recipe, "cpu").disk.items
    run = pipeline.run(recipe, say=lambda *_: None)
    sizes = []
    for file in sorted(run.glob("*/model/model.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors = [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118
            sizes.append(sum(t.numel() * t.element_size() for t in tensors))
    assert len(sizes) == 2 and sizes[0] == 2 * sizes[1]
    assert items["2 results"] == sum(sizes)
    assert items["3 checkpoints"] == 3 * 3 * sizes[0]
    (optimizer,) = {file.stat().st_size for file in run.glob("2-dudi/checkpoint-*/optimizer.pt")}
    assert optimizer == pytest.approx(2 * sizes[0], rel=0.2)  # and its own few bytes by tensor


def test_money_and_hours(planned: Plan) -> None:
    assert planned.money == pytest.approx(2.0 * planned.device_hours) and planned.device_hours > 0
    text = [part for part in parts(planned) if isinstance(part, str)]
    assert "it fits" in text and any("never calibrated on a GPU" in line for line in text)


# ── devices and bad input ────────────────────────────────────────────────────────────────────────────────────────────
def test_devices_have_the_figures_of_their_data_sheets() -> None:
    figures = {d.name: (d.memory / 1e9, d.bf16 / 1e12, d.float32 / 1e12, d.bandwidth / 1e12) for d in DEVICES.values()}
    assert figures == {
        "h200": (141, 989, 67, 4.8),
        "h100": (80, 989, 67, 3.35),
        "a100-80": (80, 312, 19.5, 2.039),
        "a100-40": (40, 312, 19.5, 1.555),
        "l40s": (48, 362, 91.6, 0.864),
        "l4": (24, 121, 30.3, 0.3),
        "rtx4090": (24, 165.2, 82.6, 1.008),
    }
    assert [choose(name).name for name in figures] == [*figures]


@pytest.mark.parametrize(
    ("title", "memory", "name"),
    [
        ("NVIDIA H200", 150e9, "h200"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100-80"),
        ("NVIDIA GeForce RTX 4090", 25e9, "rtx4090"),
        ("NVIDIA L4", 24e9, "l4"),
        ("NVIDIA L40S", 48e9, "l40s"),
    ],
)
def test_a_gpu_of_this_machine_is_found_by_its_name(
    monkeypatch: pytest.MonkeyPatch, title: str, memory: int, name: str
) -> None:
    monkeypatch.setattr(dudi.run.plan.devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dudi.run.plan.devices, "_present", lambda: (title, memory))
    assert choose(None).name == name
    monkeypatch.setattr(dudi.run.plan.devices, "_present", lambda: ("Radeon 9", memory))
    with pytest.raises(DudiError, match="'Radeon 9' is not among the devices that are known"):
        choose(None)


def test_this_machine_is_measured() -> None:
    device = choose("cpu")
    assert device.usable == device.memory > 1e8 and device.bandwidth > 1e6 and device.float32 > 1e6  # on a busy machine


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--device", "h20"), "--device: unknown device: 'h20'; did you mean 'h200'? choices: a100-40,"),
        (("--device", "h200", "--gpus", "0"), "--gpus: expected a number from 1 on, found 0"),
        (("--device", "cpu", "--gpus", "2"), "--gpus: the CPU of this machine is one device, found 2"),
        (("--device", "h200", "--price", "-1"), "--price: expected the price of a device for an hour, found -1"),
        (("--set", "models.student=/nowhere/student"), "models.student: no folder '/nowhere/student'"),
        (("--set", "limits.prompt=1"), "no row is left"),
    ],
)
def test_bad_input_is_one_line(dudi: Dudi, options: tuple[str, ...], line: str) -> None:
    assert line in dudi.refused("plan", str(dudi.file), *options)


def test_the_command_prints_in_order_and_writes_json(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    file = dudi.folder / "plan.json"
    assert dudi("plan", str(dudi.file), "--device", "h100", "--price", "2.5", "--json", str(file)) == 0
    heads = ("rows ", "limits ", "memory of a device ", "time ", "disk ", "it fits")
    places = [next(n for n, line in enumerate(dudi.text.splitlines()) if line.startswith(head)) for head in heads]
    assert places == sorted(places) and "at 2.5 an hour" in dudi.text and not dudi.out.exists()
    table = json.loads(file.read_text(encoding="utf-8"))
    assert table["fits"] is True and [stage["stage"] for stage in table["stages"]] == ["cold-start", "dudi"]
    small_device(monkeypatch, 1e5)
    assert dudi("plan", str(dudi.file), "--device", "l4", "--json", "-") == 1
    table = json.loads(dudi.text)
    assert table["fits"] is False and len(table["faults"]) == 2
    assert "nowhere" in dudi.refused("plan", str(dudi.file), "--device", "h100", "--json", "/proc/nowhere/plan.json")
