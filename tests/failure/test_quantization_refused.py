"""What quantised weights are refused with, in one line, before anything is loaded; and what transformers is asked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import recipes, runs
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import dudi.run.paths
from dudi.errors import DudiError
from dudi.models.load import load_model
from dudi.models.quantised import check_backend, check_plain, quantization
from dudi.recipe.fields import Quantization
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Models
from dudi.run.launch import Launch, check_launch
from dudi.run.pipeline import run
from dudi.run.plan.plan import plan

TEACHER, STUDENT = "models.teacher_quantization", "adapter.quantization"


def asked(key: str, **tables: Any) -> dict[str, Any]:
    """A good recipe with one of the two keys."""
    good = recipes.good()
    own = {"models": {**good["models"], "teacher_quantization": "8bit"}} if key == TEACHER else {}
    table = {**good, **own, **({"adapter": {"quantization": "4bit"}} if key == STUDENT else {})}
    for name, value in tables.items():
        table[name] = {**table.get(name, {}), **value}
    return table


@pytest.mark.parametrize("key", [TEACHER, STUDENT])
def test_without_bitsandbytes_it_is_refused_with_the_command(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(dudi.run.paths, "find_spec", lambda name: None if name == "bitsandbytes" else real("json"))
    tables = {"models": {"teacher_quantization": "8bit"}} if key == TEACHER else {"adapter": {"quantization": "4bit"}}
    recipe = runs.recipe(tmp_path, {"name": "dudi"}, **tables)
    for use in (lambda: run(recipe, say=lambda _: None), lambda: plan(recipe, "h100")):
        with pytest.raises(DudiError) as error:
            use()
        line = recipes.the_line(error)
        assert line.startswith(f"{key}: the package bitsandbytes is not installed: pip install 'dudi[bnb]'")
    assert not (tmp_path / "run").exists()


def test_a_version_or_machine_that_bitsandbytes_cannot_serve_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("4bit", "8bit"):
        module = f"transformers.quantizers.quantizer_bnb_{kind}.is_bitsandbytes_available"
        monkeypatch.setattr(module, lambda: False)
        with pytest.raises(DudiError, match=f"{TEACHER}: .*requires bitsandbytes: `pip install -U bitsandbytes>=") as e:
            check_backend(TEACHER, kind)  # type: ignore[arg-type]
        recipes.the_line(e)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (
            asked(TEACHER, models={"teacher_quantization": "2bit"}),
            "models.teacher_quantization: input should be '8bit' or '4bit', found '2bit'",
        ),
        (asked(STUDENT, adapter={"quantization": "8bit"}), "adapter.quantization: "),
        (asked(TEACHER, models={"precision": "float64"}), f'{TEACHER}: not with models.precision = "float64"'),
        (asked(STUDENT, models={"precision": "float64"}), f'{STUDENT}: not with models.precision = "float64"'),
        (
            asked(TEACHER, models={"teacher_sharding": "shard"}),
            f'{TEACHER}: not with models.teacher_sharding = "shard"',
        ),
        (asked(TEACHER, models={"teacher": None}, method={"name": "sft"}), f"{TEACHER}: there is no models.teacher"),
    ],
)
def test_what_does_not_go_together_is_one_line(table: dict[str, Any], line: str) -> None:
    with pytest.raises(DudiError) as error:
        parse_recipe(table, "test")
    assert line in recipes.the_line(error)


def test_four_bits_are_refused_under_fsdp2() -> None:
    recipe = parse_recipe(asked(STUDENT), "test")
    with pytest.raises(DudiError, match=r"adapter\.quantization: not under fsdp2"):
        check_launch(recipe, 2, Launch.FSDP2)
    check_launch(recipe, 2, Launch.DDP)


def test_a_model_that_is_quantised_already_is_refused() -> None:
    config = kit.model(1).config
    check_plain(config, "x", TEACHER)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(DudiError, match=f"{TEACHER}: 'x' is quantised already: leave the key out"):
        check_plain(config, "x", TEACHER)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_what_transformers_is_asked_for(
    bits: Quantization, autocast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not bitsandbytes is here."""
    kit.save(tmp_path, kit.model(1, dtype=torch.float32), kit.tokenizer())
    found: dict[str, Any] = {}

    def load(path: str, **kwargs: Any) -> Any:
        found.update(kwargs)
        raise ValueError("enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    models = Models(student=str(tmp_path))
    with pytest.raises(DudiError, match="enough"):
        load_model(str(tmp_path), "x", models, torch.float32, quantization=quantization(bits, autocast))
    given = found["quantization_config"]
    assert isinstance(given, BitsAndBytesConfig) and found["dtype"] is torch.float32
    assert [*found["device_map"]] == [""] and "distributed_config" not in found
    wanted: dict[str, Any] = {"load_in_8bit": True}
    if bits == "4bit":
        kind = "bfloat16" if autocast else "float32"
        wanted = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        wanted |= {"bnb_4bit_compute_dtype": kind} if autocast else {}
    said = json.loads(given.to_json_string(use_diff=True))
    assert {key: said[key] for key in wanted} == wanted
    assert given.quantization_method() == ("llm_int8" if bits == "8bit" else "nf4")
