"""What the limits of a recipe do to its rows, known and said before the first stage.

`limits.verbalizer` is computed where it is not given: what p_z adds to an x, at most, with this tokenizer and these
verbalizer templates. Rows that a limit keeps out of a term of the method are counted by language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dudi.errors import DudiError
from dudi.example import Example
from dudi.recipe.schema import Limits
from dudi.signals import Mode, View
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training.window import Row, Rows

_SLACK = 8
"""Tokens by which what p_z or z adds to a row may differ from what it adds to others: merges at the borders."""
_SAMPLE = 4
"""Rows of a language of which it is measured."""


@dataclass(frozen=True)
class Verbalizing:
    """The lengths of p_z and z, of rows through one view."""

    chat: Chat
    verbalizer: Verbalizer
    view: View
    judged: bool

    @property
    def rewrites(self) -> bool:
        """Whether the student reads p_z, and not x."""
        return self.view.verbalizer in (Mode.CROSSLINGUAL, Mode.MIX)

    def limits(self, limits: Limits, rows: Sequence[Row]) -> Limits:
        """The limits with `verbalizer` filled in, by language, so that no p_z of these rows is too long."""
        if limits.verbalizer is not None or not self.rewrites:
            return limits
        table = {l: max(self._adds(limits, of_l), default=1) for l, of_l in _by_language(rows).items()}
        table = {l: max(n, 1) for l, n in table.items()}
        return limits.model_copy(update={"verbalizer": {"default": max(table.values(), default=1), **table}})

    def lost(self, limits: Limits, rows: Sequence[Row], held_out: bool = False) -> list[str]:
        """By language and limit, the rows that have no term of this view, for some l_z. Raises `DudiError` where no row
        to train on has one for any."""
        kind = "evaluation rows" if held_out else "rows"
        lines, without = [], 0
        for l, of_l in _by_language(rows).items():
            prompts = self._too_long(limits, of_l, l, teacher=False) if self.rewrites else []
            demonstrated = self._too_long(limits, of_l, l, teacher=True) if self.judged else []
            for found, limit in (
                (prompts, f"limits.verbalizer = {limits.of('verbalizer', l)}: p_z"),
                (demonstrated, f"limits.teacher_prompt = {limits.of('teacher_prompt', l)}: z"),
            ):
                if found:
                    lines.append(
                        f"{l}: {len(found)} of {len(of_l)} {kind} lose their {self.view.name} term under {limit} is too"
                        f" long, for some l_z (the longest has {max(found)} tokens)"
                    )
            without += max(len(prompts), len(demonstrated)) == len(of_l)
        if lines and not held_out and without == len(_by_language(rows)):
            raise DudiError(f"the limits leave no row with a {self.view.name} term: {'; '.join(lines)}")
        return lines

    def _adds(self, limits: Limits, rows: Sequence[Row]) -> list[int]:
        """What p_z adds to x, for some rows, and for all that are as long as they may be."""
        near = [row for row in rows if len(row.x) + _SLACK > limits.of("prompt", row.example.l)]
        return [n - len(row.x) for row in [*rows[:_SAMPLE], *near] for n in self._lengths(row.example, False)]

    def _too_long(self, limits: Limits, rows: Sequence[Row], l: str, teacher: bool) -> list[int]:
        """The longest p_z (or z) of each row that has one over its limit."""
        room = limits.of("prompt", l) + limits.of("verbalizer", l)
        if teacher:
            room = limits.of("teacher_prompt", l)

        def known(row: Row) -> int:
            return len(row.x) + (len(row.y) if teacher else 0)

        more = max(n - known(row) for row in rows[:_SAMPLE] for n in self._lengths(row.example, teacher))
        found = []
        for row in rows:
            if (teacher and row.y_cut) or known(row) + more + _SLACK > room:
                longest = max(self._lengths(row.example, teacher))
                found += [longest] if longest > room else []
        return found

    def _lengths(self, example: Example, teacher: bool) -> list[int]:
        """Tokens of p_z (or z), for all that can be drawn."""
        draws = self.verbalizer.draws(self.view, example.l)
        made = [self.verbalizer(view, example, 0, 0, l_z) for view, l_z in draws]
        return [len(self.chat.prompt(v.teacher if teacher else v.student)) for v in made]


def kept_and_left_out(rows: Rows, languages: Sequence[str], limits: Limits, what: str) -> list[str]:
    """By language, what template, tokenizer and limits leave out or cut; one line for all where they do neither."""
    lines = []
    kept = [row.example.l for row in rows.rows]
    for l in languages:
        n, out, cut, refused = kept.count(l), rows.left_out[l], rows.cut[l], rows.refused[l]
        total = n + out + refused
        parts = []
        if out:
            parts.append(
                f"{out} left out ({out / total:.0%}): x is longer than limits.prompt = {limits.of('prompt', l)}"
            )
        if cut:
            parts.append(f"{cut} answers cut ({cut / total:.0%}) at limits.total = {limits.of('total', l)}")
        if refused:
            reason, _ = rows.reasons[l].most_common(1)[0]
            parts.append(f"{refused} refused: {reason}")
        if total and not n:
            parts.append(f"no row of {l} is left")
        if parts:
            lines.append(f"{l}: {n} of {total} {what} rows; {'; '.join(parts)}")
    return lines or [f"{len(kept)} {what} rows: none too long, no answer cut"]


def _by_language(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.example.l, []).append(row)
    return found
