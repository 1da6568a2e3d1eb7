from collections import Counter
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given as property_of
from hypothesis import settings
from hypothesis import strategies as st

from dudi.data.quality import QualityFilter, StratumIndex
from dudi.data.strata import Strata, allocate, factorize, priorities


@settings(max_examples=50, deadline=None)
@property_of(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.data())
def test_allocation_is_exact_and_within_one_row_of_proportion(counts, data):
    total = data.draw(st.integers(0, sum(counts)))
    shares = allocate(counts, total, "seed", 1)
    assert sum(shares) == total
    for share, count in zip(shares, counts, strict=True):
        assert 0 <= share <= count
        if total:
            assert abs(Fraction(share) - Fraction(total * count, sum(counts))) < 1


def test_equal_remainders_are_drawn_by_the_key():
    winners = {tuple(allocate([5] * 4, 1, seed)) for seed in range(40)}
    assert len(winners) == 4
    assert allocate([5] * 4, 2, 7) == allocate([5] * 4, 2, 7)


def test_priorities_have_no_ties_and_no_pattern():
    rows = np.arange(200_000, dtype=np.int64)
    numbers = priorities(rows, 2**64 - 5)
    assert len(np.unique(numbers)) == len(rows)
    chosen = np.sort(rows[np.argsort(numbers)[:20_000]])
    per_block = np.bincount(chosen // 20_000, minlength=10)
    assert abs(per_block - 2_000).max() < 200  # about five standard deviations
    assert (np.argsort(priorities(rows, 1))[:100] != np.argsort(numbers)[:100]).any()


def test_strata_hold_every_row_once_whatever_order_the_names_were_met_in():
    rng = np.random.default_rng(0)
    index = rng.integers(-1, 3, size=1_000).astype(np.int32)
    one = Strata(index, [("b",), ("a",), ("c",)], 5)
    renamed = np.array([1, 0, 2, -1], dtype=np.int32)[index]
    other = Strata(renamed, [("a",), ("b",), ("c",)], 5)
    assert one.names == other.names == [("a",), ("b",), ("c",)]
    for left, right in zip(one.queues, other.queues, strict=True):
        assert left.tolist() == right.tolist()
    assert sorted(np.concatenate(one.queues).tolist()) == np.flatnonzero(index >= 0).tolist()
    assert one.counts == [int((index == i).sum()) for i in (1, 0, 2)]


def test_empty_strata():
    assert Strata(np.zeros(0, dtype=np.int32), [], 1).counts == []
    assert Strata(np.full(5, -1, dtype=np.int32), [("a",)], 1).counts == [0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None, "a"]), ["a", None, "a"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([True, False, None]), ["True", "False", None]),
        (pa.array([None, None], pa.null()), [None, None]),
        (pa.array([["x"], ["y", "z"]]), ["['x']", "['y', 'z']"]),
        (pa.array([], pa.string()), []),
        (pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()), ["\ufffd"]),
    ],
)
def test_columns_as_different_values_and_indices(column, expected):
    values, codes = factorize(column)
    assert [values[code] for code in codes] == expected


GOOD = {
    "prompt_input_quality": "Excellent",
    "prompt_is_coherent": "True",
    "prompt_is_natural": "Yes",
    "prompt_sensitivity": None,
    "prompt_primary_language": "Filipino_NativeScript",
}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("prompt_input_quality", "Excellent", None),
        ("prompt_input_quality", " excellent", None),
        ("prompt_input_quality", "Good", "not excellent"),
        ("prompt_input_quality", None, "not excellent"),
        ("prompt_is_coherent", "true", None),
        ("prompt_is_coherent", "1", None),
        ("prompt_is_coherent", "False", "not coherent"),
        ("prompt_is_coherent", "No", "not coherent"),
        ("prompt_is_coherent", None, "not coherent"),
        ("prompt_is_natural", "no", "not natural"),
        ("prompt_sensitivity", "None", None),
        ("prompt_sensitivity", "Sensitive_Politics", None),
        ("prompt_sensitivity", "Not_Harmful", None),
        ("prompt_sensitivity", "Harmful_Violence", "harmful"),
        ("prompt_sensitivity", "['None', 'Harmful_Violence']", "harmful"),
        ("prompt_primary_language", "Tagalog", None),
        ("prompt_primary_language", "tl", None),
        ("prompt_primary_language", None, None),
        ("prompt_primary_language", "English", "other language"),
        ("prompt_primary_language", "Tamil_NativeScript", "other language"),
    ],
)
def test_quality_rules(column, value, reason):
    row = {**GOOD, column: value}
    quality = QualityFilter("tl", True, frozenset(row))
    batch = pa.RecordBatch.from_pylist([GOOD, row, GOOD], schema=pa.schema([(name, pa.string()) for name in row]))
    assert [quality.reason(number) for number in quality.failed(batch)] == [None, reason, None]
    counts: Counter[str] = Counter()
    quality.count(quality.failed(batch), counts)
    assert counts == ({reason: 1} if reason else {})


def test_real_booleans_pass_and_an_off_filter_reads_nothing():
    batch = pa.RecordBatch.from_pylist([{**GOOD, "prompt_is_coherent": True, "prompt_is_natural": False}])
    assert QualityFilter("tl", True, frozenset(GOOD)).failed(batch).tolist() == [3]
    off = QualityFilter("tl", False, frozenset(GOOD))
    assert off.columns == () and off.failed(batch).tolist() == [0]


def test_stratum_numbers_agree_over_batches():
    index = StratumIndex()
    first = index.of(pa.RecordBatch.from_pylist([{"a": "x", "b": "1"}, {"a": "y", "b": None}]), ("a", "b"))
    second = index.of(pa.RecordBatch.from_pylist([{"a": "y", "b": ""}, {"a": "x", "b": "1"}]), ("a", "b"))
    assert first.tolist() == second.tolist()[::-1]
    assert set(index.names) == {("x", "1"), ("y", "")}
