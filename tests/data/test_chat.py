import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.data import turns, write_jsonl, write_parquet

from dudi.data.containers import json_text
from dudi.data.load import check, load_rows
from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.recipe.schema import Data

ROW = {"messages": turns("a", "b"), "language": "id"}
LONE = '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b"}], "language": "id"}'


def rows(count, language="id"):
    return [{"messages": turns(f"{language} {i}", f"answer {i}"), "language": language} for i in range(count)]


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {**ROW, "language": "Indonesian", "extra": [{"x": None}], "prompt": None},
        {**ROW, "language": " IND "},
        {"prompt": "a", "completion": "b", "language": "id"},
        {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}], "language": "id"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": "b", "language": "id", "messages": None},
        {"messages": json.dumps(turns("a", "b")), "language": "id"},
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_every_accepted_shape_is_the_same_row(tmp_path, row, form):
    path = tmp_path / f"rows.{form}"
    (write_jsonl if form == "jsonl" else write_parquet)(path, [row])
    loaded = load_rows(Data(source=str(path)), 0)
    assert loaded.train == [Example((Message("user", "a"),), "b", "id", f"rows.{form}:1")]


def test_turns_before_the_prompt_and_a_system_turn_are_kept(tmp_path):
    prompt = [{"role": "system", "content": "s"}, *turns("a", "b"), {"role": "user", "content": "c"}]
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt, "completion": "d", "language": "id", "id": "mine"}])
    (row,) = load_rows(Data(source=str(tmp_path)), 0).train
    assert [m.role for m in row.x] == ["system", "user", "assistant", "user"] and row.y == "d" and row.id == "mine"


BAD = [
    ("{", "line", "not JSON", "{"),
    ("nonsense", "line", "not JSON", "nonsense"),
    ("[" * 100_000, "line", "not JSON", r"\[\[\["),
    ('{"a": ' + "9" * 10_000 + "}", "line", "not JSON", "999"),
    ("[1]", "row", "not an object", r"\[1\]"),
    ("17", "row", "not an object", "17"),
    ({"language": "id"}, "row", "no conversation", "language"),
    ({"messages": turns("a", "b")}, "language", "no language", "None"),
    ({**ROW, "language": 3}, "language", "no language", "3"),
    ({**ROW, "language": "Klingon"}, "language", "unknown language", "Klingon"),
    ({**ROW, "language": ""}, "language", "unknown language", "''"),
    ({**ROW, "messages": []}, "messages", "empty conversation", r"\[\]"),
    ({**ROW, "messages": "hello"}, "messages", "unreadable conversation", "hello"),
    ({**ROW, "messages": {"role": "user"}}, "messages", "not a list", "role"),
    ({**ROW, "messages": turns("a", "")}, r"messages\[1\].content", "empty content", "''"),
    ({**ROW, "messages": [{"role": "cat", "content": "x"}]}, r"messages\[0\].role", "unknown role", "cat"),
    ({**ROW, "messages": turns("a", "b")[:1]}, "messages", "no answer", "role user"),
    ({"prompt": "a", "language": "id"}, "completion", "no conversation", "None"),
    ({"completion": "a", "language": "id"}, "prompt", "no conversation", "None"),
    ({"prompt": "", "completion": "b", "language": "id"}, "prompt", "empty content", "''"),
    ({"prompt": "a", "completion": 7, "language": "id"}, "completion", "no conversation", "7"),
    (
        {"prompt": turns("a", "b"), "completion": "c", "language": "id"},
        r"prompt\[1\].role",
        "out of order",
        "assistant",
    ),
    ({"prompt": [7], "completion": "c", "language": "id"}, r"\(prompt \+ completion\)\[0\]", "not a message", "7"),
    (LONE, r"messages\[0\].content", "invalid text", "ud83d"),
]


@pytest.mark.parametrize(("row", "field", "reason", "found"), BAD)
def test_a_bad_row_is_named_with_file_line_field_found_and_wanted(tmp_path, row, field, reason, found):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [ROW, "", row, *rows(2)])
    said = rf"{re.escape(str(path))}: line 3: {field}: [a-zA-Z8\- ]*{reason}.*: found .*{found}.*, wanted "
    with pytest.raises(DudiError, match=said) as error:
        load_rows(Data(source=str(path)), 0)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    skipped = load_rows(Data(source=str(path), bad_rows="skip"), 0)
    assert len(skipped.train) == 3 and skipped.report.broken == 1
    report = check(Data(source=str(path)))
    assert report.broken == 1 and report.first_fault == str(error.value)
    assert report.languages["id"].kept == 3 and all(one.balanced for one in report.languages.values())


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(ROW).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + b'{"\xff"}\n' + good.replace(b'"b"', b'"c"'))
    with pytest.raises(DudiError, match=r"line 2: line: not UTF-8: found 'byte 0xff at 2', wanted UTF-8 text"):
        load_rows(Data(source=str(path)), 0)
    assert len(load_rows(Data(source=str(path), bad_rows="skip"), 0).train) == 2


def test_bytes_that_are_no_text_in_parquet(tmp_path):
    texts = pa.array([b"a", b"b", b"\xff", b"d"])
    prompt = pa.Array.from_buffers(pa.string(), 4, texts.buffers())
    pq.write_table(pa.table({"prompt": prompt, "completion": list("wxyz")}), tmp_path / "rows.parquet")
    data = Data(source=str(tmp_path / "rows.parquet"), language="id", bad_rows="skip")
    loaded = load_rows(data, 0)
    assert [row.y for row in loaded.train] == ["w", "x", "z"]
    assert "row 3" in loaded.report.languages["id"].faults[0]


def test_a_line_beyond_the_limit_is_broken_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_LINE", 200)
    path = tmp_path / "rows.jsonl"
    write_jsonl(
        path, [ROW, {"messages": turns("x" * 1_000, "b"), "language": "id"}, {**ROW, "messages": turns("c", "d")}]
    )
    loaded = load_rows(Data(source=str(path), bad_rows="skip", language="id"), 0)
    assert [row.y for row in loaded.train] == ["b", "d"] and loaded.train[1].id == "rows.jsonl:3"
    assert loaded.report.languages["id"].broken == {"too long": 1}


def test_one_language_for_all_rows(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns("a", "b")}, {**ROW, "language": None}, *rows(2, "vi")])
    loaded = load_rows(Data(source=str(tmp_path), language="th", bad_rows="skip"), 0)
    assert [row.l for row in loaded.train] == ["th", "th", "th"]
    assert loaded.report.languages["th"].duplicated == 1
    assert loaded.report.notes == ["data.language = 'th' overrides what rows say of their language (vi 2)"]


def test_languages_asked_for(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*rows(3, "vi"), *rows(2, "id"), *rows(4, "th")])
    loaded = load_rows(Data(source=str(tmp_path), languages=("id", "vi")), 0)
    assert [row.l for row in loaded.train] == ["id", "id", "vi", "vi", "vi"]
    assert loaded.report.notes == ["4 rows left out: languages not in data.languages (th 4)"]
    with pytest.raises(DudiError, match=r"no row in ta; its languages: id, th, vi"):
        load_rows(Data(source=str(tmp_path), languages=("id", "ta")), 0)


def test_columns_of_another_format_are_explained(tmp_path):
    pq.write_table(pa.table({"conversations": ["[]"]}), tmp_path / "rows.parquet")
    with pytest.raises(DudiError, match=r"found conversations; .* data.format = 'sea_instruct'"):
        load_rows(Data(source=str(tmp_path)), 0)
    write_jsonl(tmp_path / "Thai.jsonl", [ROW])
    with pytest.raises(DudiError, match=r"Thai.jsonl: SEA-Instruct is Parquet"):
        load_rows(Data(source=str(tmp_path), format="sea_instruct"), 0)


def test_duplicates_and_zawgyi_are_left_out_and_counted(tmp_path):
    zawgyi = {"prompt": "translate", "completion": "ကိုယ္စားလွယ္မ်ားသည္ ျဖစ္ေနမည္ကို", "language": "my"}
    write_jsonl(tmp_path / "rows.jsonl", [*rows(3, "my"), zawgyi, *rows(2, "my"), {**zawgyi, "id": "again"}])
    counts = load_rows(Data(source=str(tmp_path)), 0).report.languages["my"]
    assert (counts.read, counts.kept, counts.duplicated, counts.zawgyi) == (7, 3, 3, 1) and counts.balanced


def test_sample_is_uniform_seeded_and_disjoint_from_evaluation(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [*rows(200), *rows(150, "vi")])
    write_jsonl(tmp_path / "b.jsonl", [*rows(210)[200:], *rows(50)])
    source = str(tmp_path)

    def load(seed, **values):
        return load_rows(Data(source=source, **values), seed)

    for wanted in (20, 100, None):
        loaded = load(1, rows_per_language=wanted, eval_rows_per_language=30)
        assert loaded.eval == load(1, rows_per_language=7, eval_rows_per_language=30).eval
        contents = {(row.x, row.y) for row in loaded.train + loaded.eval}
        assert len(contents) == len(loaded.train) + len(loaded.eval)
        assert [row.l for row in loaded.train] == sorted(row.l for row in loaded.train)
        kept = {language: one.kept for language, one in loaded.report.languages.items()}
        assert kept == {"id": wanted or 180, "vi": wanted or 120}
        assert all(one.balanced and one.eval == 30 for one in loaded.report.languages.values())
    times = dict.fromkeys(range(210), 0)
    for seed in range(60):
        for row in load(seed, rows_per_language=30, languages=("id",)).train:
            times[int(row.y.split()[1])] += 1
    # 60 draws of 30 of 210: 8.6 a row, standard deviation 2.7.
    assert min(times.values()) >= 1 and max(times.values()) <= 20


def test_nothing_left(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", rows(3))
    with pytest.raises(DudiError, match=r"no row of 'id' is left to train on: 3 read, 3 set aside for evaluation"):
        load_rows(Data(source=str(tmp_path), eval_rows_per_language=5), 0)
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DudiError, match=r"no row is left to train on: it holds no rows"):
        load_rows(Data(source=str(tmp_path)), 0)
    (tmp_path / "rows.jsonl").write_text("x\n")
    with pytest.raises(DudiError, match=r"no row is left to train on: \?: 1 read, 1 broken \(not JSON 1\)"):
        load_rows(Data(source=str(tmp_path), bad_rows="skip"), 0)


def test_splits_by_file_name(tmp_path):
    write_jsonl(tmp_path / "train-00000.jsonl", rows(3))
    write_jsonl(tmp_path / "validation.jsonl", rows(2, "vi"))
    assert len(load_rows(Data(source=str(tmp_path)), 0).train) == 3
    assert len(load_rows(Data(source=str(tmp_path), split="validation"), 0).train) == 2
    assert len(load_rows(Data(source=str(tmp_path / "validation.jsonl")), 0).train) == 2
    with pytest.raises(DudiError, match="has no split 'test'; it has train, validation"):
        load_rows(Data(source=str(tmp_path), split="test"), 0)
