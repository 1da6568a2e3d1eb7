"""The methods once more, as slowly and plainly as possible: what the package's losses and gradients are tested against.

Written from the equations (the paper's numbering), not from the package: one row at a time, no padding, no batch, no
cache, the whole logits of the whole vocabulary, `torch.log_softmax`, autograd, and sums and means as they are printed.
Prompts are ChatML written out by hand; verbalizer templates are read from their files and filled by plain replacement.
"""

from __future__ import annotations

import copy
import importlib.resources
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from dudi.example import Example, Message

Ids = tuple[int, ...]


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def chatml(messages: Sequence[Message]) -> str:
    """Closed turns in ChatML."""
    return "".join("<|im_start|>" + m.role + "\n" + m.content + "<|im_end|>\n" for m in messages)


def read_template(language: str) -> dict[str, Any]:
    """The file of one language's verbalizer texts."""
    return tomllib.loads(
        (importlib.resources.files("dudi") / "text" / "templates" / f"{language}.toml").read_text("utf-8")
    )


def fill(language: str, text: str, example: Example, l_z: str | None) -> tuple[Message, ...]:
    """x with its last user turn put into a template of `language`."""
    assert "{" not in example.x[-1].content + example.y, "plain replacement would fill in the row's own braces"
    table = read_template(language)
    new = table[text].replace("{question}", example.x[-1].content).replace("{demonstration}", example.y)
    if l_z is not None:
        new = new.replace("{language}", table["names"][l_z])
    return (*example.x[:-1], Message("user", new))


# ── losses of one position or one row ────────────────────────────────────────────────────────────────────────────────
def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(P || Q) = sum over the vocabulary of p (log p - log q). [T, V] -> [T]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergence(name: str, log_s: Tensor, log_t: Tensor, beta: float = 0.5) -> Tensor:
    """D of every position: forward KL(T || S), reverse KL(S || T), or beta KL(T || M) + (1 - beta) KL(S || M)."""
    if name == "forward_kl":
        return kl(log_t, log_s)
    if name == "reverse_kl":
        return kl(log_s, log_t)
    assert name == "jsd"
    log_m = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log()
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


def log_probs(log_s: Tensor, response: Ids) -> Tensor:
    """log S(y_t | ...) of every token of a response."""
    return torch.stack([log_s[t, token] for t, token in enumerate(response)])


def cross_entropy(name: str, log_p: Tensor) -> Tensor:
    """Equation 1: w = 1 (SFT), or w = sg(p(y_t)) (DFT)."""
    return -log_p if name == "nll" else -(log_p.exp().detach() * log_p)


def spin_loss(beta: float, s_y: Tensor, s_other: Tensor, r_y: Tensor, r_other: Tensor) -> Tensor:
    """Equation 2 of one row, with the sign corrected; arguments are log-probabilities of whole responses."""
    return -torch.log(torch.sigmoid(beta * ((s_y - s_other) - (r_y - r_other))))


# ── one optimizer step ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Oracle:
    """One optimizer step on rows (index, example). respond: the response of (index, view); l_z: the drawn language by
    index; the limits are the recipe's."""

    tokenizer: PreTrainedTokenizerBase
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    reference: PreTrainedModel | None
    rows: Sequence[tuple[int, Example]]
    respond: Callable[[int, str], Ids]
    l_z: Mapping[int, str | None] = field(default_factory=dict)
    prompt_limit: int = 400
    verbalizer_limit: int = 300
    total_limit: int = 600
    teacher_prompt_limit: int = 2000

    def __post_init__(self) -> None:
        self.vocab = len(self.tokenizer)
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.start = self.tokenizer.convert_tokens_to_ids("<|im_start|>")
        self.student = copy.deepcopy(self.student).double().train()
        self.student.zero_grad()
        self.teacher = None if self.teacher is None else copy.deepcopy(self.teacher).double().eval()
        self.reference = None if self.reference is None else copy.deepcopy(self.reference).double().eval()
        self.rows = [(index, e) for index, e in self.rows if len(self.x(e)) <= self.prompt_limit]

    # texts as ids
    def ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ask(self, messages: Sequence[Message]) -> Ids:
        """Turns, and the opening of an answer."""
        return self.ids(chatml(messages) + "<|im_start|>assistant\n")

    def x(self, e: Example) -> Ids:
        return self.ask(e.x)

    def y(self, e: Example) -> Ids:
        """The ground truth with its EOS, cut on the right."""
        x, both = self.x(e), self.ids(chatml((*e.x, Message("assistant", e.y))).removesuffix("\n"))
        assert both[: len(x)] == x and both[-1] == self.end
        return both[len(x) :][: self.total_limit - len(x)]

    def prompts(self, mode: str, index: int, e: Example) -> tuple[Ids, Ids] | None:
        """(student's, teacher's) of the on-policy term: paper 3.3; None where one of them is too long."""
        l_z = self.l_z[index] if mode != "none" else None
        if mode == "mix":
            mode = "multilingual" if l_z == e.l else "crosslingual"
        if mode == "none":
            student, teacher = e.x, e.x
        elif mode == "english":
            student, teacher = e.x, fill("en", "teacher_unnamed", e, None)
        elif mode == "multilingual":
            student, teacher = e.x, fill(e.l, "teacher", e, e.l)
        else:
            assert mode == "crosslingual" and l_z not in (None, e.l)
            student, teacher = fill(e.l, "student", e, l_z), fill(e.l, "teacher", e, l_z)
        ours, theirs = self.ask(student), self.ask(teacher)
        if mode != "none" and len(ours) > self.prompt_limit + self.verbalizer_limit:
            return None
        return None if mode != "none" and len(theirs) > self.teacher_prompt_limit else (ours, theirs)

    # models
    def log_softmax(self, model: PreTrainedModel, prompt: Ids, response: Ids) -> Tensor:
        """log P(. | prompt, response before t) for every t of a response, [T, V]; padded vocabulary rows sliced off."""
        with torch.set_grad_enabled(model is self.student):
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, :, : self.vocab]
            assert logits.dtype is torch.float64
            return torch.log_softmax(logits, -1)[len(prompt) - 1 : len(prompt) - 1 + len(response)]

    def sequence_log_prob(self, model: PreTrainedModel, prompt: Ids, response: Ids) -> Tensor:
        return log_probs(self.log_softmax(model, prompt, response), response).sum()

    # terms: token means over all tokens of the step, row means over all rows
    def off_policy(self, name: str, beta: float, view: str = "y") -> Tensor:
        """Equation 5 (and SeqKD's): on ground truths, or on stored responses."""
        per_token = []
        for index, e in self.rows:
            x, y = self.x(e), self.y(e) if view == "y" else self.respond(index, view)
            log_s = self.log_softmax(self.student, x, y)
            if name in ("nll", "dft"):
                per_token.append(cross_entropy(name, log_probs(log_s, y)))
            else:
                per_token.append(divergence(name, log_s, self.log_softmax(self.teacher, x, y), beta))
        return mean(per_token)

    def on_policy(self, name: str, beta: float, mode: str, skip: int = 0) -> Tensor:
        """Equation 7 (3 and 4 in other modes): student and teacher read their own prompts, then the same rollout."""
        per_token = []
        for index, e in self.rows:
            both = self.prompts(mode, index, e)
            if both is not None:
                rollout = self.respond(index, "y_tilde")
                log_s = self.log_softmax(self.student, both[0], rollout)
                log_t = self.log_softmax(self.teacher, both[1], rollout)
                per_token.append(divergence(name, log_s, log_t, beta)[skip:])
        return mean(per_token)

    def sequence(self, beta: float, view: str) -> Tensor:
        """Equation 2."""
        per_row = []
        for index, e in self.rows:
            x, y, other = self.x(e), self.y(e), self.respond(index, view)
            s_y, s_other = (self.sequence_log_prob(self.student, x, response) for response in (y, other))
            r_y, r_other = (self.sequence_log_prob(self.reference, x, response) for response in (y, other))
            per_row.append(spin_loss(beta, s_y, s_other, r_y, r_other)[None])
        return mean(per_row)

    def all_assistant(self, name: str) -> Tensor:
        """Cross-entropy on every assistant turn of a conversation, within the total limit."""
        per_token = []
        header = self.ids("<|im_start|>assistant\n")
        for _, e in self.rows:
            ids = self.ids(chatml((*e.x, Message("assistant", e.y))))
            log_s = self.log_softmax(self.student, ids[:1], ids[1:])
            starts = [k for k, token in enumerate(ids) if token == self.start]
            for start in starts:
                if ids[start : start + len(header)] == header:
                    stop = next(k for k in range(start, len(ids)) if ids[k] == self.end)
                    for k in range(start + len(header), stop + 1):
                        if k < self.total_limit:
                            per_token.append(cross_entropy(name, log_s[k - 1, ids[k]][None]))
        return mean(per_token)

    # methods (Table 1)
    def loss(self, table: Mapping[str, Any], coin: bool | None = None) -> Tensor:
        """The loss of a method's recipe table; `coin`: on which side GKD's coin fell (True: on-policy)."""
        t = dict(table)
        name, variant, jsd_beta = t.pop("name"), t.pop("variant", None), t.pop("jsd_beta", 0.5)
        if name in ("sft", "dft"):
            loss, turns = {"sft": "nll", "dft": "dft"}[name], t.pop("loss_on", "last")
            result = self.off_policy(loss, jsd_beta) if turns == "last" else self.all_assistant(loss)
        elif name == "spin":
            view = {None: "stored", "original": "stored", "online": "y_prime"}[variant]
            result = self.sequence(t.pop("spin_beta", 0.1), view)
        elif name == "sdft":
            loss = {None: "forward_kl", "official": "forward_kl", "reverse": "reverse_kl"}[variant]
            result = self.on_policy(loss, jsd_beta, t.pop("verbalizer", "english"), t.pop("skip_tokens", 3))
        elif name == "seqkd":
            result = self.off_policy(variant or "nll", jsd_beta, "stored")
        elif name == "gkd":
            loss, lam = t.pop("divergence", "jsd"), t.pop("lam", 0.5)
            if variant == "sum":
                result = (1 - lam) * self.off_policy(loss, jsd_beta) + lam * self.on_policy(loss, jsd_beta, "none")
            else:
                assert coin is not None
                result = self.on_policy(loss, jsd_beta, "none") if coin else self.off_policy(loss, jsd_beta)
        else:
            assert name == "dudi"
            alpha, lam, beta = t.pop("alpha", 0.1), t.pop("lam", 0.5), t.pop("spin_beta", 0.1)
            loss, mode = t.pop("divergence", "reverse_kl"), t.pop("verbalizer", "crosslingual")
            without = t.pop("without", ())
            t.pop("include_english", None)  # changes the draw only
            result = torch.zeros((), dtype=torch.float64)
            if "sequence" not in without and alpha:
                result = result + alpha * self.sequence(beta, "y_prime")
            if "off_policy" not in without and lam < 1:
                result = result + (1 - lam) * self.off_policy(loss, jsd_beta)
            if "on_policy" not in without and lam:
                result = result + lam * self.on_policy(loss, jsd_beta, mode)
        assert not t, f"the oracle does not know {t}"
        return result

    def step(self, table: Mapping[str, Any], coin: bool | None = None) -> tuple[float, dict[str, Tensor]]:
        """Loss, and the gradient of every parameter of the student by name."""
        self.student.zero_grad()
        loss = self.loss(table, coin)
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in self.student.named_parameters() if p.grad is not None}


def mean(per_token: Sequence[Tensor]) -> Tensor:
    """Sum over all tokens (or rows) of the step, divided by their number, once."""
    return torch.cat(list(per_token)).sum() / sum(len(v) for v in per_token)


# ── one rollout ──────────────────────────────────────────────────────────────────────────────────────────────────────
@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompt: Ids,
    u: Sequence[float],
    vocab: int,
    temperature: float,
    stop: Sequence[int],
    limit: int,
) -> tuple[Ids, bool]:
    """One response: the whole prefix is read anew for every token, which is the first whose cumulative probability
    exceeds u."""
    response: list[int] = []
    for t in range(limit):
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, -1, :vocab]
        chosen, cumulative = None, 0.0
        for token, p in enumerate(torch.softmax(logits.double() / temperature, -1).tolist()):
            cumulative += p
            if u[t] < cumulative:
                chosen = token
                break
        assert chosen is not None, "u beyond the sum of probabilities"
        response.append(chosen)
        if chosen in stop:
            return tuple(response), True
    return tuple(response), False


def exact_norm(norm: torch.nn.Module, hidden: Tensor) -> Tensor:
    """RMSNorm in the precision of its input.

    The models' own goes through float32 even in a float64 model, which rounds gradients at 1e-7: two losses on one
    forward pass then have another gradient than the same losses on a pass each.
    """
    wide = hidden if hidden.dtype is torch.float64 else hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(hidden.dtype)


def use_exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """`exact_norm` in all models of the tests."""
    for norm in (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", exact_norm)


def lively(made: PreTrainedModel, factor: float = 6.0) -> PreTrainedModel:
    """Layers scaled up: at their usual start they hardly change a token's embedding, so that what a model reads before
    a token would hardly matter."""
    with torch.no_grad():
        for name, p in made.named_parameters():
            if ".layers." in name and p.dim() == 2:
                p.mul_(factor)
    return made


# ── comparison ───────────────────────────────────────────────────────────────────────────────────────────────────────
def agree(
    found: tuple[float, Mapping[str, Tensor]], wanted: tuple[float, Mapping[str, Tensor]], tolerance: float
) -> None:
    """Loss and the gradient of every parameter are equal, relative to their size, and are not all zero."""
    assert found[0] == pytest.approx(wanted[0], rel=tolerance, abs=0)
    assert worst(found[1], wanted[1]) < tolerance
    assert sum(g.abs().sum().item() for g in wanted[1].values()) > 1e-3, "nothing to compare"


def worst(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest relative error of a parameter's gradient, ||found - wanted|| / ||wanted||.

    Gradients that cancel (biases of keys have none at all) are measured against the whole gradient, times 1e-3.
    """
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    whole = math.sqrt(sum(w.double().square().sum().item() for w in wanted.values()))
    errors = {}
    for name, w in wanted.items():
        difference = (found[name].double() - w.double()).norm().item()
        errors[name] = difference / max(w.double().norm().item(), 1e-3 * whole, 1e-300)
    return max(errors.values())
