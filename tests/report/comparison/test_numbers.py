"""The numbers of a comparison by hand and by plain loops; what they do not depend on; missing scores."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import evals as small
from kit import reports

from dudi.evals.answers import Answer
from dudi.report.comparison.write import write_comparison
from dudi.report.stats import eps_min, false_positive_rate

Named = Callable[..., list[str]]


def numbers(tmp: Path, given: list[str], baseline: str | None = None) -> dict[str, Any]:
    write_comparison(given, baseline, [tmp / "numbers.json"])
    found: dict[str, Any] = json.loads((tmp / "numbers.json").read_text(encoding="utf-8"))
    return found


def row(found: dict[str, Any], **key: Any) -> dict[str, Any]:
    """The row of a language, a competency, a task; of nothing: the overall."""
    fields = ("language", "competency", "task", "translation")
    (one,) = [one for one in found["rows"] if {k: one[k] for k in fields if k in one} == key]
    return one  # type: ignore[no-any-return]


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    return found


def values(folder: Path) -> dict[str, tuple[str, str, float]]:
    """Item -> language, task, value."""
    lines = (folder / "responses-0.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["id"]: (one["language"], one["task"], one["value"]) for one in map(json.loads, lines)}


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def by_hand(tmp: Path) -> list[str]:
    """Two capitals and a list in Indonesian, two seeds of each method: scores 25, 75 of A and 100, 75 of B."""
    items = [
        small.item("c1", "capital", "id", "?", targets=["x"]),
        small.item("c2", "capital", "id", "?", targets=["x"]),
        small.item("l1", "list", "id", "?", constraints={"all": "x"}),
    ]
    tasks = {name: {**small.DESCRIPTION["tasks"][name], "max_new_tokens": 4} for name in ("capital", "list")}
    changes = {"competencies": ["nlu", "rules"], "averaged": ["id"], "translation": [], "tasks": tasks}
    bench = small.write(tmp / "bench", {**small.DESCRIPTION, **changes}, items)
    given = {"A": ("x--", "x-x"), "B": ("xxx", "-xx")}
    arguments = []
    for name, seeds in given.items():
        for n, right in enumerate(seeds):
            answers = [Answer(text, 1, True) for text in right]
            arguments.append(f"{name}={reports.evaluation(tmp / f'{name}{n}', bench, {0: answers})}")
    return arguments


def test_two_seeds_by_hand(tmp_path: Path) -> None:
    found = numbers(tmp_path, by_hand(tmp_path))
    overall = row(found)
    assert overall["scores"]["A"] == {"mean": 50, "deviation": pytest.approx(50 / sqrt(2)), "values": [25, 75]}
    assert overall["scores"]["B"] == {"mean": 87.5, "deviation": pytest.approx(25 / sqrt(2)), "values": [100, 75]}
    difference = overall["differences"]["B"]
    assert difference["score"] == 37.5
    # over seeds: 75 and 0, so 37.5 -+ 12.7062 * (75 / sqrt(2)) / sqrt(2)
    assert difference["seeds"]["low"] == pytest.approx(37.5 - 12.706205 * 37.5, abs=1e-3)
    assert (difference["seeds"]["n"], difference["seeds"]["side"]) == (2, "contains 0")
    # of the six ways to choose two of 25, 75, 75, 100, four differ by 37.5: {25, 75} and {75, 100}, each twice
    assert difference["p"] == pytest.approx(4 / 6)
    # every quantile of B is at least A's; items: c1 1 -> 1/2, c2 0 -> 1, l1 1/2 -> 1
    assert difference["items"]["mean"] == pytest.approx(100 * (-0.5 + 1 + 0.5) / 3) and difference["items"]["n"] == 3
    assert difference["eps_min"] == eps_min([100, 75], [25, 75]) and difference["eps_min"] > 0
    assert row(found, competency="nlu")["scores"]["A"]["values"] == [50, 50]
    assert row(found, competency="nlu")["differences"]["B"]["items"]["mean"] == pytest.approx(25)
    assert row(found, competency="rules")["differences"]["B"]["items"] is None, "a single item"
    assert row(found, language="id", task="list")["scores"]["B"]["values"] == [100, 100]
    assert row(found, language="id", competency="rules")["scores"]["A"]["mean"] == 50
    assert found["holm"] == {"B": pytest.approx(4 / 6)}
    (rate,) = found["eps_min"]["false_positives"]
    assert (rate["rate"], rate["error"]) == false_positive_rate(2)


def test_scores_and_tests_are_those_of_the_records(made: Path, named: Named, tmp_path: Path) -> None:
    found = numbers(tmp_path, named(sft=4, dudi=4))
    tables = {name: [table(made / f"{name}-{n}") for n in range(4)] for name in ("sft", "dudi")}
    picks: list[tuple[dict[str, Any], Callable[[Any], Any]]] = [
        ({}, lambda t: t["overall"]),
        ({"translation": False}, lambda t: t["overall_without_translation"]),
        ({"language": "th"}, lambda t: t["by_language"]["th"]),
        ({"language": "en"}, lambda t: t["by_language"]["en"]),
        ({"competency": "NLU"}, lambda t: t["competency_overall"]["NLU"]),
        ({"language": "th", "competency": "NLG"}, lambda t: t["by_competency"]["th"]["NLG"]),
        ({"language": "id", "task": "capital"}, lambda t: t["by_task"]["id"]["capital"]),
    ]
    for key, pick in picks:
        one = row(found, **key)
        scores = {name: [pick(t)["mean"] for t in tables[name]] for name in tables}
        for name, expected in scores.items():
            assert one["scores"][name]["values"] == expected
            assert one["scores"][name]["mean"] == pytest.approx(statistics.fmean(expected))
            assert one["scores"][name]["deviation"] == pytest.approx(statistics.stdev(expected))
        if "language" in key and len(key) > 1:
            assert "differences" not in one
            continue
        d = one["differences"]["dudi"]
        gaps = [a - b for a, b in zip(scores["dudi"], scores["sft"], strict=True)]
        half = 3.182446 * statistics.stdev(gaps) / 2
        assert d["score"] == pytest.approx(statistics.fmean(gaps))
        assert [d["seeds"]["low"], d["seeds"]["high"]] == pytest.approx(
            [d["score"] - half, d["score"] + half], abs=1e-4
        )
        assert d["eps_min"] == eps_min(scores["dudi"], scores["sft"])
        pooled = scores["dudi"] + scores["sft"]
        every = [abs(2 * sum(some) - sum(pooled)) for some in combinations(pooled, 4)]
        assert d["p"] == pytest.approx(np.mean([one >= every[0] - 1e-9 for one in every]))


def test_item_differences_are_those_of_the_responses(made: Path, named: Named, tmp_path: Path) -> None:
    """A language's mean over items; a competency's over its items in each averaged language, then over these."""
    found = numbers(tmp_path, named(sft=4, dudi=4))
    every = {name: [values(made / f"{name}-{n}") for n in range(4)] for name in ("sft", "dudi")}
    mean = {name: {i: statistics.fmean(one[i][2] for one in seeds) for i in seeds[0]} for name, seeds in every.items()}
    gaps = {i: 100 * (mean["dudi"][i] - mean["sft"][i]) for i in mean["sft"]}
    items = every["sft"][0]

    def over(language: str, tasks: tuple[str, ...] = tuple(reports.TASKS)) -> float:
        return statistics.fmean(gaps[i] for i in gaps if items[i][0] == language and items[i][1] in tasks)

    for language in ("id", "th", "en"):
        interval = row(found, language=language)["differences"]["dudi"]["items"]
        assert interval["mean"] == pytest.approx(over(language))
        assert interval["n"] == sum(one[0] == language for one in items.values())
        assert interval["low"] < interval["mean"] < interval["high"]
    assert row(found)["differences"]["dudi"]["items"]["mean"] == pytest.approx((over("id") + over("th")) / 2)
    translation = ("translation-to", "translation-from")
    interval = row(found, competency="NLG")["differences"]["dudi"]["items"]
    assert interval["mean"] == pytest.approx((over("id", translation) + over("th", translation)) / 2)
    assert interval["n"] == sum(one[0] != "en" and one[1] in translation for one in items.values())
    assert row(found, translation=False)["differences"]["dudi"]["items"] is None


# ── what they do not depend on ───────────────────────────────────────────────────────────────────────────────────────
def test_the_order_of_the_folders(named: Named, tmp_path: Path) -> None:
    """Of names: none; of one name's seeds, only what pairs them changes; of all names' alike, nothing."""
    first = numbers(tmp_path, named(sft=4, dudi=4))
    other = numbers(tmp_path, named(dudi=4, sft=4), "sft")
    for one, two in zip(first["rows"], other["rows"], strict=True):
        assert one == two
    alike = numbers(tmp_path, named(sft=(2, 0, 3, 1), dudi=(2, 0, 3, 1)))
    unlike = numbers(tmp_path, named(sft=4, dudi=(2, 0, 3, 1)))
    for one, same, paired in zip(first["rows"], alike["rows"], unlike["rows"], strict=True):
        for name in ("sft", "dudi"):
            assert same["scores"][name]["mean"] == pytest.approx(one["scores"][name]["mean"])
            assert sorted(same["scores"][name]["values"]) == sorted(one["scores"][name]["values"])
        if "differences" in one:
            ours, theirs, third = (x["differences"]["dudi"] for x in (one, same, paired))
            for key in ("score", "p", "eps_min"):
                assert theirs[key] == pytest.approx(ours[key]) and third[key] == pytest.approx(ours[key])
            assert theirs["seeds"] == pytest.approx(ours["seeds"])
            assert theirs["items"] == pytest.approx(ours["items"]) and third["items"] == pytest.approx(ours["items"])
    assert row(unlike)["differences"]["dudi"]["seeds"]["low"] != row(first)["differences"]["dudi"]["seeds"]["low"]


def test_the_order_of_the_items(made: Path, named: Named, tmp_path: Path) -> None:
    first = numbers(tmp_path, named(sft=1, dudi=1))
    arguments = []
    for name in ("sft", "dudi"):
        folder = tmp_path / name
        folder.mkdir()
        for file in (made / f"{name}-0").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        lines = (folder / "responses-0.jsonl").read_text(encoding="utf-8").splitlines()
        mixed = [lines[at] for at in np.random.default_rng(0).permutation(len(lines))]
        (folder / "responses-0.jsonl").write_text("\n".join(mixed) + "\n", encoding="utf-8")
        arguments.append(f"{name}={folder}")
    assert numbers(tmp_path, arguments)["rows"] == first["rows"]


def test_the_other_way_round(named: Named, tmp_path: Path) -> None:
    """Against the other as baseline, differences change their sign, and intervals their ends."""
    there = row(numbers(tmp_path, named(sft=4, dudi=4)))["differences"]["dudi"]
    back = row(numbers(tmp_path, named(sft=4, dudi=4), "dudi"))["differences"]["sft"]
    assert back["score"] == pytest.approx(-there["score"]) and back["p"] == there["p"]
    for kind in ("seeds", "items"):
        assert back[kind]["mean"] == pytest.approx(-there[kind]["mean"])
        assert back[kind]["low"] == pytest.approx(-there[kind]["high"], abs=1.0)
    assert there["eps_min"] == 0 and back["eps_min"] == 1


# ── what is not there ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_missing_task(made: Path, named: Named, tmp_path: Path) -> None:
    """No average that contains it, no difference, interval or test; the others stay, and a line says why."""
    bench = reports.read_benchmark(made / "bench")
    answers = reports.answers(bench, {"default": 0.6}, 1)
    failed = [
        Answer("", 0, False, "too long") if (item.task, item.language) == ("capital", "th") else answer
        for item, answer in zip(bench.items, answers, strict=True)
    ]
    broken = reports.evaluation(tmp_path / "broken", made / "bench", {0: failed})
    given = [*named(sft=2, dudi=1), f"dudi={broken}"]
    found = numbers(tmp_path, given)
    nothing = {"score": None, "items": None, "seeds": None, "p": None, "eps_min": None}
    for key in ({}, {"translation": False}, {"language": "th"}, {"competency": "Knowledge"}):
        one = row(found, **key)
        assert one["scores"]["dudi"]["mean"] is None and one["scores"]["sft"]["mean"] is not None
        assert one["differences"]["dudi"] == nothing
    for key in ({"language": "id"}, {"competency": "NLU"}):
        one = row(found, **key)
        assert one["scores"]["dudi"]["mean"] is not None
        assert None not in one["differences"]["dudi"].values()
    assert found["holm"] == {}
    (line,) = found["missing"]
    assert "capital, th" in line and "too long" in line and str(broken) in line
    text = write_comparison(given)
    assert "| Thai (th) | " in text and "Missing scores." in text and "capital, th" in text
    (thai,) = [one for one in text.split("## Differences")[0].splitlines() if one.startswith("| Thai")]
    assert thai.endswith("| - |")


def test_a_single_item_has_no_interval(named: Named, tmp_path: Path) -> None:
    """The made-up benchmark has one item of format in each language."""
    given = named(sft=4, dudi=4)
    d = row(numbers(tmp_path, given), competency="Instruction following")["differences"]["dudi"]
    assert d["items"] is None and d["seeds"] is not None
    note = write_comparison(given).split("too narrow to trust: ")[1].split("\n")[0]
    assert "Instruction following, Knowledge" in note and "Thai (th)" in note and "average" not in note


def test_unequal_numbers_of_seeds_are_tested_and_not_paired(named: Named, tmp_path: Path) -> None:
    given = named(sft=4, gkd=2)
    d = row(numbers(tmp_path, given))["differences"]["gkd"]
    assert d["seeds"] is None and None not in (d["p"], d["eps_min"], d["items"])
    assert "so not paired: gkd" in write_comparison(given)


def test_too_many_arrangements_give_no_p(named: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dudi.report.comparison.numbers.MOST", 69)
    monkeypatch.setattr("dudi.report.comparison.page.MOST", 69)
    found = numbers(tmp_path, given := named(sft=4, dudi=4))
    assert row(found)["differences"]["dudi"]["p"] is None and found["holm"] == {}
    assert "No p of 4 seeds against 4: there are more than 69 arrangements" in write_comparison(given)


def test_single_models_have_no_test_over_seeds(named: Named, tmp_path: Path) -> None:
    given = named(sft=4, dudi=1)
    found = numbers(tmp_path, given)
    d = row(found)["differences"]["dudi"]
    assert (d["seeds"], d["p"], d["eps_min"]) == (None, None, None) and d["items"] is not None
    assert found["eps_min"]["false_positives"] == []
    text = write_comparison(given)
    assert "One trained model each: dudi." in text and "eps_min |" not in text


def test_one_name_alone_is_a_mean_over_its_seeds(named: Named) -> None:
    text = write_comparison(named(sft=3))
    assert "SFT" not in text and "± " in text and "Differences" not in text


def test_the_correction_is_over_all_that_have_a_p(named: Named, tmp_path: Path) -> None:
    found = numbers(tmp_path, named(sft=4, dudi=4, gkd=2))
    ps = {name: d["p"] for name, d in row(found)["differences"].items()}
    smaller, larger = sorted(ps.values())
    assert sorted(found["holm"].values()) == pytest.approx([min(2 * smaller, 1), max(larger, min(2 * smaller, 1))])
    assert [(one["seeds"], one["seeds_of_baseline"]) for one in found["eps_min"]["false_positives"]] == [(2, 4), (4, 4)]
