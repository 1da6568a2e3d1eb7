"""Parts of a row that say how it is meant: honoured, or the row is broken with the reason; never half-read."""

import unicodedata

import pytest
from kit.data import turns, write_jsonl, write_parquet
from typer.testing import CliRunner

from dudi.data.cli import app
from dudi.data.conversation import to_example
from dudi.data.load import check, load_rows, read_rows, write_rows
from dudi.data.suspect import LOST, MISREAD, SCRIPT
from dudi.errors import DudiError
from dudi.recipe.schema import Data

CALL = [{"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}]
LONG = [*turns("a", "b"), *turns("c", "d")]


def changed(turn, **keys):
    return [{**message, **(keys if i == turn else {})} for i, message in enumerate(LONG)]


def load(tmp_path, row, **values):
    write_jsonl(tmp_path / "rows.jsonl", [{"language": "id", "messages": turns("other", "row")}, row])
    return load_rows(Data(source=str(tmp_path / "rows.jsonl"), **values), 0)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": changed(1, tool_calls=CALL)}, "messages[1].tool_calls"),
        ({"messages": changed(1, content=None, tool_calls=CALL)}, "messages[1].tool_calls"),
        ({"messages": changed(3, tool_calls=CALL)}, "messages[3].tool_calls"),
        ({"messages": changed(3, function_call={"name": "w"})}, "messages[3].function_call"),
        ({"messages": changed(2, role="tool")}, "messages[2].role"),
        ({"messages": changed(2, role="function", name="w")}, "messages[2].name"),
        ({"messages": changed(0, name="budi")}, "messages[0].name"),
        ({"messages": changed(1, reasoning_content="hm")}, "messages[1].reasoning_content"),
        ({"messages": changed(3, thinking="hm")}, "messages[3].thinking"),
        ({"messages": changed(1, reasoning_details=[{"text": "hm"}])}, "messages[1].reasoning_details"),
        ({"messages": changed(1, channel="analysis")}, "messages[1].channel"),
        ({"messages": changed(3, recipient="functions.w")}, "messages[3].recipient"),
        ({"messages": changed(0, images=["a.png"])}, "messages[0].images"),
        ({"messages": changed(0, attachments=[{"name": "a.pdf"}])}, "messages[0].attachments"),
        ({"prompt": "a", "completion": "b", "tool_calls": CALL}, "tool_calls"),
        ({"prompt": "a", "completion": "b", "loss_weight": 0.5}, "loss_weight"),
        ({"messages": LONG, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": LONG, "images": ["a.png"]}, "images"),
        ({"messages": LONG, "weight": 0.5}, "weight"),
        ({"messages": changed(1, weight=0.5)}, "messages[1].weight"),
        ({"messages": changed(3, weight="0")}, "messages[3].weight"),
    ],
)
def test_what_cannot_be_read_breaks_the_row(tmp_path, row, field):
    with pytest.raises(DudiError) as error:
        load(tmp_path, {"language": "id", **row})
    assert f"line 2: {field}: " in str(error.value) and "\n" not in str(error.value)
    assert len(load(tmp_path, {"language": "id", **row}, bad_rows="skip").train) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"messages": changed(1, tool_calls=None, name=None, reasoning_content="", weight=None)},
        {"messages": changed(3, tool_calls=[], function_call=None, weight=1), "tools": [], "images": None},
        {"messages": changed(3, weight=1.0), "tools": "[]", "weight": 1},
    ],
)
def test_empty_parts_say_nothing(tmp_path, row):
    assert load(tmp_path, {"language": "id", **row}).train[1] == to_example(LONG, "id", "rows.jsonl:2")


@pytest.mark.parametrize(
    ("row", "ignore"),
    [
        ({"messages": changed(0, name="budi")}, "name"),
        ({"messages": changed(1, reasoning_content="hm")}, "reasoning_content"),
        ({"messages": LONG, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": changed(3, weight=0)}, "weight"),
        ({"messages": LONG, "weight": 0.5}, "weight"),
    ],
)
def test_parts_left_out_knowingly(tmp_path, row, ignore):
    assert load(tmp_path, {"language": "id", **row}, ignore=(ignore,)).train[1].y == "d"
    result = CliRunner().invoke(app, ["check", str(tmp_path / "rows.jsonl"), "--ignore", ignore])
    assert result.exit_code == 0 and "data.ignore" not in result.output


def test_tool_calls_are_never_left_out(tmp_path):
    with pytest.raises(DudiError, match="tool_calls cannot be read"):
        load(tmp_path, {"language": "id", "messages": changed(3, tool_calls=CALL)}, ignore=("tool_calls",))


@pytest.mark.parametrize("off", [{"weight": 0}, {"weight": 0.0}, {"weight": False}, {"train": False}, {"loss": 0}])
def test_an_answer_of_weight_0_is_never_the_one_trained_on(tmp_path, off):
    last = load(tmp_path, {"language": "id", "messages": changed(3, **off)}).train[1]
    assert (last.y, [m.content for m in last.x], last.untrained) == ("b", ["a"], ())
    earlier = load(tmp_path, {"language": "id", "messages": changed(1, **off)})
    assert (earlier.train[1].y, earlier.train[1].untrained) == ("d", (1,))
    write_rows(earlier, tmp_path / "out")  # and a run that is resumed still knows
    assert read_rows(tmp_path / "out").train == earlier.train
    none = load(tmp_path, {"language": "id", "messages": [LONG[0], {**LONG[1], **off}]})
    assert len(none.train) == 1 and none.report.languages["id"].filtered == {"weight 0": 1}
    assert none.report.languages["id"].balanced and none.report.broken == 0


def test_a_row_of_weight_0_is_left_out_and_counted(tmp_path):
    loaded = load(tmp_path, {"language": "id", "messages": LONG, "weight": 0})
    assert len(loaded.train) == 1 and loaded.report.languages["id"].filtered == {"weight 0": 1}
    write_parquet(tmp_path / "rows.parquet", [{"language": "id", "messages": LONG, "weight": w} for w in (0, 1)])
    counts = check(Data(source=str(tmp_path / "rows.parquet"))).languages["id"]
    assert (counts.kept, counts.filtered) == (1, {"weight 0": 1})


def test_nfd_copies_are_duplicates(tmp_path):
    text = "Tiếng Việt rất đẹp"
    write_jsonl(
        tmp_path / "rows.jsonl",
        [{"language": "vi", "messages": turns(unicodedata.normalize(f, text), "a")} for f in ("NFC", "NFD")],
    )
    loaded = load_rows(Data(source=str(tmp_path / "rows.jsonl")), 0)
    assert loaded.report.languages["vi"].duplicated == 1
    assert loaded.train[0].x[0].content == text  # what is kept is not changed


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff \u200d", "\u2060\n", "\xad", "\u3164", "\u2800", "\ufe0f", "\x00"])
def test_text_that_shows_nothing_is_empty(tmp_path, blank):
    with pytest.raises(DudiError, match=r"messages\[1\].content: empty content"):
        load(tmp_path, {"language": "th", "messages": turns("a", blank)})


@pytest.mark.parametrize("text", ["\u200bก\u200b", "ំ", "👍🏽", "0", "\u0e31"])
def test_text_that_shows_something_is_not(tmp_path, text):
    assert load(tmp_path, {"language": "th", "messages": turns("a", text)}).train[1].y == text


def suspected(tmp_path, language, question, answer):
    write_jsonl(tmp_path / "rows.jsonl", [{"language": language, "messages": turns(question, answer)}])
    report = check(Data(source=str(tmp_path / "rows.jsonl")))
    assert report.languages[language].kept == 1
    lines = [line for line in report.details() if "1 of 1 kept rows: " in line]
    assert all(line.endswith("(first rows.jsonl:1)") for line in lines)
    return {kind for kind in (LOST, MISREAD, SCRIPT) if any(kind in line for line in lines)}


LEGIT = [
    ("vi", "Nói “CÔ” hay “Ô tÔ”", "ĐÃ… là…” né…” à–"),
    ("vi", "a", "Tiếng Việt"),
    ("id", "café", "Zürich, naïve, São Paulo, 20°–30°, A·B"),
    ("th", "แปลเป็นไทย: Bangkok", "กรุงเทพ"),
    ("my", "မြန်မာ", "မြန်မာဘာသာ"),
    ("km", "a", "ភាសាខ្មែរ"),
    ("zh", "a", "中文很好"),
    ("ja", "a", "日本語です"),
    ("th", "a", "C"),
    ("th", "2+2", "4.000,00"),
]


@pytest.mark.parametrize("case", LEGIT, ids=str)
def test_good_text_is_not_suspected(tmp_path, case):
    assert suspected(tmp_path, *case) == set()


def test_text_that_looks_wrong_is_counted_and_shown(tmp_path):
    assert suspected(tmp_path, "th", "ก", "\ufffdกขค") == {LOST}
    assert suspected(tmp_path, "th", "ก", "Bangkok city") == {SCRIPT}
    assert suspected(tmp_path, "id", "apa", "กรุงเทพมหานคร") == {SCRIPT}
    assert suspected(tmp_path, "km", "a", "กรุงเทพมหานคร") == {SCRIPT}
    for codec in ("latin-1", "cp1252"):
        for language, text in (("th", "กรุงเทพ"), ("vi", "Tiếng Việt rất đẹp"), ("ta", "தமிழ்"), ("id", "é ü ö à")):
            misread = "".join(bytes([b]).decode(codec, "ignore") or chr(b) for b in text.encode())
            assert MISREAD in suspected(tmp_path, language, misread, "กขค" if language == "th" else "abc")
    thai = "สวัสดีครับ กรุงเทพมหานคร"
    assert suspected(tmp_path, "th", thai.encode().decode("cp874", "ignore"), thai) == {MISREAD}
    assert suspected(tmp_path, "th", thai.encode("cp874").decode("latin-1"), thai) == {MISREAD}
    assert suspected(tmp_path, "th", "เธอ เธอเธอ เนยเนย อินเทอร์เนต café naïve", thai) == set()
    assert suspected(tmp_path, "vi", "TiÕng ViÖt", "Hµ Néi") == {MISREAD}
    assert suspected(tmp_path, "vi", "Tieáng Vieät", "raát ñeïp") == {MISREAD}
    quoted = "dia bilang \u201chalo\u201d".encode().decode("latin-1")
    for language, answer in (("id", quoted), ("en", "don’t".encode().decode("cp1252"))):
        assert suspected(tmp_path, language, "apa", answer) == {MISREAD}
    assert suspected(tmp_path, "zh", "你好", "Hello there") == suspected(tmp_path, "ko", "a", "你好你好") == {SCRIPT}
