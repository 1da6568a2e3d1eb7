"""Errors the user can fix: one clear line (what, where, what was wanted, what to do), exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DudiError(Exception):
    """Bad input. The command line prints it as one line, without a traceback, and exits with its status.

    `dudi.training.faults` has subclasses with a status of their own; docs/crash-safety.md lists them.
    """

    status = 2


def unknown(found: str, choices: Iterable[str], what: str) -> str:
    """The line for a misspelt name: what it is, the nearest choice, all choices."""
    choices = sorted(choices)
    close = difflib.get_close_matches(found, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what}: {found!r}; {hint}choices: {', '.join(choices)}"
