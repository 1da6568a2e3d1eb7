"""Which models and templates a run reads, told by their contents: recorded at its beginning, compared on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.files import sha256
from dudi.models.files import local_folder
from dudi.recipe.schema import Recipe
from dudi.run.paths import named

KINDS = (".safetensors", ".bin", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
"""Ends of the names of what is read of a model: weights, configuration, tokenizer, template, code of its own."""
WHOLE = 1 << 30
"""Bytes up to which all of a file is hashed. To read a teacher of 30 GB once more would take minutes of each start."""
BLOCKS, BLOCK = 256, 1 << 20
"""Of a larger file: so many blocks of so many bytes, the first with the header, the others spread evenly, the last at
the end. Whatever trained or converted a model has moved every tensor; one byte that was changed by hand may pass."""

Identity = dict[str, Any]


_TEMPLATES = {"chat.template": "file", "data.template_folder": "folder"}
"""Keys that name templates of the user's own, and what they name."""


def identities(recipe: Recipe) -> dict[str, Identity]:
    """By the key that names it, {"path", "commit" on the hub, "files": {name: {"size", "sha256", "of"}}}."""
    models = {key: _identity(path, revision) for key, (path, revision) in named(recipe).items()}
    given = zip(_TEMPLATES, (recipe.chat.template, recipe.data.template_folder), strict=True)
    return models | {key: _of_templates(path) for key, path in given if path not in (None, "teacher", "student")}


def _of_templates(path: str) -> Identity:
    there = Path(path).expanduser()
    files = sorted(there.glob("*.toml")) if there.is_dir() else [there] if there.is_file() else []
    return {"path": path, "commit": None, "files": _fingerprints(files)}


def _identity(path: str, revision: str | None) -> Identity:
    folder = local_folder(path, revision)
    if folder is None:
        return {"path": path, "commit": None, "files": {}}
    files = sorted(file for file in folder.iterdir() if file.suffix in KINDS and file.is_file())
    cached = folder.parent.name == "snapshots"  # of the hub's cache, where the folder has the commit's name
    return {
        "path": path,
        "commit": folder.name if cached else None,
        "files": _fingerprints(files),
    }


def _fingerprints(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {file.name: _fingerprint(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}


@cache
def _fingerprint(file: Path, size: int, written: int) -> dict[str, Any]:
    """Of a file of this size and time, which a resumed run asks for twice."""
    if size <= WHOLE:
        return {"size": size, "sha256": sha256(file), "of": "file"}
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(BLOCKS):
            opened.seek((size - BLOCK) * number // (BLOCKS - 1))
            digest.update(opened.read(BLOCK))
    return {"size": size, "sha256": digest.hexdigest(), "of": f"size and {BLOCKS} blocks of {BLOCK} bytes"}


def check_unchanged(now: Mapping[str, Identity], then: Mapping[str, Identity], folder: Path) -> None:
    """Raises `DudiError` where something is not what it was when the run in `folder` began, with what is different."""
    for key, mine in now.items():
        found = _difference(mine, then[key]) if key in then else None
        if found:
            raise DudiError(
                f"{key}: {mine['path']!r} is not the {_TEMPLATES.get(key, 'model')} that the run in {str(folder)!r}"
                f" began with ({found}): restore that one, or start in another folder"
            )


def _difference(now: Identity, then: Identity) -> str | None:
    if not now["files"]:
        return None  # of the hub, and not here yet
    if now["commit"] != then["commit"]:
        return f"commit {now['commit']} of the hub, {then['commit']} then"
    # what the hub had not sent yet when the run began is fixed by the commit
    names = now["files"].keys() & then["files"].keys() if then["commit"] else now["files"].keys() | then["files"].keys()
    for name in sorted(names):
        mine, theirs = now["files"].get(name), then["files"].get(name)
        if mine != theirs:
            how = "is gone" if mine is None else "is new" if theirs is None else "has other contents"
            return f"{name} {how}"
    return None
