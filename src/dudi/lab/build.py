"""`dudi lab build` and `dudi lab export`: make the lab's models, and lay out its folders.

WEIGHTS/tokenizer/, WEIGHTS/<model>/, WEIGHTS/manifest.json       what a build makes, and what ships with the package
LAB/data/, LAB/benchmark/, LAB/<model>/                           what `export` lays out: ordinary folders, to be used
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dudi import __version__
from dudi.errors import DudiError, unknown
from dudi.files import write_text
from dudi.lab import words
from dudi.lab.artefacts import write_benchmark, write_data
from dudi.lab.documents import exercises, lessons, texts
from dudi.lab.models import make_tokenizer, train
from dudi.lab.plans import FULL, TINY, Build
from dudi.text.verbalizer import TEMPLATES

WEIGHTS = Path(__file__).parent / "weights"
ROWS = 400
"""Instruction rows of a language."""
THIRD = 0.3333
"""Of the benchmark that demo and tables ask: always the same items."""


def build(folder: Path, tiny: bool, seed: int, say: Callable[[str], None], only: str | None = None) -> None:
    """Make tokenizer and models into `folder`; what is there already stays, what was begun continues."""
    plan = TINY if tiny else FULL
    if only not in (None, *plan.models):
        raise DudiError(unknown(str(only), plan.models, "model"))
    wanted = identity(plan, seed)
    begun = folder / "build.json"
    before = json.loads(begun.read_text(encoding="utf-8")) if begun.exists() else {}
    if before and _differs(before, wanted, folder):
        raise DudiError(
            f"{folder}: holds another build (other text, lessons, templates, sizes or seed); use an empty folder"
        )
    if folder.exists() and any(folder.iterdir()) and not begun.exists():
        raise DudiError(f"{folder}: not empty, and no build; use an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    made = before.get("made", {})
    write_text(begun, json.dumps({**wanted, "made": made}, indent=1))
    if not (folder / "tokenizer").is_dir():
        say("tokenizer")
        make_tokenizer(plan, seed).save_pretrained(folder / "tokenizer.staged")
        (folder / "tokenizer.staged").replace(folder / "tokenizer")
    tokenizer = read_tokenizer(folder)
    for name, model in plan.models.items():
        if only in (None, name) and not (folder / name).is_dir():
            made[name] = made_with()
            write_text(begun, json.dumps({**wanted, "made": made}, indent=1))
            train(name, model, tokenizer, folder / name, seed, say)
    if all((folder / name).is_dir() for name in plan.models):
        write_text(folder / "manifest.json", json.dumps(manifest(folder, wanted, made), indent=1))


def _differs(begun: dict[str, Any], wanted: dict[str, Any], folder: Path) -> bool:
    """Whether what is in `folder` would not have come from `wanted`. A model that is not begun may be planned anew."""
    there = {name for name in begun["models"] if (folder / name).exists() or (folder / f"{name}.part").exists()}
    plans = [{name: build["models"].get(name) for name in there} for build in (begun, wanted)]
    return plans[0] != plans[1] or any(begun.get(key) != wanted[key] for key in wanted if key != "models")


def identity(plan: Build, seed: int) -> dict[str, Any]:
    """What decides the weights: the world's text, exercises and lessons, the templates, the plan, the seed."""
    decides = {
        "seed": seed,
        "world": hash_of(words.FOLDER, "*.toml"),
        "templates": hash_of(TEMPLATES, "*.toml"),
        "text": _hash_of_texts(texts(500, seed)),
        "exercises": _hash_of_texts(exercises(500, seed)),
        "lessons": _hash_of_texts(lessons(200, seed)),
        "vocab": plan.vocab,
        "documents": plan.documents,
        "models": {name: vars(model) for name, model in plan.models.items()},
    }
    return dict(json.loads(json.dumps(decides)))  # as it is read again: lists for tuples


def _hash_of_texts(read: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(read).encode()).hexdigest()


def manifest(folder: Path, wanted: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """What a finished build is, and what each of its models was made with."""
    return {
        "command": f"dudi lab build FOLDER --seed {wanted['seed']}",
        **wanted,
        "weights": {name: hash_of(folder / name, "*.safetensors") for name in wanted["models"]},
        "tokenizer": hash_of(folder / "tokenizer", "tokenizer.json"),
        "made": made,
    }


def made_with() -> dict[str, Any]:
    """What a model's last bits depend on beside its plan: models of one build may come from several machines."""
    return {
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "dudi": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def hash_of(folder: Path, pattern: str) -> str:
    """SHA-256 of the files' names and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob(pattern)):
        data = file.read_bytes()
        digest.update(f"{file.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The build's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def read_manifest(weights: Path) -> dict[str, Any]:
    """What a build is. Raises `DudiError` where there is no finished one."""
    if not (weights / "manifest.json").exists():
        raise DudiError(f"{weights}: no finished lab build there; make one with `dudi lab build {weights}`")
    return dict(json.loads((weights / "manifest.json").read_text(encoding="utf-8")))


def export(folder: Path, weights: Path = WEIGHTS, rows: int = ROWS, share: float = 1.0) -> None:
    """Lay out data, benchmark and models as ordinary folders. An export that is there is left as it is."""
    if (folder / "lab.json").exists():
        return
    made = read_manifest(weights)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise DudiError(f"{folder}: not empty, and not an exported lab; use another folder")
        _lay_out(folder, weights, made, rows, share)
    except OSError as error:
        raise DudiError(f"{error.filename or folder}: {error.strerror or error}; use another folder") from None


def _lay_out(folder: Path, weights: Path, made: dict[str, Any], rows: int, share: float) -> None:
    staged = folder.with_name(f"{folder.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    write_data(staged / "data", rows)
    write_benchmark(staged / "benchmark", share=share)
    for name in made["models"]:
        shutil.copytree(weights / name, staged / name)
        shutil.copytree(weights / "tokenizer", staged / name, dirs_exist_ok=True)
    write_text(staged / "lab.json", json.dumps({"rows": rows, "share": share, "manifest": made}, indent=1))
    if folder.exists():
        folder.rmdir()
    staged.replace(folder)
