"""Saved loss curves of every method: eight steps, float64, sampled responses, seed 0.

A change that is not meant to alter numbers leaves them alone. One that is replaces them: `PYTHONPATH=tests python
tests/equations/test_golden.py --write`, in a commit of its own that says why. Models are filled from a counter-based
generator, by parameter name, and the tokenizer is one token a byte: no library's initialisation and no other test's
data is in these numbers.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dudi.draws import draw
from dudi.example import Example
from dudi.recipe.schema import Limits

FOLDER = Path(__file__).parent / "golden"
STEPS = 8
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "sft-all-assistant": {"name": "sft", "loss_on": "all_assistant"},
    "dft": {"name": "dft"},
    "spin-original": {"name": "spin"},
    "spin-online": {"name": "spin", "variant": "online"},
    "sdft-official": {"name": "sdft", "ema_rate": 0.2},
    "sdft-reverse": {"name": "sdft", "variant": "reverse", "ema_rate": 0.2},
    "seqkd-nll": {"name": "seqkd"},
    "seqkd-jsd": {"name": "seqkd", "variant": "jsd"},
    "gkd-coin": {"name": "gkd"},
    "gkd-sum": {"name": "gkd", "variant": "sum"},
    "dudi": {"name": "dudi"},
    "dudi-forward-kl": {"name": "dudi", "divergence": "forward_kl"},
    "dudi-jsd": {"name": "dudi", "divergence": "jsd", "jsd_beta": 0.3},
    "dudi-mix": {"name": "dudi", "verbalizer": "mix", "without": ["sequence"]},
}
ROWS = (
    ("id", kit.message("Apa warna langit?"), "Biru."),
    ("vi", kit.message("Hai cộng ba?", "Năm.", "Nhân đôi?"), "Mười."),
    ("th", kit.message("สวัสดี", system="สั้น"), "ครับ"),
    ("ta", kit.message("நிறம்?"), "நீலம்"),
    ("tl", kit.message("Ilan ang paa ng aso?", system="Maikli."), "Apat."),
    ("ms", kit.message("Ibu kota Malaysia?"), "Kuala Lumpur."),
    ("my", kit.message("အရောင်?"), "ပြာ"),
)


def tokenizer() -> PreTrainedTokenizerFast:
    """259 tokens: three special ones, then the bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {t: k for k, t in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=special[0], eos_token=special[2])
    made.add_special_tokens({"additional_special_tokens": special[1:2]})
    made.chat_template = kit.CHATML
    assert len(made) == 259
    return made


def filled(name: str, **kwargs: Any) -> PreTrainedModel:
    """A model whose weights are a function of `name`, the parameters' names and shapes."""
    made = kit.model(0, layers=1, tied=False, **kwargs)
    with torch.no_grad():
        for parameter, p in made.named_parameters():
            g = np.random.Generator(np.random.Philox(key=draw("golden", name, parameter)))
            value = torch.from_numpy(g.standard_normal(tuple(p.shape)))
            scale = 0.25 if "embed" in parameter or "lm_head" in parameter else 0.1
            p.copy_(1 + 0.1 * value if "norm" in parameter else scale * value)
    return made


def curve(method: str, folder: Path) -> list[dict[str, Any]]:
    """Per step: loss, gradient norm, and each signal's mean, count and margin."""
    rows = [Example(x, y, l, str(k)) for k, (l, x, y) in enumerate(ROWS)]
    frozen = [
        filled("teacher", rows=270, hidden=48).requires_grad_(False).eval(),
        filled("reference", rows=262).requires_grad_(False).eval(),
    ]
    made = kit.trainer(
        folder,
        METHODS[method],
        student=filled("student", rows=262),
        teacher=frozen[0],
        reference=frozen[1],
        examples=rows,
        forced=False,
        limits=Limits(prompt=400, verbalizer=600, total=600, rollout=6, teacher_prompt=2500),
        tok=tokenizer(),
        batch=4,
        micro_batch=2,
        epochs=4.0,
        warmup_steps=2,
        weight_decay=0.01,
    )
    if made.ema:  # a teacher away from the student, so that the first step has a loss
        made.ema.update(filled("average", rows=262))
    made.train()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = []
    for line in lines:
        signals = {
            name: {q: entry[q] for q in ("loss", "count", "margin") if q in entry}
            for name, entry in line["signal"].items()
        }
        found.append({"loss": line["loss"], "grad_norm": line["grad_norm"], "signal": signals})
    return found


def differences(found: Any, saved: Any, where: str = "") -> list[str]:
    """Where two curves differ by more than 1e-9."""
    if isinstance(saved, dict):
        if found.keys() != saved.keys():
            return [f"{where}: {sorted(found)} instead of {sorted(saved)}"]
        return [d for key in saved for d in differences(found[key], saved[key], f"{where}/{key}")]
    if isinstance(saved, list):
        if len(found) != len(saved):
            return [f"{where}: {len(found)} steps instead of {len(saved)}"]
        return [
            d for k, pair in enumerate(zip(found, saved, strict=True)) for d in differences(*pair, f"{where}/{k + 1}")
        ]
    if not math.isclose(found, saved, rel_tol=1e-9, abs_tol=1e-9):
        return [f"{where}: {found!r} instead of {saved!r}"]
    return []


@pytest.mark.parametrize("method", METHODS)
def test_curve(method: str, tmp_path: Path) -> None:
    saved = json.loads((FOLDER / f"{method}.json").read_text(encoding="utf-8"))
    assert saved["method"] == METHODS[method] and len(saved["steps"]) == STEPS
    wrong = differences(curve(method, tmp_path), saved["steps"])
    assert not wrong, "\n".join(wrong[:10])


def test_every_file_is_of_a_method() -> None:
    assert sorted(f.stem for f in FOLDER.glob("*.json")) == sorted(METHODS)
    curves = {f.stem: json.loads(f.read_text(encoding="utf-8"))["steps"] for f in FOLDER.glob("*.json")}
    losses = {name: tuple(step["loss"] for step in steps) for name, steps in curves.items()}
    assert len(set(losses.values())) == len(losses), "no two methods have the same curve"
    assert all(step["grad_norm"] > 1e-4 for steps in curves.values() for step in steps)


def write() -> None:
    """Replace all saved curves."""
    FOLDER.mkdir(exist_ok=True)
    for method, table in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            steps = curve(method, Path(folder))
        lines = ",\n".join("  " + json.dumps(step) for step in steps)
        text = f'{{\n "method": {json.dumps(table)},\n "steps": [\n{lines}\n ]\n}}\n'
        (FOLDER / f"{method}.json").write_text(text, encoding="utf-8")
        print(method, steps[0]["loss"], "->", steps[-1]["loss"])


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("give --write to replace the saved curves")
    write()
