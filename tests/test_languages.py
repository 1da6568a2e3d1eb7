"""Languages: codes and the names data sets use, l_z, and draws that must never change by accident."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.languages import LANGUAGES, choose_l_z, language_code

SEVEN = ("id", "vi", "th", "ta", "tl", "ms", "my")

# SEA-Instruct's config names, its column values, ISO 639-3 codes, names in other cases.
NAMES = {
    "en": "en EN English english eng English_NativeScript",
    "id": "id Indonesian INDONESIAN ind Indonesian_Romanized bahasa-indonesia",
    "vi": "vi Vietnamese vie Vietnamese_NativeScript",
    "th": "th Thai tha Thai_NativeScript",
    "ta": "ta Tamil tam Tamil_NativeScript",
    "tl": "tl Tagalog Filipino Filipino_NativeScript fil tgl",
    "ms": "ms Malay msa zsm Malay_NativeScript bahasa-melayu",
    "my": "my Burmese mya bur Myanmar Burmese_NativeScript",
}


@pytest.mark.parametrize("code, name", [(code, n) for code, names in NAMES.items() for n in names.split()])
def test_a_language_by_any_name(code: str, name: str) -> None:
    assert language_code(name.replace("-", " ")) == code
    assert language_code(f"  {name.replace('-', ' ')} ") == code


# What data sets, catalogues and people write beside those: BCP 47, locales, Flores, ISO 639-3, other names.
WRITTEN = {
    "en": ("en-US", "eng_Latn", "English (US)"),
    "id": ("id-ID", "id_ID", "ind_Latn", "in", "Bahasa Indonesia", "Indonesian language"),
    "vi": ("vi-VN", "vie-Latn-VN", "Tiếng Việt", unicodedata.normalize("NFD", "tiếng việt")),
    "th": ("th-TH", "th_TH.UTF-8", "tha_Thai", "ไทย", "ภาษาไทย"),
    "ta": ("ta-IN", "tam_Taml", "தமிழ்"),
    "tl": ("fil-PH", "tgl_Latn", "Tagalog (Filipino)", "Filipino (Tagalog)"),
    "ms": ("ms-MY", "zsm_Latn", "zlm", "Bahasa Malaysia", "Malay (macrolanguage)"),
    "my": ("my-MM", "mya_Mymr", "Burmese (Myanmar)", "Myanmar (Burmese)", "မြန်မာ"),
    "km": ("km", "km-KH", "khm", "khm_Khmr", "Khmer", "Central Khmer"),
    "jv": ("jv", "jav", "jw", "Javanese"),
    "zh": ("zh-Hans", "zh_CN", "cmn", "Chinese (Traditional)"),
}


@pytest.mark.parametrize("code", WRITTEN)
def test_a_language_as_data_sets_write_it(code: str) -> None:
    """One code, however it is written: else a language is refused, or counted as two."""
    assert {name: language_code(name) for name in WRITTEN[code]} == dict.fromkeys(WRITTEN[code], code)


def test_the_eight_languages() -> None:
    assert set(LANGUAGES) == {*SEVEN, "en"}
    assert {code: language.script for code, language in LANGUAGES.items() if language.script != "Latin"} == {
        "th": "Thai",
        "ta": "Tamil",
        "my": "Myanmar",
    }
    names = [n for language in LANGUAGES.values() for n in (language.code, language.name.lower(), *language.aliases)]
    assert len(names) == len(set(names)), "two languages share a name"


@pytest.mark.parametrize("text", ["jv", "lo", "km", "ceb", "JV", "ceb_NativeScript"])
def test_a_code_that_is_not_one_of_the_eight_stands_for_itself(text: str) -> None:
    assert language_code(text) == text.lower().split("_")[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "xx",
        "klingon",
        "_NativeScript",
        "1d",
        "in-donesian",
        "việt",
        "und",
        "und-Thai",
        "mul",
        "zxx",
        "qaa",
    ],
)
def test_no_language(text: str) -> None:
    with pytest.raises(DudiError, match="unknown language") as error:
        language_code(text)
    assert "tl (Tagalog)" in str(error.value) and len(str(error.value).splitlines()) == 1


# ── draws ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_draws_never_change() -> None:
    """Hard-coded: another value here means that no older run can be repeated or resumed."""
    assert draw(0, 0, "coin") == 829735660587251154
    assert draw(0, 1, "coin") == 12560350748592630391
    assert draw("a") == 4681665781835383343
    chosen = [choose_l_z("id", SEVEN, True, (0, 0, row)) for row in range(10)]
    assert chosen == ["vi", "my", "vi", "ta", "ms", "ms", "th", "my", "tl", "th"]


def test_a_draw_depends_on_every_part_of_its_key() -> None:
    keys = [
        (0, 0, "a"),
        (1, 0, "a"),
        (0, 1, "a"),
        (0, 0, "b"),
        (0, 0),
        (0, "0a"),
        ("00", "a"),
        (0, 0, "a", 0),
        (10, "a"),
    ]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(1, "x") == draw(1, "x") == draw("1", "x")


def test_draws_are_64_bits_and_even() -> None:
    numbers = [draw("bits", k) for k in range(4000)]
    assert 0 <= min(numbers) < 2**55 and 2**64 - 2**55 < max(numbers) < 2**64
    for bit in (0, 1, 31, 63):
        assert abs(sum(n >> bit & 1 for n in numbers) - 2000) < 4 * 1000**0.5


# ── l_z ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("l", SEVEN)
@pytest.mark.parametrize("include_english", [True, False])
def test_l_z_is_uniform_over_the_others(l: str, include_english: bool) -> None:
    rows = 3500
    chosen = Counter(choose_l_z(l, SEVEN, include_english, (7, 2, row)) for row in range(rows))
    expected = {*SEVEN, "en"} - {l} if include_english else set(SEVEN) - {l}
    assert set(chosen) == expected
    mean = rows / len(expected)
    chi_square = sum((n - mean) ** 2 / mean for n in chosen.values())
    assert chi_square < 26.1, chosen  # p = 0.0005 at 7 - 1 degrees of freedom at most


def test_l_z_does_not_depend_on_the_order_or_repetition_of_languages() -> None:
    for row in range(50):
        key = (0, 0, row)
        wanted = choose_l_z("th", SEVEN, True, key)
        assert choose_l_z("th", SEVEN[::-1], True, key) == wanted
        assert choose_l_z("th", (*SEVEN, *SEVEN, "en"), True, key) == wanted


def test_l_z_in_training_on_english_too() -> None:
    chosen = {choose_l_z("en", ("en", "id"), True, (0, 0, row)) for row in range(20)}
    assert chosen == {"id"}
    assert {choose_l_z("id", ("en", "id", "vi"), False, (0, 0, row)) for row in range(20)} == {"vi"}


@pytest.mark.parametrize("languages, english", [(("id",), False), ((), False), (("en",), True), (("id", "en"), False)])
def test_nothing_to_choose_from(languages: tuple[str, ...], english: bool) -> None:
    l = "en" if languages == ("en",) else "id"
    with pytest.raises(DudiError, match=f"no language to choose for rows in '{l}'"):
        choose_l_z(l, languages, english, (0,))


def test_one_training_language_still_has_english() -> None:
    assert choose_l_z("id", ("id",), True, (0,)) == "en"
