"""Whole runs with [adapter]: what each stage loads, publishes and hands on, and what is planned for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import processes, runs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import dudi.run.pipeline
from dudi.models.adapter import WEIGHTS, is_adapted, without_adapter
from dudi.models.sharding import bytes_here
from dudi.run.pipeline import run
from dudi.run.plan.plan import plan
from dudi.training.trainer import DistillationTrainer

pytest.importorskip("peft")

SHORT = {"max_steps": 2, "save_every": 1}
IDS = torch.arange(3, 40)[None]


class Seen(TrainerCallback):
    """What a trainer holds, and its bytes, at the end of its last step."""

    def __init__(self, trainer: DistillationTrainer, title: str, found: dict[str, Any]) -> None:
        self.trainer, self.found, self.name = trainer, found, title.split(": ")[1]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        job, made = self.trainer.job, self.trainer
        learns = [p for p in job.student.parameters() if p.requires_grad]
        kept = [t for values in made.optimizer.state.values() for name, t in values.items() if name != "step"]
        own = {p.untyped_storage().data_ptr() for p in job.student.parameters()}
        others = [] if job.reference is None else [*job.reference.parameters()]
        self.found[self.name] = {
            "adapter": sum(p.numel() * p.element_size() for p in learns),
            "student's own weights": bytes_here(without_adapter(job.student)),
            "AdamW's moments": sum(t.numel() * t.element_size() for t in kept),
            "copy that decodes": None if made.decoder.copy is None else bytes_here(made.decoder.copy),
            "reference": job.reference is not None,
            "apart": [p for p in others if p.untyped_storage().data_ptr() not in own],
        }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any], list[str]]:
    """A run of cold start and DuDi in bfloat16: its folder, its recipe, what its trainers held, what it loaded."""
    folder, found, loads = tmp_path_factory.mktemp("adapters"), dict[str, Any](), list[str]()
    training = {**SHORT, "gradient_checkpointing": True}
    recipe = runs.recipe(
        folder, {"name": "dudi"}, adapter={"r": 4}, models={"precision": "bfloat16"}, training=training, number=4
    )
    real = dudi.run.pipeline.load_model

    def load(path: str, what: str, *rest: Any) -> Any:
        loads.append(what)
        return real(path, what, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dudi.run.pipeline, "load_model", load)
        made = kit.watched(recipe, lambda trainer, title: Seen(trainer, title, found))
    return made, recipe, found, loads


def test_each_stage_loads_its_start_once_and_no_reference(done: tuple[Path, Any, dict[str, Any], list[str]]) -> None:
    _, _, found, loads = done
    assert loads == ["models.student", "cold-start", "models.teacher"]
    assert found["dudi"]["reference"] and not found["cold-start"]["reference"]
    assert found["dudi"]["apart"] == [], "R has weights of its own"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_what_is_published_is_plain_and_is_its_start_with_the_adapter(
    done: tuple[Path, Any, dict[str, Any], list[str]],
) -> None:
    from peft import PeftModel

    made = done[0]
    for stage, start in (("1-cold-start", made.parent / "student"), ("2-dudi", made / "1-cold-start" / "model")):
        model, how = AutoModelForCausalLM.from_pretrained(made / stage / "model", output_loading_info=True)
        assert not how["missing_keys"] and not how["unexpected_keys"] and not is_adapted(model)
        state = load_file(made / stage / "model" / "model.safetensors")
        base = load_file(start / "model.safetensors")
        assert state.keys() == base.keys() and {t.dtype for t in state.values()} == {torch.float32}
        changed = {name for name in state if not torch.equal(state[name], base[name].bfloat16().float())}
        assert {name.split(".")[-2] for name in changed if "_proj.weight" in name} >= {"q_proj", "down_proj"}
        theirs = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32), str(made / stage / "adapter")
        ).merge_and_unload()
        for name, p in theirs.named_parameters():  # whose base was not rounded to bfloat16, as the trained one was
            assert torch.allclose(p, state[name], rtol=2**-8, atol=2**-12), name
        assert theirs.config.vocab_size == model.config.vocab_size
    assert "adapter" in (made / "2-dudi" / "model" / "README.md").read_text(encoding="utf-8")


def test_the_plan_counts_the_adapter_and_no_reference(done: tuple[Path, Any, dict[str, Any], list[str]]) -> None:
    _, recipe, found, _ = done
    stages = {stage.memory.stage: stage for stage in plan(recipe, "h100").stages}
    assert {*stages} == {*found} == {"cold-start", "dudi"}
    for name, stage in stages.items():
        have = {item.name.split(",")[0]: item.bytes for item in stage.memory.items}
        for what in ("adapter", "student's own weights", "AdamW's moments", "copy that decodes"):
            assert have.get(what) == found[name][what], what
        assert have["gradients"] == have["adapter"] == 4 * stage.parameters
        assert "reference R" not in have and "head: its gradient" not in have and not stage.memory.unknown
        assert have["activations"] > 0


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_like_the_straight_one(tmp_path: Path) -> None:
    """Also where a kill came between the adapter and the model that has it merged; and like one that was rehearsed."""
    ends = {}
    for name in ("straight", "stopped"):
        recipe = runs.recipe(tmp_path, {"name": "sft"}, output=name, adapter={"r": 2}, training=SHORT, number=4)
        made = run(recipe, say=lambda _: None, rehearsal=name == "straight")
        stage = runs.stages(made)[-1]
        if name == "stopped":
            (stage / "model").rename(tmp_path / "away")
            (stage / "adapter" / WEIGHTS).write_bytes(b"half")
            run(recipe, resume=True, say=lambda _: None)
        ends[name] = [load_file(stage / "model" / "model.safetensors"), load_file(stage / "adapter" / WEIGHTS)]
    for one, other in zip(ends["straight"], ends["stopped"], strict=True):
        assert runs.identical(one, other)


@pytest.mark.slow
def test_the_memory_of_the_reference_is_gone() -> None:
    """Measured: resident bytes of a process before R is made and after it was called."""
    taken = {}
    for how in ("own", "adapter"):
        status, text = processes.start("reference", how)
        assert status == 0, text
        found = json.loads(text.splitlines()[-1])
        assert found["weights"] > 1.4e8
        taken[how] = found["taken"] / found["weights"]
    assert 0.95 < taken["own"] < 1.2 and taken["adapter"] < 0.03, taken


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
@pytest.mark.parametrize("start_from", ["cold start of this run", "checkpoint", "base"])
def test_the_reference_is_what_the_method_began_with(start_from: str, tmp_path: Path) -> None:
    """After a cold start by an adapter, after one of all weights (a checkpoint), and after none: R says what that
    model's own files say, before the first step and after the last; and the result's files what the student says."""
    found: dict[str, Any] = {}

    class Saying(TrainerCallback):
        def __init__(self, trainer: DistillationTrainer) -> None:
            self.trainer = trainer

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["first"] = logits(self.trainer.job.reference), logits(self.trainer.student)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["last"] = logits(self.trainer.job.reference), logits(self.trainer.student)

    def watch(trainer: DistillationTrainer, title: str) -> TrainerCallback:
        return Saying(trainer) if title.endswith(": spin") else TrainerCallback()

    cold: dict[str, Any] = {"method": {"name": "none"}}
    if start_from == "checkpoint":
        full = runs.recipe(tmp_path, {"name": "sft"}, output="full", training=SHORT, number=4)
        cold = {"checkpoint": str(runs.stages(run(full, say=lambda _: None))[-1] / "model")}
    tables = {} if start_from.startswith("cold") else {"cold_start": cold}
    method = {"name": "spin", "variant": "online"}
    recipe = runs.recipe(tmp_path, method, adapter={"r": 4, "use_dora": True}, training=SHORT, number=4, **tables)
    made = kit.watched(recipe, watch)
    begun = {"checkpoint": cold.get("checkpoint"), "base": str(tmp_path / "student")}
    path = begun.get(start_from) or str(made / "1-cold-start" / "model")
    wanted = logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
    assert torch.equal(found["first"][0], wanted) and torch.equal(found["last"][0], wanted)
    assert torch.allclose(found["first"][1], wanted, atol=1e-5 * float(wanted.abs().max()))
    moved = float((found["last"][1] - wanted).abs().max()) / float(wanted.abs().max())
    result = logits(AutoModelForCausalLM.from_pretrained(runs.stages(made)[-1] / "model"))
    assert float((result - found["last"][1]).abs().max()) < 1e-5 * float(result.abs().max()) and moved > 1e-3


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits
