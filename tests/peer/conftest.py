"""The comparison with TRL is collected where TRL is installed (`make test-all` installs it), and only there."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("trl") else ["test_trl.py"]
