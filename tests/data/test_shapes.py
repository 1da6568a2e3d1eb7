"""Rows and files as public data sets and everyday tools leave them: read right, or refused in one line that is true."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.data import turns, write_jsonl, write_parquet

from dudi.data.load import check, load_rows
from dudi.data.suspect import SCRIPT
from dudi.errors import DudiError
from dudi.recipe.schema import Data

SAID = turns("Apa kabar?", "Baik.")
FROM = [{"from": "human", "value": "Apa kabar?"}, {"from": "gpt", "value": "Baik."}]
S = ("system", "Sopan.")
Q, A = ("user", "Apa kabar?"), ("y", "Baik.")


def read(source: Path, **values: Any) -> list[list[tuple[str, str]]]:
    """The turns of every row."""
    rows = load_rows(Data.model_validate({"source": str(source), **values}), 0).train
    return [[*((m.role, m.content) for m in row.x), ("y", row.y)] for row in rows]


def of_row(tmp_path: Path, row: dict[str, Any], **values: Any) -> list[tuple[str, str]]:
    write_jsonl(tmp_path / "rows.jsonl", [{"language": "id", **row}])
    (found,) = read(tmp_path / "rows.jsonl", **values)
    return found


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
READ = {
    "WildChat": ({"conversation": [{**t, "toxic": False, "language": "Indonesian"} for t in SAID], "turn": 1}, [Q, A]),
    "no_robots": ({"prompt": "Apa kabar?", "messages": [{"role": "system", "content": ""}, *SAID]}, [Q, A]),
    "a system turn of null": ({"messages": [{"role": "system", "content": None}, *SAID]}, [Q, A]),
    "OpenHermes": ({"conversations": FROM, "system_prompt": "Sopan.", "skip_prompt_formatting": False}, [S, Q, A]),
    "OpenHermes without": ({"conversations": FROM, "system_prompt": None}, [Q, A]),
    "OpenOrca": ({"system_prompt": "Sopan.", "question": "Apa kabar?", "response": "Baik."}, [S, Q, A]),
    "system beside messages": ({"system": "Sopan.", "messages": SAID}, [S, Q, A]),
    "system in both": ({"system": "Sopan.", "messages": [{"role": "system", "content": "Sopan."}, *SAID]}, [S, Q, A]),
    "Magpie": ({"instruction": "Apa kabar?", "response": "Baik.", "conversations": FROM}, [Q, A]),
    "Dolly": ({"instruction": "Apa?", "context": "Teks.", "response": "Baik."}, [("user", "Apa?\nTeks."), A]),
    "Dolly without": ({"instruction": "Apa kabar?", "context": "", "response": "Baik."}, [Q, A]),
    "Self-Instruct": ({"instruction": "Apa kabar?", "input": "<noinput>", "output": "Baik."}, [Q, A]),
    "the question in the input": ({"instruction": "", "input": "Apa kabar?", "output": "Baik."}, [Q, A]),
    "question and answer": ({"question": "Apa kabar?", "answer": "Baik."}, [Q, A]),
    "prompt and response": ({"prompt": "Apa kabar?", "response": "Baik."}, [Q, A]),
    "a context that is in the question": ({"prompt": "Apa kabar?", "completion": "Baik.", "context": "kabar"}, [Q, A]),
    "a prompt in text": ({"prompt": json.dumps(SAID[:1]), "completion": "Baik."}, [Q, A]),
    "a prompt about JSON": ({"prompt": '[{"a": 1}]', "completion": "Baik."}, [("user", '[{"a": 1}]'), A]),
    "from and content": ({"messages": [{"from": t["role"], "content": t["content"]} for t in SAID]}, [Q, A]),
    "role and text": ({"messages": [{"role": t["role"], "text": t["content"]} for t in SAID]}, [Q, A]),
    "Responses": (
        {"messages": [{**SAID[0], "content": [{"type": "input_text", "text": "Apa kabar?"}]},
                      {**SAID[1], "content": [{"type": "output_text", "text": "Baik."}]}]}, [Q, A],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_row_of_a_public_data_set(tmp_path: Path, name: str) -> None:
    row, wanted = READ[name]
    assert of_row(tmp_path, row) == wanted
    write_parquet(tmp_path / "rows.parquet", [{"language": "id", **row}])
    assert read(tmp_path / "rows.parquet") == [wanted]


@pytest.mark.parametrize("user", ["user", "human", "prompter", "User", "HUMAN", "user "])
@pytest.mark.parametrize("answer", ["assistant", "gpt", "model", "bot", "Chatbot", "AI"])
def test_roles_by_any_name(tmp_path: Path, user: str, answer: str) -> None:
    for keys in (("role", "content"), ("from", "value")):
        said = [dict(zip(keys, pair, strict=True)) for pair in ((user, Q[1]), (answer, A[1]))]
        assert of_row(tmp_path, {"conversations": said}) == [Q, A]


LEFT = {
    "context": {"prompt": "a", "completion": "b", "context": "Teks."},
    "input": {"messages": SAID, "input": "Teks."},
    "history": {"prompt": "a", "completion": "b", "history": [["c", "d"]]},
    "system": {"inputs": "a", "targets": "b", "system": "Sopan."},
    "reasoning": {"prompt": "a", "completion": "b", "reasoning": "Karena."},
    "reasoning_content": {"messages": SAID, "reasoning_content": "Karena."},
    "chain_of_thought": {"instruction": "a", "output": "b", "chain_of_thought": "Karena."},
    "rationale": {"inputs": "a", "targets": "b", "rationale": "Karena."},
}


@pytest.mark.parametrize("column", LEFT)
def test_a_part_of_the_conversation_that_its_format_does_not_read(tmp_path: Path, column: str) -> None:
    with pytest.raises(DudiError, match=rf"line 1: {column}: {column} is no part of .*data.ignore = \[\"{column}\"\]"):
        of_row(tmp_path, LEFT[column])
    assert of_row(tmp_path, LEFT[column], ignore=(column,))
    assert of_row(tmp_path, {**LEFT[column], column: None})


def test_a_column_that_says_what_a_turn_says_is_no_other_part(tmp_path: Path) -> None:
    """An answer with its reasoning in it, and the reasoning once more; a column that `data.columns` takes for y."""
    assert of_row(tmp_path, {"prompt": "a", "completion": "<think>Karena.</think>b", "reasoning": "Karena."})
    assert of_row(tmp_path, {"prompt": "a", "rationale": "b"}, columns={"completion": "rationale"})
    with pytest.raises(DudiError, match="input is no part of the conversation"):  # that y repeats it is no reason
        of_row(tmp_path, {"prompt": "Artinya?", "input": "cat", "completion": "cat: kucing"})
    said = [SAID[0], {**SAID[1], "channel": "final", "recipient": "all"}]
    assert of_row(tmp_path, {"messages": said}) == [Q, A]


REFUSED = [
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"completion: no conversation: .*has chosen, language, p"),
    ({"data": [{"prompt": "a", "completion": "b"}]}, "row: no conversation: .*; the rows lie under 'data': save"),
    ({"text": "a"}, r"row: no conversation: found \['language', 'text'\], wanted `messages`, or .*data.columns can"),
    ({"messages": [{"speaker": "a", "text": "b"}]}, r"messages\[0\].role: unknown role: found 'only speaker, text'"),
    ({"conversations": ["a", "b"]}, r"conversations\[0\]: not a message: found 'a'"),
    ({"messages": [{"role": "system", "content": ""}]}, "messages: no answer: found 'a system turn only'"),
    ({"messages": [{"role": "system", "content": ""}, SAID[1]]}, r"messages\[1\].role: turns out of order"),
    ({"system": "a", "messages": [{"role": "system", "content": "b"}, *SAID]}, r"\(system \+ messages\)\[1\].role: "),
    ({"messages": [SAID[0], {**SAID[1], "train": "false"}]}, r"messages\[1\].train: a weight that is not 0 or 1"),
    ({"messages": [SAID[0], {**SAID[1], "train_detail": [{}]}]}, r"messages\[1\].train_detail: train_detail cannot"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), REFUSED, ids=lambda case: str(case)[:40])
def test_a_row_that_cannot_be_read_is_refused_in_one_true_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DudiError, match=rf"rows.jsonl: line 1: {said}") as error:
        of_row(tmp_path, row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask"])
def test_an_answer_is_taken_out_by_any_key(tmp_path: Path, key: str) -> None:
    said = [*SAID, {"role": "user", "content": "Lagi?"}, {"role": "assistant", "content": "Ya."}]
    for off in (0, 0.0, False):
        write_jsonl(
            tmp_path / "rows.jsonl", [{"language": "id", "messages": [said[0], {**said[1], key: off}, *said[2:]]}]
        )
        (row,) = load_rows(Data(source=str(tmp_path / "rows.jsonl")), 0).train
        assert row.untrained == (1,) and row.y == "Ya."
    assert of_row(tmp_path, {"messages": [*said[:3], {**said[3], key: off}]}) == [Q, A]


def test_answers_that_are_marked_as_bad_are_left_out_and_counted(tmp_path: Path) -> None:
    for key in ("label", "train", "trainable"):
        rows = [{"language": "id", "prompt": "a", "completion": f"b {mark}", key: mark} for mark in (True, False)]
        write_jsonl(tmp_path / "rows.jsonl", rows)
        write_parquet(tmp_path / "rows.parquet", rows)
        for name in ("rows.jsonl", "rows.parquet"):
            loaded = load_rows(Data(source=str(tmp_path / name)), 0)
            assert [row.y for row in loaded.train] == ["b True"]
            assert loaded.report.languages["id"].filtered == {f"{key} false": 1}


def test_turns_as_an_object_of_lists(tmp_path: Path) -> None:
    """What `datasets` makes of `Sequence({"from": ..., "value": ...})`."""
    for keys, title in ((("from", "value"), "ShareGPT"), (("role", "content"), "messages")):
        lists = dict(zip(keys, (["human", "gpt"], [Q[1], A[1]]), strict=True))
        write_parquet(tmp_path / "a.parquet", [{"language": "id", "conversations": lists}])
        assert read(tmp_path / "a.parquet") == [[Q, A]]
        assert check(Data(source=str(tmp_path / "a.parquet"))).read_as == {title: 1}
    assert of_row(tmp_path, {"messages": lists}) == [Q, A]
    lists["content"] = ["a"]
    with pytest.raises(DudiError, match="line 1: messages: not a list: found"):
        of_row(tmp_path, {"messages": lists})


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    names = ["language", "prompt", "prompt", "completion"]
    pq.write_table(pa.Table.from_arrays([pa.array(["id"])] * 4, names=names), tmp_path / "a.parquet")
    with pytest.raises(DudiError, match=r"a.parquet: two columns are called 'prompt'"):
        read(tmp_path / "a.parquet")


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
LINE = json.dumps({"language": "id", "prompt": Q[1], "completion": A[1]}) + "\n"
TABLE = f"language,prompt,completion\nid,{Q[1]},{A[1]}\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL.GZ", "a.jsonl.gz", "a.jsonl.bz2", "a.csv", "a.json"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress])
def test_compression_is_told_by_the_bytes(tmp_path: Path, name: str, packed: Any) -> None:
    text = TABLE if ".csv" in name else LINE
    (tmp_path / name).write_bytes(packed(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode()))
    assert read(tmp_path / name) == [[Q, A]]


OTHERS = {
    "UTF-16 text": [LINE.encode(code) for code in ("utf-16", "utf-16-le", "utf-16-be")],
    "UTF-32 text": [LINE.encode("utf-32")],
    "a ZIP archive": [b"PK\x03\x04" + bytes(60)],
    "a Parquet file": [b"PAR1" + bytes(60)],
    "a pointer of Git LFS": [b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_that_is_something_else(tmp_path: Path, what: str, name: str) -> None:
    for data in OTHERS[what]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DudiError, match=rf"{name}: {what}.*: ") as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_twice(tmp_path: Path, name: str) -> None:
    twice = '{"role": "user", "content": "a", "content": "b"}'
    first = '{"language": "id", "messages": [' + twice + ', {"role": "gpt", "content": "c"}]}'
    (tmp_path / name).write_text(first + "\n" + LINE if name == "a.jsonl" else f"[{first}, {LINE}]")
    unit = "line" if name == "a.jsonl" else "item"
    with pytest.raises(DudiError, match=f"{unit} 1: content: a key twice: "):
        read(tmp_path / name)
    assert read(tmp_path / name, bad_rows="skip") == [[Q, A]]


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"language": "id", "instruction": "a", "input": NaN, "output": "b"}\n')
    assert read(tmp_path / "a.jsonl") == [[("user", "a"), ("y", "b")]]


def test_a_row_of_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('language,prompt,completion\n\nid,"a\nb",c\nid,"d\ne",\n')
    with pytest.raises(DudiError, match="line 5: completion: no conversation"):
        read(tmp_path / "a.csv")
    (row,) = load_rows(Data(source=str(tmp_path / "a.csv"), bad_rows="skip"), 0).train
    assert row.id == "a.csv:3"


@pytest.mark.parametrize("name", ["alpaca_{}_{}.jsonl", "{}-{}.jsonl", "{}_{}.jsonl", "{1}-{0}-00000-of-00001.jsonl"])
def test_a_split_anywhere_in_a_name(tmp_path: Path, name: str) -> None:
    for language, split in (("th", "train"), ("vi", "train"), ("th", "test"), ("vi", "validation")):
        write_jsonl(tmp_path / name.format(language, split), [{"prompt": f"{language} {split}", "completion": "b"}])
    loaded = load_rows(Data(source=str(tmp_path)), 0)
    assert [(row.l, row.x[0].content) for row in loaded.train] == [("th", "th train"), ("vi", "vi train")]
    assert "not of split 'train'" in loaded.report.notes[0]


def test_a_file_that_names_one_language_is_not_trusted_but_asked_about(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-th.jsonl", [{"prompt": "a", "completion": "b"}])
    for source in (tmp_path, tmp_path / "train-th.jsonl"):
        with pytest.raises(DudiError, match=r"line 1: language: no language.*data.language = 'th', if that is what"):
            read(source)


def test_links_are_followed_and_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    elsewhere, source = tmp_path / "elsewhere", tmp_path / "source"
    elsewhere.mkdir(), source.mkdir()
    (elsewhere / "a.jsonl").write_text(LINE)
    (source / "sub").symlink_to(elsewhere)
    (source / "round").symlink_to(source)
    assert read(source) == [[Q, A]]
    (source / "b.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(DudiError, match=r"b.jsonl: a link to nowhere.jsonl, which is not there"):
        read(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "sub").mkdir(mode=0)
    with pytest.raises(DudiError, match="sub' cannot be read"):
        read(tmp_path)


def test_scripts_are_told_in_every_row(tmp_path: Path) -> None:
    """What is remembered of one row's characters says nothing wrong of the next."""
    rows = [
        {"language": "th", "prompt": f"q{n}", "completion": text} for n, text in enumerate(["กขค", "abc", "กab", "def"])
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert check(Data(source=str(tmp_path / "a.jsonl"))).suspected == {
        "th": {SCRIPT: [f"a.jsonl:{n}" for n in (2, 3, 4)]}
    }
