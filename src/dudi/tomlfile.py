"""TOML from files that anybody may have written: bounded in size and depth, so that reading ends, and soon."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
"""Of one file."""
MAX_KEYS = 32
"""Parts of a dotted key: reading one takes the square of their number."""
_LONG_KEY = re.compile(r"""(?:\.\s*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')\s*){""" + f"{MAX_KEYS}}}")


def read_toml(file: Path) -> dict[str, Any]:
    """The table in a file of UTF-8 text. Raises `OSError` or `ValueError`, of which `UnicodeDecodeError` is one."""
    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    text = data.decode("utf-8-sig")
    if _LONG_KEY.search(text):
        raise ValueError(f"a key of more than {MAX_KEYS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
