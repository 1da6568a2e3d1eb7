"""Rollouts that have collapsed: all at the limit, empty, repeating themselves, or in another script than was asked for.

A student that learns from its own responses can fall into a state in which they teach nothing, while the loss looks
fine. Shares are taken by view and language over the logged interval, or over several until there are enough rows. The
first ones say how the training began: a base student runs into the limit, and that is no news later on. A share is a
warning from a threshold on, where it is worse than at the start: in the log once when it begins and once when it ends,
and in `metrics.jsonl` while it lasts. Training goes on: no number but these depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from dudi import processes
from dudi.example import Example
from dudi.languages import ENGLISH, LANGUAGES, letters_by_script
from dudi.signals import View

THRESHOLDS = {"cut": 0.9, "empty": 0.5, "repeating": 0.3, "script": 0.5}
"""From these shares on, a warning begins.

cut: run into the limit. A base student is cut often in its first steps, and long answers are: only nearly all is a
fault. empty: nothing before the stop token; half of them, since some data has rows that are rightly answered with
nothing. repeating: the second half is one n-gram over and over; healthy text never is, so a third is already much.
script: another script than that of the language asked for; half, since names and code in Latin letters are no fault.
Where no l_z is asked for, the script of the row's own y is right too: x may ask for a translation, or for code.
"""
WORSE = 0.2
"""And only this far above the share at the start: among `ENOUGH` rows, less may be chance."""
ENDS = 0.8
"""A warning ends below this part of its threshold, so that a share that wavers about it is not announced each time."""
ENOUGH = 16
"""Rows that a share is taken over: among fewer, one row moves it by more than the distance of two thresholds."""
LONGEST, TIMES, SHORTEST = 32, 4, 8
"""An n-gram that repeats has up to 32 tokens (a phrase, in scripts of several tokens a letter), 4 times at least, over
8 tokens at least: a list, a rhyme or a laugh is none."""
LETTERS = 10
"""Letters that a script is told from; a number, a name or a formula says nothing about the language."""

SAID = {
    "cut": "run into limits.rollout",
    "empty": "are empty",
    "repeating": "end in one repeated n-gram",
    "script": "are written in another script than the language asked for",
}
QUANTITIES = ("rows", "cut", "empty", "repeating", "judged", "script")


class Collapse:
    """Counts of a training's rollouts, and which warnings are on. All counts are whole numbers, so sums are exact."""

    def __init__(self, views: Iterable[View], languages: Sequence[str]) -> None:
        self.languages = tuple(sorted({*languages, ENGLISH}))
        names = [view.name for view in views if view.response.sampled]
        self.mine = dict.fromkeys(
            (f"{name}/{l}/{q}" for name in names for l in self.languages for q in QUANTITIES), 0.0
        )
        self.sums = dict(self.mine)
        self.on: dict[str, float] = {}
        self.start: dict[str, float] = {}
        self.reads_text = len({LANGUAGES[l].script for l in self.languages if l in LANGUAGES}) > 1

    def add(self, view: View, row: Example, asked: str, ids: Sequence[int], finished: bool, text: str) -> None:
        """One rollout, asked to be in the row's language or in another one; ids with the stop token if finished."""
        said = ids[:-1] if finished else ids
        here = f"{view.name}/{row.l}"
        self.mine[f"{here}/rows"] += 1
        self.mine[f"{here}/cut"] += not finished
        self.mine[f"{here}/empty"] += not said
        self.mine[f"{here}/repeating"] += repeats(said)
        found = script(text)
        if found is not None and asked in LANGUAGES and f"{view.name}/{asked}/judged" in self.mine:
            self.mine[f"{view.name}/{asked}/judged"] += 1
            self.mine[f"{view.name}/{asked}/script"] += not _is_right(found, row, asked)

    def gather(self) -> None:
        """Add what each process counted to the sums that all of them hold."""
        if not self.mine:
            return
        for key, value in zip(self.mine, processes.summed(list(self.mine.values())), strict=True):
            self.sums[key] += value
        self.mine = dict.fromkeys(self.mine, 0.0)

    def judge(self, step: int) -> list[str]:
        """End an interval: what has begun or ended, as lines for the log. A share of too few rows goes on counting."""
        said: list[str] = []
        begun: dict[str, float] = {}
        for here in dict.fromkeys(key.rpartition("/")[0] for key in self.sums):
            for total, kinds in (("rows", ("cut", "empty", "repeating")), ("judged", ("script",))):
                count = self.sums[f"{here}/{total}"]
                if count < ENOUGH:
                    continue
                for kind in kinds:
                    key, share = f"{here}/{kind}", self.sums[f"{here}/{kind}"] / count
                    if key in self.start:
                        said += self._judge(here, kind, share, int(count), step)
                        continue
                    self.start[key] = share
                    if share >= THRESHOLDS[kind]:
                        begun[key] = share
                for quantity in (total, *kinds):
                    self.sums[f"{here}/{quantity}"] = 0.0
        return [*_as_begun(begun, step), *said]

    def _judge(self, here: str, kind: str, share: float, count: int, step: int) -> list[str]:
        key, (view, _, language) = f"{here}/{kind}", here.rpartition("/")
        limit = max(THRESHOLDS[kind], self.start[key] + WORSE)
        what = f"rollouts {view} in {language} {SAID[kind]}"
        if key in self.on and share < ENDS * limit:
            del self.on[key]
            return [f"  step {step}: over: {what} ({share:.0%} of {count} now)"]
        if key not in self.on and share < limit:
            return []
        new = key not in self.on
        self.on[key] = share
        return [f"  step {step}: warning: {share:.0%} of {count} {what}"] if new else []

    def line(self) -> dict[str, Any]:
        """What a line of metrics says of it: {"collapse": {view: {language: {kind: share}}}}, or nothing."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for key, share in self.on.items():
            view, language, kind = key.split("/")
            found.setdefault(view, {}).setdefault(language, {})[kind] = share
        return {"collapse": found} if found else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; gather first."""
        return {"sums": self.sums, "on": self.on, "start": self.start}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        assert state["sums"].keys() == self.sums.keys(), "a checkpoint of the same recipe"
        self.sums, self.on, self.start = dict(state["sums"]), dict(state["on"]), dict(state["start"])


def _as_begun(shares: dict[str, float], step: int) -> list[str]:
    """One line for all that is high from the first rows on."""
    parts: dict[tuple[str, str], list[str]] = {}
    for key, share in shares.items():
        view, language, kind = key.split("/")
        parts.setdefault((view, kind), []).append(f"{language} {share:.0%}")
    texts = [f"rollouts {view} {SAID[kind]}: {', '.join(found)}" for (view, kind), found in parts.items()]
    return [f"  step {step}: at the start, {'; '.join(texts)}"] if texts else []


def repeats(ids: Sequence[int]) -> bool:
    """Whether the second half of a response is one n-gram over and over."""
    half = list(ids[len(ids) // 2 :])
    most = min(LONGEST, len(half) // TIMES)
    return len(half) >= SHORTEST and any(half[n:] == half[:-n] for n in range(1, most + 1))


def script(text: str) -> str | None:
    """The script that most letters of a text are of, such as THAI; None where it has too few to tell."""
    found = letters_by_script(text)
    return found.most_common(1)[0][0] if found.total() >= LETTERS else None


def _is_right(found: str, row: Example, asked: str) -> bool:
    """Whether a script is that of the language asked for, or where this is the row's own, that of y."""
    if found == LANGUAGES[asked].script.upper():
        return True
    return asked == row.l and found in dict(letters_by_script(row.y).most_common(1))


def spans(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """From the lines of a training's metrics: each warning with its first and last step and its largest share."""
    found: list[dict[str, Any]] = []
    for before, line in pairwise([{}, *lines]):
        was, now = (_flat(one.get("collapse", {})) for one in (before, line))
        for key, share in now.items():
            if key in was:
                entry = next(e for e in reversed(found) if (e["view"], e["language"], e["what"]) == key)
                entry |= {"to": line["step"], "largest": max(share, entry["largest"])}
            else:
                view, language, what = key
                found.append(
                    {
                        "view": view,
                        "language": language,
                        "what": what,
                        "from": line["step"],
                        "to": line["step"],
                        "largest": share,
                    }
                )
    return found


def _flat(collapse: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    return {
        (view, language, kind): share
        for view, languages in collapse.items()
        for language, kinds in languages.items()
        for kind, share in kinds.items()
    }
