"""`python -m dudi`, for launchers."""

from dudi.cli import main

main()
