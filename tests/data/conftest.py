"""Fixtures of the tests of `dudi.data`: no hub, and data that lies outside the repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def given() -> Callable[[str], Path]:
    """A file or folder of DUDI_DATA_DIR; skips where it is not there."""

    def find(name: str) -> Path:
        folder = os.environ.get("DUDI_DATA_DIR")
        if not folder:
            pytest.skip("DUDI_DATA_DIR is not set: the folder that holds ntrex8.jsonl and sea_instruct_mini/")
        path = Path(folder) / name
        if not path.exists():
            pytest.skip(f"DUDI_DATA_DIR has no {name}")
        return path

    return find
