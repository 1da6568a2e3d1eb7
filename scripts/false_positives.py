"""Print the table of docs/compare.md: how often eps_min sees a difference between two methods that are the same.

    python scripts/false_positives.py

20,000 simulated studies a row; a test compares the page with what this prints.
"""

from __future__ import annotations

from dudi.report.stats import false_positive_rate, smallest_p

SEEDS = (2, 3, 4, 5, 6, 8, 10, 20)
HEAD = ("seeds of each", "eps_min < 0.2", "eps_min < 0.5", "least p, permutation", "least p, sign flips")


def main() -> int:
    """Print the table."""
    for line in (HEAD, ["---:"] * len(HEAD), *map(row, SEEDS)):
        print(f"| {' | '.join(line)} |")
    return 0


def row(n: int) -> list[str]:
    """n seeds against n: two rates in percent, and the least p of the exact tests."""
    rates = [f"{100 * false_positive_rate(n, threshold=threshold)[0]:.1f} %" for threshold in (0.2, 0.5)]
    return [str(n), *rates, *(f"{p:.3g}" for p in (smallest_p(n), 2 / 2**n))]


if __name__ == "__main__":
    raise SystemExit(main())
