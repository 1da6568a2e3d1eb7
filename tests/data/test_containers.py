"""Files that rows come in: each kind read right, and a broken one of each refused in one line with file and place."""

import bz2
import csv
import gzip
import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.data import FolderHub, turns, write_jsonl, write_parquet

from dudi.data.containers import json_text
from dudi.data.load import check, load_rows
from dudi.errors import DudiError
from dudi.recipe.schema import Data

ROWS = [{"language": code, "messages": turns(f"q {code}", "a\nb")} for code in ("th", "vi")]
PAIRS = [{"language": "vi", "prompt": "Thủ đô, là gì?", "completion": 'Hà "Nội"\nở đó'}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def answers(path: Path, **values: object) -> list[tuple[str, str, str]]:
    loaded = load_rows(Data.model_validate({"source": str(path), **values}), 0)
    return [(e.l, e.x[-1].content, e.y) for e in loaded.train]


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


TEXTS = {
    "a.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "a.ndjson": LINES,
    "lines.json": LINES,
    "a.JSONL": LINES,
    "array.json": json.dumps(ROWS).encode(),
    "array.jsonl": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode(),
    "one after the other.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "a.jsonl.gz": gzip.compress(LINES),
    "members.jsonl.gz": b"".join(gzip.compress(line) for line in LINES.splitlines(keepends=True)),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "frames.ndjson.zst": b"".join(zstd(line) for line in LINES.splitlines(keepends=True)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_json_by_look(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name])
    wanted = [("th", "q th", "a\nb"), ("vi", "q vi", "a\nb")]
    assert answers(tmp_path / name) == wanted
    assert answers(tmp_path) == wanted  # and in a folder


def test_a_long_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"language": "th", "n": 12345, "messages": turns(f"ถาม {i} [}}]", "ตอบ\\" * (i % 7))} for i in range(1, 200)
    ]
    wanted = [row["messages"][0]["content"] for row in rows if row["messages"][1]["content"]]
    rows = [row for row in rows if row["messages"][1]["content"]]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        for chunk in (1, 7, 1 << 20):  # no border between pieces, within a character or a number, changes anything
            monkeypatch.setattr(json_text, "_CHUNK", chunk)
            monkeypatch.setattr(json_text, "_PEEK", 5)
            assert [question for _, question, _ in answers(tmp_path / "a.json")] == wanted


BAD_TEXTS = {
    "cut.json": (json.dumps(ROWS)[:-30].encode(), "item 2: not JSON"),
    "open.json": (json.dumps(ROWS)[:-1].encode(), "item 2: the array is not closed"),
    "comma.json": (json.dumps(ROWS).replace(']}, {"lang', ']} {"lang').encode(), "item 1: no comma after it"),
    "trailing.json": ((json.dumps(ROWS)[:-1] + ", ]").encode(), "item 2: a comma after it, and no further item"),
    "twice.json": (json.dumps(ROWS, indent=1).encode() * 2, "item 2: more after the end of the array"),
    "number.json": (b"[7]", "item 1: row: not an object: found 7"),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), "UTF-16 text, wanted UTF-8"),
    "latin.json": (json.dumps(ROWS, ensure_ascii=False).replace("q th", "é").encode("latin-1"), "not UTF-8"),
    "columns.json": (b'{\n"messages": [[]], "language": ["id"]}', r"item 1: language: no language: found \['id'\]"),
    "object.json": (b'{"data": [1]}', r"line 1: row: no conversation: found \['data'\]"),
    "cut.jsonl.gz": (gzip.compress(LINES * 99)[:-9], "not a readable gzip file .*Truncated"),
    "no.jsonl.gz": (b"\x1f\x8b" + LINES, "not a readable gzip file"),
    "cut.jsonl.zst": (zstd(LINES * 99)[:-9], "not a readable zstd file .*Truncated"),
    "arrays.jsonl": (b'[{"role": "user"}]\n[{"role": "user"}]\n', "line 1: row: not an object"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_broken_json_is_one_line(tmp_path: Path, name: str) -> None:
    data, said = BAD_TEXTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DudiError, match=f"{re.escape(name)}: .*({said})") as error:
        load_rows(Data(source=str(tmp_path / name)), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_csv(tmp_path: Path, name: str, delimiter: str) -> None:
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["n", *PAIRS[0]], delimiter=delimiter)
        writer.writeheader()
        writer.writerows([{"n": 1, **PAIRS[0]}, {"n": 2, **PAIRS[0], "prompt": "0"}])
    assert answers(tmp_path / name) == [("vi", q, 'Hà "Nội"\nở đó') for q in ("Thủ đô, là gì?", "0")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"language,prompt,completion\nvi,a,b\nvi,a\n", "line 3: line: another number of cells: found '2 cells'"),
        (b"language,prompt,completion\nvi,a,\n", "line 2: completion: no conversation: found None"),
        (b"language,prompt,completion\nvi,a,\xff\n", "line 2: completion: not UTF-8"),
        (b'language,prompt,completion\nvi,a,"b\n', "line 2: not CSV"),
        (
            b"language,source,target\nvi,a,b\n",
            "wanted the columns .*; found language, source, target; data.columns",
        ),
        (b"language,prompt,prompt,completion\nvi,a,b,c\n", "line 1: two columns are called 'prompt'"),
        ("language,prompt,completion\nvi,a,b\n".encode("utf-16"), "UTF-16 text, wanted UTF-8"),
        (b"", "no row is left"),
    ],
)
def test_broken_csv_is_one_line(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(DudiError, match=f"a.csv: {said}") as error:
        load_rows(Data(source=str(tmp_path / "a.csv")), 0)
    assert "\n" not in str(error.value)


def saved(folder: Path, rows: list[dict[str, object]]) -> datasets.Dataset:
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(folder))
    return made


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    saved(tmp_path / "one", ROWS)
    assert answers(tmp_path / "one") == [("th", "q th", "a\nb"), ("vi", "q vi", "a\nb")]
    # what `datasets` caches beside it is not a part of the data
    (tmp_path / "one/cache-1234.arrow").write_bytes((tmp_path / "one/data-00000-of-00001.arrow").read_bytes()[:99])
    assert len(answers(tmp_path / "one")) == 2
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS)}
    )
    both.save_to_disk(str(tmp_path / "both"))
    assert len(answers(tmp_path / "both")) == 1 and len(answers(tmp_path / "both", split="test")) == 2
    (tmp_path / "one/data-00000-of-00001.arrow").rename(tmp_path / "one/x.arrow")
    with pytest.raises(DudiError, match=r"state.json lists '.*data-00000-of-00001.arrow', which is not there"):
        answers(tmp_path / "one")


def test_arrow_files_of_both_kinds_and_a_broken_one(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert len(answers(tmp_path / "a.arrow")) == 2
    data = (tmp_path / "a.arrow").read_bytes()
    for bad in (data[:50], b"nothing"):
        (tmp_path / "a.arrow").write_bytes(bad)
        with pytest.raises(DudiError, match=r"a.arrow: not a readable Arrow file"):
            answers(tmp_path / "a.arrow")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_class_labels_are_their_names(tmp_path: Path, form: str) -> None:
    rows = [{"language": i, "messages": turns(str(i), "b")} for i in (1, 0)]
    made = datasets.Dataset.from_list(rows).cast_column("language", datasets.ClassLabel(names=["thai", "vie"]))
    made.to_parquet(str(tmp_path / "a.parquet")) if form == "parquet" else made.save_to_disk(str(tmp_path / "a"))
    assert [l for l, _, _ in answers(tmp_path / ("a.parquet" if form == "parquet" else "a"))] == ["th", "vi"]


def test_integers_without_names_are_overridden_by_a_language(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"language": i, "messages": turns(str(i), "b")} for i in (3, 3, 4)])
    with pytest.raises(DudiError, match=r"row 1: language: no language: found 3, wanted .*data.language"):
        answers(tmp_path / "a.parquet")
    loaded = load_rows(Data(source=str(tmp_path / "a.parquet"), language="km"), 0)
    assert {e.l for e in loaded.train} == {"km"}
    assert loaded.report.notes == ["data.language = 'km' overrides what rows say of their language (3 2, 4 1)"]


def languages(folder: Path, **files: str) -> set[tuple[str, str]]:
    for name, question in files.items():
        write_jsonl(folder / (name.replace("__", "/") + ".jsonl"), [{"messages": turns(question, "a")}])
    return {(l, q) for l, q, _ in answers(folder)}


@pytest.mark.parametrize(
    "names",
    [
        ("th", "vi"),
        ("Thai", "Vietnamese"),
        ("th-TH", "vi-VN"),
        ("tha_Thai", "vie_Latn"),
        ("alpaca_th", "alpaca_vi"),
        ("train-th", "train-vi"),
        ("th__train-00000-of-00001", "vi__train-00000-of-00001"),
        ("ไทย", "Tiếng Việt"),
    ],
)
def test_a_file_of_each_language(tmp_path: Path, names: tuple[str, str]) -> None:
    assert languages(tmp_path, **dict(zip(names, "ab", strict=True))) == {("th", "a"), ("vi", "b")}


def test_a_column_counts_more_than_the_name_of_a_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "th.jsonl", [{"language": "lo", "messages": turns("l", "a")}])
    assert languages(tmp_path, vi="v") == {("lo", "l"), ("vi", "v")}


@pytest.mark.parametrize("names", [("my",), ("law", "med"), ("th", "notes"), ("my_data", "id_data")])
def test_names_that_are_hardly_languages(tmp_path: Path, names: tuple[str, ...]) -> None:
    if names == ("my_data", "id_data"):  # with the word they share left off, these are
        assert languages(tmp_path, my_data="m", id_data="i") == {("my", "m"), ("id", "i")}
        return
    with pytest.raises(DudiError, match="line 1: language: no language"):
        languages(tmp_path, **dict.fromkeys(names, "q"))


def test_files_beside_the_data_are_named_and_not_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "stats.csv").write_text("a,b\n1,2\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    report = check(Data(source=str(tmp_path)))
    assert report.notes == ["files left out (beside the others, not taken for data): stats.csv"]
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "stats.csv").write_text("language,prompt,completion\nvi,1,2\n")
    assert answers(tmp_path) == [("vi", "1", "2")]


@pytest.mark.parametrize("name", ["array.json", "a.jsonl.zst"])
def test_the_same_from_the_hub(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name])
    loaded = load_rows(Data(source="some/name"), 0, FolderHub(tmp_path))
    assert [e.l for e in loaded.train] == ["th", "vi"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DudiError, match=r"neither a .jsonl nor a .parquet file, nor .ndjson, .json, .csv"):
        answers(tmp_path / "a.xlsx")


def test_a_parquet_file_with_a_broken_row(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([*PAIRS, {**PAIRS[0], "completion": " "}]), tmp_path / "a.parquet")
    with pytest.raises(DudiError, match=r"a.parquet: row 2: completion: empty content: found ' '"):
        answers(tmp_path / "a.parquet")
