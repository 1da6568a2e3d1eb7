"""What must not change a step's result: how rows are split into micro-batches, how wide they are padded, what is asked
beside them. Every method; forced responses first, then sampled ones, whose tokens are compared before the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kit
import pytest
import torch

from dudi.example import Example, Message
from dudi.files import read_lines
from dudi.models.reader import head_of
from dudi.recipe.schema import Limits
from dudi.rollouts import Request, Rollout, Sampling, uniforms
from dudi.rollouts.answers import inverse_cdf
from dudi.rollouts.local import LocalEngine
from dudi.text.chat import Chat
from dudi.training import trainer as trainer_module
from dudi.training.metrics import record
from dudi.training.trainer import DistillationTrainer
from dudi.training.window import Row, Window, collate

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "sft-all-turns": {"name": "sft", "loss_on": "all_assistant"},
    "dft": {"name": "dft"},
    "spin": {"name": "spin"},
    "spin-online": {"name": "spin", "variant": "online"},
    "sdft": {"name": "sdft"},
    "sdft-reverse": {"name": "sdft", "variant": "reverse"},
    "seqkd": {"name": "seqkd"},
    "seqkd-jsd": {"name": "seqkd", "variant": "jsd"},
    "gkd-on": {"name": "gkd", "lam": 1.0},
    "gkd-off": {"name": "gkd", "lam": 0.0},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "dudi": {"name": "dudi"},
    "dudi-jsd-mix": {"name": "dudi", "divergence": "jsd", "verbalizer": "mix"},
}
SAMPLED = ("spin-online", "sdft", "gkd-on", "gkd-sum", "dudi")


def first(of: Iterable[str], *fast: str) -> list[Any]:
    """Methods, all but the named ones slow: those named have every kind of signal, weight and reading between them."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in of]


FEW = first(METHODS, "sft", "spin", "gkd-sum", "dudi")
LIMITS = Limits(prompt=800, verbalizer=300, total=1000, rollout=8, teacher_prompt=3000)


class Recorder:
    """A sampler that keeps what it returned, by (row index, view)."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.tokens = inner, {}

    def __call__(self, model: Any, requests: Any) -> list[Rollout]:
        found = self.inner(model, requests)
        for request, rollout in zip(requests, found, strict=True):
            self.tokens[request.key[3], request.key[4]] = rollout
        return found


class Seen:
    """The micro-batches of a step: their row numbers, and the padded widths of their blocks by view and reader."""

    def __init__(self) -> None:
        self.places: list[list[int]] = []
        self.widths: dict[tuple[str, str], int] = {}


@contextmanager
def watched() -> Iterator[Seen]:
    """Record what the trainer collates."""
    seen = Seen()

    def spy(window: Window, places: list[int], pad: int, device: torch.device) -> Any:
        seen.places.append(list(places))
        blocks = collate(window, places, pad, device)
        for view, block in blocks.items():
            for who, reading in (("student", block.student), ("teacher", block.teacher)):
                if reading is not None:
                    key = (view.name, who)
                    seen.widths[key] = max(seen.widths.get(key, 0), reading.input_ids.shape[1])
        return blocks

    trainer_module.collate, before = spy, trainer_module.collate
    try:
        yield seen
    finally:
        trainer_module.collate = before


def apart(student: Any) -> Any:
    """Move the student off the moving-average teacher, so that SDFT has something to learn."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return student


def examples() -> list[Example]:
    """Eight rows, six languages, ragged; a system turn and several turns among them."""
    rows = kit.builtin()
    found = [next(e for e in rows if e.l == l) for l in ("id", "vi", "th", "tl", "ms", "my")]
    found += [next(e for e in rows if e.l == l and len(e.x) > 2) for l in ("ms", "tl")]
    assert any(e.x[0].role == "system" for e in found)
    return found


def made(folder: Path, method: str, **kwargs: Any) -> DistillationTrainer:
    found = kit.trainer(folder, METHODS[method], limits=LIMITS, examples=examples(), **kwargs)
    apart(found.model)
    return found


def close(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]], tolerance: float
) -> None:
    """Same loss and same gradient of every parameter, relative to the largest gradient."""
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=tolerance)
    assert one[1].keys() == other[1].keys()
    largest = max(float(g.abs().max()) for g in one[1].values())
    assert largest > 1e-5, "the step has no gradient, so the comparison says nothing"
    worst = max(float((g - other[1][name]).abs().max()) for name, g in one[1].items())
    assert worst <= tolerance * max(largest, 1.0)


def same_metrics(a: DistillationTrainer, b: DistillationTrainer, tolerance: float) -> None:
    """Same sums by signal and language."""
    assert a.meter.sums.keys() == b.meter.sums.keys()
    for key, value in a.meter.sums.items():
        assert value == pytest.approx(b.meter.sums[key], rel=tolerance, abs=tolerance), key


# ── micro-batches ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "method", first(METHODS, "sft-all-turns", "dft", "spin", "sdft", "seqkd-jsd", "gkd-sum", "dudi")
)
def test_micro_batching_changes_nothing(method: str, tmp_path: Path) -> None:
    found = {}
    for size in (8, 4, 2):
        t = made(tmp_path / str(size), method, micro_batch=size)
        with watched() as seen:
            found[size] = (t, kit.step(t))
        assert [len(p) for p in seen.places] == [size] * (8 // size)
        assert sorted(place for places in seen.places for place in places) == list(range(8))
    for size in (4, 2):
        close(found[8][1], found[size][1], 1e-9)
        same_metrics(found[8][0], found[size][0], 1e-9)


@pytest.mark.parametrize("method", first(("spin", "seqkd-jsd", "gkd-off", "dudi"), "spin", "dudi"))
def test_a_cache_changes_nothing(method: str, tmp_path: Path) -> None:
    """Neither does the size of the groups in which it is filled."""
    plain = made(tmp_path / "off", method, micro_batch=8)
    wanted = kit.step(plain)
    for size, cache in ((8, "memory"), (3, "disk"), (1, "memory")):
        t = made(tmp_path / str(size), method, micro_batch=size, cache=cache)
        close(wanted, kit.step(t), 1e-9)
        same_metrics(plain, t, 1e-9)


@pytest.mark.parametrize(("method", "tokens"), [("sft", 400), ("dudi", 1700)])
def test_token_budget_changes_nothing(method: str, tokens: int, tmp_path: Path) -> None:
    whole, split = made(tmp_path / "a", method), made(tmp_path / "b", method, micro_batch_tokens=tokens)
    with watched() as seen:
        close(kit.step(whole), kit.step(split), 1e-9)
    sizes = [len(p) for p in seen.places]
    assert sizes[0] == 8 and len(sizes) > 2 and len(set(sizes[1:])) > 1, "uneven micro-batches"


@pytest.mark.parametrize("method", SAMPLED)
def test_micro_batching_changes_nothing_with_sampled_responses(method: str, tmp_path: Path) -> None:
    found = {}
    for size in (8, 4, 2):
        t = made(tmp_path / str(size), method, micro_batch=size, forced=False)
        recorder = Recorder(t.job.builder.engine)
        object.__setattr__(t.job.builder, "engine", recorder)
        found[size] = (recorder.tokens, kit.step(t))
        assert len(recorder.tokens) == 8 * (2 if method == "dudi" else 1)
    for size in (4, 2):
        assert found[size][0] == found[8][0]
        close(found[8][1], found[size][1], 1e-9)


@pytest.mark.parametrize("method", first(("gkd-sum", "dudi"), "dudi"))
def test_two_epochs_end_alike_whatever_the_micro_batch(method: str, tmp_path: Path) -> None:
    """Sampled responses, so a difference in any step would come back in the next one's tokens."""
    ends = []
    for size in (5, 2):
        t = made(tmp_path / str(size), method, batch=5, micro_batch=size, epochs=2.0, forced=False)
        t.train()
        ends.append((t.model, (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()))
    assert len(ends[0][1]) == len(ends[1][1]) == 4, "two steps an epoch, the second ragged"
    for one, other in zip(ends[0][0].parameters(), ends[1][0].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


class EachStep(Recorder):
    """Keeps what it returned at each step."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.steps: list[list[Rollout]] = []

    def __call__(self, model: Any, requests: Any) -> list[Rollout]:
        self.steps.append(super().__call__(model, requests))
        return self.steps[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 1e-3)], ids=["float32", "bfloat16"])
def test_sampled_steps_agree_until_rounding_tips_a_token(autocast: bool, tolerance: float, tmp_path: Path) -> None:
    """The first rollouts are of the same weights: the same tokens. After that the weights differ in their last bits,
    and losses agree up to rounding for as long as all tokens do, which may end at any step."""
    runs: list[tuple[list[list[Rollout]], list[float]]] = []
    for size in (5, 2):
        student, folder = kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32), tmp_path / str(size)
        t = made(
            folder, "dudi", student=student, autocast=autocast, batch=5, micro_batch=size, epochs=2.0, forced=False
        )
        recorder = EachStep(t.job.builder.engine)
        object.__setattr__(t.job.builder, "engine", recorder)
        t.train()
        runs.append((recorder.steps, [line["loss"] for line in read_lines(folder / "metrics.jsonl")]))
    (tokens, losses), (others, other_losses) = runs
    assert len(tokens) == len(others) == len(losses) == len(other_losses) == 4
    same = next((k for k, (a, b) in enumerate(zip(tokens, others, strict=True)) if a != b), 4)
    assert same >= 1 and losses[:same] == pytest.approx(other_losses[:same], rel=tolerance)
    assert losses[0] != pytest.approx(losses[1], rel=10 * tolerance), "steps differ by more than what is allowed"


@pytest.mark.parametrize("method", SAMPLED)
def test_tokens_do_not_depend_on_who_else_is_asked(method: str, tmp_path: Path) -> None:
    """All rows at once, two ranks' halves, and one row alone: the same tokens (float64, a small vocabulary)."""
    t = made(tmp_path, method, forced=False)
    builder, signals = t.job.builder, t.job.method.active(0, 0)
    epoch, rows, weight = t.window_rows(0)

    def tokens(chosen: slice) -> dict[tuple[int, str], tuple[int, ...]]:
        window = builder.build(t.model, signals, rows[chosen], weight[chosen], epoch)
        return {
            (row.index, view.name): item.response
            for view, items in window.items.items()
            if view.response.sampled
            for row, item in zip(window.rows, items, strict=True)
            if item is not None
        }

    whole = tokens(slice(None))
    assert len(set(whole.values())) >= 7
    assert tokens(slice(0, None, 2)) | tokens(slice(1, None, 2)) == whole
    assert tokens(slice(0, 1)).items() <= whole.items()
    assert tokens(slice(None, None, -1)) == whole


# ── padding ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def padded(t: DistillationTrainer, more: int) -> Row:
    """Give every step a row of weight 0 whose prompt is `more` tokens longer than the longest of the others."""
    before = t.window_rows
    longest = max(t.job.rows, key=lambda r: len(r.x) + len(r.y))
    example = longest.example
    filler = kit.message(*[m.content for m in example.x if m.role != "system"])
    text = filler[-1].content
    chat = t.job.builder.chat
    wanted = max(len(r.x) for r in t.job.rows) + max(len(r.y) for r in t.job.rows) + more
    while len(chat.prompt((*filler[:-1], Message("user", text)))) < wanted:
        text += " 7"
    x = (*filler[:-1], Message("user", text))
    row = Row(999, Example(x, example.y, example.l, "longer"), tuple(chat.prompt(x)), longest.y, False)
    stored = t.job.builder.stored
    object.__setattr__(t.job.builder, "stored", {**stored, 999: Rollout((5, 6, 7), False)} if stored else stored)

    def rows(step: int) -> tuple[int, list[Row], list[float]]:
        epoch, found, weight = before(step)
        return epoch, [row, *found], [0.0, *weight]

    t.window_rows = rows  # type: ignore[method-assign]
    return row


@pytest.mark.parametrize("method", FEW)
def test_more_padding_changes_nothing(method: str, tmp_path: Path) -> None:
    """A longer row of weight 0: every block of both models gets 25 columns wider, and one row that does not count."""
    plain, wide = made(tmp_path / "a", method, micro_batch=9), made(tmp_path / "b", method, micro_batch=9)
    padded(wide, 25)
    with watched() as narrow:
        one = kit.step(plain)
    with watched() as wider:
        other = kit.step(wide)
    assert narrow.widths.keys() == wider.widths.keys() and narrow.widths
    for key, width in narrow.widths.items():
        assert wider.widths[key] >= width + 25, key
    assert [len(p) for p in wider.places] == [9]
    close(one, other, 1e-9)
    same_metrics(plain, wide, 1e-9)


@pytest.mark.parametrize("method", first(SAMPLED, "sdft", "dudi"))
def test_more_left_padding_changes_no_sampled_token(method: str, tmp_path: Path) -> None:
    """The longer row pads all prompts on the left, in the rollouts too."""
    found = []
    for name in ("plain", "wide"):
        t = made(tmp_path / name, method, micro_batch=9, forced=False)
        if name == "wide":
            padded(t, 25)
        recorder = Recorder(t.job.builder.engine)
        object.__setattr__(t.job.builder, "engine", recorder)
        found.append((kit.step(t), recorder.tokens))
    (one, narrow), (other, wide) = found
    assert len(wide) == len(narrow) * 9 // 8
    assert {key: wide[key] for key in narrow} == narrow
    close(one, other, 1e-9)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_left_padding_by_25(kind: str) -> None:
    """The sampler alone, other positions scheme or not: 25 pad tokens before a prompt change none of its tokens."""
    model = kit.model(4, kind=kind, sharpness=3.0).eval()
    sampler = LocalEngine(Sampling(range(0, kit.VOCAB, 9), 0, kit.VOCAB, 0.9))
    requests = [Request(tuple(range(10, 10 + n)), (0, n), 12) for n in (3, 9, 17, 20)]
    longer = Request(tuple(range(10, 10 + 20 + 25)), (0, 99), 12)
    found = sampler(model, requests)
    assert sampler(model, [*requests, longer])[:4] == found
    assert len({r.ids for r in found}) == 4 and any(r.finished for r in found)
    shifted = [Request(r.prompt, (*r.key, "other"), 12) for r in requests]
    assert sampler(model, shifted) != found, "the key matters, so equality above says something"


def test_left_padding_is_masked() -> None:
    """The logits behind each sampled token are those of the unpadded prompt, to float64 rounding."""
    model = kit.model(4, sharpness=3.0).eval()
    sampler = LocalEngine(Sampling((2,), 0, kit.VOCAB, 1.0))
    requests = [Request(tuple(range(10, 10 + n)), (0, n), 6) for n in (3, 31)]
    head = head_of(model, kit.VOCAB)
    u = torch.from_numpy(uniforms(requests, 6))
    for k, (request, rollout) in enumerate(zip(requests, sampler(model, requests), strict=True)):
        ids = torch.tensor([[*request.prompt, *rollout.ids]])
        with torch.no_grad():
            logits = head.logits(model.base_model(input_ids=ids).last_hidden_state[0])
        for t, token in enumerate(rollout.ids):
            assert int(inverse_cdf(logits[None, len(request.prompt) + t - 1], u[k : k + 1, t])) == token


@pytest.mark.parametrize("method", FEW)
def test_which_token_pads_changes_nothing(method: str, tmp_path: Path) -> None:
    """Masks come from lengths: pad may be any token, even the one that ends a turn, bit for bit."""
    results = []
    for name, pad in (("a", "<|endoftext|>"), ("b", "<|im_end|>")):
        tok = kit.tokenizer()
        tok.pad_token = pad
        t = made(tmp_path / name, method, tok=tok)
        assert t.job.builder.chat.pad == tok.convert_tokens_to_ids(pad)
        results.append(kit.step(t))
    assert Chat(tok, None, {}).pad == Chat(tok, None, {}).turn_end
    assert results[0][0] == results[1][0]
    for name, g in results[0][1].items():
        if "embed_tokens" not in name:
            assert torch.equal(g, results[1][1][name])
    close(results[0], results[1], 1e-12)


# ── rows that do not count ───────────────────────────────────────────────────────────────────────────────────────────
def test_rows_of_weight_zero_are_in_no_count(tmp_path: Path) -> None:
    t = made(tmp_path, "dudi", micro_batch=9)
    epoch, rows, weight = t.window_rows(0)
    signals = t.job.method.signals
    build = t.job.builder.build
    alone = build(t.model, signals, rows, weight, epoch).counts(signals)
    filled = build(t.model, signals, [*rows, rows[0], rows[1]], [*weight, 0.0, 0.0], epoch).counts(signals)
    halved = build(t.model, signals, [*rows, rows[0]], [0.0, *weight[1:], 1.0], epoch).counts(signals)
    assert alone == filled == halved
    assert alone["sequence"] == 8


def test_counts_are_of_the_sampled_tokens(tmp_path: Path) -> None:
    """Doubling every on-policy response leaves the mean a mean: a loss divided by gold tokens would double."""
    t = made(tmp_path, "gkd-on")
    kit.step(t)
    entry = record(t.meter.sums, t.job.method.signals)["signal"]["on_policy"]
    forced = kit.Forced(t.job.builder.chat)
    tokens = sum(len(forced.response(row.index, "y_tilde").ids) for row in t.job.rows)
    gold = sum(len(row.y) for row in t.job.rows)
    assert entry["count"] == tokens != gold
    assert t.meter.sums["loss"] == pytest.approx(entry["loss"], rel=1e-12)
