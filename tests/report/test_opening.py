"""What a page opens with: who stands where, said as the numbers have it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import reports

from dudi.errors import DudiError
from dudi.records import Average
from dudi.report.dots import Dots, draw_dots
from dudi.report.evals import Evaluation, read_evals
from dudi.report.opening import opening_section, standing
from dudi.report.write import write_report


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Evaluations whose answers are right to a known share."""
    root = tmp_path_factory.mktemp("opening")
    bench = reports.benchmark(root / "bench")
    shares = {"low": 0.1, "middle": 0.5, "same": 0.5, "high": 1.0}
    return {name: reports.simple(root / name, bench, share) for name, share in shares.items()}


@pytest.fixture
def evaluations(folders: dict[str, Path]) -> tuple[Evaluation, ...]:
    return read_evals(list(folders.items()))


def score(e: Evaluation) -> str:
    return f"{e.name} ({e.table.overall.mean:.1f})"


def test_the_sentence(evaluations: tuple[Evaluation, ...]) -> None:
    low, middle, same, high = evaluations
    said = standing(evaluations, middle)
    assert said.startswith(f"middle scores {middle.table.overall.mean:.1f} on the average of 7 languages: ")
    assert said.endswith(f": above {score(low)}, not apart from {score(same)}, below {score(high)}.")
    assert standing((low, middle, same), low).endswith(f"below {score(middle)} and {score(same)}.")
    assert standing((high,), high) == f"high scores {high.table.overall.mean:.1f} on the average of 7 languages."


def test_the_section_has_a_picture_of_each_kind(evaluations: tuple[Evaluation, ...]) -> None:
    section = opening_section(evaluations, evaluations[1])
    lead, figures, note = section.blocks
    assert (section.key, lead.kind, note.kind) == ("answer", "lead", "note")
    assert [figure.name for figure in figures.figures] == ["averages", "languages"]
    assert all(figure.png.startswith(b"\x89PNG") for figure in figures.figures)
    assert str(evaluations[0].table.overall) in figures.figures[0].caption


def test_pictures_are_the_same_bytes_each_time_and_need_no_interval() -> None:
    row = (Average(30.0, None, 25.0, 36.0), Average(50.0), Average(None))
    one = Dots("Average", ("a", "b", "c"), (("", row),))
    many = Dots("By language", ("Thai", "Malay", "Tamil"), (("x", row), ("y", row[::-1])))
    assert draw_dots(one) == draw_dots(one) != draw_dots(many) == draw_dots(many)


def test_it_speaks_of_whom_one_names(folders: dict[str, Path], tmp_path: Path) -> None:
    given = [f"{name}={folder}" for name, folder in folders.items()]
    best = write_report([], given, output=tmp_path / "a")
    named = write_report([], given, output=tmp_path / "b", subject="middle")
    first = [(page.parent / "report.md").read_text(encoding="utf-8").split("## ")[1] for page in (best, named)]
    assert "\nhigh scores " in first[0] and "\nmiddle scores " in first[1]
    with pytest.raises(DudiError, match=r"--subject: .*'nobody'"):
        write_report([], given, output=tmp_path / "c", subject="nobody")
