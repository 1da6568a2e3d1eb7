"""A comparison of two methods by hand: from the records' own lines, in plain loops and NumPy, with nothing of dudi.

Averages are taken anew from scores.jsonl and benchmark.json, intervals over items from the answers. What is random has
other draws than dudi's, so that it agrees as far as resampling goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

T = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 7: 2.364624}
"""The 97.5 % quantile of Student's t, from a printed table, by degrees of freedom."""
DRAWS = 4_000
Row = tuple[str | None, str | None]
"""(language, competency); None: over all of them."""


def lines(file: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def averages(folder: Path, about: Mapping[str, Any]) -> dict[Row, float]:
    """Tasks of a group -> task -> competency -> language -> overall, of one evaluation under one decoding seed."""
    cells: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one in lines(folder / "scores.jsonl"):
        task = about["tasks"][one["task"]]
        units = cells.setdefault(one["language"], {}).setdefault(task["competency"], {})
        units.setdefault(task.get("group") or one["task"], []).append(one["score"])
    by_cell = {
        (l, c): float(np.mean([np.mean(unit) for unit in units.values()]))
        for l, row in cells.items()
        for c, units in row.items()
    }
    found: dict[Row, float] = {}
    for l in cells:
        found[l, None] = float(np.mean([value for (language, _), value in by_cell.items() if language == l]))
    for c in about["competencies"]:
        found[None, c] = float(np.mean([by_cell[l, c] for l in about["averaged"] if (l, c) in by_cell]))
    found[None, None] = float(np.mean([found[l, None] for l in about["averaged"]]))
    return found


def item_gaps(ours: Sequence[Path], theirs: Sequence[Path]) -> list[tuple[str, str, str, float]]:
    """(language, task, key, difference in points) of each item, of means over the evaluations."""
    totals: list[dict[str, float]] = []
    places: dict[str, tuple[str, str, str]] = {}
    for folders in (ours, theirs):
        sums: dict[str, list[float]] = {}
        for folder in folders:
            for one in lines(folder / "responses-0.jsonl"):
                sums.setdefault(one["id"], []).append(one["value"])
                places[one["id"]] = one["language"], one["task"], one.get("key") or one["id"]
        totals.append({id_: math.fsum(values) / len(folders) for id_, values in sums.items()})
    return [(*places[id_], 100 * (totals[0][id_] - totals[1][id_])) for id_ in places]


def over_items(gaps: Sequence[tuple[str, str, str, float]], languages: Sequence[str]) -> tuple[float, list[float]]:
    """The plain mean over languages of their items' mean difference; and the same in `DRAWS` draws with replacement.

    A key is drawn with all its items. Where languages share keys, as many as there are in all are drawn for all of them
    together, and draws that miss a language are left out; else each language's own are drawn by themselves.
    """
    by_key: dict[str, dict[str, list[float]]] = {l: {} for l in languages}
    for l, _, key, gap in gaps:
        if l in by_key:
            by_key[l].setdefault(key, []).append(gap)
    keys = sorted({key for row in by_key.values() for key in row})
    shared = len(keys) < sum(map(len, by_key.values()))
    pools = [keys] if shared else [sorted(row) for row in by_key.values()]
    generator = np.random.default_rng(7)
    times = np.hstack([generator.multinomial(len(pool), [1 / len(pool)] * len(pool), DRAWS) for pool in pools])
    order = [key for pool in pools for key in pool]
    sums, sizes = (
        np.array([[float(of(by_key[l].get(key, []))) for key in order] for l in languages]) for of in (math.fsum, len)
    )
    counted = times @ sizes.T
    whole = counted.all(axis=1)
    means = (times @ sums.T)[whole] / counted[whole]
    return float(np.mean(sums.sum(axis=1) / sizes.sum(axis=1))), means.mean(axis=1).tolist()


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of the differences by seed, by Student's t."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    n, mean = len(gaps), sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (n - 1))
    half = T[n - 1] * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def permutations(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share of all ways to deal out the scores in which the means are at least as far apart."""
    pooled = [*ours, *theirs]
    far = []
    for chosen in combinations(range(len(pooled)), len(ours)):
        one = [pooled[n] for n in chosen]
        rest = [pooled[n] for n in range(len(pooled)) if n not in chosen]
        far.append(abs(sum(one) / len(one) - sum(rest) / len(rest)))
    seen = abs(sum(ours) / len(ours) - sum(theirs) / len(theirs))
    return sum(one >= seen - 1e-9 for one in far) / len(far)


def violation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """eps of as many scores of both: of the squared gaps between the sorted scores, the share that is theirs."""
    gaps = [a - b for a, b in zip(sorted(ours), sorted(theirs), strict=True)]
    whole = sum(gap * gap for gap in gaps)
    return sum(gap * gap for gap in gaps if gap < 0) / whole if whole else 0.5


def eps_min(ours: Sequence[float], theirs: Sequence[float], seed: int = 11) -> float:
    """eps + 1.6449 standard deviations of eps over `DRAWS` resamples of both, between 0 and 1."""
    generator = np.random.default_rng(seed)
    drawn = [np.sort(generator.choice(np.array(scores), (DRAWS, len(scores)))) for scores in (ours, theirs)]
    gaps = drawn[0] - drawn[1]
    whole = (gaps**2).sum(axis=1)
    lost = (np.minimum(gaps, 0) ** 2).sum(axis=1)
    found = np.divide(lost, whole, out=np.full(DRAWS, 0.5), where=whole > 0)
    return min(max(violation(ours, theirs) + 1.644854 * float(np.std(found)), 0.0), 1.0)


def hold(
    found: Mapping[str, Any], folders: Mapping[str, Sequence[Path]], method: str, baseline: str, bench: Path
) -> dict[str, int]:
    """Hold the rows of a comparison (what `dudi compare` writes as JSON) against a computation by hand; how many of
    what. Languages, competencies and the overall average; of languages x competencies, the scores alone."""
    about = json.loads((bench / "benchmark.json").read_text(encoding="utf-8"))
    ours, theirs = ([averages(folder, about) for folder in folders[name]] for name in (method, baseline))
    gaps = item_gaps(folders[method], folders[baseline])
    held = {"rows": 0, "intervals over items": 0, "intervals over seeds": 0}
    rows = [one for one in found["rows"] if "task" not in one and "translation" not in one]
    for row in (one for one in rows if not ("language" in one and "competency" in one)):
        place = l, c = row.get("language"), row.get("competency")
        mine, base = ([each[place] for each in scores] for scores in (ours, theirs))
        near(row["scores"][method]["values"], mine, 1e-9, place)
        near(row["scores"][baseline]["values"], base, 1e-9, place)
        d = row["differences"][method]
        near([d["score"]], [sum(mine) / len(mine) - sum(base) / len(base)], 1e-9, place)
        held["rows"] += 1
        if d["seeds"] is not None:
            near([d["seeds"][key] for key in ("mean", "low", "high")], over_seeds(mine, base), 1e-4, place)
            near([d["p"]], [permutations(mine, base)], 1e-12, place)
            near([d["eps_min"]], [eps_min(mine, base)], 0.06, place)  # four errors of a deviation of 1,000 draws
            held["intervals over seeds"] += 1
        if d["items"] is not None:
            here = [gap for gap in gaps if c is None or about["tasks"][gap[1]]["competency"] == c]
            languages = [l] if l else [one for one in about["averaged"] if any(gap[0] == one for gap in here)]
            mean, drawn = over_items(here, languages)
            near([d["items"]["mean"]], [mean], 1e-9, place)
            for end, share in (("low", 0.025), ("high", 0.975)):  # as far as two resamplings agree: four errors
                least, most = np.quantile(drawn, [share - 0.012, share + 0.012])
                assert least - 1e-9 <= d["items"][end] <= most + 1e-9, (place, end, least, d["items"][end], most)
            held["intervals over items"] += 1
    return held


def near(found: Sequence[float], wanted: Sequence[float], by: float, place: object) -> None:
    """The same, as far as `by`."""
    far = [abs(one - other) for one, other in zip(found, wanted, strict=True)]
    assert max(far) <= by, (place, list(found), list(wanted))
