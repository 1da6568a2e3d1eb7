"""Every argument of a method, a key of a recipe's [method], changes something: as `test_every_key` for the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch

from dudi.methods import METHODS, build_method
from dudi.recipe.read import parse_recipe
from dudi.recipe.stages import plan


def step_of(tmp: Path, table: dict[str, Any]) -> Any:
    """Loss and gradient norm of a step."""
    step = kit.step(kit.trainer(tmp, table))
    return step[0], float(torch.stack([grad.norm() for grad in step[1].values()]).norm())


def conversations_of(tmp: Path, table: dict[str, Any]) -> float:
    """The loss on rows with earlier assistant turns."""
    several = [e for e in kit.builtin() if any(m.role == "assistant" for m in e.x)]
    return kit.step(kit.trainer(tmp, table, examples=several[:4], batch=4))[0]


def average_of(tmp: Path, table: dict[str, Any]) -> float:
    """The moving-average teacher after a step."""
    made = kit.trainer(tmp, table, max_steps=1, lr=0.1)
    made.train()
    assert made.ema is not None
    return float(made.ema.model.get_input_embeddings().weight.detach().sum())


def coins_of(tmp: Path, table: dict[str, Any]) -> list[str]:
    return [build_method(table).active(0, step)[0].name for step in range(30)]


def iterations_of(tmp: Path, table: dict[str, Any]) -> int:
    base = {"name": "x", "models": {"student": "s", "teacher": "t"}, "data": {"source": "builtin"}}
    return len(plan(parse_recipe({**base, "method": table}, "test")))


JSD = {"divergence": "jsd"}
ARGUMENTS: dict[str, tuple[Any, Callable[[Path, dict[str, Any]], Any], dict[str, Any]]] = {
    "sft.loss_on": ("all_assistant", conversations_of, {}),
    "dft.loss_on": ("all_assistant", conversations_of, {}),
    "spin.variant": ("online", iterations_of, {}),
    "spin.spin_beta": (0.5, step_of, {"variant": "online"}),
    "spin.iterations": (2, iterations_of, {}),
    "sdft.variant": ("reverse", step_of, {}),
    "sdft.ema_rate": (0.5, average_of, {}),
    "sdft.skip_tokens": (0, step_of, {}),
    "sdft.verbalizer": ("crosslingual", step_of, {}),
    "seqkd.variant": ("jsd", step_of, {}),
    "seqkd.jsd_beta": (0.1, step_of, {"variant": "jsd"}),
    "gkd.variant": ("sum", step_of, {}),
    "gkd.lam": (0.9, coins_of, {}),
    "gkd.divergence": ("forward_kl", step_of, {}),
    "gkd.jsd_beta": (0.1, step_of, {}),
    "dudi.alpha": (1.0, step_of, {}),
    "dudi.lam": (0.9, step_of, {}),
    "dudi.spin_beta": (0.5, step_of, {}),
    "dudi.divergence": ("forward_kl", step_of, {}),
    "dudi.jsd_beta": (0.1, step_of, JSD),
    "dudi.verbalizer": ("none", step_of, {}),
    "dudi.include_english": (False, step_of, {}),
    "dudi.without": (("sequence",), step_of, {}),
}


def test_every_argument_of_a_method_has_an_entry() -> None:
    found = {f"{name}.{argument}" for name, f in METHODS.items() for argument in inspect.signature(f).parameters}
    assert found == ARGUMENTS.keys()


@pytest.mark.parametrize("key", ARGUMENTS)
def test_every_argument_of_a_method_changes_something(tmp_path: Path, key: str) -> None:
    name, argument = key.split(".")
    value, probe, base = ARGUMENTS[key]
    table = {"name": name, **base}
    assert probe(tmp_path / "a", table) != probe(tmp_path / "b", {**table, argument: value}), f"{key} changes nothing"
