"""Tests run offline, on pinned threads; what needs the data folder skips with a reason where it is not given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

if TYPE_CHECKING:
    from kit.command import Dudi

pytest.register_assert_rewrite("kit")


@pytest.fixture
def data_dir() -> Path:
    """The folder of real text, named by DUDI_DATA_DIR."""
    folder = os.environ.get("DUDI_DATA_DIR")
    if not folder:
        pytest.skip("DUDI_DATA_DIR is not set: real text is not at hand")
    return Path(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny student and a tiny teacher."""
    from kit.models import save_models

    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def dudi(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dudi:
    """`dudi`, called in this process, with a recipe for these models."""
    from kit.command import Dudi

    return Dudi(tmp_path, models, monkeypatch, capsys)
