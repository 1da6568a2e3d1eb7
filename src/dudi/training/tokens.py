"""Rows as token ids, before any limit, and kept with a run: a second start of it tokenizes nothing again.

data/tokens-train.npz, data/tokens-eval.npz hold them, with a key of all that they depend on: the rows, the tokenizer,
the template and its values, and the versions that read them. A file with another key, or a broken one, is not used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dudi.data.rows import sha256_of
from dudi.errors import DudiError
from dudi.example import Example
from dudi.files import flush
from dudi.text.chat import Chat

_FORM = 2
"""Of the file; raised when what is in it, or how a row is tokenized, changes."""
_VERSIONS = ("dudi", "transformers", "tokenizers", "jinja2")


@dataclass(frozen=True)
class Encoding:
    """One row: x; y with the token that ends the turn; and, where earlier answers are trained on too, the whole
    conversation with the positions of all its answers. Or why the row is refused."""

    x: tuple[int, ...] = ()
    y: tuple[int, ...] = ()
    turns: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    refused: str | None = None


def encodings(examples: Sequence[Example], chat: Chat, all_answers: bool = False) -> list[Encoding]:
    """Each row as token ids. all_answers: earlier answers are trained on too."""
    found = []
    for example, one in zip(examples, chat.rows(examples), strict=True):
        try:
            if isinstance(one, DudiError):
                raise one
            ids, targets = chat.conversation(example.x, example.y) if all_answers else ((), ())
            turns = (tuple(ids), tuple(targets)) if all_answers else None
            found.append(Encoding(tuple(one[0]), tuple(one[1]), turns))
        except DudiError as error:
            found.append(Encoding(refused=str(error)))
    return found


def key_of(examples: Sequence[Example], chat: Chat, all_answers: bool) -> str | None:
    """What the encodings of some rows depend on, as a SHA-256; None for a tokenizer that cannot be told from others."""
    backend = getattr(chat.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    about = {
        "form": _FORM,
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "tokenizer": [type(chat.tokenizer).__name__, hashlib.sha256(backend.to_str().encode()).hexdigest()],
        "special": [chat.tokenizer.special_tokens_map, sorted(chat.specials.ids)],
        "template": [chat.template, chat.kwargs],
        "ids": [chat.vocab, chat.turn_end, chat.stop_ids],
        "all_answers": all_answers,
        "rows": sha256_of(list(examples)),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def write_encodings(file: Path, key: str, found: Sequence[Encoding]) -> None:
    """Keep them; the file is whole or absent."""
    parts = [part for one in found for part in (one.x, one.y, *(one.turns or ((), ())))]
    about = {"key": key, "refused": [one.refused for one in found], "turns": [one.turns is not None for one in found]}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        lengths=np.array([len(part) for part in parts], dtype=np.int64),
        ids=np.array([id for part in parts for id in part], dtype=np.int32),
    )
    aside = file.with_name(f".{file.name}.tmp")
    try:
        aside.write_bytes(buffer.getvalue())
        flush(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def read_encodings(file: Path, key: str | None) -> list[Encoding] | None:
    """What was kept under this key; None where there is nothing, or nothing to trust."""
    if key is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            about: dict[str, Any] = json.loads(kept["about"].tobytes())
            if about["key"] != key:
                return None
            ends = np.cumsum(kept["lengths"])
            ids = kept["ids"].tolist()
        bounds = [0, *ends.tolist()]
        parts = [tuple(ids[a:b]) for a, b in pairwise(bounds)]
        rows = zip(about["refused"], about["turns"], parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True)
        if bounds[-1] != len(ids):
            return None
        return [Encoding(x, y, (whole, at) if turns else None, refused) for refused, turns, x, y, whole, at in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
