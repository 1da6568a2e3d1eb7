"""Names and folders -> groups of evaluations. Those that differ in more than the model are refused, by field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from dudi.errors import DudiError, unknown
from dudi.records import DECODERS, About
from dudi.report.evals import Evaluation, check_same, read_eval
from dudi.strict import shown

PROMPTING = ("template_sha256", "chat_kwargs")
"""Fields of `Decoding` that belong to a model: a base model needs a template, another has one of its own."""


@dataclass(frozen=True)
class Group:
    """The evaluations of one name: of one trained model each, in the order given."""

    name: str
    evaluations: tuple[Evaluation, ...]


def read_groups(given: Sequence[str]) -> tuple[Group, ...]:
    """Arguments FOLDER or NAME=FOLDER, a name repeated for each training seed -> groups in their order.

    Raises `DudiError` for what is no evaluation, or differs in benchmark, items, scoring or decoding.
    """
    named = _parse(given)
    groups = tuple(
        Group(name, tuple(read_eval(name if len(folders) == 1 else f"{name} ({f})", f) for f in folders))
        for name, folders in named.items()
    )
    first = groups[0].evaluations[0]
    for group in groups:
        for one in group.evaluations:
            _check_alike(first, one)
        _check_seeds(group)
    return groups


def choose(groups: Sequence[Group], name: str | None) -> Group:
    """The baseline: the group of that name, by default the first."""
    by_name = {group.name: group for group in groups}
    if name is not None and name not in by_name:
        raise DudiError(f"--baseline: {unknown(name, by_name, 'name')}")
    return groups[0] if name is None else by_name[name]


def remarks(groups: Sequence[Group]) -> list[str]:
    """What differs between the evaluations and is no reason to refuse them, a line each."""
    every = [one for group in groups for one in group.evaluations]
    lines = []
    if len({shown(_prompting(one.about)) for one in every}) > 1:
        lines.append("Chat templates or their arguments were given differently: see decoding in each eval.json.")
    for package in DECODERS:
        found = sorted({one.about.versions.get(package, "unknown") for one in every})
        if len(found) > 1:
            lines.append(f"The answers come from several versions of {package}: {', '.join(found)}.")
    return lines


def _parse(given: Sequence[str]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    seen: dict[Path, str] = {}
    for text in given:
        if any(category(sign) in ("Cc", "Cs") for sign in text):
            raise DudiError(f"{text!r}: control characters, or bytes that are no UTF-8; rename the folder")
        name, equals, folder = (text, "=", text) if _is_folder(text) else text.partition("=")
        if not equals or not name.strip() or not folder:
            raise DudiError(f"{text!r}: no such folder; expected FOLDER or NAME=FOLDER, as `dudi eval` writes it")
        path = Path(folder)
        if not _is_folder(folder):
            raise DudiError(f"{text!r}: no folder {folder!r}")
        if (place := path.resolve()) in seen:
            raise DudiError(f"{text!r}: the folder of {seen[place]!r} once more; give each evaluation once")
        seen[place] = text
        named.setdefault(name.strip(), []).append(path)
    if len(seen) < 2:
        raise DudiError("nothing to compare: give two evaluations or more, such as SFT=eval/sft DuDi=eval/dudi")
    return named


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise DudiError(f"{text!r}: {error.strerror or error}") from None


def _fields(about: About) -> Iterator[tuple[str, Any]]:
    """What has to be the same, as eval.json calls it. A template and what it is passed belong to the model."""
    for key, value in asdict(about.benchmark).items():
        if key != "path":
            yield f"benchmark.{key}", value
    for key, value in asdict(about.decoding).items():
        if key not in PROMPTING:
            yield f"decoding.{key}", value
    yield "marks", dict(sorted(about.marks.items()))
    for package, version in sorted(about.versions.items()):
        if package not in DECODERS:
            yield f"versions.{package}", version


def _check_alike(first: Evaluation, other: Evaluation) -> None:
    ours, theirs = dict(_fields(first.about)), dict(_fields(other.about))
    for field in dict.fromkeys((*ours, *theirs)):
        if ours.get(field) != theirs.get(field):
            cure = "the same command again scores the answers anew" if "versions" in field else "evaluate both alike"
            raise DudiError(
                f"{first.name!r} and {other.name!r} do not compare: {field} is {shown(ours.get(field))} in the first's"
                f" eval.json and {shown(theirs.get(field))} in the second's; {cure}"
            )
    check_same(first, other)


def _check_seeds(group: Group) -> None:
    first = group.evaluations[0]
    seen: dict[str, Evaluation] = {}
    for one in group.evaluations:
        for field in PROMPTING:
            ours, theirs = (getattr(e.about.decoding, field) for e in (first, one))
            if ours != theirs:
                raise DudiError(
                    f"{group.name!r}: decoding.{field} is {shown(ours)} in {str(first.folder)!r} and {shown(theirs)} in"
                    f" {str(one.folder)!r}; give evaluations that differ in more than the training seed names of their"
                    " own"
                )
        weights = one.about.model.weights_sha256
        if weights in seen:
            raise DudiError(
                f"{group.name!r}: {str(seen[weights].folder)!r} and {str(one.folder)!r} are of the same weights"
                f" ({weights[:12]}), so they are no two training seeds; for decoding seeds repeat --seed of `dudi eval`"
            )
        seen[weights] = one


def _prompting(about: About) -> list[Any]:
    return [getattr(about.decoding, field) for field in PROMPTING]
