"""`dudi export`: the numbers that transformers has after loading a model in another dtype; all else as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.architectures import build
from kit.command import Dudi
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi.models.export import DTYPES, LEFT_OUT


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


def saved(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = True, shards: bool = False) -> Path:
    """A model folder as a run leaves it, with files that are none of the library's."""
    made = kit.model(1, dtype=dtype, tied=tied, rows=kit.VOCAB + 6)
    made.save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
    kit.tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    (folder / "complete.json").write_text("{}")
    (folder / "more").mkdir()
    (folder / "more" / "a.jinja").write_text("{{ x }}")
    return folder


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [torch.float32, torch.bfloat16])
def test_it_is_what_the_library_loads(
    dudi: Dudi, tmp_path: Path, start: torch.dtype, dtype: str, tied: bool, shards: bool
) -> None:
    model, out = saved(tmp_path / "m", start, tied, shards), tmp_path / "out"
    before = {str(f.relative_to(model)): f.read_bytes() for f in model.rglob("*") if f.is_file()}
    assert dudi("export", str(model), str(out), "--dtype", dtype) == 0, dudi.err
    wanted: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    found: Any = AutoModelForCausalLM.from_pretrained(out)
    assert found.dtype is getattr(torch, dtype), "without being told"
    for (name, p), q in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert p.dtype is q.dtype and torch.equal(p, q), name
    assert (found.lm_head.weight is found.model.embed_tokens.weight) is tied
    assert tensors(out).keys() == tensors(model).keys()
    changed = {*(f.name for f in model.glob("model*")), "config.json"}
    kept = {n: data for n, data in before.items() if n not in changed and n not in LEFT_OUT}
    assert kept == {
        str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file() and f.name not in changed
    }
    assert before == {str(f.relative_to(model)): f.read_bytes() for f in model.rglob("*") if f.is_file()}
    if shards:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors(out).values())
        assert set(index["weight_map"].values()) == {f.name for f in out.glob("*.safetensors")}
    assert AutoTokenizer.from_pretrained(out).chat_template == kit.CHATML
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_what_a_class_keeps_in_float32_stays_in_it(dudi: Dudi, tmp_path: Path) -> None:
    """A router's bias: rounded to bfloat16, other experts would be chosen."""
    made = build("deepseek_v3")
    biases = {n: b.normal_() for n, b in made.named_buffers() if "e_score_correction_bias" in n}
    assert biases
    made.save_pretrained(tmp_path / "m")
    assert dudi("export", str(tmp_path / "m"), str(tmp_path / "out")) == 0, dudi.err
    wanted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    wanted.save_pretrained(tmp_path / "wanted")
    found, theirs = tensors(tmp_path / "out"), tensors(tmp_path / "wanted")
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert found[name].dtype is tensor.dtype and torch.equal(found[name], tensor), name
    assert {found[name].dtype for name in biases} == {torch.float32}


def test_numbers_that_float16_has_not(dudi: Dudi, tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    state = load_file(model / "model.safetensors")
    state["model.norm.weight"][3] = 7e4
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    line = dudi.refused("export", str(model), str(tmp_path / "out"), "--dtype", "float16")
    assert "'model.norm.weight' holds numbers up to 70000, and float16 ends at 65504: choose bfloat16" in line
    assert sorted(f.name for f in tmp_path.iterdir() if "out" in f.name) == []
    assert dudi("export", str(model), str(tmp_path / "out")) == 0


def quantised(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (model / "config.json").write_text(json.dumps(config))


def pickled(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")


def cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def adapter(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")


CASES = {
    quantised: "is quantised (gptq): give the model that it was made from",
    pickled: "pytorch_model.bin is no safetensors file: load the model with transformers",
    cut: "model.safetensors is truncated, damaged or not a safetensors file",
    adapter: "is an adapter and no whole model",
}


@pytest.mark.parametrize("change", CASES, ids=lambda f: f.__name__)
def test_models_that_are_refused(change: Any, dudi: Dudi, tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    change(model)
    assert CASES[change] in dudi.refused("export", str(model), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and len(list(tmp_path.glob(".*"))) == 0


def test_folders_that_are_refused(dudi: Dudi, tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "file").write_text("x")
    for out, said in (
        ("full", "is there already; choose a new folder"),
        ("file", "is there already; choose a new folder"),
        ("m", "is there already"),
        ("m/half", "lies within the model's own folder"),
        ("file/out", "cannot be made"),
    ):
        assert said in dudi.refused("export", str(model), str(tmp_path / out)), out
    assert "no model folder" in dudi.refused("export", str(tmp_path / "none"), str(tmp_path / "out"))
    assert "--dtype 'int8': expected bfloat16, float16 or float32" in dudi.refused(
        "export", str(model), str(tmp_path / "out"), "--dtype", "int8"
    )
    (tmp_path / "empty").mkdir()
    assert dudi("export", str(model), str(tmp_path / "empty")) == 0, "an empty folder is nobody's"
