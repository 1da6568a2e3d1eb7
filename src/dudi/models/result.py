"""The result as a folder that others load: in the dtype that was asked for, with the student's processor files."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers.utils import cached_file

from dudi.models.export import store_as
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
        store_as(folder, getattr(torch, models.save_dtype), models.trust_remote_code)
