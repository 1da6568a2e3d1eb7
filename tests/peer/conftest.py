"""Comparisons are collected where the other implementation is installed, and only there: TRL by `make test-all`."""

from __future__ import annotations

from importlib.util import find_spec

NEEDS = {"test_trl.py": "trl", "test_lm_eval.py": "lm_eval"}
collect_ignore = [file for file, package in NEEDS.items() if not find_spec(package)]
