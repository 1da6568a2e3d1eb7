"""A model's weights, looked at without loading them: whole files, and the shapes that config.json asks for.

A teacher is loaded after hours of cold start; what is wrong with its files is found here in a second, before a run
begins. Values (NaN) are not looked at, nor files that the hub has yet to send.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from dudi.errors import DudiError
from dudi.models.refusals import cannot_load

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Whole weights, or what lists their shards: the loader takes the first that is there."""
NUMBERS = {"F64", "F32", "F16", "BF16"} | {
    str(one) for one in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""What weights are stored as by themselves; anything else needs a scale, and somebody who knows it."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str


@contextmanager
def reading_model(path: str, what: str) -> Iterator[None]:
    """Whatever the libraries make of a model's files that are not what they should be, as one line."""
    try:
        yield
    except DudiError:
        raise
    except Exception as error:
        raise cannot_load(path, what, error) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def local_folder(path: str, revision: str | None) -> Path | None:
    """Where a model's files lie: in its folder, or in the hub's cache; None before its config was fetched."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    found = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def check_weights(folder: Path, config: Any, what: str, trust_remote_code: bool = False, partial: bool = False) -> None:
    """Raises `DudiError` where a local folder's weights are not there, truncated, unreadable, or not those that its
    config asks for.

    A checkpoint whose tensors another version of the library named in another way is left for the loader to judge.
    partial: files may be missing, as the loader fetches them; those that are there are looked at.
    """
    files, whole = weight_files(folder, config, what, partial)
    found: dict[str, Stored] = {}
    for file in files:
        read = _header if file.suffix == ".safetensors" else _pickled
        found |= read(file, f"{what}: {str(folder)!r} cannot be loaded: {file.name}")
    if found and whole:
        _compare(found, config, trust_remote_code, f"{what}: {str(folder)!r}: the weights do not fit its config.json")


def weight_files(folder: Path, config: Any, what: str, partial: bool = False) -> tuple[list[Path], bool]:
    """The files that the loader would take, and whether these are all."""
    named = getattr(config, "transformers_weights", None)  # a config may call them otherwise
    file = next((folder / name for name in (named, *WEIGHTS) if name and (folder / name).is_file()), None)
    if file is None and not partial:
        raise DudiError(f"{what}: {str(folder)!r} holds no weights (model.safetensors, or shards with their index)")
    if file is None or file.suffix != ".json":
        return ([] if file is None else [file]), file is not None
    try:
        names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if "/" in name or not (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DudiError(f"{what}: {str(folder)!r} cannot be loaded: {file.name} is not readable") from None
    if missing and not partial:
        raise DudiError(f"{what}: {str(folder)!r} cannot be loaded: {missing[0]!r}, named in {file.name}, is not there")
    return [folder / name for name in names if name not in missing], not missing


def _header(file: Path, where: str) -> dict[str, Stored]:
    """The tensors of a safetensors file, whose length the library compares with its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: Stored(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise DudiError(f"{where} is truncated, damaged or not a safetensors file ({_line(error):.200})") from None


def _pickled(file: Path, where: str) -> dict[str, Stored]:
    """The same of a file of torch's; nothing in it is executed, and its numbers are not read."""
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return {str(name): Stored(tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()}
    except Exception:  # torch's advice would be to load it without the safeguard
        raise DudiError(f"{where} is truncated, or holds something other than weights: it is not read") from None


def _compare(found: dict[str, Stored], config: Any, trust_remote_code: bool, where: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        return  # stored in other shapes and numbers than the model's own
    with torch.device("meta"):  # as the loader does; what a wrong config makes of it is the caller's to say
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    wanted = model.state_dict()
    strange = [name for name in found if name in wanted and wanted[name].is_floating_point()]
    strange = sorted(name for name in strange if found[name].dtype not in NUMBERS)
    if strange:
        raise DudiError(
            f"{where}: {strange[0]!r} is stored as {found[strange[0]].dtype}, and no quantization_config there says how"
            f" to read it ({len(strange)} such): give the model that it was made from"
        )
    ignored = [re.compile(one) for one in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    unread = [name for name in found.keys() - wanted.keys() if not any(one.search(name) for one in ignored)]
    check_layers(unread, wanted, where)
    other = [name for name, one in found.items() if name in wanted and tuple(wanted[name].shape) != one.shape]
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    missing = [] if found.keys() - wanted.keys() else sorted(wanted.keys() - found.keys() - tied)
    faults = sorted({*missing, *other})
    if faults:
        raise DudiError(f"{where}: {faults[0]!r} is missing or of another shape ({len(faults)} such)")


def check_layers(unread: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Raises `DudiError` where the config asks for fewer layers than the weights have: the loader drops the others
    without an error. What else is read by nothing (a value head, a vision tower) does no harm.

    unread: tensors that the model has no place for; wanted: those that it has.
    """
    kinds = {_NUMBER.sub("0", name) for name in wanted}
    beyond = sorted(name for name in unread if _NUMBER.sub("0", name) in kinds)
    if beyond:
        raise DudiError(
            f"{where}: {beyond[0]!r} has no place in it ({len(beyond)} such), and would be left out: correct the"
            " number of layers, or save the smaller model with save_pretrained"
        )


_NUMBER = re.compile(r"\d+")
