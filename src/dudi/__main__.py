"""`python -m dudi`, for launchers."""

from dudi.cli import entry

entry()
