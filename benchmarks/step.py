"""One on-policy optimizer step, here and in TRL: the same shapes, batch and number of tokens, seconds by phase.

    python benchmarks/step.py                            # both sizes, three rounds; TRL too where it is installed
    python benchmarks/step.py --size 2000 128 --rounds 5 --steps 4

Random Qwen2 models are made inside: a student of 4 layers and a teacher twice as wide and deep, float32, SDPA. A step
is GKD on the student's own responses with reverse KL: 8 rows, prompts of 64 tokens, always 64 new tokens at
temperature 1. Each case runs in a process of its own, the cases take turns; medians over steps and rounds of process
CPU seconds.
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
from pathlib import Path
from typing import Any

SIZES = ((2000, 128), (32000, 256))
LAYERS, BATCH, PROMPT, NEW = 4, 8, 64, 64
PHASES = ("rollout", "teacher", "student", "backward", "other")
CASES = {
    "dudi": "dudi",
    "gkd": "TRL GKDTrainer, its defaults (no cache)",
    "gkd-cache": "TRL GKDTrainer, cache on",
    "distillation": "TRL DistillationTrainer, checkpointing off",
}
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


def make_rows(vocab: int, count: int) -> list[tuple[str, str]]:
    """Questions whose prompts have exactly PROMPT tokens, and answers of NEW tokens with their end."""
    rng = random.Random(3)

    def words(n: int) -> str:
        return " ".join(f"w{rng.randrange(5, vocab)}" for _ in range(n))

    return [(words(PROMPT - 5), words(NEW - 1)) for _ in range(count)]


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


def measure_dudi(vocab: int, hidden: int, steps: int, warm: int) -> list[dict[str, float]]:
    from dudi.example import Example, Message
    from dudi.methods import build_method
    from dudi.recipe.schema import Limits, Training
    from dudi.rollouts import Sampling
    from dudi.rollouts.local import LocalEngine
    from dudi.text.chat import Chat
    from dudi.text.verbalizer import Verbalizer
    from dudi.training.trainer import DistillationTrainer, Job
    from dudi.training.window import WindowBuilder, encode_rows

    chat = Chat(make_tokenizer(vocab), None, {})
    limits = Limits(prompt=PROMPT, total=PROMPT + NEW, rollout=NEW)
    rows = make_rows(vocab, BATCH * (steps + warm))
    examples = [Example((Message("user", x),), y, "id", str(k)) for k, (x, y) in enumerate(rows)]
    encoded = encode_rows(examples, chat, limits).rows
    assert {len(row.x) for row in encoded} == {PROMPT} and len(encoded) == len(rows)
    sampler = LocalEngine(Sampling((), chat.pad, chat.vocab, 1.0))  # no stop: always NEW tokens
    builder = WindowBuilder(chat, Verbalizer(("id", "vi")), limits, sampler, 0)
    clock = Clock()
    callback, found = step_times(clock, warm)
    job = Job(
        method=build_method({"name": "gkd", "lam": 1.0, "divergence": "reverse_kl"}),
        student=make_model(vocab, hidden, LAYERS, 1),
        teacher=make_model(vocab, 2 * hidden, 2 * LAYERS, 2).requires_grad_(False).eval(),
        reference=None,
        builder=builder,
        eval_builder=builder,
        rows=encoded,
        eval_rows=[],
        languages=("id",),
        training=Training(
            batch=BATCH, micro_batch=BATCH, lr=2e-5, max_steps=steps + warm, log_every=1, overlap_every=0
        ),
        seed=0,
        autocast=False,
        folder=Path(tempfile.mkdtemp()),
    )
    trainer = DistillationTrainer(job, [callback])
    trainer._phase = clock  # type: ignore[method-assign,assignment]  # CPU seconds in place of wall-clock ones
    trainer.train()
    return found


def measure_trl(case: str, vocab: int, hidden: int, steps: int, warm: int) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import logging

    logging.set_verbosity_error()
    tokenizer = make_tokenizer(vocab)
    student, teacher = make_model(vocab, hidden, LAYERS, 1), make_model(vocab, 2 * hidden, 2 * LAYERS, 2)
    teacher.requires_grad_(False).eval()
    clock = Clock()
    callback, found = step_times(clock, warm)
    options = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": BATCH,
        "max_steps": steps + warm,
        "learning_rate": 2e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "temperature": 1.0,
        "beta": 1.0,
        "gradient_checkpointing": case == "gkd",
    }
    turns = [
        ([{"role": "user", "content": x}], [{"role": "assistant", "content": y}])
        for x, y in make_rows(vocab, BATCH * (steps + warm))
    ]
    common = {"model": student, "teacher_model": teacher, "processing_class": tokenizer, "callbacks": [callback]}
    if case == "distillation":
        from trl import DistillationConfig, DistillationTrainer

        more = {"max_completion_length": NEW, "generation_kwargs": {"min_new_tokens": NEW}}
        data = Dataset.from_list([{"prompt": x} for x, _ in turns])
        trainer = DistillationTrainer(args=DistillationConfig(**options, **more), train_dataset=data, **common)
    else:
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        data = Dataset.from_list([{"messages": x + y} for x, y in turns])
        trainer = GKDTrainer(args=GKDConfig(**options, lmbda=1.0, max_new_tokens=NEW), train_dataset=data, **common)
        trainer.generation_config.min_new_tokens = NEW
    student.generate = clock.wrap("rollout", student.generate)
    teacher.model.forward = clock.wrap("teacher", teacher.model.forward)
    teacher.lm_head.forward = clock.wrap("teacher", teacher.lm_head.forward)
    trainer.compute_loss = clock.wrap("student", trainer.compute_loss)
    trainer.accelerator.backward = clock.wrap("backward", trainer.accelerator.backward)
    trainer.train()
    return found


def measure(case: str, vocab: int, hidden: int, steps: int, warm: int, threads: int) -> list[dict[str, float]]:
    """Seconds by phase of each step, in this process."""
    import torch

    torch.set_num_threads(threads)
    if case == "dudi":
        return measure_dudi(vocab, hidden, steps, warm)
    return measure_trl(case, vocab, hidden, steps, warm)


def fresh(case: str, vocab: int, hidden: int, steps: int, warm: int, threads: int) -> list[dict[str, float]]:
    """`measure` in a process of its own."""
    numbers = [str(n) for n in (vocab, hidden)]
    command = [sys.executable, __file__, "--case", case, "--size", *numbers, "--steps", str(steps), "--warm", str(warm)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    env = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, "--threads", str(threads)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed: {done.stderr.strip()[-800:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians as Markdown; the ratio is to dudi in the same run."""
    lines = [f"| | CPU s a step | {' | '.join(PHASES)} | wall s | ratio |", "|" + "---|" * (len(PHASES) + 4)]
    middle = {
        case: {what: statistics.median(s.get(what, 0.0) for s in steps) for what in (*PHASES, "cpu", "wall")}
        for case, steps in results.items()
    }
    for case, m in middle.items():
        cells = [
            f"{m['cpu']:.2f}",
            *(f"{m[p]:.2f}" for p in PHASES),
            f"{m['wall']:.2f}",
            f"{m['cpu'] / middle['dudi']['cpu']:.2f}",
        ]
        lines.append(f"| {CASES[case]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, metavar=("V", "H"), help="vocabulary and student hidden size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a round")
    parser.add_argument("--warm", type=int, default=1, help="steps before them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, help="one case in this process, as a line of JSON")
    args = parser.parse_args(arguments)
    if args.case:
        print(json.dumps(measure(args.case, *args.size, args.steps, args.warm, args.threads)))
        return
    cases = list(CASES) if importlib.util.find_spec("trl") else ["dudi"]
    if len(cases) == 1:
        print("TRL is not installed here (extra `peer`): dudi alone\n")
    for vocab, hidden in [tuple(args.size)] if args.size else SIZES:
        results: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case in cases:
                results[case] += fresh(case, vocab, hidden, args.steps, args.warm, args.threads)
                print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        shape = f"V = {vocab:,}, hidden {hidden} and {2 * hidden}, batch {BATCH}, {PROMPT} + {NEW} tokens"
        print(f"{shape}, {args.threads} thread(s)\n")
        print(table(results), end="\n\n")


if __name__ == "__main__":
    main()
