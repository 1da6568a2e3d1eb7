"""Evaluation rows from a source of their own: read whole, in the languages trained on, and never trained on."""

import unicodedata

import pytest
from kit.data import made_rows, turns, write_jsonl, write_parquet
from pydantic import ValidationError

from dudi.data.load import load_rows, write_rows
from dudi.errors import DudiError
from dudi.recipe.schema import Data


def rows(numbers, language="vi"):
    return [{"language": language, "messages": turns(f"Tiếng {language} {i}", "a")} for i in numbers]


def questions(examples):
    return [example.x[0].content for example in examples]


def test_its_rows_are_taken_out_of_the_training_rows(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [*rows(range(10)), *rows(range(4), "id")])
    held = [*rows((3, 4)), *rows((50,)), *rows((1,), "th")]
    held[0]["messages"][0]["content"] = unicodedata.normalize("NFD", held[0]["messages"][0]["content"])
    write_jsonl(tmp_path / "held.jsonl", [*held, held[2]])
    data = Data(source=str(tmp_path / "train.jsonl"), eval_source=str(tmp_path / "held.jsonl"))
    loaded = load_rows(data, 0)
    assert [q[-1] for q in questions(loaded.eval)] == ["3", "4", "0"]
    assert {q[-1] for q in questions(loaded.train) if "vi" in q} == set("01256789")
    counts = loaded.report.languages["vi"]
    assert counts.balanced and (counts.kept, counts.eval) == (8, 3)
    assert counts.filtered == {"among the rows of data.eval_source": 2}
    assert loaded.report.notes == ["not evaluated on: rows of data.eval_source in languages not trained on (th)"]
    assert loaded.manifest["eval_source"] == str(tmp_path / "held.jsonl") and loaded.manifest["rows"]["eval"] == 3


def test_what_prepare_wrote_is_one(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", rows(range(30)))
    source = str(tmp_path / "rows.jsonl")
    first = load_rows(Data(source=source, eval_rows_per_language=5), 0)
    write_rows(first, tmp_path / "out")
    for eval_source in (tmp_path / "out", tmp_path / "out/eval.jsonl"):
        again = load_rows(Data(source=source, eval_source=str(eval_source)), 1)
        assert (again.eval, again.train) == (first.eval, first.train)
    alpaca = [{"language": "vi", "ask": f"Tiếng vi {i}", "output": "a"} for i in range(30)]
    write_jsonl(tmp_path / "alpaca.jsonl", alpaca)  # the columns and format of one file are not those of the other
    changes = {"format": "alpaca", "columns": {"instruction": "ask"}, "eval_source": str(tmp_path / "out")}
    again = load_rows(Data(source=str(tmp_path / "alpaca.jsonl"), **changes), 0)
    assert questions(again.eval) == questions(first.eval) and questions(again.train) == questions(first.train)


@pytest.mark.parametrize("sampled", [None, 10])
def test_beside_sea_instruct(tmp_path, sampled):
    write_parquet(tmp_path / "sea/Indonesian.parquet", made_rows(40))
    held = [{"language": "id", "messages": turns(f"question {i}", f"answer {i}")} for i in range(30)]
    write_jsonl(tmp_path / "eval.jsonl", held)
    changes = {"format": "sea_instruct", "rows_per_language": sampled, "eval_source": str(tmp_path / "eval.jsonl")}
    loaded = load_rows(Data(source=str(tmp_path / "sea"), **changes), 0)
    assert len(loaded.eval) == 30 and len(loaded.train) == 10
    assert not set(questions(loaded.eval)) & set(questions(loaded.train))
    assert loaded.report.languages["id"].balanced


def test_what_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", rows(range(3)))
    with pytest.raises(ValidationError, match="eval_source: the evaluation rows are given"):
        Data(source="a", eval_source="b", eval_rows_per_language=1)
    for text, said in (("{\n", "eval.jsonl: line 1: line: not JSON"), ("", "eval_source: .*no row to evaluate on")):
        (tmp_path / "eval.jsonl").write_text(text)
        with pytest.raises(DudiError, match=said):
            load_rows(Data(source=str(tmp_path / "train.jsonl"), eval_source=str(tmp_path / "eval.jsonl")), 0)
    (tmp_path / "eval.jsonl").unlink()
    with pytest.raises(DudiError, match=r"data.eval_source: .* has files of train only"):
        load_rows(Data(source=str(tmp_path / "train.jsonl"), eval_source=str(tmp_path)), 0)
    with pytest.raises(DudiError, match=r"no row of 'vi' is left to train on: .*among the rows of data.eval_source"):
        load_rows(Data(source=str(tmp_path / "train.jsonl"), eval_source=str(tmp_path / "train.jsonl")), 0)
