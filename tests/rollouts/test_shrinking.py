"""A batch becomes smaller as answers end; the family of Llama and Qwen is decoded in fewer operations: same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kit
import pytest
import torch
from kit.architectures import VOCAB, build
from kit.oracle import lively, sample, use_exact_norms
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from dudi.errors import DudiError
from dudi.models.decoding import OwnDecoder, decoder
from dudi.models.fused import FusedDecoder, _Norm, is_fusable
from dudi.models.products import PANEL, WIDE, Product
from dudi.recipe.read import parse_recipe
from dudi.rollouts import Request, Sampling, uniforms
from dudi.rollouts.local import GRAPH_LADDER, LADDER, LocalEngine
from dudi.run.pipeline import run

SAMPLING = Sampling((), 0, kit.VOCAB, 0.9)
MASK = torch.ones(3, 12, dtype=torch.long)
PADDED = MASK.clone()
PADDED[1, :4], PADDED[2, :2] = 0, 0


def lives(count: int, limits: Callable[[int], int]) -> list[Request]:
    """Prompts of unequal lengths; answer k has limits(k) tokens."""
    g = torch.Generator().manual_seed(5)
    prompts = [tuple(torch.randint(3, kit.VOCAB, (3 + k % 5,), generator=g).tolist()) for k in range(count)]
    return [Request(prompt, ("train", 0, 0, k, "y_prime"), limits(k)) for k, prompt in enumerate(prompts)]


def watched(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with a hook that does nothing: it is read through its own forward."""
    model.base_model.register_forward_hook(lambda *_: None)
    return model


# ── fewer rows ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("own", [FusedDecoder, OwnDecoder])
def test_rows_that_have_ended_are_dropped(own: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the next step of the ladder; what goes on says what it would say alone."""
    use_exact_norms(monkeypatch)
    model = lively(kit.model(4, sharpness=3.0)).eval()
    model = watched(model) if own is OwnDecoder else model
    engine, sizes, plain = LocalEngine(SAMPLING), list[int](), own.__call__
    asked = lives(14, lambda k: 1 + (5 * k) % 14)  # the last of them is in the middle
    engine(model, asked[:1])  # the first rollout of a model tries out its decoding

    def counted(self: OwnDecoder | FusedDecoder, ids: Tensor) -> Tensor:
        sizes.append(len(ids))
        return plain(self, ids)

    monkeypatch.setattr(own, "__call__", counted)
    found = engine(model, asked)
    assert sizes == [14, 14, 12, 12, 12, 12, 8, 8, 6, 6, 4, 3, 2, 1][: len(sizes)] and len(sizes) == 14
    u = uniforms(asked, 14)
    alone = [sample(model, r.prompt, u[k].tolist(), kit.VOCAB, 0.9, (), r.limit) for k, r in enumerate(asked)]
    assert [(r.ids, r.finished) for r in found] == alone


def test_the_steps_of_a_batch_are_few() -> None:
    assert LADDER[:8] == (1, 2, 3, 4, 6, 8, 12, 16) and GRAPH_LADDER[:4] == (1, 4, 16, 64)
    assert len([size for size in LADDER if size <= 1024]) == 20


def test_states_that_no_cache_holds_are_not_dropped() -> None:
    """RecurrentGemma's lie in its modules: its batch stays whole (and its answers right)."""
    model = build("recurrent_gemma")
    feed = decoder(model, MASK)
    with torch.no_grad():
        feed(torch.arange(15).view(3, 5))
    assert not feed.shrinks


@torch.no_grad()
def test_keys_and_values_stay_where_they_are() -> None:
    """Nothing is copied for a new token."""
    feed = OwnDecoder(watched(kit.model(1).eval()), MASK)
    feed(torch.arange(15).view(3, 5))
    assert type(feed.cache) is DynamicCache
    places = [layer.keys.data_ptr() for layer in feed.cache.layers]
    for t in range(7):
        feed(torch.full((3, 1), 20 + t))
    assert [layer.keys.data_ptr() for layer in feed.cache.layers] == places
    assert [layer.keys.shape[2] for layer in feed.cache.layers] == [12, 12]


# ── fewer operations ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", kit.CLASSES)
@pytest.mark.parametrize("mask", [MASK, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("fixed", [False, True])
@torch.no_grad()
def test_hidden_states_are_those_of_the_models_own_forward(kind: str, mask: Tensor, fixed: bool) -> None:
    """In float64: prompts, steps, and steps of fewer rows; as on a CPU, and with the fixed shapes of a CUDA graph."""
    model = lively(kit.model(3, kind=kind)).eval()
    for p in model.parameters():  # biases and norms too, which start at 0 and 1
        p.add_(0.1 * torch.rand_like(p))
    ours, theirs = FusedDecoder(model, mask, fixed), OwnDecoder(model, mask)
    feeds = (ours, theirs)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, kit.VOCAB, (3, 12), generator=g)
    found = [[feed(ids[:, :6]) for feed in feeds]]
    found += [[feed(ids[:, t : t + 1]) for feed in feeds] for t in (6, 7)]
    rows = torch.tensor([0, 2])
    for feed in feeds:
        feed.keep(rows)
    found += [[feed(ids[rows, t : t + 1]) for feed in feeds] for t in range(8, 12)]
    for a, b in found:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))  # the norms are float32


@pytest.mark.parametrize("apart", [False, True])
@torch.no_grad()
def test_norms_of_queries_and_keys_in_float32(apart: bool) -> None:
    """Each head by the weight of its own kind; also where the two are not of one epsilon."""
    model = lively(kit.model(2, kind="qwen3", dtype=torch.float32)).eval()
    for layer in model.base_model.layers:
        for norm, scale in ((layer.self_attn.q_norm, 2.0), (layer.self_attn.k_norm, 0.5)):
            norm.weight.mul_(scale * torch.rand_like(norm.weight))
        layer.self_attn.k_norm.variance_epsilon = 1.0 if apart else layer.self_attn.q_norm.variance_epsilon
    feeds, ids = (FusedDecoder(model, MASK), OwnDecoder(model, MASK)), torch.arange(3, 27).view(3, 8)
    for part in (ids[:, :6], ids[:, 6:7], ids[:, 7:]):
        ours, theirs = (feed(part) for feed in feeds)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 48, 96, 128, 333, 1536])
def test_a_norm_has_the_bits_of_the_models_own(size: int) -> None:
    g = torch.Generator().manual_seed(size)
    norm = Qwen3RMSNorm(size, eps=1e-5)
    norm.weight.data = torch.randn(size, generator=g)
    x = torch.randn(33, size, generator=g) * torch.logspace(-6, 4, 33)[:, None]  # where epsilon is much and nothing
    assert torch.equal(_Norm(norm)(x), norm(x))


def test_what_is_decoded_in_fewer_operations() -> None:
    """By looking at the model; everything else goes through its own forward."""
    for kind in kit.CLASSES:
        assert is_fusable(kit.model(1, kind=kind).eval())
    assert not is_fusable(kit.model(1).train()) and not is_fusable(watched(kit.model(1).eval()))
    eager, adapted, patched = (kit.model(1).eval() for _ in range(3))
    eager.set_attn_implementation("eager")
    adapted.base_model.layers[1].mlp.up_proj = type("Adapter", (nn.Linear,), {})(32, 64, bias=False)
    patched.base_model.layers[0].self_attn.forward = patched.base_model.layers[0].self_attn.forward
    assert not any(map(is_fusable, (eager, adapted, patched)))
    sliding = build("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    stretched = build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert not is_fusable(sliding) and not is_fusable(stretched)
    assert not any(is_fusable(build(name)) for name in ("gemma2", "mistral", "gpt2", "mamba"))


@pytest.mark.parametrize("outputs", [PANEL, WIDE, WIDE + 17])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_the_linear_layers(outputs: int, bias: bool) -> None:
    """Of few outputs and of many, also where they fill no whole number of panels."""
    torch.manual_seed(0)
    one, two = nn.Linear(8, outputs, bias).double(), nn.Linear(8, 3, bias).double()
    x = torch.randn(5, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.cat((one(x), two(x)), -1)
        torch.testing.assert_close(Product.of(one, two)(x), wanted, rtol=1e-12, atol=1e-12)


# ── CUDA graphs ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_graph_without_a_device_is_refused() -> None:
    with pytest.raises(DudiError, match=r"^rollouts.cuda_graph is true, but PyTorch sees no CUDA device here; [^\n]*$"):
        LocalEngine(Sampling((), 0, kit.VOCAB, 0.9, cuda_graph=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_recipe_that_asks_for_one_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    table = {
        "name": "r",
        "output": str(tmp_path / "run"),
        "method": {"name": "gkd"},
        "models": {"student": "student", "teacher": "teacher"},
        "data": {"source": "builtin"},
        "rollouts": {"cuda_graph": True},
    }
    with pytest.raises(DudiError, match=r"^rollouts.cuda_graph is true"):
        run(parse_recipe(table, "r.toml"))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_captured_step_says_what_a_plain_one_says(temperature: float) -> None:
    model = lively(kit.model(4, sharpness=3.0)).eval().cuda()
    asked = lives(20, lambda k: 1 + (7 * k) % 20)
    plain, graph = (LocalEngine(Sampling((5,), 0, kit.VOCAB, temperature, graph)) for graph in (False, True))
    wanted = plain(model, asked)
    assert graph(model, asked) == wanted
    assert graph(model, asked) == wanted, "and again, with other memory"


@pytest.mark.gpu
def test_other_models_are_not_captured() -> None:
    with pytest.raises(DudiError, match=r"^rollouts.cuda_graph: GPT2LMHeadModel cannot be decoded as a CUDA graph"):
        engine = LocalEngine(Sampling((), 0, VOCAB, 0.0, cuda_graph=True))
        engine(build("gpt2").cuda(), [Request((5, 6), ("k",), 3)])


@pytest.mark.gpu
def test_samples_can_be_drawn_where_only_operations_that_repeat_are_allowed() -> None:
    """`training.deterministic`: torch forbids a GPU's running sums there."""
    model = lively(kit.model(4, sharpness=3.0)).eval().cuda()
    engine, asked = LocalEngine(Sampling((5,), 0, kit.VOCAB, 0.9)), lives(20, lambda k: 1 + (7 * k) % 20)
    wanted = engine(model, asked)
    torch.use_deterministic_algorithms(True)
    try:
        assert engine(model, asked) == wanted
    finally:
        torch.use_deterministic_algorithms(False)
