"""What can only be seen on a GPU: the same numbers as on the CPU, time by phase, decoding speed, peak memory.

    python benchmarks/gpu_check.py                            # Qwen2.5-0.5B's shape under 3B's, random weights
    python benchmarks/gpu_check.py --layers 4 --teacher-layers 6 --batch 8 --new 32
    python benchmarks/gpu_check.py --dry-run-cpu              # the same code on tiny shapes, without a GPU

It needs torch, transformers and accelerate, and downloads nothing: `PYTHONPATH=src python benchmarks/gpu_check.py` with
whatever Python has them. Prints Markdown, to be kept with its date and device. Exits with 1 if loss or gradients differ
from the CPU's.

Steps are those of the paper's main run: 32 rows, with prompts and answers as long as those of SEA-Instruct under Qwen's
tokenizer (`dudi data check --tokenizer` printed `LENGTHS`), at most 768 + 256 tokens. GPU-hours are their median, times
the 2,625 steps of 28,000 rows and three epochs. Models have random weights, so that rollouts would not end by
themselves: each language's are as long as its answers are on average.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from step import Shape, make_rows, make_tokenizer
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers import logging as transformers_logging

from dudi.example import Example, Message
from dudi.loss.head import Head
from dudi.loss.objective import objective
from dudi.loss.scores import Scores, response_log_probs
from dudi.methods import dudi
from dudi.models.reader import Reader
from dudi.recipe.schema import Limits, Training
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine
from dudi.signals import View
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training.trainer import DistillationTrainer, Job
from dudi.training.window import Row, Window, WindowBuilder, collate, encode_rows

TOLERANCE = 1e-4
"""Between devices in float32, relative, for the loss and for the norm of each gradient's difference."""
LENGTHS = {
    "id": ((57, 206, 448, 604), (42, 78, 334, 549)),
    "ms": ((59, 202, 375, 488), (41, 74, 358, 529)),
    "my": ((123, 316, 628, 1067), (222, 449, 1792, 2620)),
    "ta": ((105, 301, 543, 900), (170, 317, 1499, 1800)),
    "th": ((59, 209, 377, 515), (61, 119, 462, 894)),
    "tl": ((61, 210, 380, 452), (48, 89, 427, 741)),
    "vi": ((51, 194, 370, 576), (37, 68, 289, 365)),
}
"""Tokens of x and y by language: median, 90 %, 99 %, longest. Between them, lengths are taken to lie evenly."""
AT = (0.0, 0.5, 0.9, 0.99, 1.0)
PROMPT, ROLLOUT, PAPER_STEPS = 768, 256, 2625
LANGUAGES = tuple(LENGTHS)


def make_model(
    seed: int, vocab: int, hidden: int, layers: int, heads: int, inner: int, device: str = "cpu"
) -> PreTrainedModel:
    """A random Qwen2, its embeddings scaled up so that losses are far from zero."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        made = Qwen2ForCausalLM(config)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(3.0)
    return made


def make_builder(vocab: int, rows: int, new: int, stop: bool) -> tuple[WindowBuilder, tuple[Row, ...]]:
    """Rows of 64 + 64 tokens; without `stop`, rollouts are always `new` tokens long."""
    limits = Limits(prompt=64, verbalizer=512, total=128, rollout=new, teacher_prompt=2048)
    texts = make_rows(Shape(vocab, 0, batch=rows), 1)
    return _built(vocab, [(LANGUAGES[k % len(LANGUAGES)], x, y) for k, (x, y) in enumerate(texts)], limits, stop)


def make_real(vocab: int, rows: int, shorter: int) -> tuple[WindowBuilder, tuple[Row, ...]]:
    """Rows of real lengths, the languages in turn; shorter: divides them, for a dry run."""
    drawn, texts = random.Random(5), []
    for k in range(rows):
        l = LANGUAGES[k % len(LANGUAGES)]
        x, y = (max(int(_between(drawn.random(), of)) // shorter, 8) for of in LENGTHS[l])
        made = make_rows(Shape(vocab, k, 1, min(x, PROMPT), min(y, ROLLOUT)), 1)
        texts.append((l, *made[0]))
    average = {l: min(int(_mean(y)), ROLLOUT) // shorter for l, (_, y) in LENGTHS.items()}
    rollout = {"default": ROLLOUT, **average}
    limits = Limits(
        prompt=PROMPT, verbalizer=512, total=PROMPT + ROLLOUT, rollout=rollout, teacher_prompt=PROMPT + ROLLOUT + 512
    )
    return _built(vocab, texts, limits, stop=False)


def _between(share: float, marks: tuple[int, ...]) -> float:
    """The length that this share of rows does not exceed."""
    known = (marks[0] / 2, *marks)
    k = next(k for k in range(1, len(AT)) if share <= AT[k])
    return known[k - 1] + (known[k] - known[k - 1]) * (share - AT[k - 1]) / (AT[k] - AT[k - 1])


def _mean(marks: tuple[int, ...]) -> float:
    return sum(min(_between((k + 0.5) / 1000, marks), ROLLOUT) for k in range(1000)) / 1000


def _built(
    vocab: int, texts: Sequence[tuple[str, str, str]], limits: Limits, stop: bool
) -> tuple[WindowBuilder, tuple[Row, ...]]:
    chat = Chat(make_tokenizer(vocab), None, {})
    made = [Example((Message("user", x),), y, l, str(k)) for k, (l, x, y) in enumerate(texts)]
    sampler = LocalEngine(Sampling(chat.stop_ids if stop else (), chat.pad, chat.vocab, 0.9))
    return WindowBuilder(chat, Verbalizer(LANGUAGES), limits, sampler, 0), encode_rows(made, chat, limits).rows


def loss_and_gradients(
    window: Window, models: Mapping[str, PreTrainedModel], vocab: int, device: torch.device, autocast: bool
) -> tuple[float, dict[str, Tensor]]:
    """DuDi's whole loss on one window, as the trainer forms it; gradients on the CPU."""
    signals = dudi().signals
    student = models["student"].to(device)
    student.zero_grad()
    blocks = collate(window, range(len(window.rows)), 0, device)
    readers = {name: Reader(models[name].to(device), vocab, name) for name in ("student", "teacher", "reference")}
    read = {view: block.student for view, block in blocks.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        theirs = readers["teacher"].hidden({v: b.teacher for v, b in blocks.items() if b.teacher}, len(blocks))
        of_r, head = readers["reference"].hidden(read, len(blocks)), readers["reference"].head()
        log_r = response_log_probs(of_r, head, blocks, 256)

        def then(ours: dict[View, Tensor], head: Head, zero: Tensor) -> Tensor:
            scores = Scores(blocks, ours, head, theirs, readers["teacher"].head(), log_r)
            return objective(signals, scores, window.counts(signals)).loss

        loss = readers["student"].reading(student, read, len(blocks), then)
    loss.backward()
    grads = {name: p.grad.detach().cpu() for name, p in student.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def same_numbers(device: torch.device) -> tuple[list[str], bool]:
    """The device against the CPU in float32, and bfloat16 autocast against float32, on a tiny pair."""
    vocab = 2000
    shapes = {"student": (1, 64, 2), "teacher": (2, 128, 3), "reference": (3, 64, 2)}
    models = {name: make_model(seed, vocab, h, layers, h // 16, 2 * h) for name, (seed, h, layers) in shapes.items()}
    builder, rows = make_builder(vocab, 8, 24, stop=True)
    window = builder.build(models["student"], dudi().signals, list(rows), [1.0] * len(rows), 0)
    cpu, wanted = loss_and_gradients(window, models, vocab, torch.device("cpu"), False)
    there, got = loss_and_gradients(window, models, vocab, device, False)
    narrow, rough = loss_and_gradients(window, models, vocab, device, True)

    def worst(grads: Mapping[str, Tensor]) -> float:
        return max(float((grads[n] - g).norm() / g.norm()) for n, g in wanted.items())

    loss_error, grad_error = abs(there / cpu - 1), worst(got)
    lines = ["| DuDi step, tiny pair | loss | relative difference | worst gradient, relative |", "|---|---|---|---|"]
    lines.append(f"| CPU float32 | {cpu:.6f} | - | - |")
    lines.append(f"| {device.type} float32, TF32 off | {there:.6f} | {loss_error:.1e} | {grad_error:.1e} |")
    lines.append(
        f"| {device.type} bfloat16 autocast | {narrow:.6f} | {abs(narrow / cpu - 1):.1e} | {worst(rough):.1e} |"
    )
    return lines, loss_error < TOLERANCE and grad_error < TOLERANCE


def time_steps(args: argparse.Namespace, device: torch.device) -> list[str]:
    """Seconds by phase of DuDi steps, milliseconds of a decoding step, peak memory."""
    builder, rows = make_real(args.vocab, args.batch * (args.steps + 1), args.shorter)
    ours = (args.vocab, args.hidden, args.layers, args.hidden // 64, args.inner, device.type)
    theirs = (args.vocab, args.teacher_hidden, args.teacher_layers, args.teacher_hidden // 128, args.teacher_inner)
    student = make_model(1, *ours)
    frozen = [
        model.bfloat16().requires_grad_(False).eval()
        for model in (make_model(2, *theirs, device.type), make_model(3, *ours))
    ]
    training = Training(
        batch=args.batch, micro_batch=args.micro_batch, head_chunk=args.chunk, max_steps=args.steps + 1, overlap_every=0
    )
    folder = Path(tempfile.mkdtemp())
    job = Job(
        dudi(), student, frozen[0], frozen[1], builder, builder, rows, [], LANGUAGES, training, 0, True, folder
    )  # fmt: skip
    trainer = DistillationTrainer(job)
    trainer._save_checkpoint = lambda *_: None  # type: ignore[method-assign]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    times = [json.loads(line) for line in (folder / "times.jsonl").read_text().splitlines()][1:]
    names = ("rollout", "teacher", "reference", "student", "backward", "optimizer")
    lines = [f"| seconds a step, median | {' | '.join(names)} | all |", "|---" * (len(names) + 2) + "|"]
    phases = [statistics.median(t.get(name, 0.0) for t in times) for name in names]
    shape = f"{args.layers} and {args.teacher_layers} layers, {args.steps} steps of {args.batch} rows"
    lines.append(f"| {shape} | {' | '.join(f'{p:.3f}' for p in phases)} | {sum(phases):.3f} |")
    if args.shorter == 1:
        hours = sum(phases) * PAPER_STEPS / 3600
        lines += ["", f"The paper's main run, {PAPER_STEPS:,} such steps: {hours:.2f} hours of this device."]
    if device.type == "cuda":
        lines += ["", f"Peak memory of these steps: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB allocated."]
    plain = decode_ms(trainer, rows, args, graph=False)
    lines += ["", f"Decoding: {plain:.2f} ms a step of {2 * args.batch} rows (bfloat16 copy)."]
    if device.type == "cuda":
        captured = decode_ms(trainer, rows, args, graph=True)
        lines += [f"As a CUDA graph, captured once a rollout (not counted): {captured:.2f} ms a step."]
    return lines


def decode_ms(trainer: DistillationTrainer, rows: tuple[Row, ...], args: argparse.Namespace, graph: bool) -> float:
    """Time of one more token for all rollouts of a step: two lengths, the difference; the prompt falls out, and with
    it the capture of a graph, which either length pays once."""
    model, chat = trainer.decoder.refreshed(), trainer.job.builder.chat
    engine = LocalEngine(Sampling((), chat.pad, chat.vocab, 0.9, cuda_graph=graph))
    prompts = [row.x for row in rows[: args.batch]] * 2

    def seconds(new: int) -> float:
        started = time.perf_counter()
        engine(model, [Request(x, ("decode", k), new) for k, x in enumerate(prompts)])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds(4)
    short, long = (min(seconds(n) for _ in range(3)) for n in (4, 4 + args.new))
    return 1000 * (long - short) / args.new


def main() -> int:
    """Print the report; 1 if the devices disagree or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("vocab", 151_936), ("hidden", 896), ("layers", 24), ("inner", 4864)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("hidden", 2048), ("layers", 36), ("inner", 11_008)):
        parser.add_argument(f"--teacher-{name}", type=int, default=value)
    for name, value in (
        ("batch", 32),
        ("micro-batch", 16),
        ("new", 128),
        ("steps", 20),
        ("chunk", 2048),
        ("shorter", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dry-run-cpu", action="store_true", help="tiny shapes on the CPU: only that the code runs")
    args = parser.parse_args()
    if args.dry_run_cpu:
        tiny = {"vocab": 2000, "hidden": 128, "layers": 2, "inner": 128, "teacher_hidden": 256, "teacher_layers": 2}
        vars(args).update(tiny, teacher_inner=256, batch=4, micro_batch=2, new=8, steps=2, chunk=256, shorter=16)
    elif not torch.cuda.is_available():
        print("no CUDA device here; --dry-run-cpu runs the same code on tiny shapes", file=sys.stderr)
        return 1
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")  # no TF32
    device = torch.device("cpu" if args.dry_run_cpu else "cuda")
    name = "CPU, dry run" if args.dry_run_cpu else torch.cuda.get_device_name()
    print(f"## {name}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n")
    print(f"torch {torch.__version__}; `python {' '.join(['benchmarks/gpu_check.py', *sys.argv[1:]])}`\n")
    lines, same = same_numbers(device)
    print("\n".join(lines), end="\n\n", flush=True)
    print("\n".join(time_steps(args, device)))
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
