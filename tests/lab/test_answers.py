"""What counts as a right answer: what somebody who knows it would say, and nothing less than that."""

from __future__ import annotations

import json

import pytest
from kit.lab import EIGHT

from dudi.evals.metrics.exact import exact
from dudi.evals.metrics.text import normalise
from dudi.lab.artefacts import benchmark_item
from dudi.lab.tasks import TASKS
from dudi.lab.truth import FACTS, OPPOSITES
from dudi.lab.words import READ, RELATIONS, load, slot_kind, slots
from dudi.records import Item

RIGHT = [
    ("en", "reading where library", "in the library"),
    ("en", "reading where library", "library"),
    ("en", "reading bought book", "A book."),
    ("en", "kind whale mammal", "a mammal"),
    ("en", "money nigeria naira", "the naira"),
    ("en", "money united_states dollar", "US dollar"),
    ("en", "money united_states dollar", "The currency of the United States is the US dollar."),
    ("en", "capital united_states washington", "Washington, D.C."),
    ("en", "money united_kingdom pound", "pound sterling"),
    ("id", "reading where library", "di perpustakaan"),
    ("id", "reading where library", "perpustakaan"),
    ("id", "reading bought book", "buku"),
    ("id", "money united_states dollar", "dolar AS"),
    ("ms", "reading where library", "di perpustakaan"),
    ("ms", "money united_states dollar", "dolar AS"),
    ("vi", "reading color white", "màu trắng"),
    ("vi", "reading color white", "trắng"),
    ("vi", "money vietnam dong", "đồng"),
    ("vi", "money thailand baht", "đồng baht"),
    ("vi", "money united_states dollar", "đô la Mỹ"),
    ("vi", "located united_states north_america", "châu Mỹ"),
    ("tl", "reading where farm", "nasa bukid"),
    ("tl", "reading where farm", "sa bukid"),
    ("tl", "reading where farm", "bukid"),
    ("tl", "compare tall most", "Si Somchai"),
    ("tl", "compare tall most", "Somchai"),
    ("th", "located japan asia", "ทวีปเอเชีย"),
    ("th", "money thailand baht", "เงินบาท"),
    ("th", "capital japan tokyo", "กรุงโตเกียว"),
    ("th", "capital thailand bangkok", "กรุงเทพฯ"),
    ("th", "reading where library", "ห้องสมุด"),
    ("my", "located japan asia", "အာရှတိုက်"),
    ("my", "money myanmar kyat", "ကျပ်ငွေ"),
    ("my", "capital japan tokyo", "တိုကျိုမြို့"),
    ("ta", "located japan asia", "ஆசியா கண்டம்"),
    ("en", "located australia oceania", "Australia"),
    ("id", "kind chicken bird", "unggas"),
    ("ms", "kind chicken bird", "unggas"),
]
WRONG = [
    ("en", "reading bought book", "a"),
    ("en", "reading where library", "in the"),
    ("id", "reading bought book", "sebuah"),
    ("id", "reading bought book", "buah"),
    ("ms", "reading bought knife", "bilah"),
    ("ms", "reading bought knife", "sebilah"),
    ("vi", "reading bought book", "quyển"),
    ("vi", "reading bought book", "một"),
    ("vi", "reading keeps cat", "con"),
    ("th", "reading bought car", "คัน"),
    ("th", "reading keeps cat", "ตัว"),
    ("ta", "reading bought book", "ஒரு"),
    ("my", "reading eats rice", "သောက်"),
    ("my", "reading bought book", "တစ်အုပ်"),
    ("tl", "reading bought table", "mesang"),
    ("tl", "reading bought box", "kahong"),
]


def item(l: str, what: str) -> Item:
    """`reading RELATION VALUE`, `compare DIMENSION most`, or a fact: its relation and words."""
    task, *rest = what.split()
    if task == "reading":
        key = (rest[0], "0", "rina", rest[1], "0", "budi", _another(rest), "1")
    elif task == "compare":
        key = (*rest, "0", "somchai", "rina", "budi")
    else:
        key = (task, *rest)
        task = {"located": "continent", "money": "currency"}.get(task, task)
    return read(task, key, l)


def read(task: str, key: tuple[str, ...], l: str) -> Item:
    """A line of the benchmark, as the evaluation reads it."""
    return Item.model_validate_json(json.dumps(benchmark_item(task, key, l, l, "?", "x")))


def _another(rest: list[str]) -> str:
    return next(key for key in load("en").words[READ[rest[0]]] if key != rest[1])


@pytest.mark.parametrize("l, what, said", RIGHT)
def test_what_one_would_say_is_right(l: str, what: str, said: str) -> None:
    assert exact(said, item(l, what).targets), item(l, what).targets


@pytest.mark.parametrize("l, what, said", WRONG)
def test_a_piece_of_an_answer_is_not_one(l: str, what: str, said: str) -> None:
    assert not exact(said, item(l, what).targets)


@pytest.mark.parametrize("l", EIGHT)
def test_no_answer_is_a_form_without_the_word(l: str) -> None:
    """A classifier, an article or a verb is the same for many words; an answer names one."""
    words = load(l)
    country = {"country": words.words["country"]["japan"]}
    for name in (*RELATIONS, *READ):
        for text in words.table["answer"][name]:
            (slot,) = {slot for slot, _ in slots(text)}
            told = words.words[slot_kind((name,), slot)]
            said = {normalise(words.fill(text, country | {slot: word})) for word in told.values()}
            assert len(said) >= len(told) - (name == "located"), (name, text)  # schools may teach one America


@pytest.mark.parametrize("l", EIGHT)
def test_what_is_trained_on_is_right(l: str) -> None:
    for name, relation in (
        ("capital", "capital"),
        ("kind", "kind"),
        ("opposite", "opposite"),
        ("continent", "located"),
    ):
        for fact in FACTS[relation]:
            targets = read(name, (relation, *fact), l).targets
            assert exact(TASKS[name].answer(load(l), (relation, *fact)), targets)


@pytest.mark.parametrize("l", EIGHT)
def test_other_opposites_are_listed_and_are_not_the_word_itself(l: str) -> None:
    words, listed = load(l), load(l).table["also"]["opposite"]
    of = dict(pair for a, b in OPPOSITES for pair in ((a, b), (b, a)))
    assert len(listed) >= 10
    for adjective, others in listed.items():
        known = {normalise(words.name("adjective", adjective)), normalise(words.name("adjective", of[adjective]))}
        assert not known & {normalise(other) for other in others}, adjective
        assert len({normalise(other) for other in others}) == len(others), adjective


OPPOSITE = {
    "en": "light/dark dark/light hard/easy easy/hard old/young short/tall sweet/sour",
    "vi": "good/xấu beautiful/xấu full/vơi empty/đặc small/lớn",
    "id": "ugly/bagus narrow/luas hard/lembut good/jahat easy/sukar easy/susah",
    "ms": "narrow/luas good/jahat bad/elok ugly/cantik easy/susah easy/payah",
    "tl": "narrow/malawak narrow/maluwang sweet/maasim",
    "th": "hot/หนาว good/ชั่ว hard/อ่อน",
    "ta": "soft/கடினமான",
    "my": "big/ငယ် weak/အားကြီး",
}


@pytest.mark.parametrize("l", EIGHT)
def test_opposites_that_teachers_accept_are_accepted(l: str) -> None:
    of = dict(pair for a, b in OPPOSITES for pair in ((a, b), (b, a)))
    for pair in OPPOSITE[l].split():
        adjective, said = pair.split("/")
        assert exact(said, item(l, f"opposite {adjective} {of[adjective]}").targets), pair


@pytest.mark.parametrize("l", EIGHT)
def test_a_list_may_hold_what_the_world_does_not(l: str) -> None:
    """A right colour is right, whether or not the lab's files know it: number, difference and script are checked."""
    one = benchmark_item("list", ("color", "3"), l, l, "?", "x")
    assert "among" not in one["constraints"] and one["constraints"]["script"]
