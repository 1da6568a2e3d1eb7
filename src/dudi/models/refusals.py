"""Models that cannot be loaded: what is wrong in one line, and what to do about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from transformers.quantizers.auto import AutoHfQuantizer

from dudi.errors import DudiError

MAX_CONFIG = 1 << 24
"""Bytes of config.json."""
MAX_LAYERS = 10_000
"""The library writes a list of them before anything can be compared."""
LFS = b"version https://git-lfs"
"""How a file begins that Git keeps elsewhere."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
)


def looks_local(path: str) -> bool:
    """Whether a path is a folder's and no hub name: it is there, its parent is, or no hub name looks like it."""
    folder = Path(path).expanduser()
    if folder.is_dir() or path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".gguf"):
        return True
    return "/" in path and folder.parent.is_dir()


def check_folder(folder: Path, path: str, what: str, tokenizer: bool) -> None:
    """Raises `DudiError` for a folder that is not there, or holds something else than a model (or a tokenizer)."""
    if path.endswith(".gguf") or (folder.is_dir() and _only(folder, "*.gguf")):
        raise DudiError(
            f"{what}: {path!r} is a GGUF file, made for inference: give the folder of the model that it was made from"
        )
    if not folder.is_dir():
        raise DudiError(f"{what}: no folder {path!r}; give a model folder or a hub name such as Qwen/Qwen2.5-0.5B")
    if (folder / "adapter_config.json").is_file():
        raise DudiError(
            f"{what}: {path!r} is an adapter and no whole model: merge it into its base model (dudi export"
            f" {path} OUT --merge) and give that folder"
        )
    pointer = next((file for file in sorted(folder.iterdir()) if _points(file)), None)
    if pointer is not None:
        raise DudiError(
            f"{what}: {path!r} cannot be loaded: {pointer.name} is a pointer of Git LFS and not the file itself: run"
            " `git lfs pull` in that folder"
        )
    check_config(folder, what)
    if not tokenizer and not (folder / "config.json").is_file():
        raise DudiError(f"{what}: {path!r} cannot be loaded: it holds no model (no config.json)")
    if tokenizer and not has_tokenizer(folder):
        raise DudiError(
            f"{what}: {path!r} cannot be loaded: it holds no tokenizer (tokenizer.json): copy the"
            " tokenizer files of the model that it was made from into it"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether there are a tokenizer's files in a model's folder."""
    return any(any(folder.glob(name)) for name in TOKENIZER_FILES)


def _points(file: Path) -> bool:
    """Whether a file stands for one that a clone without Git LFS has not fetched."""
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    with file.open("rb") as opened:
        return opened.read(len(LFS)) == LFS


def check_kind(config: Any, path: str, what: str, trained: bool) -> None:
    """Raises `DudiError` for a model with an encoder, and for a quantised one that is to be trained, that transformers
    would read as if it were none, or (in the library's words) whose package is not installed."""
    if getattr(config, "is_encoder_decoder", False):
        raise DudiError(
            f"{what}: {path!r} is an encoder and a decoder ({config.model_type}): give a causal language model, which"
            " only continues a text"
        )
    given = getattr(config, "quantization_config", None)
    if given is None:
        return
    table = given if isinstance(given, dict) else given.to_dict()
    method = table.get("quant_method")
    if trained:
        raise DudiError(
            f"{what}: {path!r} is quantised ({method}): such weights cannot be trained; give the model that it was made"
            " from"
        )
    if not AutoHfQuantizer.supports_quant_method(table):
        raise DudiError(
            f"{what}: {path!r} is quantised in a way that transformers does not know ({method}): give the model that it"
            " was made from"
        )
    AutoHfQuantizer.from_config(given, pre_quantized=True).validate_environment()


def _only(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern)) and not any(f.suffix in (".safetensors", ".bin") for f in folder.iterdir())


def check_config(folder: Path, what: str) -> None:
    """That config.json, where there is one, is a table that can be given to the library. Raises `DudiError`."""
    file = folder / "config.json"
    if not file.is_file():
        return  # the loader says it
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ValueError
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise DudiError(f"{what}: {str(folder)!r} cannot be loaded: config.json is not a table in JSON")
    for inner in (table, *(value for value in table.values() if isinstance(value, dict))):
        layers = inner.get("num_hidden_layers")
        if isinstance(layers, int | float) and not 0 < layers <= MAX_LAYERS:
            raise DudiError(f"{what}: {str(folder)!r} cannot be loaded: config.json asks for {layers} layers")


def cannot_load(path: str, what: str, error: Exception) -> DudiError:
    """The line for an error of the libraries'."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, (GatedRepoError, HfHubHTTPError)):
            return DudiError(f"{what}: {path!r}: {gated_help(path, cause)}")
    text = " ".join(str(error).split()) or type(error).__name__
    short = text if len(text) <= 300 else f"{text[:297]}..."
    if "trust_remote_code" in text:
        return DudiError(
            f"{what}: {path!r} comes with code of its own, which is not run unasked: read it, then set"
            " models.trust_remote_code = true"
        )
    if _about_attention(text):
        return DudiError(
            f"{what}: {path!r} does not work with the attention that was asked for: {short}; leave models.attention"
            ' out, so that transformers chooses, or set models.attention = "eager", whatever its config.json asks for'
        )
    if found := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", text):
        return DudiError(
            f"{what}: {path!r} cannot be loaded: transformers has no causal language model for a {found[1]} (of a model"
            " that also sees images, give the text model alone)"
        )
    if "couldn't find them in the cached files" in text or "offline" in text.lower():
        return DudiError(
            f"{what}: {path!r} cannot be loaded: there is no such folder, and as a hub name it is not in the cache"
            " while the hub cannot be reached: check the path, or the name and the connection"
        )
    return DudiError(f"{what}: {path!r} cannot be loaded: {short}")


def _about_attention(text: str) -> bool:
    return any(
        word in text for word in ("attn_implementation", "attention implementation", "flash_attn", "FlashAttention")
    )


def gated_help(path: str, error: Exception) -> str:
    """What to do about a refused download."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return (
            f"the hub refuses access: accept the terms on https://huggingface.co/{path}, then give a token with"
            " `hf auth login` or HF_TOKEN"
        )
    return (
        f"the hub answered {status or type(error).__name__}; check the name, the revision and the connection (there is"
        " no folder of that name either)"
    )
