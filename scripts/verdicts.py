"""Print the table of docs/lab-tables.md: how often the rule for verdicts errs, and what it finds.

    python scripts/verdicts.py

1,000 simulated studies a row, with the findings' own numbers of gaps; a test compares the page with what this prints.
"""

from __future__ import annotations

from dudi.lab.tables.findings import read_findings
from dudi.report.stats import error_rate, power

STUDIES = 1000
GAPS = (0.75, 1.5, 2.0, 3.0)
HEAD = ("all methods alike, but for", "decided after 4 seeds", "after 4 or 8 seeds")


def main() -> int:
    """Print the table."""
    sizes = [len(finding.gaps) for finding in read_findings().findings.values()]
    rows = [("nothing: any finding of fifteen", error_rate(sizes, STUDIES))]
    rows += [(f"one gap of {gap:g} deviations", power(gap, len(sizes), STUDIES)) for gap in GAPS]
    rows += [(f"six gaps of {gap:g}, as F1 has", power(gap, len(sizes), STUDIES, sizes=(6,))) for gap in GAPS[1:]]
    for line in (
        HEAD,
        ["---:"] * len(HEAD),
        *((name, *(f"{100 * rate:.1f} %" for rate in found)) for name, found in rows),
    ):
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
