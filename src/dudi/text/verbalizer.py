"""The cross-lingual verbalizer (paper 3.3, appendix E): v(x, y, l, l_z) -> (p_z, z).

p_z is what the student reads: x with an instruction, in l, to answer in l_z. z is what the teacher reads: x, then y as
an example of a good response, then the instruction to answer x in l_z, in l. Both texts go into the last user turn; a
system turn and earlier turns stay where they are. Nothing here needs torch.

| mode | template language | l_z | student prompt |
|---|---|---|---|
| none | - | - | x (the teacher reads x too) |
| english | en | not named | x |
| multilingual | l | l | x |
| crosslingual | l | uniform over the others + en | p_z |
| mix | half multilingual, half crosslingual | as drawn | as drawn |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.files import read_toml
from dudi.languages import ENGLISH, choose_l_z
from dudi.signals import Mode, View

TEMPLATES = Path(__file__).parent / "templates"
_PLACEHOLDERS = {
    "teacher": {"question", "demonstration", "language"},
    "teacher_unnamed": {"question", "demonstration"},
    "student": {"question", "language"},
}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Verbalized:
    """The prompts of one row: the student's (x or p_z), the teacher's (x or z), and l_z where one is named."""

    student: tuple[Message, ...]
    teacher: tuple[Message, ...]
    l_z: str | None


@dataclass(frozen=True)
class Template:
    """One language's file."""

    file: Path
    texts: dict[str, str]
    names: dict[str, str]

    def fill(self, text: str, example: Example, l_z: str | None) -> str:
        """One pass over the template, so that braces within x and y are left alone. `DudiError` for a missing name."""
        values = {"question": example.x[-1].content, "demonstration": example.y}
        if l_z is not None:
            if l_z not in self.names:
                raise DudiError(f"{self.file}: [names] has no {l_z!r}; add what {l_z!r} is called in this language")
            values["language"] = self.names[l_z]
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.texts[text])


class Verbalizer:
    """The templates of all languages, and the draw of l_z.

    `languages`: the training languages, among which l_z is drawn; `folder`: templates of one's own, which replace the
    shipped ones language by language. A language is added by adding its file.
    """

    def __init__(self, languages: Sequence[str], seed: int = 0, folder: str | Path | None = None) -> None:
        self.languages = tuple(sorted(set(languages)))
        self.seed = seed
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise DudiError(f"data.template_folder: no folder {str(folder)!r}")

    @cached_property
    def templates(self) -> dict[str, Template]:
        """By language code. Raises `DudiError` for a file that is not as it should be."""
        files = {file.stem: file for file in sorted(TEMPLATES.glob("*.toml"))}
        if self.folder is not None:
            files |= {file.stem: file for file in sorted(self.folder.glob("*.toml"))}
        return {code: read_template(file) for code, file in files.items()}

    def __call__(self, view: View, example: Example, epoch: int, row: int, l_z: str | None = None) -> Verbalized:
        """(p_z, z) of a row through a view. The draw is a pure function of (seed, epoch, row); `l_z` forces it."""
        x, l = example.x, example.l
        key = (self.seed, epoch, row)
        mode = view.verbalizer
        if mode is Mode.MIX:
            mode = Mode.CROSSLINGUAL if draw(*key, "mix") % 2 else Mode.MULTILINGUAL
        if mode is Mode.NONE:
            return Verbalized(x, x, None)
        if mode is Mode.ENGLISH:
            return Verbalized(x, self._rewrite(ENGLISH, "teacher_unnamed", example, None), None)
        if mode is Mode.MULTILINGUAL:
            return Verbalized(x, self._rewrite(l, "teacher", example, l), l)
        l_z = l_z or choose_l_z(l, self.languages, view.include_english, key)
        return Verbalized(self._rewrite(l, "student", example, l_z), self._rewrite(l, "teacher", example, l_z), l_z)

    def targets(self, view: View) -> set[str]:
        """Among which l_z is drawn, for rows in another language."""
        return {*self.languages, ENGLISH} if view.include_english else set(self.languages) - {ENGLISH}

    def draws(self, view: View, l: str) -> list[tuple[View, str | None]]:
        """All that can be drawn for rows in l: (the view in a mode that is fixed, l_z where that names another).

        Raises `DudiError` where there is no l_z to draw.
        """
        if view.verbalizer not in (Mode.CROSSLINGUAL, Mode.MIX):
            return [(view, None)]
        choose_l_z(l, self.languages, view.include_english, (0,))
        named = replace(view, verbalizer=Mode.CROSSLINGUAL)
        own = [(replace(view, verbalizer=Mode.MULTILINGUAL), None)] if view.verbalizer is Mode.MIX else []
        return [*((named, l_z) for l_z in sorted(self.targets(view) - {l})), *own]

    def check(self, view: View, languages: Sequence[str]) -> None:
        """Everything this view can need for rows in these languages is there, or `DudiError` before training."""
        if view.verbalizer is Mode.NONE:
            return
        for l in languages:
            probe = Example((Message("user", "?"),), "!", l, "check")
            for fixed, l_z in self.draws(view, l):
                self(fixed, probe, 0, 0, l_z)

    def _rewrite(self, code: str, text: str, example: Example, l_z: str | None) -> tuple[Message, ...]:
        template = self.templates.get(code)
        if template is None:
            where = self.folder or "a folder named in data.template_folder"
            raise DudiError(f"no verbalizer template for language {code!r}: add {code}.toml to {where}")
        if text not in template.texts:
            raise DudiError(f"{template.file}: missing key {text!r}; the verbalizer mode `english` reads it")
        return (*example.x[:-1], Message("user", template.fill(text, example, l_z)))


def read_template(file: Path) -> Template:
    """Read and check one language's file. Raises `DudiError` with the file, the key and what was wanted."""
    try:
        table = read_toml(file)
    except (OSError, ValueError) as error:
        raise DudiError(f"{file}: not a readable TOML file: {error}") from None
    names = table.pop("names", None)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise DudiError(f"{file}: [names]: expected a table of language code = name")
    for key in {"teacher", "student", *table}:
        if key not in _PLACEHOLDERS:
            raise DudiError(f"{file}: unknown key {key!r}; choices: {', '.join(_PLACEHOLDERS)}, names")
        text = table.get(key)
        if not isinstance(text, str):
            raise DudiError(f"{file}: {key}: expected a text, found {text!r:.80}")
        found = _PLACEHOLDER.findall(text)
        for placeholder in _PLACEHOLDERS[key]:
            if placeholder not in found:
                raise DudiError(f"{file}: {key}: the placeholder {{{placeholder}}} is missing")
        for placeholder in found:
            if placeholder not in _PLACEHOLDERS[key]:
                raise DudiError(f"{file}: {key}: unknown placeholder {{{placeholder}}}")
    return Template(file, table, names)
