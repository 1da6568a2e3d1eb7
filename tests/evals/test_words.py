"""Words, and the metrics over them: by hand, by brute force, and against SEA-HELM's own values.

values/seahelm.jsonl: made-up rows in seven languages, with what SEA-HELM v1.2 (6844e6c) gives for each: token F1,
ROUGE-L and, for Thai and Burmese, its words (joined by `|`). values/newmm.json: how pythainlp 5.4.0 cuts the Thai.
"""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from kit.evals import DESCRIPTION, item, rows, save_model, write

from dudi.errors import DudiError
from dudi.evals import evaluate as evaluation
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.metrics import words as cutting
from dudi.evals.metrics.rouge_l import common_length, rouge_l
from dudi.evals.metrics.token_f1 import token_f1
from dudi.evals.metrics.words import occurrences, words

VALUES = Path(__file__).parent / "values"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (VALUES / "seahelm.jsonl").read_text(encoding="utf-8").splitlines()
]
NEWMM: dict[str, str] = json.loads((VALUES / "newmm.json").read_text(encoding="utf-8"))


@pytest.fixture
def newmm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thai cut as pythainlp cut it, where it need not be installed."""
    monkeypatch.setitem(cutting._CUTTERS, "th", lambda text: NEWMM[text].split("|"))
    monkeypatch.setattr(cutting, "_has_pythainlp", lambda: True)


CUT = [
    ("en", "Isn't it state-of-the-art, 1,000 times?", "isn t it state of the art 1 000 times"),
    ("id", "Orang-orang  “makan”\nnasi…", "orang orang makan nasi"),
    ("vi", "Tie\u0302\u0301ng VIỆT!", "tiếng việt"),  # NFD
    ("ta", "பூனை, மீன் சாப்பிடுகிறது.", "பூனை மீன் சாப்பிடுகிறது"),  # marks are part of a word
    ("ta", "நண்\u200cபர்", "நண்பர்"),
    ("my", "မြန်မာနိုင်ငံသား ဖြစ်ကြသည်။", "မြန် မာ နိုင် ငံ သား ဖြစ် ကြ သည်"),
    ("my", "သင်္ဘော၊ တက္ကသိုလ်", "သင်္ဘော တက္က သိုလ်"),  # stacked consonants
    ("my", "ကျွန်ုပ်၏ ဥပဒေ", "ကျွန်ုပ် ၏ ဥ ပ ဒေ"),  # a sign that is a word, an independent vowel
    ("my", "ခွင့်", "ခွင့်"),
    ("my", "ခွင\u103a\u1037", "ခွင့်"),  # as many keyboards write it
    ("my", "iPhone ၁၂ ကို", "iphone ၁ ၂ ကို"),
    ("my", "ဒီဟာiPhoneကို", "ဒီ ဟာ iphone ကို"),
]


@pytest.mark.parametrize("language, text, wanted", CUT)
def test_words(language: str, text: str, wanted: str) -> None:
    assert words(text, language) == unicodedata.normalize("NFC", wanted).split()


def test_punctuation_parts_words_or_goes() -> None:
    assert words("isn't, 1,000; ก", "en", punctuation="") == ["isnt", "1000", "ก"]
    assert words("... —", "en") == words("", "my") == []


def test_thai_is_cut_by_pythainlp() -> None:
    pytest.importorskip("pythainlp")  # extra `thai`
    found = {text: [piece for piece in cutting._thai(text) if piece] for text in NEWMM}
    assert sum(found[text] == cut.split("|") for text, cut in NEWMM.items()) > 0.95 * len(NEWMM)  # of any version
    assert words("ผมชอบกินข้าวที่ร้านอาหาร", "th")[:2] == ["ผม", "ชอบ"]
    # ก, า: a part of two words, and a word
    assert [occurrences("กา", text, "th") for text in ("การกินกาแฟ", "อีกา กับ กา")] == [0, 1]


OCCUR = [
    ("orang", "Orang-orang dan orangutan, ORANG", "id", 3),
    ("rumah ibu", "di rumah  Ibu, rumah ibunya", "id", 1),
    ("பூ", "பூனை பூ", "ta", 1),  # not where a mark goes on
    ("မြန်မာ", "မြန်မာနိုင်ငံ၊ မြန်မာ", "my", 2),
    ("မာ", "မားမာ", "my", 1),
    ("aa", "aa aa", "en", 2),
    ("a a", "a a a", "en", 2),  # overlapping
]


@pytest.mark.parametrize("phrase, text, language, wanted", OCCUR)
def test_occurrences(phrase: str, text: str, language: str, wanted: int) -> None:
    assert occurrences(phrase, text, language) == wanted


def test_token_f1_by_hand() -> None:
    assert token_f1(["a", "b", "b", "c"], ["b", "b", "d"]) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert token_f1(["b", "b"], ["b"]) == pytest.approx(2 / 3)  # a word counts as often as it is wanted
    assert token_f1([], ["a"]) == token_f1(["a"], []) == token_f1(["a"], ["b"]) == 0
    assert token_f1(["b", "a"], ["a", "b"]) == 1


def subsequences(given: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {tuple(itertools.compress(given, kept)) for kept in itertools.product((False, True), repeat=len(given))}


def test_the_longest_common_subsequence_is_that_of_brute_force() -> None:
    rng = random.Random(3)
    lengths = set()
    for _ in range(200):
        one, other = (tuple(rng.choices("abc", k=rng.randrange(8))) for _ in range(2))
        wanted = max(map(len, subsequences(one) & subsequences(other)))
        assert common_length(one, other) == common_length(other, one) == wanted
        lengths.add(wanted)
    assert lengths >= {0, 1, 2, 3, 4}


def test_rouge_l_by_hand() -> None:
    assert rouge_l(["the", "cat", "sat"], ["the", "old", "cat", "sat", "down"]) == pytest.approx(2 * 1 * 0.6 / 1.6)
    assert rouge_l(["b", "a"], ["a", "b"]) == pytest.approx(0.5)  # order counts
    assert rouge_l([], ["a"]) == rouge_l(["a"], []) == 0


# ── SEA-HELM ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def ours(row: dict[str, Any], punctuation: str) -> list[list[str]]:
    return [words(row[name], row["language"], punctuation) for name in ("response", "target")]


def of(language: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["language"] == language]


@pytest.mark.parametrize("language", ["id", "vi", "ta", "tl", "ms"])
def test_where_spaces_part_words_both_metrics_are_seahelms(language: str) -> None:
    found = of(language)
    assert [token_f1(*ours(row, "")) for row in found] == pytest.approx([row["f1"] for row in found])
    assert [rouge_l(*ours(row, " ")) for row in found] == pytest.approx([row["rouge_l"] for row in found])
    assert len(found) == 50 and len({round(row["f1"], 3) for row in found}) > 20


def test_thai_token_f1_is_seahelms_but_for_signs_that_are_not_ascii(newmm: None) -> None:
    values = [(token_f1(*ours(row, "")), row["f1"], "“" in row["response"]) for row in of("th")]
    plain = [(found, wanted) for found, wanted, signs in values if not signs]
    assert len(plain) > 35 and [a for a, _ in plain] == pytest.approx([b for _, b in plain])
    assert max(abs(a - b) for a, b, _ in values) < 0.05


@pytest.mark.parametrize("language, least", [("th", 50), ("my", 20)])
def test_rouge_l_is_seahelms_where_the_words_are(newmm: None, language: str, least: int) -> None:
    """SEA-HELM also counts each space of a Thai text as a word: the same words here are those without spaces."""
    alike = 0
    for row in of(language):
        theirs = [unicodedata.normalize("NFC", cut).split("|") if cut else [] for cut in row["cut"]]
        if ours(row, " ") == theirs:
            alike += 1
            spaces = language == "th" and any(" " in row[name].strip() for name in ("response", "target"))
            assert spaces or rouge_l(*theirs) == pytest.approx(row["rouge_l"])
            assert rouge_l(*ours(row, " ")) == rouge_l(*theirs)
    assert alike >= least


# ── in a benchmark ───────────────────────────────────────────────────────────────────────────────────────────────────
def bench(folder: Path, metric: str, items: list[dict[str, Any]]) -> Path:
    task = {"competency": "nlu", "metric": metric, "max_new_tokens": 6}
    return write(folder, {**DESCRIPTION, "tasks": {**DESCRIPTION["tasks"], "where": task}}, [*rows(), *items])


@pytest.mark.parametrize("metric, wanted", [("token_f1", (1, 4 / 5)), ("rouge_l", (1 / 2, 4 / 5))])
def test_a_task_scores_the_mean_against_the_best_target(tmp_path: Path, metric: str, wanted: tuple[float, ...]) -> None:
    items = [
        item("w1", "where", "id", "Di mana?", targets=["kota besar", "Paris di"]),
        item("w2", "where", "id", "?", targets=["x", "the old house"], response_language="en"),
    ]
    b = read_benchmark(bench(tmp_path, metric, items))
    answers = {"w1": "Di Paris.", "w2": "The house"}
    graded = [grade(i, Answer(answers[i.id], 3, True), b) for i in b.items if i.task == "where"]
    assert [one.value for one in graded] == pytest.approx(wanted)
    (score,) = task_scores(graded, b, "m", 0)
    assert score.raw == score.score == pytest.approx(50 * sum(wanted))


@pytest.mark.parametrize("metric", ["token_f1", "rouge_l"])
def test_thai_without_pythainlp_is_refused_before_anything_is_asked(
    tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_has_pythainlp", lambda: False)
    thai = [item("w1", "where", "th", "?", targets=["บ้าน"])]
    with pytest.raises(DudiError, match=r"all\.jsonl.*line 13.*language: Thai is cut .* pip install 'dudi\[thai\]'"):
        read_benchmark(bench(tmp_path / "th", metric, thai))
    in_english = [item("w1", "where", "th", "?", targets=["house"], response_language="en")]
    read_benchmark(bench(tmp_path / "en", metric, in_english))
    with pytest.raises(DudiError, match="pip install"):
        words("บ้าน", "th")


def test_a_target_of_signs_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="targets: '၊။' is only punctuation"):
        read_benchmark(bench(tmp_path, "rouge_l", [item("w1", "where", "my", "?", targets=["မာ", "၊။"])]))


def test_the_version_of_what_cuts_words_is_recorded(
    tmp_path: Path, newmm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = evaluation.metadata.version
    monkeypatch.setattr(evaluation.metadata, "version", lambda name: "5.4.0" if name == "pythainlp" else version(name))
    model = save_model(tmp_path / "m")
    for language, target, wanted in (("th", "กรุงเทพ", "5.4.0"), ("my", "ရန်ကုန်", None)):
        folder = bench(tmp_path / language, "rouge_l", [item("w1", "where", language, "?", targets=[target])])
        monkeypatch.setitem(cutting._CUTTERS, "th", lambda text: [text])
        evaluation.evaluate(model, folder, tmp_path / f"{language}.eval", limit=1, say=lambda text: None)
        record = json.loads((tmp_path / f"{language}.eval" / "eval.json").read_text(encoding="utf-8"))
        assert record["versions"].get("pythainlp") == wanted
