"""Time and peak memory of the losses at a real vocabulary: hidden states -> loss -> gradients.

    python benchmarks/memory.py                                # the table for 1,024 tokens, one thread
    python benchmarks/memory.py --tokens 1024 4096 --threads 2 --repeats 3
    python benchmarks/memory.py --case chunked/reverse_kl/float32 --tokens 1024     # one case, as JSON

Shapes are those of Qwen2.5: V = 151,936, student hidden size 896, teacher 2,048. Each case runs in a process of its
own, the cases take turns, and `peak` is the kernel's high-water mark above the inputs (hidden states and both heads).
`dudi` is all three signals in one pass: two rows, each with y, y' and y~. bfloat16 is autocast with float32 student
weights and a bfloat16 teacher, as on a GPU. Implementations:

    chunked   this package
    bare      the matrix products that no implementation can do without, in the same chunks, and nothing else:
              student and teacher logits, both gradients; in bfloat16 also its sums
    naive     all positions projected at once, the rest left to autograd
    trl       TRL's chunked divergence, and its selective log-softmax for SPIN's pairs (extra `peer`)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VOCAB, STUDENT, TEACHER = 151_936, 896, 2048
LOSSES = ("reverse_kl", "forward_kl", "jsd", "dudi")
HOW = ("chunked", "bare", "naive", "trl")
CASES = tuple(
    f"{how}/{loss}/{dtype}"
    for dtype in ("float32", "bfloat16")
    for loss in LOSSES
    for how in HOW
    if how != "trl" or loss in ("reverse_kl", "dudi")
)
DUDI_ROWS = 2


def measure(case: str, tokens: int, threads: int, chunk: int, vocab: int = VOCAB) -> dict[str, Any]:
    """One case in this process: seconds, peak above the inputs in MB (1e6 bytes), loss and gradient norms."""
    import torch

    torch.set_num_threads(threads)
    how, loss, dtype = case.split("/")
    run(
        how, loss, dtype, *_inputs(loss, dtype, 16, 1000), chunk
    )  # libraries load and threads start outside the measurement
    inputs = _inputs(loss, dtype, tokens, vocab)
    reset = _reset_high_water()
    before = _status("VmRSS") if reset else _status("VmHWM")
    cpu, wall = time.process_time(), time.perf_counter()
    value = run(how, loss, dtype, *inputs, chunk)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _status("VmHWM") - before
    hidden, weight = inputs[0], inputs[1]
    return {
        "case": case,
        "tokens": tokens,
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "peak_mb": round(peak / 1e6),
        "inputs_mb": round(sum(t.numel() * t.element_size() for t in inputs[:4]) / 1e6),
        "high_water_reset": reset,
        "loss": value,
        **{
            name: None if t.grad is None else float(t.grad.float().norm())
            for name, t in (("grad_hidden", hidden), ("grad_weight", weight))
        },
    }


def _inputs(loss: str, dtype: str, tokens: int, vocab: int) -> tuple[Any, ...]:
    """hidden, student weight, teacher hidden, teacher weight, labels: all of them touched, filled in place."""
    import torch

    torch.manual_seed(0)
    narrow = torch.float32 if dtype == "float32" else torch.bfloat16
    tokens = tokens if loss != "dudi" else 3 * tokens // 4  # two rows x three responses x tokens / 8

    def filled(rows: int, columns: int, scale: float, kind: Any) -> Any:
        return torch.empty(rows, columns, dtype=kind).uniform_(-scale, scale)

    hidden, weight = filled(tokens, STUDENT, 1.7, torch.float32), filled(vocab, STUDENT, 0.08, torch.float32)
    teacher, teacher_weight = filled(tokens, TEACHER, 1.7, narrow), filled(vocab, TEACHER, 0.05, narrow)
    labels = torch.randint(0, vocab, (tokens,))
    return hidden.requires_grad_(), weight.requires_grad_(), teacher, teacher_weight, labels


def run(
    how: str,
    loss: str,
    dtype: str,
    hidden: Any,
    weight: Any,
    teacher: Any,
    teacher_weight: Any,
    labels: Any,
    chunk: int,
) -> float:
    """Forward and backward."""
    import torch

    if how == "bare":
        return _bare(loss, hidden, weight, teacher, teacher_weight, chunk)
    function: Callable[..., Any] = {"chunked": _chunked, "naive": _naive, "trl": _trl}[how]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        total = function(loss, hidden, weight, teacher, teacher_weight, labels, chunk)
    total.backward()
    return float(total.detach())


def _bare(loss: str, hidden: Any, weight: Any, teacher: Any, teacher_weight: Any, chunk: int) -> float:
    import torch

    judged = len(hidden) if loss != "dudi" else 2 * len(hidden) // 3  # y and y~, not y'
    with torch.no_grad():
        narrow = weight.to(teacher_weight.dtype)
        d_weight, d_hidden = torch.zeros_like(narrow), torch.empty_like(hidden)
        for start in range(0, len(hidden), chunk):
            states = hidden[start : start + chunk].to(narrow.dtype)
            logits = states @ narrow.T
            if start < judged:
                theirs = teacher[start : min(start + chunk, judged)] @ teacher_weight.T
                del theirs
            d_hidden[start : start + chunk] = logits @ narrow
            d_weight.addmm_(logits.T, states)
    return 0.0


def _trl(loss: str, hidden: Any, weight: Any, teacher: Any, teacher_weight: Any, labels: Any, chunk: int) -> Any:
    import torch.nn.functional as F
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.trainer.utils import selective_log_softmax

    def divergence(at: slice) -> Any:
        mine, theirs = hidden[at].to(teacher.dtype), teacher[at]
        found, _ = ChunkedDivergenceFunction.apply(
            mine, weight.to(teacher.dtype), None, theirs, teacher_weight, None, 1.0, 1.0
        )
        return found.sum() / len(mine)

    if loss != "dudi":
        return divergence(slice(0, len(hidden)))
    from dudi.methods import dudi
    from dudi.signals import views

    signals, size = dudi().signals, len(labels) // 3
    parts = {view: slice(k * size, (k + 1) * size) for k, view in enumerate(views(signals))}
    total = hidden.new_zeros(())
    for s in signals:
        if s.compared:
            of = [
                selective_log_softmax((hidden[parts[v]] @ weight.T).float(), labels[parts[v]])
                .view(DUDI_ROWS, -1)
                .sum(-1)
                for v in s.views
            ]
            total = total + s.weight * F.softplus(-s.beta * (of[0] - of[1])).mean()
        else:
            total = total + s.weight * divergence(parts[s.views[0]])
    return total


def _chunked(loss: str, hidden: Any, weight: Any, teacher: Any, teacher_weight: Any, labels: Any, chunk: int) -> Any:
    import torch

    from dudi.loss.chunked import Positions, Term, score
    from dudi.loss.head import Head
    from dudi.loss.losses import token_loss
    from dudi.loss.objective import objective
    from dudi.loss.scores import Block, Reading, Scores
    from dudi.methods import GOLD, dudi
    from dudi.signals import Loss, TokenSignal, judged, views

    head, teacher_head = Head(weight, vocab=len(weight)), Head(teacher_weight, vocab=len(weight))
    n = len(labels)
    if loss != "dudi":
        share = torch.full((n,), 1 / n, dtype=torch.float64)
        arguments = {"beta": 0.5} if loss == "jsd" else {}
        term = Term(token_loss(TokenSignal("one", 1.0, Loss(loss), GOLD, arguments)), share)
        return score(hidden, head, teacher_head, [Positions(labels, (term,), teacher)], chunk).loss
    signals = dudi().signals
    size = n // 3
    row, position = torch.arange(DUDI_ROWS).repeat_interleave(size // DUDI_ROWS), torch.arange(size)
    nothing = Reading(labels[:0], labels[:0])
    parts = {view: slice(k * size, (k + 1) * size) for k, view in enumerate(views(signals))}
    blocks = {
        view: Block(view, nothing, nothing, labels[at], row, position, torch.ones(size), DUDI_ROWS)
        for view, at in parts.items()
    }
    scores = Scores(
        blocks,
        {view: hidden[at] for view, at in parts.items()},
        head,
        {view: teacher[at] for view, at in parts.items() if view in judged(signals)},
        teacher_head,
        {view: torch.zeros(DUDI_ROWS, dtype=torch.float64) for view in parts},
    )
    counts = {s.name: float(DUDI_ROWS if s.compared else size) for s in signals}
    return objective(signals, scores, counts, chunk).loss


def _naive(loss: str, hidden: Any, weight: Any, teacher: Any, teacher_weight: Any, labels: Any, chunk: int) -> Any:
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        log_q = F.log_softmax((teacher @ teacher_weight.T).float(), -1)
    log_p = F.log_softmax((hidden @ weight.T).float(), -1)
    if loss == "reverse_kl":
        return F.kl_div(log_q, log_p, log_target=True, reduction="sum") / len(labels)
    if loss == "forward_kl":
        return F.kl_div(log_p, log_q, log_target=True, reduction="sum") / len(labels)
    if loss == "jsd":
        log_m = torch.logaddexp(log_p, log_q) - 0.6931471805599453
        both = F.kl_div(log_m, log_p, log_target=True, reduction="sum") + F.kl_div(
            log_m, log_q, log_target=True, reduction="sum"
        )
        return both / (2 * len(labels))
    from dudi.methods import dudi
    from dudi.signals import views

    signals = dudi().signals
    size = len(labels) // 3
    parts = {view: slice(k * size, (k + 1) * size) for k, view in enumerate(views(signals))}
    total = torch.zeros(())
    for s in signals:
        if s.compared:
            of = [log_p[parts[v]].gather(-1, labels[parts[v], None]).view(DUDI_ROWS, -1).sum(-1) for v in s.views]
            total = total + s.weight * F.softplus(-s.beta * (of[0] - of[1])).mean()
        else:
            at = parts[s.views[0]]
            total = total + s.weight * F.kl_div(log_q[at], log_p[at], log_target=True, reduction="sum") / size
    return total


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; where there is none, the high-water mark that getrusage knows."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _reset_high_water() -> bool:
    """Set the high-water mark back to the present size; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def fresh(case: str, tokens: int, threads: int = 1, chunk: int = 256) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--case",
        case,
        "--tokens",
        str(tokens),
        "--threads",
        str(threads),
        "--chunk",
        str(chunk),
    ]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} with {tokens} tokens failed: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Medians as Markdown, with the ratios to the bare products and to the naive implementation of the same run."""
    columns = (
        "loss, precision, tokens, implementation, CPU s, wall s, peak MB, CPU / bare, CPU / naive, peak / naive, loss"
    )
    lines = ["| " + columns.replace(", ", " | ") + " |", "|" + "---|" * len(columns.split(", "))]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["case"], r["tokens"]), []).append(r)

    def median(key: tuple[str, int], what: str) -> float:
        return statistics.median(r[what] for r in groups[key])

    for case, tokens in groups:
        how, loss, dtype = case.split("/")
        cells = [
            f"{median((case, tokens), what):,.{digits}f}"
            for what, digits in (("cpu_s", 1), ("wall_s", 1), ("peak_mb", 0))
        ]
        ratios = [
            f"{median((case, tokens), what) / median(other, what):.2f}" if other in groups else "-"
            for how_else, what in (("bare", "cpu_s"), ("naive", "cpu_s"), ("naive", "peak_mb"))
            if (other := (f"{how_else}/{loss}/{dtype}", tokens))
        ]
        value = f"{median((case, tokens), 'loss'):.6f}"
        lines.append("| " + " | ".join([loss, dtype, f"{tokens:,}", how, *cells, *ratios, value]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="medians of so many runs of each case")
    parser.add_argument("--chunk", type=int, default=256, help="response positions at a time (training.head_chunk)")
    parser.add_argument("--only", default="", help="cases whose name contains this, such as reverse_kl/float32")
    parser.add_argument("--how", nargs="+", choices=HOW, default=list(HOW), help="implementations")
    parser.add_argument("--case", help="one case in this process, as a line of JSON")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.tokens[0], args.threads, args.chunk)))
        return
    peer = importlib.util.find_spec("trl") is not None
    if "trl" in args.how and not peer:
        print("TRL is not installed here (extra `peer`): left out\n")
    cases = [
        case
        for case in CASES
        if args.only in case and (how := case.split("/")[0]) in args.how and (how != "trl" or peer)
    ]
    results = []
    for _ in range(args.repeats):
        for tokens in args.tokens:
            for case in cases:
                results.append(fresh(case, tokens, args.threads, args.chunk))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"V = {VOCAB:,}, hidden {STUDENT} and {TEACHER}, {args.threads} thread(s), chunk {args.chunk}\n")
    print(table(results))


if __name__ == "__main__":
    main()
