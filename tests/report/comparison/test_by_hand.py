"""Four training seeds of two methods: every row of the comparison, recomputed from the records by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from kit.by_hand import hold

from dudi.report.comparison.write import write_comparison

Named = Callable[..., list[str]]


def test_every_row_is_that_of_a_computation_by_hand(made: Path, named: Named, tmp_path: Path) -> None:
    write_comparison(named(sft=4, dudi=4), "sft", [tmp_path / "numbers.json"])
    found = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    folders = {name: [made / f"{name}-{n}" for n in range(4)] for name in ("sft", "dudi")}
    held = hold(found, folders, "dudi", "sft", made / "bench")
    assert held == {"rows": 8, "intervals over items": 7, "intervals over seeds": 8}
