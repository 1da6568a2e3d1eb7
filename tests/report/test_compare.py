"""The paired bootstrap against brute force; what responses are like."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit import reports

from dudi.report.compare import AVERAGE, Paired, gains, item_values, manners, over_items
from dudi.report.evals import Evaluation, read_evals
from dudi.report.stats.intervals import RESAMPLES, resampled_means


def read(*folders: Path) -> tuple[Evaluation, ...]:
    return read_evals([(folder.name, folder) for folder in folders])


def with_values(one: Evaluation, values: dict[str, list[float | None]]) -> Evaluation:
    """The same evaluation with other values, by language."""
    left = {language: list(row) for language, row in values.items()}
    changed = tuple(replace(r, value=left[r.language].pop(0)) for r in one.items if left.get(r.language))
    return replace(one, responses={0: changed})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Evaluation]:
    folder = tmp_path_factory.mktemp("two")
    bench = reports.benchmark(folder / "bench", ("th", "my", "en"))
    return read(reports.simple(folder / "base", bench, 0.2), reports.simple(folder / "other", bench, 0.6))  # type: ignore[return-value]


def test_the_resampled_means_are_those_of_every_possible_draw() -> None:
    values = np.array([0.0, 10.0, 40.0, -20.0])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=4)])
    found = resampled_means([values], "th", resamples=200_000)[0]
    assert set(np.round(found, 9)) <= set(np.round(every, 9))
    for share in (0.025, 0.25, 0.5, 0.75, 0.975):
        assert abs(np.mean(found <= np.quantile(every, share)) - np.mean(every <= np.quantile(every, share))) < 0.005
    assert abs(found.mean() - values.mean()) < 0.1 and abs(found.std() - every.std()) < 0.1


def test_the_interval_is_that_of_a_plain_loop(two: tuple[Evaluation, Evaluation]) -> None:
    base = with_values(two[0], {"th": [0, 0, 1, 0, 1], "my": [1, 0, 0]})
    other = with_values(two[1], {"th": [1, 0, 1, 1, 0.5], "my": [1, 1, 0.5]})
    found = gains(base, other)
    differences = {"th": [100, 0, 0, 100, -50], "my": [0, 100, 50]}
    for language, row in differences.items():
        generator = np.random.default_rng(list(language.encode()))
        drawn = generator.integers(0, len(row), size=(RESAMPLES, len(row)))
        means = sorted(sum(row[i] for i in draw) / len(row) for draw in drawn.tolist())
        one = found[language]
        assert one.mean == pytest.approx(sum(row) / len(row)) and one.n == len(row)
        assert one.low == pytest.approx(np.quantile(means, 0.025)) and one.high == pytest.approx(
            np.quantile(means, 0.975)
        )
    assert found[AVERAGE].mean == pytest.approx((30 + 50) / 2) and found[AVERAGE].n == 8
    width = found[AVERAGE].high - found[AVERAGE].low
    assert width < max(found[l].high - found[l].low for l in differences)
    assert "en" not in found


def test_long_rows_are_drawn_in_parts_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = resampled_means([values], "vi", resamples=1000)
    monkeypatch.setattr("dudi.report.stats.intervals._CHUNK", 333)
    assert np.array_equal(whole, resampled_means([values], "vi", resamples=1000))
    assert not np.array_equal(whole, resampled_means([values], "ms", resamples=1000))


def test_coverage_under_no_difference() -> None:
    """About 95 of 100 intervals contain 0 where there is nothing to find."""
    generator = np.random.default_rng(0)
    hits = 0
    for n in range(200):
        means = resampled_means([generator.normal(size=60)], str(n), resamples=1000)[0]
        low, high = np.quantile(means, [0.025, 0.975])
        hits += low <= 0 <= high
    assert 180 <= hits <= 198


@pytest.mark.parametrize(
    ("other", "side"),
    [([1, 1, 1], "above 0"), ([0, 0, 0], "contains 0"), ([1, 0, 0], "contains 0")],
)
def test_which_side_of_zero(two: tuple[Evaluation, Evaluation], other: list[float], side: str) -> None:
    base = with_values(two[0], {"th": [0, 0, 0]})
    better = with_values(two[1], {"th": other})
    assert gains(base, better)["th"].side == side
    opposite = {"above 0": "below 0"}.get(side, side)
    assert gains(replace(better), base)["th"].side == opposite


def test_items_that_share_a_key_are_drawn_together() -> None:
    """A question in three languages: four draws of four questions, each with all its languages, listed one by one."""
    gaps = {"id": [10.0, -20.0, 30.0, 40.0], "th": [20.0, -30.0, 50.0, 40.0], "my": [0.0, -10.0, 30.0, 20.0]}
    shared = [Paired(l, "qa", f"q{n}", gap) for l, row in gaps.items() for n, gap in enumerate(row)]
    apart = [replace(one, key=f"{one.language}/{one.key}") for one in shared]
    found, other = over_items(shared, tuple(gaps)), over_items(apart, tuple(gaps))
    for language in gaps:
        assert found[language] == other[language], "one language has each question once"
    means = np.array(list(gaps.values())).mean(axis=0)
    every = [np.mean(draw) for draw in itertools.product(means, repeat=4)]
    assert found[AVERAGE].mean == other[AVERAGE].mean == pytest.approx(means.mean())
    assert found[AVERAGE].low == pytest.approx(np.quantile(every, 0.025), abs=2)
    assert found[AVERAGE].high == pytest.approx(np.quantile(every, 0.975), abs=2)
    assert other[AVERAGE].high - other[AVERAGE].low < 0.7 * (found[AVERAGE].high - found[AVERAGE].low)


def test_phrasings_of_one_question_are_no_items_of_their_own() -> None:
    once = [Paired("th", "qa", f"q{n}", gap) for n, gap in enumerate((10.0, -20.0, 30.0, 40.0))]
    thrice = [one for one in once for _ in range(3)]
    found, other = over_items(once, ("th",))["th"], over_items(thrice, ("th",))["th"]
    assert (other.mean, other.n) == (found.mean, 12) and (other.low, other.high) == pytest.approx(
        (found.low, found.high)
    )


def test_items_without_a_value_are_left_out(two: tuple[Evaluation, Evaluation]) -> None:
    found = gains(with_values(two[0], {"th": [0, None, 0]}), with_values(two[1], {"th": [1, 1, None]}))
    assert found["th"].n == 1 and found["th"].mean == 100
    assert AVERAGE not in found, "Burmese is averaged, and has no item"


def test_the_value_of_an_item_is_its_mean_over_decoding_seeds(evals: Path) -> None:
    (drawn,) = read(evals / "drawn")
    first, second = (drawn.responses[seed] for seed in (3, 5))
    assert item_values(drawn) == pytest.approx([(a.value + b.value) / 2 for a, b in zip(first, second, strict=True)])  # type: ignore[operator]


def test_manners_are_counted_over_all_responses(evals: Path) -> None:
    (drawn,) = read(evals / "drawn")
    lines = [r for responses in drawn.responses.values() for r in responses if r.language == "th"]
    found = manners(drawn)["th"]
    told = [r for r in lines if r.in_language is not None]
    assert found.eos_rate == sum(r.finished for r in lines) / len(lines)
    assert found.tokens == sum(r.tokens for r in lines) / len(lines)
    assert found.in_language == sum(bool(r.in_language) for r in told) / len(told)
    assert found.undetermined == len(lines) - len(told)
