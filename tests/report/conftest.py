"""What the report's tests read: made-up evaluations and runs, on a benchmark of eight languages."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import reports


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.benchmark(tmp_path_factory.mktemp("bench") / "made")


@pytest.fixture(scope="session")
def evals(tmp_path_factory: pytest.TempPathFactory, bench: Path) -> Path:
    """Folders base, dudi (greedy) and drawn (two decoding seeds)."""
    folder = tmp_path_factory.mktemp("evals")
    reports.simple(folder / "base", bench, 0.2)
    reports.simple(folder / "dudi", bench, 0.6)
    given = {seed: reports.answers(reports.read_benchmark(bench), {"default": 0.6}, seed) for seed in (3, 5)}
    reports.evaluation(folder / "drawn", bench, given, temperature=0.7)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reports.run(tmp_path_factory.mktemp("runs") / "first")
