"""Folders that several tests of the lab read: a micro build, data and benchmark as they are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import lab

from dudi.lab.artefacts import write_benchmark, write_data
from dudi.lab.build import ROWS, THIRD


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build of seconds, to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        return lab.build_micro(tmp_path_factory.mktemp("lab") / "weights", patch)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The instruction data of an export."""
    folder = tmp_path_factory.mktemp("lab") / "data"
    write_data(folder, ROWS)
    return folder


@pytest.fixture(scope="session", params=[THIRD, pytest.param(1.0, marks=pytest.mark.slow)], ids=["third", "whole"])
def benchmark(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark of an export, as the demo has it, and whole."""
    folder = tmp_path_factory.mktemp("lab") / "benchmark"
    write_benchmark(folder, share=request.param)
    return folder
