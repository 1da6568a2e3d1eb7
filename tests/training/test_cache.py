"""What is frozen is computed once: the same training as without a cache, and files that are right or written again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit import runs
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from dudi.errors import DudiError
from dudi.recipe.schema import Limits
from dudi.training import faults
from dudi.training.cache import FOLDER
from dudi.training.trainer import DistillationTrainer

METHODS: dict[str, dict[str, Any]] = {
    "spin": {"name": "spin"},
    "spin-online": {"name": "spin", "variant": "online"},
    "seqkd-jsd": {"name": "seqkd", "variant": "jsd"},
    "gkd-off": {"name": "gkd", "lam": 0.0},
    "gkd-coin": {"name": "gkd"},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "dudi": {"name": "dudi"},
}
"""Those that score a response which stays the same."""


def made(folder: Path, method: str, rows: Any = None, dtype: Any = torch.float32, **more: Any) -> DistillationTrainer:
    """Seven rows in batches of four, two epochs; evaluations of two rows after steps 2 and 4; sampled responses."""
    examples = kit.short_rows(9) if rows is None else rows
    training = {"batch": 4, "micro_batch": 3, "epochs": 2.0, "eval_every": 2, "overlap_every": 2}
    return kit.trainer(
        folder,
        METHODS[method],
        student=kit.model(1, rows=kit.VOCAB + 6, dtype=dtype),
        examples=examples[:7],
        evals=examples[7:],
        forced=False,
        **{**training, **more},
    )


def trained(folder: Path, method: str, **more: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Weights and metrics after two epochs."""
    t = made(folder, method, **more)
    t.train()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6
    return {name: p.detach() for name, p in t.model.named_parameters()}, [json.loads(line) for line in lines]


def filled(t: DistillationTrainer) -> DistillationTrainer:
    t._fill_cache()
    return t


def kept(t: DistillationTrainer) -> list[Tensor]:
    """All that a filled cache answers, row by row."""
    found = []
    for (view, _, _), (number, tokens, row) in t.cache._where.items():
        if view in t.cache.judged:
            found.append(t.cache.store.part(number, f"teacher.{view.name}", tokens))
        if view in t.cache.compared:
            found.append(t.cache.store.part(number, f"reference.{view.name}", row))
    assert found
    return [part.clone() for part in found]  # of a file they are a window to the disk


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def files(folder: Path) -> dict[str, int]:
    """When each file of a cache was written."""
    return {file.name: file.stat().st_mtime_ns for file in sorted((folder / FOLDER).iterdir())}


# ── the same numbers ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name == "dudi" else pytest.mark.slow) for name in METHODS]
)
def test_the_same_training_with_and_without(method: str, tmp_path: Path) -> None:
    """Weights, losses of training and evaluation, overlap: to rounding in micro-batches; memory and disk alike."""
    without = trained(tmp_path / "off", method, dtype=torch.float64)
    memory, disk = (trained(tmp_path / where, method, dtype=torch.float64, cache=where) for where in ("memory", "disk"))
    assert runs.identical(memory[0], disk[0]) and memory[1] == disk[1]
    assert runs.furthest(without[0], memory[0]) < 1e-6
    for line, wanted in zip(memory[1], without[1], strict=True):
        runs.assert_close(line, wanted)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        pytest.param("spin", "disk", marks=pytest.mark.slow),
        ("seqkd-jsd", "memory"),
    ],
)
def test_rows_read_alone_give_the_same_bits(method: str, where: str, tmp_path: Path) -> None:
    """With `micro_batch = 1` a row has the same shape in both, unless a response that is not kept shares its prompt."""
    without = trained(tmp_path / "off", method, micro_batch=1)
    cached = trained(tmp_path / where, method, micro_batch=1, cache=where)
    assert runs.identical(without[0], cached[0]) and without[1] == cached[1]


@pytest.mark.slow
def test_under_autocast(tmp_path: Path) -> None:
    """The teacher's own dtype is kept, and the same bits come back."""
    without = trained(tmp_path / "off", "dudi", micro_batch=1, autocast=True)
    t = made(tmp_path / "on", "dudi", micro_batch=1, autocast=True, cache="disk")
    assert t.job.teacher is not None
    t.job.teacher.bfloat16()
    assert {part.dtype for part in kept(filled(t))} == {torch.bfloat16, torch.float64}
    assert runs.identical(without[0], trained(tmp_path / "two", "dudi", micro_batch=1, autocast=True, cache="disk")[0])


@pytest.mark.parametrize("method", ["spin", "seqkd-jsd", "gkd-off"])
def test_frozen_models_are_asked_once(method: str, tmp_path: Path) -> None:
    """Methods that score nothing else: once the cache is filled, neither teacher nor R is called any more."""
    rows = kit.short_rows(7) if method == "gkd-off" else None  # evaluations read both sides of its coin
    t = filled(made(tmp_path, method, rows, cache="memory"))
    called: list[Any] = []
    for reader in (t.teacher, t.reference):
        if reader is not None:
            reader.model.register_forward_pre_hook(lambda *_: called.append(1))
            reader.model.base_model.register_forward_pre_hook(lambda *_: called.append(1))
    t.train()
    assert not called
    assert t.state.global_step == 4


def test_what_is_sampled_is_read_each_time(tmp_path: Path) -> None:
    t = made(tmp_path, "dudi", cache="memory")
    assert [view.name for view in t.cache.judged] == [view.name for view in t.cache.compared] == ["y"]
    assert t.teacher is not None
    called: list[Any] = []
    t.teacher.model.base_model.register_forward_pre_hook(lambda *_: called.append(1))
    filled(t)
    groups = len(called)
    kit.step(t)
    assert groups == 4 and len(called) == groups + 2, "seven rows and two by threes; then y~ of four by threes"


@pytest.mark.parametrize("method", [{"name": "sft"}, {"name": "sdft"}, {"name": "seqkd"}])
def test_methods_without_a_frozen_reading_keep_nothing(method: dict[str, Any], tmp_path: Path) -> None:
    """A moving average is not frozen."""
    t = kit.trainer(tmp_path, method, cache="disk")
    t.train()
    assert not t.cache.empty and not t.cache._where and not (tmp_path / FOLDER).exists()


def test_order_of_steps_and_rows_of_a_step_change_no_value(tmp_path: Path) -> None:
    """Another seed and another batch: other steps, the same groups."""
    one = kept(filled(made(tmp_path / "a", "dudi", cache="memory")))
    assert same(one, kept(filled(made(tmp_path / "b", "dudi", cache="memory", seed=7, batch=2, max_steps=1))))
    assert not same(one, kept(filled(made(tmp_path / "c", "dudi", cache="memory", micro_batch=1))))


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip_data(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


def flip_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)


def no_metadata(file: Path) -> None:
    save_file(load_file(file), file)


def other_tensors(file: Path) -> None:
    """As sound as a file can be, but for its sum."""
    other = {name: tensor + 1 for name, tensor in load_file(file).items()}
    key = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])["__metadata__"]
    file.write_bytes(save(other, metadata=key))


def anothers(file: Path) -> None:
    """Another group's file under this name."""
    file.write_bytes(file.with_name("group-000000.safetensors").read_bytes())


@pytest.mark.parametrize(
    "damage", [truncate, flip_data, flip_header, no_metadata, other_tensors, anothers, Path.unlink]
)
def test_a_damaged_file_is_written_again(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    """That one, and no other."""
    whole = kept(filled(made(tmp_path, "dudi", cache="disk")))
    before = files(tmp_path)
    broken = tmp_path / FOLDER / "group-000002.safetensors"
    damage(broken)
    said: list[str] = []
    t = made(tmp_path, "dudi", cache="disk")
    t.cache.store.say = said.append  # type: ignore[attr-defined]
    assert same(whole, kept(filled(t)))
    after = files(tmp_path)
    assert after.keys() == before.keys() and len(after) == 4
    assert [name for name in after if after[name] != before[name]] == [broken.name]
    assert bool(said) == (damage is not Path.unlink)
    assert all("1 of 4 files" in line and "computed again" in line for line in said)


def test_a_sound_cache_is_not_read_again(tmp_path: Path) -> None:
    filled(made(tmp_path, "dudi", cache="disk"))
    t = made(tmp_path, "dudi", cache="disk")
    t.cache.read = None  # type: ignore[assignment]
    assert kept(filled(t))


def nudged(model: Any) -> None:
    """The last bit of one weight."""
    with torch.no_grad():
        list(model.parameters())[3].view(-1)[0:1].view(torch.int32)[0] ^= 1


def shifted(rows: Any) -> Any:
    """The same rows; the first has another answer."""
    first = rows[0]
    return [type(first)(first.x, first.y + "!", first.l, first.id), *rows[1:]]


FOREIGN: dict[str, tuple[Callable[[DistillationTrainer], Any], dict[str, Any], int]] = {
    "teacher": (lambda t: nudged(t.job.teacher), {}, 4),
    "reference": (lambda t: nudged(t.job.reference), {}, 4),
    "config": (lambda t: setattr(t.job.teacher.config, "rms_norm_eps", 1e-5), {}, 4),
    "vocabulary": (lambda t: setattr(t.reference, "vocab", kit.VOCAB + 1), {}, 4),
    "limits": (lambda t: None, {"limits": Limits(prompt=400, total=80, rollout=8)}, 4),
    "row": (lambda t: None, {"rows": shifted(kit.short_rows(9))}, 1),
    "micro_batch": (lambda t: None, {"micro_batch": 4}, 3),
    "method": (lambda t: None, {"method": "gkd-off"}, 4),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_cache_is_never_read(what: str, tmp_path: Path) -> None:
    """Of other weights, configuration, vocabulary, limits, rows: what depends on them is written again."""
    filled(made(tmp_path, "dudi", cache="disk"))
    before = files(tmp_path)
    change, more, wanted = FOREIGN[what]
    more = {"method": "dudi", **more}
    t, fresh = (made(folder, cache="disk", **more) for folder in (tmp_path, tmp_path / "fresh"))
    change(t), change(fresh)
    assert same(kept(filled(t)), kept(filled(fresh)))
    after = files(tmp_path)
    assert after.keys() == files(tmp_path / "fresh").keys(), "what is no group's is gone"
    written = [name for name in after if after[name] != before.get(name)]
    assert len(written) >= wanted if what == "row" else len(written) == wanted
    assert what != "row" or len(written) < len(after), "groups without that row are kept"


def test_another_tokenizer_is_another_cache(tmp_path: Path) -> None:
    """Other token ids of the same rows."""
    filled(made(tmp_path, "gkd-off", cache="disk"))
    before = files(tmp_path)
    t = filled(made(tmp_path, "gkd-off", cache="disk", tok=kit.tokenizer(300)))
    after = files(tmp_path)
    assert len(after) == 4 and all(when != before.get(name) for name, when in after.items())
    assert same(kept(t), kept(filled(made(tmp_path / "fresh", "gkd-off", cache="disk", tok=kit.tokenizer(300)))))


def test_a_file_that_goes_while_it_is_needed(tmp_path: Path) -> None:
    t = filled(made(tmp_path, "gkd-off", cache="disk"))
    for file in (tmp_path / FOLDER).iterdir():
        file.unlink()
    with pytest.raises(DudiError, match=r"group-\d+\.safetensors: cannot be read.*--resume"):
        kit.step(t)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; what was written before stays, and nothing half-written."""
    written: list[Path] = []
    real = Path.write_bytes

    def write(self: Path, data: Any) -> int:
        if len(written) == 2:
            real(self, data[:100])
            raise OSError(28, "No space left on device", str(self))
        written.append(self)
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(DudiError, match=r"cache: cannot be written .*No space left.*--resume"):
        filled(made(tmp_path, "gkd-off", cache="disk"))
    assert [*files(tmp_path)] == ["group-000000.safetensors", "group-000001.safetensors"]


def test_a_signal_stops_the_filling(tmp_path: Path) -> None:
    t = made(tmp_path, "gkd-off", cache="disk")
    real = t.cache.read

    def read(*arguments: Any) -> Any:
        t.stop.name = "SIGTERM"
        return real(*arguments)

    t.cache.read = read
    with pytest.raises(faults.Preempted, match="stopped by SIGTERM while the cache was filled"):
        t.train()
    assert len(files(tmp_path)) == 1, "the file that was under way is finished"
