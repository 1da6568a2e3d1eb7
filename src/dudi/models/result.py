"""The result as a folder that others load: in the dtype that was asked for, with the student's processor files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from dudi.recipe.schema import Models

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "audio_tokenizer_config.json",
)
"""What turns images and sound into inputs; the tokenizer's own files are saved with its template."""


def complete(folder: Path, models: Models, last: bool) -> None:
    """Add to a saved model what the Trainer does not write. last: it is the run's result, in `models.save_dtype`."""
    for name in PROCESSOR_FILES:
        path = str(Path(models.student).expanduser()) if Path(models.student).expanduser().is_dir() else models.student
        found = cached_file(
            path,
            name,
            revision=models.student_revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if found is not None and not (folder / name).exists():
            shutil.copyfile(found, folder / name)
    if last and models.save_dtype != "float32":
        store_as(folder, getattr(torch, models.save_dtype))


def store_as(folder: Path, dtype: torch.dtype) -> None:
    """Round the float32 (and float64) weights of a saved model to another dtype, file by file."""
    for file in sorted(folder.glob("model*.safetensors")):
        state = {
            name: t.to(dtype) if t.dtype in (torch.float32, torch.float64) else t for name, t in load_file(file).items()
        }
        save_file(state, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = json.loads(index.read_text(encoding="utf-8"))
        sizes = [t.numel() * t.element_size() for f in folder.glob("model*.safetensors") for t in load_file(f).values()]
        table["metadata"] = {**table.get("metadata", {}), "total_size": sum(sizes)}
        index.write_text(json.dumps(table, indent=2), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for table in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in table:
                table[key] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
