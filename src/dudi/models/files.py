"""A model's weights, looked at without loading them: whole files, and the shapes that config.json asks for.

A teacher is loaded after hours of cold start; what is wrong with its files is found here in a second, before a run
begins. Values (NaN) are not looked at, nor files that the hub has yet to send.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from dudi.errors import DudiError
from dudi.models.refusals import cannot_load

INDEX = "model.safetensors.index.json"


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


def check_weights(folder: Path, what: str, trust_remote_code: bool = False, partial: bool = False) -> None:
    """Raises `DudiError` where a local folder's weights are truncated, unreadable, or of other shapes than its config.

    The config itself is known to be readable (`models.check_model`). A checkpoint whose tensors another version of the
    library named in another way is left for the loader to judge. partial: files may be missing, as the loader fetches
    them; those that are there are looked at.
    """
    files, whole = _files(folder, what, partial)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".bin":
            shapes |= _pickled(file, f"{what}: {str(folder)!r} cannot be loaded: {file.name}")
        else:
            shapes |= _header(file, f"{what}: {str(folder)!r} cannot be loaded: {file.name}")
    if shapes and whole:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        _compare(shapes, config, trust_remote_code, f"{what}: {str(folder)!r}: the weights do not fit its config.json")


def _files(folder: Path, what: str, partial: bool) -> tuple[list[Path], bool]:
    """The files that the loader would take, and whether these are all."""
    one, index = folder / "model.safetensors", folder / INDEX
    if one.is_file():
        return [one], True
    if not index.is_file():
        return sorted(folder.glob("pytorch_model*.bin")), True
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if "/" in name or not (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DudiError(f"{what}: {str(folder)!r} cannot be loaded: {INDEX} is not readable") from None
    if missing and not partial:
        raise DudiError(f"{what}: {str(folder)!r} cannot be loaded: {missing[0]!r}, named in {INDEX}, is not there")
    return [folder / name for name in names if name not in missing], not missing


def _header(file: Path, where: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor of a safetensors file, whose length the library compares with its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DudiError(f"{where} is truncated, damaged or not a safetensors file ({_line(error):.200})") from None


def _pickled(file: Path, where: str) -> dict[str, tuple[int, ...]]:
    """The same of a file of torch's; nothing in it is executed, and its numbers are not read."""
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return {str(name): tuple(tensor.shape) for name, tensor in state.items()}
    except Exception:  # torch's advice would be to load it without the safeguard
        raise DudiError(f"{where} is truncated, or holds something other than weights: it is not read") from None


def _compare(found: dict[str, tuple[int, ...]], config: Any, trust_remote_code: bool, where: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        return  # stored in other shapes than the model's own
    with torch.device("meta"):  # as the loader does; what a wrong config makes of it is the caller's to say
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    other = [name for name, shape in found.items() if name in wanted and wanted[name] != shape]
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    missing = [] if found.keys() - wanted.keys() else sorted(wanted.keys() - found.keys() - tied)
    faults = sorted({*missing, *other})
    if faults:
        raise DudiError(f"{where}: {faults[0]!r} is missing or of another shape ({len(faults)} such)")
