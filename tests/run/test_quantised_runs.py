"""Whole runs on weights in 4 and 8 bits, really quantised by bitsandbytes: what stages hand on, R, results, stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.stops import StopAt, Stopped
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback

from dudi.models.adapter import WEIGHTS
from dudi.models.load import load_model
from dudi.models.quantised import quantization
from dudi.recipe.schema import Models, Recipe
from dudi.run.pipeline import run
from dudi.run.plan.plan import plan
from dudi.training.trainer import DistillationTrainer

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft's own use
]

IDS = torch.arange(3, 40)[None]


def recipe(folder: Path, output: str) -> Recipe:
    """A cold start and DuDi of two steps each, in float32; the student in 4 bits, the teacher in 8."""
    return runs.recipe(
        folder,
        {"name": "dudi"},
        output=output,
        adapter={"r": 4, "quantization": "4bit"},
        models={"teacher_quantization": "8bit"},
        training={"max_steps": 2, "save_every": 1},
        number=4,
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS.to(model.device)).logits.cpu()


class Saying(TrainerCallback):
    """What student and R say as DuDi begins and ends, and what they and the teacher are made of."""

    def __init__(self, trainer: DistillationTrainer, found: dict[str, Any]) -> None:
        self.trainer, self.found = trainer, found

    def _say(self, when: str) -> None:
        job = self.trainer.job
        assert job.reference is job.student
        with job.reference_as():
            reference = logits(job.student)
        self.found[when] = logits(job.student), reference

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say("first")
        models = {"student": self.trainer.job.student, "teacher": self.trainer.job.teacher}
        for name, model in models.items():
            self.found[name] = {type(module).__name__ for n, module in model.named_modules() if "up_proj" in n}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say("last")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run, and what was seen of it."""
    folder, found = tmp_path_factory.mktemp("quantised"), dict[str, Any]()

    def watch(trainer: DistillationTrainer, title: str) -> TrainerCallback:
        return Saying(trainer, found) if title.endswith(": dudi") else TrainerCallback()

    return kit.watched(recipe(folder, "run"), watch), found


def test_models_are_loaded_as_the_recipe_says(done: tuple[Path, dict[str, Any]]) -> None:
    assert "Linear4bit" in done[1]["student"] and done[1]["teacher"] == {"Linear8bitLt"}


def test_the_reference_is_the_base_with_the_adapter_of_the_cold_start(done: tuple[Path, dict[str, Any]]) -> None:
    from peft import PeftModel

    made, found = done
    path = str(made.parent / "student")
    given = quantization("4bit", autocast=False)
    base = load_model(path, "test", Models(student=path), torch.float32, quantization=given)
    cold = PeftModel.from_pretrained(base, str(made / "1-cold-start" / "adapter"))
    wanted, alone = logits(cold), logits(cold.unload())
    (student, reference), (trained, still) = found["first"], found["last"]
    assert torch.allclose(reference, wanted, atol=1e-5 * float(wanted.abs().max()))
    assert float((wanted - alone).abs().max()) > 1e-3 * float(wanted.abs().max()), "the cold start learned nothing"
    assert torch.equal(student, reference) and torch.equal(reference, still)
    assert float((trained - reference).abs().max()) > 1e-3 * float(wanted.abs().max())


def test_what_is_published_says_what_was_trained(done: tuple[Path, dict[str, Any]]) -> None:
    made, found = done
    result = AutoModelForCausalLM.from_pretrained(made / "2-dudi" / "model")
    assert getattr(result.config, "quantization_config", None) is None
    wanted = found["last"][0]
    assert float((logits(result) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_the_plan_counts_it(done: tuple[Path, dict[str, Any]]) -> None:
    cold, own = plan(recipe(done[0].parent, "planned"), "h100").stages
    items = [{item.name: item.bytes for item in stage.memory.items} for stage in (cold, own)]
    size = sum(p.numel() for p in kit.model(1).parameters()) * 4
    assert items[0]["student's own weights, frozen"] == items[1]["student's own weights, frozen"] < 0.9 * size
    assert "R's adapter, float32" in items[1] and "R's adapter, float32" not in items[0]
    assert items[1]["R's adapter, float32"] == items[1]["adapter, float32"] == 4 * own.parameters
    assert "teacher, 8bit" in items[1] and "student: a layer, out of its 4 bits" in items[1]


def test_stopped_and_resumed_it_ends_like_the_straight_run(done: tuple[Path, dict[str, Any]]) -> None:
    cut = recipe(done[0].parent, "stopped")
    with pytest.raises(Stopped):
        kit.watched(cut, lambda made, title: StopAt(1) if title.endswith(": dudi") else TrainerCallback())
    resumed = run(cut, resume=True, say=lambda _: None)
    runs.assert_same_end(done[0], resumed)
    for stage in ("1-cold-start", "2-dudi"):
        mine, theirs = (load_file(folder / stage / "adapter" / WEIGHTS) for folder in (done[0], resumed))
        assert runs.identical(mine, theirs)
