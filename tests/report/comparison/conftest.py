"""Methods with several training seeds, in the folders of `dudi eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kit import reports

LANGUAGES = ("id", "th", "en")
SHARES = {"sft": (0.3, 0.4, 0.3, 0.35), "dudi": (0.6, 0.8, 0.7, 0.75), "gkd": (0.5, 0.3)}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark, and evaluations sft-0 to sft-3, dudi-0 to dudi-3, gkd-0 and gkd-1 on it."""
    folder = tmp_path_factory.mktemp("compared")
    bench = reports.read_benchmark(reports.benchmark(folder / "bench", LANGUAGES))
    for name, shares in SHARES.items():
        for n, share in enumerate(shares):
            given = {0: reports.answers(bench, {"default": share}, n)}
            reports.evaluation(folder / f"{name}-{n}", folder / "bench", given)
    return folder


@pytest.fixture
def named(made: Path) -> Callable[..., list[str]]:
    """Arguments for so many seeds of each name: named(sft=4) is sft=FOLDER four times."""

    def arguments(**seeds: int | Sequence[int]) -> list[str]:
        numbers: Mapping[str, Any] = {
            name: range(given) if isinstance(given, int) else given for name, given in seeds.items()
        }
        return [f"{name}={made / f'{name}-{n}'}" for name, some in numbers.items() for n in some]

    return arguments
