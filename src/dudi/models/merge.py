"""An adapter in peft's files, merged into the model that it stands beside: a plain model, as anybody loads it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi.errors import DudiError
from dudi.models.adapter import WEIGHTS
from dudi.models.files import check_weights, local_folder, reading_model
from dudi.models.load import load_config, load_tokenizer
from dudi.models.refusals import check_kind, has_tokenizer
from dudi.recipe.schema import Models

CONFIG = "adapter_config.json"


def merge(folder: Path, base: str | None, into: Path) -> None:
    """Save the merged model in float32, with a tokenizer: the adapter's if it has one, else its base's.

    base: a folder or hub name in place of the one that the adapter names. Raises `DudiError` for a folder that is no
    adapter's, a base that is not there, and an adapter of another model.
    """
    if find_spec("peft") is None:
        raise DudiError("--merge: the package peft is not installed: pip install 'dudi[peft]'")
    names, state = _read(folder)
    what = "--base" if base else f"{CONFIG}: base_model_name_or_path"
    path = base or names.get("base_model_name_or_path")
    if not isinstance(path, str) or not path:
        raise DudiError(f"{str(folder)!r}: {CONFIG} names no base model: give it with --base")
    model = _base(path, what)
    merged = _merged(model, folder, state, path)
    merged.save_pretrained(into)
    if has_tokenizer(folder):
        with reading_model(str(folder), "--merge"):
            AutoTokenizer.from_pretrained(folder).save_pretrained(into)
    else:
        load_tokenizer(path, what, Models(student=path)).save_pretrained(into)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An adapter's config and weights."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DudiError(f"--merge: {str(folder)!r} is no adapter of peft's: it holds no {name}")
    try:
        names = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(names, dict):
            raise ValueError
        return names, load_file(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError):
        raise DudiError(f"--merge: {str(folder)!r}: {CONFIG} or {WEIGHTS} is not readable") from None


def _base(path: str, what: str) -> Any:
    """The model beneath, on the CPU: it need not fit a GPU."""
    config = load_config(path, what, Models(student=path))
    with reading_model(path, what):
        check_kind(config, path, what, trained=True)
        found = local_folder(path, None)
        if found is not None:
            check_weights(found, config, what)
        return AutoModelForCausalLM.from_pretrained(
            str(Path(path).expanduser()) if found else path, dtype=torch.float32
        )


def _merged(model: Any, folder: Path, state: dict[str, torch.Tensor], base: str) -> Any:
    """The model with the adapter in it. peft passes over what is missing with a warning; here it is an error."""
    from peft import PeftModel, get_peft_model_state_dict

    other = f"--merge: the adapter {str(folder)!r} does not fit the model {base!r}"
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # sizes, modules that are not there, a kind that this peft does not know
        raise DudiError(f"{other}: {' '.join(str(error).split()):.300}") from None
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    strange = sorted(wanted ^ state.keys())
    if strange:
        raise DudiError(f"{other}: {strange[0]!r} is in one of the two only ({len(strange)} such)")
    return adapted.merge_and_unload()
