"""One optimizer step, here and in TRL: the same shapes, batch and number of tokens, seconds by phase.

    python benchmarks/step.py             # every group, both sizes, three rounds; TRL where it is installed
    python benchmarks/step.py --group on-policy --size 2000 128 --rounds 5 --steps 4

Random Qwen2 models are made inside: a student of 4 layers and a teacher twice as wide and deep, float32, SDPA. A step
has 8 rows, prompts of 64 tokens, gold answers of 64, and always samples 64 new tokens at temperature 1. Each case runs
in a process of its own, the cases take turns; medians over steps and rounds of process CPU seconds.
`student` is forward and loss (here with the gradient of the head, which others have in `backward`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = ((2000, 128), (32000, 256))
LAYERS, BATCH, PROMPT, NEW = 4, 8, 64, 64
PHASES = ("rollout", "teacher", "reference", "student", "backward", "other")
ON = {"name": "gkd", "lam": 1.0, "divergence": "reverse_kl"}
METHODS: dict[str, dict[str, Any]] = {
    "dudi-on-policy": ON,
    "dudi-off-policy": {**ON, "lam": 0.0},
    "dudi-sft": {"name": "sft"},
    "dudi-sdft": {"name": "sdft"},
    "dudi-spin": {"name": "spin", "iterations": 1},
    "dudi-dudi": {"name": "dudi"},
}
"""Ours, by case."""
GROUPS: dict[str, dict[str, str]] = {
    "on-policy": {
        "dudi-on-policy": "dudi: GKD, its own responses, reverse KL",
        "gkd": "TRL GKDTrainer, its defaults (no cache)",
        "gkd-cache": "TRL GKDTrainer, cache on",
        "distillation": "TRL DistillationTrainer, checkpointing off",
    },
    "off-policy": {"dudi-off-policy": "dudi: GKD, gold responses", "gkd-off-policy": "TRL GKDTrainer, lmbda 0"},
    "sft": {"dudi-sft": "dudi: SFT", "sft": "TRL SFTTrainer"},
    "sdft": {"dudi-sdft": "dudi: SDFT", "sdft": "TRL SDFTTrainer"},
    "alone": {"dudi-dudi": "dudi: DuDi", "dudi-spin": "dudi: SPIN"},
}
"""Cases that do the same, ours first; TRL has nothing beside the last."""
CASES = {case: title for cases in GROUPS.values() for case, title in cases.items()}


@dataclass(frozen=True)
class Shape:
    """Vocabulary, the student's hidden size, rows of a step, and tokens of prompts and answers."""

    vocab: int
    hidden: int
    batch: int = BATCH
    prompt: int = PROMPT
    new: int = NEW

    def __str__(self) -> str:
        widths = f"hidden {self.hidden} and {2 * self.hidden}"
        return f"V = {self.vocab:,}, {widths}, batch {self.batch}, {self.prompt} + {self.new} tokens"


TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


class Clock:
    """Exclusive process CPU seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs inside; an inner phase is taken out of its outer one."""
        start = time.process_time()
        self.inner.append(0.0)
        try:
            yield
        finally:
            spent = time.process_time() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self.inner.pop()
            self.inner[-1] += spent

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is timed as one phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return timed


def make_tokenizer(vocab: int) -> Any:
    """One word, one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant"]
    words += [f"w{k}" for k in range(len(words), vocab)]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=words[0], unk_token=words[0], eos_token=words[2], padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(vocab: int, hidden: int, layers: int, seed: int) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config).float()


def make_rows(shape: Shape, steps: int) -> list[tuple[str, str]]:
    """Questions whose prompts, and answers that with their end have exactly so many tokens."""
    rng = random.Random(3)

    def words(n: int) -> str:
        return " ".join(f"w{rng.randrange(5, shape.vocab)}" for _ in range(n))

    return [(words(shape.prompt - 5), words(shape.new - 1)) for _ in range(shape.batch * steps)]


def step_times(clock: Clock, warm: int) -> tuple[Any, list[dict[str, float]]]:
    """A callback, and the seconds of each step after the first `warm`."""
    from transformers import TrainerCallback

    found: list[dict[str, float]] = []

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.seconds.clear()
            self.cpu, self.wall = time.process_time(), time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
            if state.global_step > warm:
                other = cpu - sum(clock.seconds.get(phase, 0.0) for phase in PHASES)
                found.append({**clock.seconds, "other": other, "cpu": cpu, "wall": wall})

    return Steps(), found


def measure_dudi(method: dict[str, Any], shape: Shape, steps: int, warm: int) -> list[dict[str, float]]:
    from dudi.example import Example, Message
    from dudi.methods import build_method
    from dudi.recipe.schema import Limits, Training
    from dudi.rollouts import Rollout, Sampling
    from dudi.rollouts.local import LocalEngine
    from dudi.text.chat import Chat
    from dudi.text.verbalizer import Verbalizer
    from dudi.training.job import Job
    from dudi.training.trainer import DistillationTrainer
    from dudi.training.window import WindowBuilder, encode_rows

    chat, built = Chat(make_tokenizer(shape.vocab), None, {}), build_method(method)
    limits = Limits(prompt=shape.prompt, verbalizer=800, total=shape.prompt + shape.new, rollout=shape.new)
    rows = make_rows(shape, steps + warm)
    examples = [Example((Message("user", x),), y, "id", str(k)) for k, (x, y) in enumerate(rows)]
    encoded = encode_rows(examples, chat, limits).rows
    assert {len(row.x) for row in encoded} == {shape.prompt} and len(encoded) == len(rows)
    sampler = LocalEngine(Sampling((), chat.pad, chat.vocab, 1.0))  # no stop: always so many new tokens
    stored = {row.index: Rollout(row.y[::-1], True) for row in encoded} if built.stored else {}
    builder = WindowBuilder(chat, Verbalizer(("id", "vi")), limits, sampler, 0, stored)
    clock = Clock()
    callback, found = step_times(clock, warm)
    student = make_model(shape.vocab, shape.hidden, LAYERS, 1)
    teacher = make_model(shape.vocab, 2 * shape.hidden, 2 * LAYERS, 2) if built.needs_larger_teacher else None
    reference = make_model(shape.vocab, shape.hidden, LAYERS, 1) if built.needs_reference else None
    for model in (teacher, reference):
        if model is not None:
            model.requires_grad_(False).eval()
    job = Job(
        method=built,
        student=student,
        teacher=teacher,
        reference=reference,
        builder=builder,
        eval_builder=builder,
        rows=encoded,
        eval_rows=[],
        languages=("id",),
        training=Training(
            batch=shape.batch, micro_batch=BATCH, lr=2e-5, max_steps=steps + warm, log_every=1, overlap_every=0
        ),
        seed=0,
        autocast=False,
        folder=Path(tempfile.mkdtemp()),
    )
    trainer = DistillationTrainer(job, [callback])
    trainer._phase = clock  # type: ignore[method-assign,assignment]  # CPU seconds in place of wall-clock ones
    trainer.train()
    return found


def measure_trl(case: str, shape: Shape, steps: int, warm: int) -> list[dict[str, float]]:
    from transformers import logging

    logging.set_verbosity_error()
    clock = Clock()
    callback, found = step_times(clock, warm)
    options = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": shape.batch,
        "max_steps": steps + warm,
        "learning_rate": 2e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": case == "gkd",
    }
    trainer, teacher = make_trl(case, shape, make_rows(shape, steps + warm), options)
    trainer.add_callback(callback)
    student = trainer.accelerator.unwrap_model(trainer.model)
    student.generate = clock.wrap("rollout", student.generate)
    if teacher is not None:
        teacher.model.forward = clock.wrap("teacher", teacher.model.forward)
        teacher.lm_head.forward = clock.wrap("teacher", teacher.lm_head.forward)
    trainer.compute_loss = clock.wrap("student", trainer.compute_loss)
    trainer.accelerator.backward = clock.wrap("backward", trainer.accelerator.backward)
    trainer.train()
    return found


def make_trl(case: str, shape: Shape, rows: Sequence[tuple[str, str]], options: dict[str, Any]) -> tuple[Any, Any]:
    """TRL's trainer of a case, and its teacher."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    tokenizer, student = make_tokenizer(shape.vocab), make_model(shape.vocab, shape.hidden, LAYERS, 1)
    turns = [([{"role": "user", "content": x}], [{"role": "assistant", "content": y}]) for x, y in rows]
    common = {"processing_class": tokenizer}
    more = {"max_completion_length": shape.new, "generation_kwargs": {"min_new_tokens": shape.new}}
    if case == "sft":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"prompt": x, "completion": y} for x, y in turns])
        return SFTTrainer(model=student, args=SFTConfig(**options), train_dataset=data, **common), None
    options = {**options, "temperature": 1.0}
    if case == "sdft":  # its teacher is read from the student's folder
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        folder = tempfile.mkdtemp()
        student.save_pretrained(folder)
        data = Dataset.from_list([{"prompt": x, "privileged_context": y[0]["content"]} for x, y in turns])
        config = SDFTConfig(**options, **more, distillation_alpha=1.0, num_generations=1, max_prompt_length=512)
        student = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        trainer = SDFTTrainer(model=student, args=config, train_dataset=data, **common)
        return trainer, trainer.accelerator.unwrap_model(trainer.teacher_model)
    teacher = make_model(shape.vocab, 2 * shape.hidden, 2 * LAYERS, 2)
    teacher.requires_grad_(False).eval()
    common |= {"model": student, "teacher_model": teacher}
    if case == "distillation":
        from trl import DistillationConfig, DistillationTrainer

        data = Dataset.from_list([{"prompt": x} for x, _ in turns])
        config = DistillationConfig(**options, **more, beta=1.0)
        return DistillationTrainer(args=config, train_dataset=data, **common), teacher
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    data = Dataset.from_list([{"messages": x + y} for x, y in turns])
    lmbda = 0.0 if case == "gkd-off-policy" else 1.0
    config = GKDConfig(**options, beta=1.0, lmbda=lmbda, max_new_tokens=shape.new)
    trainer = GKDTrainer(args=config, train_dataset=data, **common)
    trainer.generation_config.min_new_tokens = shape.new
    return trainer, teacher


def measure(case: str, shape: Shape, steps: int, warm: int, threads: int) -> list[dict[str, float]]:
    """Seconds by phase of each step, in this process."""
    import torch

    torch.set_num_threads(threads)
    if case in METHODS:
        return measure_dudi(METHODS[case], shape, steps, warm)
    return measure_trl(case, shape, steps, warm)


def fresh(case: str, shape: Shape, steps: int, warm: int, threads: int) -> list[dict[str, float]]:
    """`measure` in a process of its own."""
    numbers = [str(n) for n in (shape.vocab, shape.hidden, shape.batch, shape.prompt, shape.new)]
    command = [
        sys.executable,
        __file__,
        "--case",
        case,
        "--shape",
        *numbers,
        "--steps",
        str(steps),
        "--warm",
        str(warm),
    ]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, "--threads", str(threads)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed: {done.stderr.strip()[-800:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each phase, and of the whole."""
    return {what: statistics.median(s.get(what, 0.0) for s in steps) for what in (*PHASES, "cpu", "wall")}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians as Markdown; the ratio is to ours in the same run."""
    lines = [f"| | CPU s a step | {' | '.join(PHASES)} | wall s | ratio |", "|" + "---|" * (len(PHASES) + 4)]
    middle = {case: medians(steps) for case, steps in results.items()}
    for group in GROUPS.values():
        for case in group:
            if case in middle:
                m, ours = middle[case], middle.get(next(iter(group)))
                cells = [f"{m[what]:.2f}" for what in ("cpu", *PHASES, "wall")]
                ratio = f"{m['cpu'] / ours['cpu']:.2f}" if ours and case not in METHODS else "-"
                lines.append(f"| {CASES[case]} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--size", type=int, nargs=2, metavar=("V", "H"), help="vocabulary and student hidden size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a round")
    parser.add_argument("--warm", type=int, default=1, help="steps before them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, help="one case in this process, as a line of JSON")
    parser.add_argument("--shape", type=int, nargs=5, help="of that case: V, H, rows, tokens of prompts and of answers")
    args = parser.parse_args(arguments)
    if args.case:
        print(json.dumps(measure(args.case, Shape(*args.shape), args.steps, args.warm, args.threads)))
        return
    peer = importlib.util.find_spec("trl") is not None
    if not peer:
        print("TRL is not installed here (extra `peer`): dudi alone\n")
    cases = [case for group in args.group for case in GROUPS[group] if peer or case in METHODS]
    for vocab, hidden in [tuple(args.size)] if args.size else SIZES:
        shape = Shape(vocab, hidden)
        results: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case in cases:
                results[case] += fresh(case, shape, args.steps, args.warm, args.threads)
                print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        print(f"{shape}, {args.threads} thread(s)\n")
        print(table(results), end="\n\n")


if __name__ == "__main__":
    main()
