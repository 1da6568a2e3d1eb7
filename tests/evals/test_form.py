"""Constraints on a whole answer: every check with an answer that satisfies it and one that does not, in any script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.evals import DESCRIPTION, item, rows, write

from dudi.errors import DudiError
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import read_benchmark
from dudi.evals.metrics import words as cutting
from dudi.evals.metrics.form import CHECKS, holds, paragraphs, sentences
from dudi.records.form import Constraints

THAI = {"ฉันชอบกาแฟ": "ฉัน|ชอบ|กาแฟ", "การดื่มกาแฟ": "การ|ดื่ม|กาแฟ", "กาแฟ": "กาแฟ", "กา": "กา", "นม": "นม"}


@pytest.fixture
def thai(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thai cut by hand, where pythainlp need not be installed."""
    monkeypatch.setitem(cutting._CUTTERS, "th", lambda text: THAI[text].split("|"))
    monkeypatch.setattr(cutting, "_has_pythainlp", lambda: True)


def constraints(fields: dict[str, Any]) -> Constraints:
    """As a line of a benchmark gives them."""
    return Constraints.model_validate_json(json.dumps(fields))


HELD = [
    # words
    ({"words": 3}, "id", "Saya makan nasi.", "Saya makan."),
    ({"words": {"at_least": 2, "at_most": 3}}, "ta", "பூனை மீன் சாப்பிடுகிறது.", "பூனை"),
    ({"words": 2}, "vi", "xin chào", "xin chào bạn"),
    ({"words": 4}, "my", "မြန်မာစာကို", "မြန်မာ"),  # syllables
    ({"words": {"at_most": 3}}, "th", "ฉันชอบกาแฟ", ""),
    ({"words": 3}, "th", "การดื่มกาแฟ", "กาแฟ"),
    # sentences
    ({"sentences": 2}, "id", "Hujan. Jalan basah!", "Hujan. Jalan basah! Ya?"),
    ({"sentences": 2}, "my", "မိုးရွာသည်။လမ်းစိုသည်။", "မိုးရွာသည်။"),
    ({"sentences": 2}, "ta", "மழை பெய்தது. சாலை நனைந்தது.", "மழை பெய்தது, சாலை நனைந்தது."),
    ({"sentences": 2}, "th", "ฝนตกในปี พ.ศ. 2500\nถนนเปียก", "ฝนตกในปี พ.ศ. 2500"),
    ({"sentences": {"at_most": 1}}, "en", "It costs 3.5 baht.", "It rained. It stopped."),
    # paragraphs, lists, marks
    ({"paragraphs": 2}, "id", "Satu.\n\nDua.", "Satu.\nDua."),
    ({"paragraphs": 3}, "th", "หนึ่ง\n***\nสอง *** สาม", "หนึ่ง *** ***สอง***"),
    ({"paragraph": [2, "lalu"]}, "id", "Satu.\n\nLalu dua.", "Lalu satu.\n\nDua."),
    ({"paragraph": [3, "ထို့နောက်"]}, "my", "က\n\nခ\n\nထို့နောက် ဂ", "က\n\nထို့နောက် ဂ"),
    ({"bullets": 2}, "ms", "- satu\n* dua", "- satu\n-dua\n---"),
    ({"bullets": {"at_least": 1}}, "my", "• တစ်", "တစ်"),
    ({"highlights": 2}, "id", "*satu* dan **dua**", "* satu\n* dua *tiga*"),
    ({"sections": {"Bagian": 2}}, "id", "Bagian 1\nx\n## Bagian 2\ny", "Bagian 1\nlihat Bagian 2\nBagian ini"),
    ({"sections": {"အပိုင်း": 2}}, "my", "အပိုင်း ၁\nက\nအပိုင်း၂\nခ", "အပိုင်း ၁"),
    ({"placeholders": {"at_least": 2}}, "th", "ถึง [ชื่อ] ที่ [ที่อยู่]", "ถึง [ชื่อ] []"),
    ({"title": True}, "ta", "<<மழை>>\nபெய்தது", "<< >> மழை"),
    ({"postscript": "P.S."}, "id", "Salam.\np. s. Bawa payung.", "Salam P.S. Bawa payung."),
    ({"postscript": "ป.ล."}, "th", "สวัสดี\nป.ล. พกร่ม", "สวัสดี"),
    ({"json_only": True}, "id", '```json\n{"a": [1]}\n```', 'Ini: {"a": 1}'),
    ({"json_only": True}, "my", '{"မြို့": "ရန်ကုန်"}', "{'မြို့': 1}"),
    ({"quoted": True}, "vi", "“Xin chào”", '"Xin chào'),
    ({"quoted": True}, "id", '"Halo"', '""'),
    ({"no_comma": True}, "id", "Satu dan dua", "Satu, dua"),
    ({"no_comma": True}, "my", "တစ် နှစ်", "တစ်၊ နှစ်"),
    # beginnings and ends
    ({"starts": "Tentu saja"}, "id", "tentu  saja, ini", "Ya, tentu saja"),
    ({"starts": "Tiếng"}, "vi", "Tie\u0302\u0301ng Việt", "Việt"),
    ({"ends": "Terima kasih."}, "ms", 'Itu saja. "Terima kasih."', "Terima kasih. Itu saja."),
    ({"ends": "ပါသည်။"}, "my", "မိုးရွာပါသည်။\n", "မိုးရွာပါသည်"),
    ({"repeats": "Apa itu hujan?"}, "id", "apa itu hujan? Air.", "Apa itu hujan?"),
    ({"two_answers": True}, "id", "Ya\n******\nTidak", "Ya ****** ya."),
    # keywords
    ({"includes": ["makan", "ikan asin"]}, "id", "Makan ikan asin", "makanan ikan asin"),
    ({"includes": ["பூ"]}, "ta", "பூ சிவப்பு", "பூனை"),
    ({"includes": ["กาแฟ"]}, "th", "ฉันชอบกาแฟ", "นม"),
    ({"excludes": ["กา"]}, "th", "การดื่มกาแฟ", "กา"),
    ({"excludes": ["မာ"]}, "my", "မားသည်", "မြန်မာ"),
    ({"occurs": {"orang": 2, "ibu": {"at_most": 1}}}, "id", "Orang-orang dan ibu", "orang dan ibu"),
    ({"occurs": {"ရေ": {"at_least": 2}}}, "my", "ရေ ရေချို", "ရေး ရေ"),
    ({"letters": {"a": {"at_least": 3}, "z": 0}}, "id", "Ada apa", "Ada"),
    ({"letters": {"က": 2}}, "my", "ကြက်", "က"),
    # case
    ({"case": "upper"}, "vi", "XIN CHÀO 2", "XIN Chào"),
    ({"case": "lower"}, "tl", "mabuti, salamat", "Mabuti"),
    ({"case": "lower"}, "id", "dua", "2"),
    ({"script": "Latin"}, "id", "satu, 2", "satu, สอง"),
    ({"script": "Myanmar"}, "my", "တစ်၊ ၂", "တစ် satu"),
    ({"capital_words": {"at_least": 2}}, "id", "BACA ini SEKARANG", "BACA Ini Sekarang"),
]  # fmt: skip


@pytest.mark.parametrize("fields, language, good, bad", HELD)
def test_a_constraint_holds_or_does_not(thai: None, fields: dict[str, Any], language: str, good: str, bad: str) -> None:
    assert holds(good, constraints(fields), language)
    assert not holds(bad, constraints(fields), language)


def test_every_check_is_tried_and_all_have_to_hold(thai: None) -> None:
    assert {name for fields, *_ in HELD for name in fields} == set(CHECKS)
    both = constraints({"words": 2, "no_comma": True})
    assert [holds(text, both, "id") for text in ("a b", "a, b", "a")] == [True, False, False]
    assert not holds(" \n", constraints({"no_comma": True, "words": {"at_most": 5}}), "id")  # nothing satisfies nothing


def test_no_field_is_without_a_check() -> None:
    of_parts = {"count", "separator", "distinct", "among", "all"}
    assert set(Constraints.model_fields) - of_parts == set(CHECKS)


@pytest.mark.parametrize(
    "text, language, wanted",
    [
        ("1. Satu! 2. “Dua?” Tiga…", "id", ["Satu!", "“Dua?", "Tiga…"]),
        ("Satu *** dua", "id", ["Satu", "dua"]),
        ("ไปไหน? กลับบ้าน เวลา 9.00 น. แล้ว", "th", ["ไปไหน?", "กลับบ้าน เวลา 9.00 น. แล้ว"]),
        ("၁။ သွားသည်။ လာသည်။", "my", ["သွားသည်။", "လာသည်။"]),
    ],
)
def test_sentences(text: str, language: str, wanted: list[str]) -> None:
    assert sentences(text, language) == wanted


def test_paragraphs() -> None:
    assert paragraphs("a\nb\n \nc\n***\n***\nd") == ["a\nb", "c", "d"]
    assert paragraphs("***a*** b\n******\nc") == ["***a*** b\n******\nc"]  # emphasis, and what parts two answers


# ── in a benchmark ───────────────────────────────────────────────────────────────────────────────────────────────────
def bench(folder: Path, fields: dict[str, Any], language: str = "id") -> Path:
    more = [item("f1", "list", language, "?", constraints=fields)]
    return write(folder, DESCRIPTION, [*rows(), *more], None)


def test_form_parts_and_language_are_asked_for_together(tmp_path: Path) -> None:
    b = read_benchmark(bench(tmp_path, {"count": 2, "excludes": ["ayam"]}))
    one = b.by_id["f1"]
    values = [grade(one, Answer(text, 3, True), b).value for text in ("kucing, ikan", "kucing, ayam", "kucing")]
    assert values == [1, 0, 0]


FAULTS = [
    ({"case": "upper"}, "th", "constraints.case: answers in 'th' are written in Thai, which has no case"),
    ({"capital_words": 2}, "my", "constraints.capital_words: answers in 'my' are written in Myanmar"),
    ({"script": "Latn"}, "id", "constraints.script: no letters are named 'Latn'; expected a script such as Latin"),
    ({"includes": ["x", "?!"]}, "id", "constraints.includes: '?!' is only punctuation, and no word"),
    ({"words": {"at_least": 3, "at_most": 2}}, "id", 'words: expected a whole number, or a table of bounds'),
    ({"words": {}}, "id", 'such as {"at_least": 2}, {"at_least": 2, "at_most": 5}, found {}'),
    ({"words": {"at_lest": 3}}, "id", "constraints.words: expected a whole number"),
    ({"words": -1}, "id", "constraints.words: expected a whole number"),
    ({"paragraph": [0, "x"]}, "id", "constraints.paragraph"),
    ({"case": "Upper"}, "id", "constraints.case: expected one of 'upper' or 'lower'"),
    ({"word": 3}, "id", "constraints: unknown key: 'word'"),
    ({"title": False}, "id", "constraints: nothing to check"),
    ({"excludes": ["กา"]}, "th", "constraints.excludes: Thai is cut into words by pythainlp, which is not installed"),
]  # fmt: skip


@pytest.mark.parametrize("fields, language, said", FAULTS)
def test_what_cannot_be_checked_is_one_clear_line(
    tmp_path: Path, fields: dict[str, Any], language: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_has_pythainlp", lambda: False)
    with pytest.raises(DudiError) as caught:
        read_benchmark(bench(tmp_path, fields, language))
    assert said in str(caught.value) and "line 13" in str(caught.value)
