"""The metrics: each by hand, and against sacrebleu where it is the reference."""

from __future__ import annotations

import pytest
import sacrebleu

from dudi.evals.cells import normalised
from dudi.evals.metrics import METRICS
from dudi.evals.metrics.choice import balanced_accuracy, predicted
from dudi.evals.metrics.chrf import corpus_chrf, sentence_chrf
from dudi.evals.metrics.constraints import parts, satisfies
from dudi.evals.metrics.exact import exact
from dudi.evals.metrics.text import normalise
from dudi.records import Item, Turn
from dudi.records.form import Constraints

NORMALISED = [
    ("  Paris. ", "paris"),
    ("“Paris”", "paris"),
    ("(A)", "a"),
    ("**B**", "b"),
    ("`C`", "c"),
    ("«Straße»", "strasse"),
    ("a \t b\n c", "a b c"),
    ("ပဲရစ်။", "ပဲရစ်"),
    ("၊ပဲရစ်၊", "ပဲရစ်"),
    ("‘กรุงเทพ’", "กรุงเทพ"),
    ("สีแดง\u200b", "สีแดง"),
    ("ma\u200bk", "mak"),
    ("நன்றி!", "நன்றி"),
    ("Tie\u0302\u0301ng", "tiếng"),  # NFD
    ("-5", "-5"),
    ("- 5", "5"),
    ("50%.", "50%"),
    ("isn't", "isn't"),
    ("...", ""),
    ("", ""),
    ("ๆ", "ๆ"),  # a letter, not punctuation
]


@pytest.mark.parametrize("text, wanted", NORMALISED)
def test_normalise(text: str, wanted: str) -> None:
    assert normalise(text) == wanted
    assert normalise(normalise(text)) == wanted


def test_a_choice_is_predicted_only_by_itself() -> None:
    assert predicted(" (a). ", ["A", "B"]) == "a"
    assert predicted("A or B", ["A", "B"]) == ""
    assert predicted("A\nbecause", ["A", "B"]) == ""
    assert predicted("", ["A", "B"]) == ""
    assert predicted("tidak", ["ya", "Tidak"]) == "tidak"


def test_exact_takes_any_target() -> None:
    assert exact("Kota  PARIS.", ["Paris", "kota Paris"]) == 1
    assert exact("di Paris", ["Paris", "kota Paris"]) == 0


def test_balanced_accuracy_by_hand() -> None:
    gold = ["a", "a", "a", "a", "b", "b", "c"]
    found = ["a", "a", "a", "b", "b", "", "a"]
    # recall: a 3/4, b 1/2, c 0/1
    assert balanced_accuracy(gold, found) == pytest.approx(100 * (3 / 4 + 1 / 2 + 0) / 3)


def test_balanced_accuracy_of_always_the_same_is_the_baseline() -> None:
    assert balanced_accuracy(["a"] * 9 + ["b"], ["a"] * 10) == 50  # plain accuracy would be 90


def test_a_label_that_is_only_predicted_is_no_class() -> None:
    assert balanced_accuracy(["a", "b"], ["c", "b"]) == 50


def test_chance_is_one_of_the_right_choices_that_occur() -> None:
    asked = (Turn(role="user", content="?"),)
    given = [
        Item(id="1", task="t", language="id", messages=asked, choices=("a", "b", "c"), targets=(t,)) for t in "aab"
    ]
    assert METRICS["choice"].baseline(given) == METRICS["choice_loglik"].baseline(given) == 50
    assert METRICS["exact"].baseline(given) == 0


def test_chance_among_what_a_question_names_is_the_mean_over_items() -> None:
    asked = (Turn(role="user", content="?"),)
    given = [
        Item(id=name, task="t", language="id", messages=asked, choices=tuple(name), targets=("a", "it is a"))
        for name in ("ab", "abc", "abcd")
    ]
    metric = METRICS["exact_among"]
    assert metric.baseline(given) == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert [metric.value(given[1], text, None).value for text in ("A.", "It is a", "b", "d")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "choices, targets, fault",
    [
        (("a", "A."), ("a",), "choices: two are the same once normalised, in ['a', 'A.']"),
        (("a", "b"), ("c",), "targets: expected exactly one of the choices ['a', 'b'] among them, found ['c']"),
        (("a", "b", "c"), ("a", "b"), "targets: expected exactly one of the choices ['a', 'b', 'c'] among them, found"),
        (("a", "?"), ("a",), "choices: '?' is only punctuation"),
        (("a", "b"), ("a", "..."), "targets: '...' is only punctuation"),
        (("a", "b"), ("it is a", "a"), None),
    ],
)
def test_choices_that_cannot_be_named_are_refused(
    choices: tuple[str, ...], targets: tuple[str, ...], fault: str | None
) -> None:
    asked = (Turn(role="user", content="?"),)
    found = METRICS["exact_among"].check(
        Item(id="1", task="t", language="id", messages=asked, choices=choices, targets=targets)
    )
    assert (found or "").startswith(fault) if fault else found is None


@pytest.mark.parametrize(
    "score, baseline, wanted",
    [(100, 50, 100), (50, 50, 0), (40, 50, 0), (75, 50, 50), (30, 0, 30), (100, 100 / 3, 100)],
)
def test_normalised(score: float, baseline: float, wanted: float) -> None:
    assert normalised(score, baseline) == pytest.approx(wanted)


def test_chrf_is_sacrebleus_chrf_plus_plus() -> None:
    responses = ["the cat eats fish", "a home", ""]
    targets = [["the cat eats the fish"], ["house", "a house"], ["nothing at all"]]
    wanted = sacrebleu.corpus_chrf(
        responses,
        [["the cat eats the fish", "house", "nothing at all"], ["the cat eats the fish", "a house", "nothing at all"]],
        word_order=2,
    ).score
    assert corpus_chrf(responses, targets) == pytest.approx(wanted) and 0 < wanted < 100
    plain = sacrebleu.corpus_chrf(responses, [[t[0] for t in targets]]).score  # chrF, first target only
    assert corpus_chrf(responses, targets) != pytest.approx(plain)


def test_chrf_of_one_response_takes_the_best_target() -> None:
    assert sentence_chrf("a house", ["house", "a house"]) == pytest.approx(1)
    assert sentence_chrf(" a house\n", ["a house"]) == pytest.approx(1)
    assert sentence_chrf("", ["a house"]) == 0
    assert sentence_chrf("Tie\u0302\u0301ng Vie\u0323\u0302t", ["Tiếng Việt"]) == pytest.approx(1)  # NFD against NFC


def test_order_and_copies_of_targets_change_nothing() -> None:
    responses = ["the cat eats fish", "my house"]
    one = corpus_chrf(responses, [["a cat eats a fish"], ["house", "a house", "my home"]])
    other = corpus_chrf(responses, [["a cat eats a fish"] * 2, ["my home", "a house", "house"]])
    assert one == pytest.approx(other)


PARTS = [
    ("a, b, c", ", ", ("a", "b", "c")),
    ("a,b ,  c.", ", ", ("a", "b", "c")),
    ("a၊ b၊c။", ", ", ("a", "b", "c")),
    ("a, b", "၊ ", ("a", "b")),
    ("a, b,", ", ", ("a", "b")),
    ("a,, b", ", ", ("a", "", "b")),
    ("a, b", "; ", ("a, b",)),
    ("a; b", "; ", ("a", "b")),
    ("a - b-c", " - ", ("a", "b-c")),
    ("a;b", "; ", ("a;b",)),
    ("a; b;", "; ", ("a", "b")),
    ("a b  c", " ", ("a", "b", "c")),
    ("a b\nc", "\n", ("a b", "c")),
    ("", ", ", ("",)),
]


@pytest.mark.parametrize("text, separator, wanted", PARTS)
def test_parts(text: str, separator: str, wanted: tuple[str, ...]) -> None:
    assert parts(text, separator) == wanted


SATISFIED = [
    ({"count": 3}, "a, b, c", True),
    ({"count": 3}, "a, b", False),
    ({"count": 3}, "a, , c", False),
    ({"count": 1}, "", False),
    ({"count": 2, "distinct": True}, "a, A.", False),
    ({"count": 2, "distinct": True}, "a, b", True),
    ({"among": ("Kucing", "ikan")}, "kucing, IKAN", True),
    ({"among": ("kucing", "ikan")}, "kucing, ayam", False),
    ({"all": "Ya", "count": 2}, "ya, ya.", True),
    ({"all": "ya", "count": 2}, "ya, tidak", False),
    ({"all": "ya", "count": 2}, "ya, ya, ya", False),
    ({"distinct": True}, "", False),
    ({"distinct": True, "separator": " "}, "", False),
    ({}, "whatever", True),
    ({"count": 2, "separator": "; "}, "a, b", False),
    ({"count": 2, "separator": "; "}, "a; b", True),
]


@pytest.mark.parametrize("constraints, text, wanted", SATISFIED)
def test_constraints(constraints: dict[str, object], text: str, wanted: bool) -> None:
    assert satisfies(text, Constraints.model_validate(constraints)) is wanted
