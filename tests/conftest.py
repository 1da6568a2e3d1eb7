"""Tests run offline, on pinned threads; what needs the data folder skips with a reason where it is not given."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture
def data_dir() -> Path:
    """The folder of real text, named by DUDI_DATA_DIR."""
    folder = os.environ.get("DUDI_DATA_DIR")
    if not folder:
        pytest.skip("DUDI_DATA_DIR is not set: real text is not at hand")
    return Path(folder)
