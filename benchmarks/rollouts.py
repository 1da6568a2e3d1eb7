"""Rollouts beside transformers' `generate` with its cache: the same model, prompts and lengths, CPU and wall seconds.

    python benchmarks/rollouts.py                     # 7 M parameters, V = 8,192, batch 32, 64 + 64 tokens
    python benchmarks/rollouts.py --rounds 11 --batch 8 --vocab 32000 --hidden 256 --layers 4

A random Qwen2, float32, SDPA, one thread. `full`: every answer has 64 tokens. `ragged`: answers end after 2 to 64
tokens, 33 on average, the same for both (as a request's limit here, as a stopping criterion there). `sampled` is
temperature 1 without top-k and top-p; `greedy` checks that both write the same tokens. The two take turns; medians, and
ratios of medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from step import make_model
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers import logging as transformers_logging

from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine

PROMPT, NEW = 64, 64
PAD = 0


class Ends(StoppingCriteria):
    """Ends each row after its own number of new tokens."""

    def __init__(self, limits: Tensor) -> None:
        self.limits = limits

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Which rows are done [B]."""
        return input_ids.shape[1] - PROMPT >= self.limits


def generated(model: PreTrainedModel, requests: Sequence[Request], sampled: bool) -> list[tuple[int, ...]]:
    """What `generate` answers."""
    ids, limits = torch.tensor([r.prompt for r in requests]), torch.tensor([r.limit for r in requests])
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        pad_token_id=PAD,
        stopping_criteria=StoppingCriteriaList([Ends(limits)]),
        **options,
    )
    return [tuple(row[PROMPT : PROMPT + r.limit]) for row, r in zip(out.tolist(), requests, strict=True)]


def rolled_out(engine: LocalEngine, model: PreTrainedModel, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """What this package's engine answers."""
    return [rollout.ids for rollout in engine(model, requests)]


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Process CPU seconds and wall-clock seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def case(model: PreTrainedModel, requests: Sequence[Request], sampled: bool, rounds: int) -> list[float]:
    """Medians: CPU seconds here and there, wall seconds here and there."""
    engine = LocalEngine(Sampling((), PAD, model.config.vocab_size, 1.0 if sampled else 0.0))
    ours, theirs = (
        rolled_out(engine, model, requests),
        generated(model, requests, sampled),
    )  # and nothing is new to either
    assert [len(ids) for ids in ours] == [len(ids) for ids in theirs] == [r.limit for r in requests]
    assert sampled or ours == theirs, "greedy tokens differ"
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        times["ours"].append(seconds(lambda: rolled_out(engine, model, requests)))
        times["theirs"].append(seconds(lambda: generated(model, requests, sampled)))
    return [statistics.median(pair[clock] for pair in times[who]) for clock in (0, 1) for who in ("ours", "theirs")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("vocab", 8192), ("hidden", 256), ("layers", 5), ("batch", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    model = make_model(args.vocab, args.hidden, args.layers, 1).eval()
    model.generation_config.eos_token_id = None
    rng = random.Random(0)
    ragged = [2 + k * (NEW - 2) // max(1, args.batch - 1) for k in range(args.batch)]
    rng.shuffle(ragged)
    prompts = [tuple(rng.randrange(3, args.vocab) for _ in range(PROMPT)) for _ in range(args.batch)]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.1f} M parameters, V = {args.vocab:,}, batch {args.batch}, {PROMPT} + {NEW} tokens, 1 thread\n")
    print("| answers | tokens | CPU s | `generate` CPU s | ratio | wall s | `generate` wall s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, limits in (("full", [NEW] * args.batch), ("ragged", ragged)):
        requests = [Request(p, ("step", k), n) for k, (p, n) in enumerate(zip(prompts, limits, strict=True))]
        for sampled in (True, False):
            cpu, cpu_there, wall, wall_there = case(model, requests, sampled, args.rounds)
            cells = f"{cpu:.2f} | {cpu_there:.2f} | {cpu_there / cpu:.2f} | {wall:.2f} | {wall_there:.2f}"
            print(f"| {name} | {'sampled' if sampled else 'greedy'} | {cells} | {wall_there / wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
