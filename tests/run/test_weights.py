"""Answers of weight 0 are not trained on: neither as y, nor among all answers of a conversation."""

import pytest
from kit.data import write_jsonl
from kit.world import World

from dudi.errors import DudiError

WEIGHTED = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "jelek", "weight": 0},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "bagus", "weight": 1},
]


def test_a_loss_on_all_answers_refuses_rows_that_leave_some_out(tmp_path):
    world = World(tmp_path)
    write_jsonl(tmp_path / "weighted.jsonl", [{"id": "w", "language": "id", "messages": WEIGHTED}])
    changes = {"data.source": "@weighted.jsonl", "data.languages": ("id",)}
    for method in ({"name": "sft"}, {"name": "sft", "loss_on": "all_assistant"}):
        table = world.table({**changes, "method": method, "data.ignore": ("weight",)})
        assert [row.example.y for row in world.start(table)[0].rows] == ["bagus"]
    job, *_ = world.start(world.table({**changes, "method": {"name": "sft"}}))
    assert [row.example.untrained for row in job.rows] == [(1,)]
    everything = {"name": "sft", "loss_on": "all_assistant"}
    for change in ({"method": everything}, {"cold_start.method": everything}):
        with pytest.raises(DudiError, match=r"row 'w' has earlier answers of weight 0, .*use loss_on = \"last\""):
            world.start(world.table({**changes, **change}))
