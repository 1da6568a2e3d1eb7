"""`dudi export --merge`: an adapter and its base as the model that they are; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.adapters import KINDS, adapted
from kit.command import Dudi
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi.models.adapter import WEIGHTS, save_adapter

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own

IDS = torch.arange(40).reshape(2, 20)


@torch.no_grad()
def logits(made: Any) -> Tensor:
    return made(input_ids=IDS).logits


def saved(folder: Path, tied: bool = True, **settings: Any) -> Tensor:
    """`folder`/base and `folder`/adapter; the logits of both together."""
    kit.save(folder / "base", kit.model(1, rows=kit.VOCAB + 6, tied=tied, dtype=torch.float32), kit.tokenizer())
    made = adapted(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), **settings)
    save_adapter(made, folder / "adapter")
    return logits(made.eval())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_base_and_adapter_say(kind: str, tied: bool, dudi: Dudi, tmp_path: Path) -> None:
    wanted, out = saved(tmp_path, tied, **KINDS[kind]), tmp_path / "out"
    assert dudi("export", str(tmp_path / "adapter"), str(out), "--merge", "--dtype", "float32") == 0, dudi.err
    found, how = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not how["missing_keys"] and not how["unexpected_keys"]
    assert float((logits(found) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert load_file(out / "model.safetensors").keys() == base.keys()
    assert AutoTokenizer.from_pretrained(out).chat_template == kit.CHATML
    assert not (out / "adapter_config.json").exists()
    assert not [f.name for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_in_bfloat16_and_on_another_base(dudi: Dudi, tmp_path: Path) -> None:
    """--base takes the place of what the adapter names; the tokenizer is the adapter's where it has one."""
    saved(tmp_path)
    other = kit.model(5, rows=kit.VOCAB + 6, dtype=torch.float32)
    kit.save(tmp_path / "other", other, kit.tokenizer())
    kit.tokenizer(template="{{ messages }}").save_pretrained(tmp_path / "adapter")
    options = ("--merge", "--base", str(tmp_path / "other"))
    assert dudi("export", str(tmp_path / "adapter"), str(tmp_path / "out"), *options) == 0, dudi.err
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.dtype is torch.bfloat16 and AutoTokenizer.from_pretrained(tmp_path / "out").chat_template != kit.CHATML
    embedding = found.get_input_embeddings().weight
    assert torch.equal(embedding, other.get_input_embeddings().weight.bfloat16())
    gate = "model.layers.0.mlp.gate_proj.weight"
    assert not torch.allclose(found.get_parameter(gate), other.get_parameter(gate).bfloat16())


def nameless(folder: Path) -> None:
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None}))


def cut(folder: Path) -> None:
    file = folder / "adapter" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])


def fewer(folder: Path) -> None:
    state = load_file(folder / "adapter" / WEIGHTS)
    state.pop(next(iter(state)))
    save_file(state, folder / "adapter" / WEIGHTS)


def smaller(folder: Path) -> None:
    kit.save(folder / "base", kit.model(1, hidden=16, dtype=torch.float32), kit.tokenizer())


def gone(folder: Path) -> None:
    (folder / "base").rename(folder / "moved")


CASES = {
    nameless: "adapter_config.json names no base model: give it with --base",
    cut: "adapter_config.json or adapter_model.safetensors is not readable",
    fewer: "does not fit the model",
    smaller: "does not fit the model",
    gone: "adapter_config.json: base_model_name_or_path: no folder",
}


@pytest.mark.parametrize("change", CASES, ids=lambda f: f.__name__)
def test_what_is_refused(change: Any, dudi: Dudi, tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path)
    assert CASES[change] in dudi.refused("export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--merge")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_options_that_do_not_fit(dudi: Dudi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    adapter, base, out = (str(tmp_path / name) for name in ("adapter", "base", "out"))
    assert "is no adapter of peft's: it holds no adapter_config.json" in dudi.refused("export", base, out, "--merge")
    assert "--base: only with --merge" in dudi.refused("export", base, out, "--base", base)
    assert f"(dudi export {adapter} OUT --merge)" in dudi.refused("export", adapter, out)
    monkeypatch.setattr("dudi.models.merge.find_spec", lambda name: None)
    assert "--merge: the package peft is not installed" in dudi.refused("export", adapter, out, "--merge")
