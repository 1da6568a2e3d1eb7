"""Which language a response is in: scripts, word lists, statistics, and how good the statistics are on real text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dudi.evals.language import OTHER, coverage, identify

CODES = ("en", "id", "vi", "th", "ta", "tl", "ms", "my")
WORDS = {
    "en": ("the cat", "eats", "fish", "a house"),
    "id": ("kucing", "makan ikan", "makan", "rumah", "besar"),
    "ms": ("kucing", "makan ikan", "rumah", "besar", "kereta"),
    "vi": ("con mèo", "ăn cá", "nhà"),
    "th": ("แมว",),
    "my": ("ကြောင်",),
}

BY_SCRIPT = [
    ("แมวกินปลา", {"th"}),
    ("ก", {"th"}),
    ("பூனை மீன் சாப்பிடுகிறது", {"ta"}),
    ("ကြောင်က ငါးစားတယ်", {"my"}),
    ("กรุงเทพ (Bangkok)", {"th"}),
    ("猫吃鱼", {OTHER}),
    ("кошка", {OTHER}),
    ("", set()),
    ("42", set()),
    ("3, 5, 7.", set()),
    ("(A)", set()),
    ("-1,5 %", set()),
    ("😀", set()),
]


@pytest.mark.parametrize("words", [None, WORDS], ids=["statistics", "words"])
@pytest.mark.parametrize("text, wanted", BY_SCRIPT)
def test_by_script(text: str, wanted: set[str], words: dict[str, tuple[str, ...]] | None) -> None:
    assert identify(text, CODES, words) == wanted


def test_a_script_that_no_candidate_writes() -> None:
    assert identify("แมวกินปลา", ["id", "en"]) == {OTHER}


BY_WORDS = [
    ("kucing", {"id", "ms"}),  # as good in both
    ("Kucing makan ikan.", {"id", "ms"}),
    ("kucing makan", {"id"}),
    ("kereta besar", {"ms"}),
    ("con mèo ăn cá", {"vi"}),
    ("Con Me\u0300o", {"vi"}),  # NFD
    ("The cat eats fish", {"en"}),
    ("the", {OTHER}),  # only `the cat` is a phrase
    ("kucingku", {OTHER}),  # word borders
    ("kucing eats fish rumah", {"id", "ms"}),  # 11 letters against 8
    ("A", set()),
    ("xq zzz", {OTHER}),
]


@pytest.mark.parametrize("text, wanted", BY_WORDS)
def test_by_words(text: str, wanted: set[str]) -> None:
    assert identify(text, WORDS, WORDS) == wanted


def test_the_longest_phrase_comes_first() -> None:
    # `a b` first would leave `c d` uncovered
    assert coverage("a b c d", ("a b", "b c d")) == 3
    assert coverage("a b c d", ("a b", "b c d", "a")) == 4
    assert coverage("a b a b", ("a b",)) == 4
    assert coverage("ab", ("a",)) == 0


def test_a_script_of_unknown_languages_is_that_of_their_words() -> None:
    words = {"ru": ("кошка",), "id": ("kucing",)}
    assert identify("кошка", words, words) == {"ru"}


LONG = [
    ("Kami pergi ke pasar kemarin karena ibu ingin membeli sayuran segar", {"id"}),
    ("The children were playing in the garden all afternoon", {"en"}),
    ("Hôm qua chúng tôi đi chợ để mua rau tươi cho gia đình", {"vi"}),
    ("Pumunta kami sa palengke kahapon upang bumili ng sariwang gulay", {"tl"}),
]


@pytest.mark.parametrize("text, wanted", LONG)
def test_by_statistics(text: str, wanted: set[str]) -> None:
    assert identify(text, CODES) == wanted


def test_too_short_for_statistics_is_undetermined() -> None:
    assert identify("Paris", CODES) == set()
    assert identify("a" * 19, CODES) == set()
    assert identify("a" * 20, CODES) != set()


def test_only_candidates_are_found_and_they_do_not_stick() -> None:
    text = LONG[0][0]
    assert identify(text, ["en", "ms"]) == {"ms"}
    assert identify(text, CODES) == {"id"}
    assert identify(text, ["en", "ms"]) == {"ms"}


def test_accuracy_of_statistics_on_real_sentences(data_dir: Path) -> None:
    """Prints the table of docs/evaluation.md (with -s)."""
    file = data_dir / "ntrex8.jsonl"
    if not file.is_file():
        pytest.skip("DUDI_DATA_DIR has no ntrex8.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    right = {}
    print("\n| language | sentences | undetermined | right, % of the others | taken for |\n|---|---:|---:|---:|---|")
    for code in CODES:
        found = Counter("+".join(sorted(identify(row[code], CODES))) for row in rows)
        told = len(rows) - found[""]
        right[code] = 100 * found[code] / told
        wrong = ", ".join(f"{name} {count}" for name, count in found.most_common() if name not in ("", code))
        print(f"| {code} | {len(rows)} | {found['']} | {right[code]:.1f} | {wrong} |")
    assert min(right[code] for code in ("en", "vi", "th", "ta", "tl", "my")) > 98.5
    assert right["id"] > 88 and right["ms"] > 82  # these two are taken for each other
