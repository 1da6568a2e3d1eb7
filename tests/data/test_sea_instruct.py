import random
import re
from collections import Counter
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.data import made_row, made_rows, turns, write_parquet

from dudi.data import source as source_module
from dudi.data.load import check, load_rows
from dudi.errors import DudiError
from dudi.recipe.schema import Data

ZAWGYI = "ကိုယ္စားလွယ္မ်ားသည္ ျဖစ္ေနမည္ကို စိုးရိမ္ခဲ့ၾကပါသည္။"
STRATUM = ("prompt_primary_domain", "prompt_primary_task", "prompt_complexity")


def recipe(folder, **values):
    return Data(source=str(folder), format="sea_instruct", **values)


def texts(examples):
    return [(example.l, example.x, example.y) for example in examples]


def answers(examples):
    return [example.y for example in examples]


def test_the_sample_keeps_the_joint_distribution(tmp_path):
    rows = made_rows(1_000)
    write_parquet(tmp_path / "Indonesian.parquet", rows)
    loaded = load_rows(recipe(tmp_path, rows_per_language=137), 3)
    before = Counter(tuple(row[name] for name in STRATUM) for row in rows)
    by_answer = {f"answer {i}": tuple(row[name] for name in STRATUM) for i, row in enumerate(rows)}
    after = Counter(by_answer[answer] for answer in answers(loaded.train))
    assert sum(after.values()) == len(set(answers(loaded.train))) == 137
    for stratum, count in before.items():
        assert abs(after[stratum] - Fraction(137 * count, 1_000)) < 1
    recorded = {tuple(one["stratum"]): (one["before"], one["train"]) for one in loaded.manifest["strata"]["id"]}
    assert recorded == {stratum: (count, after[stratum]) for stratum, count in before.items()}


def test_the_sample_is_a_pure_function_of_data_and_seed(tmp_path, monkeypatch):
    rows = made_rows(600)
    write_parquet(tmp_path / "one" / "Indonesian.parquet", rows, row_group=600)
    write_parquet(tmp_path / "groups" / "Indonesian.parquet", rows, row_group=7)
    for i, start in enumerate(range(0, 600, 150)):
        write_parquet(tmp_path / "shards" / "Indonesian" / f"train-0000{i}-of-00004.parquet", rows[start : start + 150])
        write_parquet(
            tmp_path / "nested" / "data" / "Indonesian" / "train" / f"{i:04}.parquet", rows[start : start + 150]
        )
    values = {"rows_per_language": 90, "eval_rows_per_language": 11}
    first = load_rows(recipe(tmp_path / "one", **values), 5)
    for other in ("one", "groups", "shards", "nested"):
        again = load_rows(recipe(tmp_path / other, **values), 5)
        assert texts(again.train) == texts(first.train) and texts(again.eval) == texts(first.eval)
    monkeypatch.setattr(source_module, "BATCH_BYTES", 500)
    tiny = load_rows(recipe(tmp_path / "one", **values), 5)
    assert tiny == first
    assert texts(load_rows(recipe(tmp_path / "one", **values), 6).train) != texts(first.train)


def test_evaluation_rows_do_not_depend_on_the_number_of_training_rows(tmp_path):
    write_parquet(tmp_path / "Indonesian.parquet", made_rows(500))
    sets = [load_rows(recipe(tmp_path, rows_per_language=n, eval_rows_per_language=40), 1) for n in (50, 200, None)]
    assert answers(sets[0].eval) == answers(sets[1].eval) == answers(sets[2].eval)
    for one in sets:
        assert len(one.eval) == 40 and not set(answers(one.train)) & set(answers(one.eval))
    assert [len(one.train) for one in sets] == [50, 200, 460]
    assert answers(sets[2].train) == [f"answer {i}" for i in range(500) if f"answer {i}" not in answers(sets[2].eval)]


def faulty_rows():
    """400 rows of which 120 fall out: broken, repeated, in Zawgyi; all pass the filter."""
    rows = made_rows(400, "Burmese")
    for i in range(0, 400, 10):
        rows[i]["conversations"] = ["", "[", None, repr([{"role": "user", "content": "x"}])][i // 10 % 4]
        rows[i + 3]["conversations"] = repr(turns(f"{i}", ZAWGYI))
        rows[i + 6]["conversations"] = rows[i + 7]["conversations"]
    return rows


def test_rows_that_fall_out_are_replaced_by_others_of_their_stratum(tmp_path):
    rows = faulty_rows()
    write_parquet(tmp_path / "Burmese.parquet", rows)
    loaded = load_rows(recipe(tmp_path, rows_per_language=150), 0)
    report = loaded.report.languages["my"]
    assert len(loaded.train) == report.kept == 150 and report.balanced
    assert len(set(texts(loaded.train))) == 150
    assert report.broken.total() and report.duplicated and report.zawgyi
    counts = Counter(tuple(row[name] for name in STRATUM) for row in rows)
    for one in loaded.manifest["strata"]["my"]:  # enough good rows in every stratum but the smallest
        if counts[tuple(one["stratum"])] > 30:
            assert abs(one["train"] - Fraction(150 * one["before"], 400)) < 1.5


def test_all_good_rows_are_reached(tmp_path):
    write_parquet(tmp_path / "Burmese.parquet", faulty_rows())
    for wanted in (279, 280, 281, 1_000, None):
        loaded = load_rows(recipe(tmp_path, rows_per_language=wanted), 0)
        assert len(set(texts(loaded.train))) == len(loaded.train) == min(wanted or 280, 280)
        assert loaded.report.languages["my"].balanced
        assert bool(loaded.report.notes) == (wanted in (281, 1_000))
    counts = check(recipe(tmp_path)).languages["my"]
    assert (counts.kept, counts.broken.total(), counts.duplicated, counts.zawgyi) == (280, 40, 40, 40)


def test_rows_of_one_id_and_different_content_are_different_rows(tmp_path):
    rows = made_rows(10)
    for row in rows:
        row["conversations_id"] = "same"
    rows.append({**rows[3], "conversations_id": "another id, same content"})
    rows.append({**rows[4], "conversations": repr([{**m, "extra": 1} for m in turns("question 4", "answer 4")])})
    write_parquet(tmp_path / "Indonesian.parquet", rows)
    counts = check(recipe(tmp_path)).languages["id"]
    assert (counts.kept, counts.duplicated) == (10, 2)
    assert len(load_rows(recipe(tmp_path), 0).train) == 10


def test_a_copy_that_passes_the_filter_is_kept_beside_one_that_does_not(tmp_path):
    rows = made_rows(3)
    rows.insert(0, {**rows[1], "prompt_input_quality": "Poor"})
    rows.insert(1, {**rows[2], "prompt_input_quality": "Poor"})
    write_parquet(tmp_path / "Indonesian.parquet", rows)
    counts = check(recipe(tmp_path)).languages["id"]
    assert (counts.kept, counts.duplicated, counts.filtered.total()) == (3, 1, 1)
    assert len(load_rows(recipe(tmp_path), 0).train) == 3


def test_the_same_content_in_two_languages_is_one_row(tmp_path):
    write_parquet(tmp_path / "Indonesian.parquet", made_rows(30))
    write_parquet(tmp_path / "Malay.parquet", made_rows(60, "Malay"))
    loaded = load_rows(recipe(tmp_path, eval_rows_per_language=5), 0)
    assert len(loaded.train) + len(loaded.eval) == 60
    contents = [(example.x, example.y) for example in loaded.train + loaded.eval]
    assert len(set(contents)) == 60


def test_the_filter_can_be_switched_off(tmp_path):
    rng = random.Random(0)
    rows = [made_row(i, rng, prompt_input_quality="Poor") for i in range(20)]
    write_parquet(tmp_path / "Indonesian.parquet", rows)
    assert len(load_rows(recipe(tmp_path, quality_filter=False), 0).train) == 20
    with pytest.raises(DudiError, match=r"no row of 'id' is left.*20 read, 20 filtered \(not excellent 20\)"):
        load_rows(recipe(tmp_path), 0)
    bare = [{"conversations": row["conversations"]} for row in rows]
    write_parquet(tmp_path / "bare" / "Indonesian.parquet", bare)
    assert len(load_rows(recipe(tmp_path / "bare", quality_filter=False), 0).train) == 20


def test_bad_rows_may_stop_the_load(tmp_path):
    rows = made_rows(20)
    rows[7]["conversations"] = "["
    write_parquet(tmp_path / "Indonesian.parquet", rows)
    where = re.escape(str(tmp_path / "Indonesian.parquet"))
    with pytest.raises(DudiError, match=rf"{where}: row 8: conversations: unreadable conversation: found '\[', wanted"):
        load_rows(recipe(tmp_path, bad_rows="error"), 0)
    assert len(load_rows(recipe(tmp_path), 0).train) == 19


def test_every_configuration_that_names_the_language(tmp_path):
    rows = made_rows(4, "Filipino_NativeScript")
    for name in ("Filipino", "Khmer", "English"):
        write_parquet(tmp_path / f"{name}.parquet", rows)
    loaded = load_rows(recipe(tmp_path), 0)
    assert {example.l for example in loaded.train} == {"tl"}
    assert any("English, Khmer" in note for note in loaded.report.notes)
    with pytest.raises(DudiError, match=r"no configuration for 'vi' \(Vietnamese\); it has English, Filipino, Khmer"):
        load_rows(recipe(tmp_path, languages=("tl", "vi")), 0)
    with pytest.raises(DudiError, match="has no split 'test'; it has train"):
        load_rows(recipe(tmp_path, split="test"), 0)
    (tmp_path / "Filipino.parquet").rename(tmp_path / "Tagalog.parquet")
    assert len(load_rows(recipe(tmp_path, languages=("tl",)), 0).train) == 4


def test_missing_columns_and_damaged_files_are_named(tmp_path):
    rows = made_rows(50)
    for column in ("conversations", "prompt_input_quality", "prompt_primary_task"):
        folder = tmp_path / column
        write_parquet(folder / "Indonesian.parquet", [{k: v for k, v in row.items() if k != column} for row in rows])
        with pytest.raises(DudiError, match=f"Indonesian.parquet: no column '{column}'; it has "):
            load_rows(recipe(folder, rows_per_language=3), 0)
    write_parquet(tmp_path / "cut" / "Indonesian.parquet", rows)
    cut = tmp_path / "cut" / "Indonesian.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DudiError, match=r"Indonesian.parquet: not a readable Parquet file"):
        load_rows(recipe(tmp_path / "cut"), 0)
    write_parquet(tmp_path / "bits" / "Indonesian.parquet", rows)
    bits = tmp_path / "bits" / "Indonesian.parquet"
    start = pq.read_metadata(bits).row_group(0).column(1).data_page_offset
    data = bits.read_bytes()
    bits.write_bytes(data[:start] + b"\xff" * 300 + data[start + 300 :])
    with pytest.raises(DudiError, match=r"not a readable Parquet file"):
        load_rows(recipe(tmp_path / "bits", quality_filter=False), 0)


def test_text_that_is_not_utf8_is_a_broken_row(tmp_path):
    column = pa.array([repr(turns("a", "b")).encode(), b"[\xff]"])
    broken = pa.Array.from_buffers(pa.string(), 2, column.buffers())
    pq.write_table(pa.table({"conversations": broken}), tmp_path / "Thai.parquet")
    counts = check(recipe(tmp_path, quality_filter=False)).languages["th"]
    assert counts.kept == 1 and counts.broken == {"not UTF-8": 1}


def test_conversations_may_be_lists_already(tmp_path):
    write_parquet(tmp_path / "Thai.parquet", [{"conversations": turns(str(i), "b")} for i in range(3)])
    assert len(load_rows(recipe(tmp_path, quality_filter=False), 0).train) == 3


def test_empty_files(tmp_path):
    schema = pa.Table.from_pylist(made_rows(1)).schema
    pq.write_table(schema.empty_table(), tmp_path / "Thai.parquet")
    assert check(recipe(tmp_path)).languages["th"].read == 0
    for values in ({}, {"rows_per_language": 3}, {"quality_filter": False}):
        with pytest.raises(DudiError, match="no row of 'th' is left to train on: 0 read"):
            load_rows(recipe(tmp_path, **values), 0)


def test_other_faults_of_the_table(tmp_path):
    with pytest.raises(DudiError, match="no file or folder"):
        load_rows(recipe(tmp_path / "nowhere.parquet"), 0)
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DudiError, match=r"no .parquet or .jsonl file in .*; it holds readme.txt"):
        load_rows(recipe(tmp_path), 0)
    write_parquet(tmp_path / "rows.parquet", made_rows(3))
    with pytest.raises(DudiError, match="no file is named after a known language; found rows"):
        load_rows(recipe(tmp_path), 0)
    with pytest.raises(DudiError, match=r"data.language: is for chat data"):
        load_rows(recipe(tmp_path, language="id"), 0)
    write_parquet(tmp_path / "Thai.parquet", made_rows(3, "Thai"))
    assert "not used" in load_rows(recipe(tmp_path, revision="main"), 0).report.notes[0]
