"""A model folder in another dtype: the numbers that transformers would have after loading it in that dtype. Or one that
is made of an adapter and the model beneath."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dudi.errors import DudiError
from dudi.files import nearest
from dudi.models.files import check_weights, reading_model, weight_files
from dudi.models.load import load_config
from dudi.models.merge import merge
from dudi.models.refusals import check_kind
from dudi.recipe.schema import Models

DTYPES = ("bfloat16", "float16", "float32")
INDEX = "model.safetensors.index.json"
LEFT_OUT = ("complete.json", ".*", "checkpoint-*")
"""What is the run's (sums of files that are other ones here), and what is hidden."""


def export(model: str, output: Path, dtype: str, merged: bool = False, base: str | None = None) -> Path:
    """Copy a model folder, its weights in another dtype; returns the new folder, which is whole or absent.

    Everything else is copied; shards and tied weights stay as they are. merged: `model` is an adapter, which is merged
    into its `base` (none: that which it names). Raises `DudiError` for a quantised model, for weights that are not
    safetensors, for numbers that are too large for float16, and for a folder that is in use.
    """
    folder = Path(model).expanduser()
    if dtype not in DTYPES:
        raise DudiError(f"--dtype {dtype!r}: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    if not folder.is_dir():
        raise DudiError(f"no model folder {model!r}: expected one with config.json and weights")
    if base is not None and not merged:
        raise DudiError("--base: only with --merge")
    _check_output(output, folder)
    with _whole_or_absent(output) as aside:
        if merged:
            merge(folder, base, aside)
            store_as(aside, getattr(torch, dtype))
        else:
            _copy(folder, model, getattr(torch, dtype), aside)
    return output


def _copy(folder: Path, model: str, dtype: torch.dtype, into: Path) -> None:
    """A model folder, its weights in another dtype."""
    what = "model"
    config = load_config(model, what, Models(student=model))
    if (given := getattr(config, "quantization_config", None)) is not None:
        method = (given if isinstance(given, dict) else given.to_dict()).get("quant_method")
        raise DudiError(f"model: {model!r} is quantised ({method}): give the model that it was made from")
    with reading_model(model, what):
        check_kind(config, model, what, trained=False)
        check_weights(folder, config, what)
    weights = [file.name for file in weight_files(folder, config, what)[0]]
    shutil.copytree(folder, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT, *weights))
    store_as(folder, dtype, into=into)


@contextmanager
def _whole_or_absent(output: Path) -> Iterator[Path]:
    """A folder to fill, that becomes the output."""
    aside = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        yield aside
        aside.chmod(0o755)  # as any new folder; a temporary one is its maker's alone
        os.replace(aside, output)
    except (OSError, SafetensorError) as error:
        raise DudiError(f"{output}: cannot be written ({str(error).splitlines()[0]}); nothing was left there") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _check_output(output: Path, folder: Path) -> None:
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise DudiError(f"output {str(output)!r} is there already; choose a new folder")
    if output.resolve().is_relative_to(folder.resolve()):
        raise DudiError(f"output {str(output)!r} lies within the model's own folder; choose another place")
    there = nearest(output)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise DudiError(f"output {str(output)!r} cannot be made: {str(there)!r} cannot be written to")


def store_as(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False, into: Path | None = None) -> None:
    """Round the weights of a saved model to another dtype, a file at a time: in place, or into another folder, which
    has the other files. Its config says so.

    What the model's class keeps in float32 (a router's bias) stays in it, as transformers loads it.
    """
    models = Models(student=str(folder), trust_remote_code=trust_remote_code)
    config = load_config(str(folder), "model", models)
    files, _ = weight_files(folder, config, "model")
    if strange := [file.name for file in files if file.suffix != ".safetensors"]:
        raise DudiError(
            f"model: {strange[0]} is no safetensors file: load the model with transformers, and save it with"
            " save_pretrained first"
        )
    wanted, size, into = _wanted(config, dtype, trust_remote_code), 0, into or folder
    for file in files:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {"format": "pt"}
            state = {name: _cast(opened.get_tensor(name), wanted(name), name) for name in opened.keys()}  # noqa: SIM118
            aside = into / f".{file.name}.tmp"  # in place, the tensors may be the file itself, mapped
            save_file(state, aside, metadata=metadata)
        os.replace(aside, into / file.name)
        size += sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if (into / INDEX).is_file():
        table = json.loads((into / INDEX).read_text(encoding="utf-8"))
        table["metadata"] = {**table.get("metadata", {}), "total_size": size}
        (into / INDEX).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    _say_dtype(into / "config.json", str(dtype).removeprefix("torch."))


def _wanted(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Callable[[str], torch.dtype]:
    """By the name of a tensor, the dtype that transformers would load it in."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    own = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    plan = [(re.compile(name.replace("*", ".*")), kept) for name, kept in model._get_dtype_plan(dtype).items()]

    def of(name: str) -> torch.dtype:
        return next((kept for pattern, kept in plan if pattern.search(name)), own.get(name, dtype))

    return of


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A tensor of floating-point numbers in another dtype; any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if dtype is torch.float16 and bool((rounded.isinf() & tensor.isfinite()).any()):
        raise DudiError(
            f"model: {name!r} holds numbers up to {float(tensor.abs().max()):g}, and float16 ends at 65504: choose"
            " bfloat16"
        )
    return rounded


def _say_dtype(file: Path, dtype: str) -> None:
    """Config and the configs within it, where they name one."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    for table in (config, *(value for value in config.values() if isinstance(value, dict))):
        table.update({key: dtype for key in ("dtype", "torch_dtype") if key in table})
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
