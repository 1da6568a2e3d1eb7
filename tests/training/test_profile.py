"""`--profile FILE`: which steps are traced, and what the trace names."""

from __future__ import annotations

import json
from pathlib import Path

import kit
import pytest

from dudi.errors import DudiError
from dudi.training.profile import STEPS, WARM, Profile


@pytest.mark.parametrize(("steps", "first"), [(WARM + STEPS + 2, WARM), (STEPS + 1, 1), (2, 0)])
def test_five_steps_by_phase(tmp_path: Path, steps: int, first: int) -> None:
    file = tmp_path / "new" / "trace.json"
    trainer = kit.trainer(tmp_path / "run", {"name": "gkd", "lam": 1.0}, max_steps=steps, batch=2, micro_batch=2)
    made = Profile(file)
    trainer.add_callback(made)
    trainer.train()
    assert made.first == first and made.profiler is None
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    for phase in ("rollout", "teacher", "student", "backward"):
        found = sum(event.get("name") == phase and event.get("ph") == "X" for event in events)
        assert found and found % min(STEPS, steps) == 0, phase  # a phase may be entered from within itself


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "trace.json"):
        with pytest.raises(DudiError, match=r"--profile .* name another file"):
            Profile(place)
