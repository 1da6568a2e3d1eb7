"""Make small Qwen2-class model folders to try `dudi` on: a random student, and a teacher after a short SFT.

    python scripts/make_models.py --out build/tiny                                  # built-in rows, its own tokenizer
    python scripts/make_models.py --out build/real --data FOLDER --format sea_instruct --tokenizer FOLDER

The teacher is trained by `dudi` itself, with the method `sft` on the same rows. Both folders are ordinary ones, with
tokenizer and chat template, such as `from_pretrained` reads.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from dudi.data.load import load_rows
from dudi.recipe.read import parse_recipe
from dudi.run.pipeline import run
from dudi.run.progress import Watcher

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: list[str], vocab: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with the ChatML template, trained on the rows."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=special[0], eos_token=special[2])
    tokenizer.chat_template = CHATML
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int, seed: int) -> Qwen2ForCausalLM:
    """A random Qwen2 with tied embeddings; the vocabulary is padded to a multiple of 128, as in the real ones."""
    torch.manual_seed(seed)
    size = -(-len(tokenizer) // 128) * 128
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size,
            hidden_size=hidden,
            intermediate_size=hidden * 4,
            num_hidden_layers=layers,
            num_attention_heads=max(hidden // 32, 1),
            num_key_value_heads=max(hidden // 64, 1),
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for student/ and teacher/")
    parser.add_argument("--data", default="builtin", help="rows that the teacher is trained on")
    parser.add_argument("--format", default="chat", choices=("chat", "sea_instruct"))
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer folder; by default one is trained on the rows")
    parser.add_argument("--vocab", type=int, default=2048, help="size of the trained tokenizer")
    parser.add_argument("--student", type=int, nargs=2, default=(64, 2), metavar=("HIDDEN", "LAYERS"))
    parser.add_argument("--teacher", type=int, nargs=2, default=(128, 3), metavar=("HIDDEN", "LAYERS"))
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the teacher")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512, help="longest x + y")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Write both folders; existing ones are replaced."""
    a = arguments()
    data = {"source": a.data, "format": a.format}
    table = {
        "name": "make-teacher",
        "seed": a.seed,
        "output": str(a.out / "teacher-run"),
        "method": {"name": "sft"},
        "models": {"student": str(a.out / "teacher-init")},
        "chat": {"template": "student"},
        "data": data,
        "limits": {"prompt": a.max_tokens * 3 // 4, "total": a.max_tokens},
        "training": {
            "lr": a.lr,
            "batch": a.batch,
            "max_steps": a.steps,
            "save_every": max(a.steps, 1),
            "log_every": 20,
        },
    }
    recipe = parse_recipe(table, "make_models")
    if a.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(a.tokenizer)
    else:
        rows = load_rows(recipe.data, a.seed).train
        tokenizer = make_tokenizer([t for e in rows for t in (*[m.content for m in e.x], e.y)], a.vocab)
    for name in ("student", "teacher", "teacher-init", "teacher-run"):
        shutil.rmtree(a.out / name, ignore_errors=True)
    for name, (hidden, layers), seed in (("student", a.student, 1), ("teacher-init", a.teacher, 2)):
        make_model(tokenizer, hidden, layers, a.seed + seed).save_pretrained(a.out / name)
        tokenizer.save_pretrained(a.out / name)
    console = Console()
    folder = run(recipe, monitors=[Watcher(console)], say=console.print)
    shutil.copytree(folder / "1-sft" / "model", a.out / "teacher")
    shutil.rmtree(a.out / "teacher-init")
    shutil.rmtree(a.out / "teacher-run")
    console.print(f"made {a.out / 'student'} and {a.out / 'teacher'}")


if __name__ == "__main__":
    main()
