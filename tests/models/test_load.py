"""Models that cannot be loaded are refused in one line that is true and says what to do; the result is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from kit.architectures import build
from kit.command import Dudi
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi.errors import DudiError
from dudi.models.export import store_as
from dudi.models.load import check_model, load_config, load_model, load_tokenizer
from dudi.recipe.schema import Models
from dudi.run.pipeline import run

MODELS = Models(student="x")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto}))


def sees(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3"}))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an adapter": (adapter, "is an adapter and no whole model: merge it into its base model"),
    "GGUF": (gguf, "is a GGUF file, made for inference: give the folder of the model that it was made from"),
    "no tokenizer": (no_tokenizer, "holds no tokenizer (tokenizer.json): copy the tokenizer files"),
    "code of its own": (code, "read it, then set models.trust_remote_code = true"),
    "gone": (shutil.rmtree, "no folder"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_model(dudi: Dudi, name: str) -> None:
    path = dudi.folder / "broken"
    shutil.copytree(dudi.models / "student", path)
    change, said = FOLDERS[name]
    change(path)
    line = dudi.run_refused(f"models.student='{path}'")
    assert line.startswith(f"models.student: '{path}'") or name == "gone"
    assert said in line and "..." not in line


def test_a_model_that_sees_images(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "sees"
    shutil.copytree(models / "student", path)
    sees(path)
    with pytest.raises(DudiError, match="transformers has no causal language model for a Mistral3Config"):
        load_model(str(path), "models.student", MODELS, torch.float32)


def test_a_missing_folder_is_no_hub_name(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/x`, where there is a folder `models`."""
    monkeypatch.chdir(models.parent)
    for path in (f"{models.name}/gone", "./gone", "~/gone/x"):
        with pytest.raises(
            DudiError, match=rf"^models\.student: no folder '{path}'; give a model folder or a hub name"
        ):
            load_tokenizer(path, "models.student", MODELS)
    with pytest.raises(
        DudiError, match=r"^models\.student: 'nobody/gone' .*: there is no such folder, and as a hub name it"
    ):
        load_tokenizer("nobody/gone", "models.student", MODELS)


def test_attention_that_a_model_does_not_have(models: Path, tmp_path: Path) -> None:
    """The library's hint is not cut off, and the key is named; without the key, transformers chooses."""
    build("mpt").save_pretrained(tmp_path)
    with pytest.raises(DudiError) as error:
        load_model(str(tmp_path), "models.student", Models(student="x", attention="flex_attention"), torch.float32)
    assert 'leave models.attention out, so that transformers chooses, or set models.attention = "eager"' in str(
        error.value
    )
    assert load_model(str(tmp_path), "models.student", MODELS, torch.float32).config._attn_implementation == "eager"
    student = str(models / "student")
    for given, used in ((None, "sdpa"), ("eager", "eager"), ("sdpa", "sdpa"), ("flex_attention", "flex_attention")):
        loaded = load_model(student, "models.student", Models(student="x", attention=given), torch.float32)
        assert loaded.config._attn_implementation == used


def test_templates_by_name(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "named"
    shutil.copytree(models / "student", path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = {"default": kit.CHATML, "tool_use": "x"}
    tokenizer.save_pretrained(path)
    assert isinstance(AutoTokenizer.from_pretrained(path).chat_template, dict), "else nothing is shown"
    assert load_tokenizer(str(path), "models.student", MODELS).chat_template == kit.CHATML
    tokenizer.chat_template = {"rag": "x", "tool_use": "x"}
    shutil.rmtree(path / "additional_chat_templates", ignore_errors=True)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(path)
    with pytest.raises(DudiError, match=r"chat templates by name \('rag', 'tool_use'\), but none called 'default'"):
        load_tokenizer(str(path), "models.student", MODELS)


def test_a_model_without_an_embedding_for_every_token(tmp_path: Path) -> None:
    path = kit.save(tmp_path / "m", kit.model(1, rows=kit.VOCAB, dtype=torch.float32), kit.tokenizer())
    config = load_config(path, "models.student", MODELS)
    check_model(config, path, "models.student", MODELS, None, kit.VOCAB)
    with pytest.raises(DudiError, match=f"the model has {kit.VOCAB} embeddings, but the tokenizer has"):
        check_model(config, path, "models.student", MODELS, None, kit.VOCAB + 1)


def test_the_result_is_whole(tmp_path: Path) -> None:
    """Processor files travel with every stage's model; only the last is rounded to `models.save_dtype`."""
    recipe = runs.recipe(tmp_path, {"name": "dudi"}, models={"save_dtype": "bfloat16"}, training={"max_steps": 1})
    (tmp_path / "student" / "preprocessor_config.json").write_text('{"size": 224}')
    (tmp_path / "student" / "processor_config.json").write_text('{"a": 1}')
    cold, last = runs.stages(run(recipe, say=lambda *_: None))
    dtypes = [{t.dtype for t in load_file(s / "model" / "model.safetensors").values()} for s in (cold, last)]
    assert dtypes == [{torch.float32}, {torch.bfloat16}]
    for stage in (cold, last):
        assert (stage / "model" / "preprocessor_config.json").read_text() == '{"size": 224}'
        assert (stage / "model" / "processor_config.json").exists()
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(last / "model").parameters()} == {torch.bfloat16}


def test_shards_are_rounded_too(tmp_path: Path) -> None:
    model = kit.model(1, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    store_as(tmp_path, torch.bfloat16)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, p), q in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert p.dtype is torch.bfloat16 and torch.equal(p, q.bfloat16()), name
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in model.parameters())
