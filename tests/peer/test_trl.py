"""The same rows, models and tokens in TRL 1.16 and here: equal losses and equal gradients of every parameter.

TRL's trainers run their own `train()` for one optimizer step; their sampling is replaced by given responses where a
step is on-policy. The second half records what TRL gets wrong, so that a change there is noticed here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytest.importorskip("trl")

import kit
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers import logging as transformers_logging
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer

from dudi.recipe.schema import Limits
from dudi.rollouts import Rollout
from dudi.text.chat import Chat
from dudi.training.window import Row, encode_rows

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]  # warnings of another implementation are its own
transformers_logging.set_verbosity_error()

TEMPLATE = (  # nothing after the last turn's end: TRL counts every token after the prompt
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "<|im_start|>{{ m['role'] }}{{ '\n' }}{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)
LIMITS = Limits(prompt=2000, verbalizer=300, total=4000, rollout=32, teacher_prompt=4000)
EXAMPLES = kit.builtin()[::13][:8]
LONGEST = 12
ROTARY, KERNEL = 2e-6, 2e-5
"""Models are float64, but TRL pads on the left without shifting positions while rotary angles are float32 in any model;
and the kernel of its DistillationTrainer is float32. Relative, in the norm of each parameter's gradient."""


@dataclass(frozen=True)
class Step:
    """One optimizer step of either side."""

    loss: float
    grads: Mapping[str, Tensor]


def tokenizer() -> Any:
    return kit.tokenizer(template=TEMPLATE)


def models(dtype: torch.dtype = torch.float64) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Student and teacher, without padded embeddings: TRL's softmax would run over them."""
    return kit.model(1, dtype=dtype), kit.model(2, hidden=64, dtype=dtype).requires_grad_(False).eval()


def rows() -> tuple[Row, ...]:
    found = encode_rows(EXAMPLES, Chat(tokenizer(), None, {}), LIMITS)
    assert len(found.rows) == len(EXAMPLES) and not found.cut.total()
    return found.rows


def responses() -> dict[tuple[int, ...], Rollout]:
    """A response for each prompt: ragged ones that stop, and cut ones of the full length."""
    generator = torch.Generator().manual_seed(5)
    chat = Chat(tokenizer(), None, {})
    found = {}
    for k, row in enumerate(rows()):
        length = LONGEST if k % 2 else int(torch.randint(1, LONGEST, (1,), generator=generator))
        ids = tuple(torch.randint(3, chat.vocab, (length,), generator=generator).tolist())
        found[row.x] = Rollout(ids, False) if k % 2 else Rollout((*ids[:-1], chat.turn_end), True)
    return found


def ours(folder: Path, method: Mapping[str, Any]) -> Step:
    student, teacher = models()
    made = kit.trainer(
        folder, method, student=student, teacher=teacher, examples=EXAMPLES, limits=LIMITS, tok=tokenizer()
    )
    given = responses()
    by_row = {(row.index, view): given[row.x] for row in rows() for view in ("y_tilde", "y_prime")}
    object.__setattr__(made.job.builder, "engine", kit.Forced(made.job.builder.chat, by_row))
    return Step(*kit.step(made))


class Catch(TrainerCallback):
    """Gradients before the first update."""

    def __init__(self) -> None:
        self.grads: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def theirs(
    folder: Path, trainer: type, config: type, force: Callable[[Any], None] | None = None, **options: Any
) -> Step:
    """One step of a TRL trainer; `force` replaces its sampling."""
    student, teacher = models()
    accumulate = options.pop("accumulate", 1)
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=len(EXAMPLES) // accumulate,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        temperature=1.0,
        seed=1,
        **options,
    )
    turns = [{"role": "assistant", "content": e.y} for e in EXAMPLES]
    prompts = [[m.as_dict() for m in e.x] for e in EXAMPLES]
    table = [
        {"prompt": p} if trainer is DistillationTrainer else {"messages": [*p, y]}
        for p, y in zip(prompts, turns, strict=True)
    ]
    catch = Catch()
    made = trainer(
        model=student,
        teacher_model=teacher,
        args=args,
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list(table),
        callbacks=[catch],
    )
    if force:
        force(made)
    losses: list[float] = []
    inner = made.compute_loss

    def compute_loss(*a: Any, **k: Any) -> Any:
        out = inner(*a, **k)
        losses.append(float((out[0] if isinstance(out, tuple) else out).detach()))
        return out

    made.compute_loss = compute_loss
    made.train()
    assert len(losses) == accumulate
    return Step(sum(losses), catch.grads)


def gkd(folder: Path, beta: float, on_policy: bool = False, accumulate: int = 1) -> Step:
    def force(made: Any) -> None:
        given = responses()
        pad = made.processing_class.pad_token_id

        def generate(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
            table = []
            for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
                response = given[tuple(i for i, m in zip(ids, mask, strict=True) if m)].ids
                table.append([*ids, *response, *[pad] * (LONGEST - len(response))])
            return type("Generated", (), {"sequences": torch.tensor(table)})

        made.model.generate = generate

    options = {"lmbda": 1.0 if on_policy else 0.0, "beta": beta, "max_new_tokens": LONGEST, "max_length": 4000}
    return theirs(folder, GKDTrainer, GKDConfig, force, accumulate=accumulate, **options)


def distillation(folder: Path, beta: float = 1.0, accumulate: int = 1) -> Step:
    def force(made: Any) -> None:
        given = responses()
        made._generate_single_turn = lambda prompt_ids, *_, **__: [list(given[tuple(ids)].ids) for ids in prompt_ids]

    return theirs(
        folder,
        DistillationTrainer,
        DistillationConfig,
        force,
        accumulate=accumulate,
        beta=beta,
        max_completion_length=LONGEST,
    )


def assert_equal(a: Step, b: Step, factor: float = 1.0, relative: float = ROTARY) -> None:
    """a is factor times b: the loss, and the gradient of every parameter."""
    assert a.loss == pytest.approx(factor * b.loss, rel=relative)
    assert a.grads.keys() == b.grads.keys() and len(a.grads) > 20
    for name, grad in a.grads.items():
        error = (grad - factor * b.grads[name]).norm() / (factor * b.grads[name]).norm()
        assert error < relative, (name, float(error))


def counted() -> tuple[int, int]:
    """Gold tokens and sampled tokens of the step."""
    return sum(len(row.y) for row in rows()), sum(len(r.ids) for r in responses().values())


# ── the same numbers ─────────────────────────────────────────────────────────────────────────────────────────────────
DIVERGENCES = [
    ("forward_kl", 0.5, 0.0),
    ("reverse_kl", 0.5, 1.0),
    ("jsd", 0.5, 0.5),
    ("jsd", 0.1, 0.1),
    ("jsd", 0.9, 0.9),
]


@pytest.mark.parametrize(("divergence", "jsd_beta", "beta"), DIVERGENCES)
def test_off_policy_is_gkd_of_trl(tmp_path: Path, divergence: str, jsd_beta: float, beta: float) -> None:
    """Equation 4 on the ground truth: the prompts, the answers, the masks and the mean are the same."""
    method = {"name": "gkd", "lam": 0.0, "divergence": divergence, "jsd_beta": jsd_beta}
    assert_equal(ours(tmp_path / "ours", method), gkd(tmp_path / "theirs", beta))


@pytest.mark.parametrize(("divergence", "jsd_beta", "beta"), DIVERGENCES)
def test_on_policy_is_distillation_of_trl(tmp_path: Path, divergence: str, jsd_beta: float, beta: float) -> None:
    """Equation 4 on the student's own responses, stopped and cut ones."""
    method = {"name": "gkd", "lam": 1.0, "divergence": divergence, "jsd_beta": jsd_beta}
    assert_equal(ours(tmp_path / "ours", method), distillation(tmp_path / "theirs", beta), relative=KERNEL)


def test_on_policy_distillation_of_trl_accumulates_as_we_do(tmp_path: Path) -> None:
    """Four micro-batches there, one window here."""
    method = {"name": "gkd", "lam": 1.0, "divergence": "reverse_kl"}
    assert_equal(ours(tmp_path / "ours", method), distillation(tmp_path / "theirs", accumulate=4), relative=KERNEL)


# ── what TRL gets wrong ──────────────────────────────────────────────────────────────────────────────────────────────
def test_gkd_of_trl_divides_sampled_tokens_by_the_gold_count(tmp_path: Path) -> None:
    """Its on-policy loss and gradient are ours times sampled tokens / gold tokens."""
    gold, sampled = counted()
    assert gold > 2 * sampled
    method = {"name": "gkd", "lam": 1.0, "divergence": "reverse_kl"}
    assert_equal(gkd(tmp_path / "theirs", 1.0, on_policy=True), ours(tmp_path / "ours", method), sampled / gold)


def test_gkd_of_trl_refuses_padded_vocabularies(tmp_path: Path) -> None:
    """As Qwen2.5's 7B and 0.5B have them; here they are sliced (see tests/test_peer_bugs.py)."""
    student = kit.model(1)
    for trainer, config in ((GKDTrainer, GKDConfig), (DistillationTrainer, DistillationConfig)):
        args = config(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "prompt": "a"}
        with pytest.raises(ValueError, match="vocab_size"):
            trainer(
                model=student,
                teacher_model=kit.model(2, rows=kit.VOCAB + 20),
                args=args,
                processing_class=tokenizer(),
                train_dataset=Dataset.from_list([row]),
            )


def test_gkd_of_trl_decodes_without_a_cache_by_default(tmp_path: Path) -> None:
    """Gradient checkpointing is its default, and switches the cache off."""
    student, teacher = models(torch.float32)
    args = GKDConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    made = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([row]),
    )
    assert args.gradient_checkpointing and made.generation_config.use_cache is False


def test_gold_of_trl_shrinks_with_accumulation(tmp_path: Path) -> None:
    """The same eight rows as four micro-batches: a quarter of the loss and gradient. In one go it is ours."""
    options = {"lmbda": 0.0, "beta": 1.0, "max_length": 4000, "max_completion_length": LONGEST}
    at_once = theirs(tmp_path / "1", GOLDTrainer, GOLDConfig, **options)
    in_four = theirs(tmp_path / "4", GOLDTrainer, GOLDConfig, accumulate=4, **options)
    right = ours(tmp_path / "ours", {"name": "gkd", "lam": 0.0, "divergence": "reverse_kl"})
    assert_equal(at_once, right)
    assert_equal(in_four, right, 1 / 4)


def test_gkd_of_trl_does_not_shrink_with_accumulation(tmp_path: Path) -> None:
    """What is right there stays noted too."""
    right = ours(tmp_path / "ours", {"name": "gkd", "lam": 0.0})
    assert_equal(gkd(tmp_path / "theirs", 0.5, accumulate=4), right)
