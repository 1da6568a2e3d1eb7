"""Peak memory of a whole run on a CPU, by phase, against what has to be there: weights, gradients, optimizer.

    python benchmarks/peak.py                          # DuDi: student, teacher, reference; float32
    python benchmarks/peak.py --method sft --precision bfloat16 --hidden 512 --layers 8
    python benchmarks/peak.py --adapter                # of rank 16; R is the student

Models of random weights, in a process of its own, with the rows that ship with the package. `needed` is what no step
can do without: the student's weights, gradients and two moments (with an adapter, its frozen weights alone), and the
frozen models that the method reads. What is
above that and the libraries: activations of a micro-batch, the gradient of the head, and (bfloat16) the copy to decode.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"


def build(folder: Path, hidden: int, layers: int, vocab: int) -> int:
    """Student and teacher (twice as deep); the parameters of the student."""
    sys.path.insert(0, str(TESTS))
    import torch
    from kit import models

    sizes = {}
    for name, depth in (("student", layers), ("teacher", 2 * layers)):
        made = models.model(1, hidden=hidden, layers=depth, rows=vocab, dtype=torch.float32, sharpness=1.0)
        models.save(folder / name, made, models.tokenizer())
        sizes[name] = sum(p.numel() for p in made.parameters())
    return sizes["student"]


def recipe(folder: Path, method: str, precision: str, micro_batch: int = 1, adapter: bool = False) -> Path:
    """A recipe of two steps a stage."""
    file = folder / "r.toml"
    file.write_text(
        f"""
name = "peak"
output = "{folder}/run"
[method]
name = "{method}"
[models]
student = "{folder}/student"
teacher = "{folder}/teacher"
precision = "{precision}"
[data]
source = "builtin"
rows_per_language = 1
[limits]
prompt = 400
verbalizer = 300
total = 500
rollout = 8
teacher_prompt = 2000
[training]
batch = 4
micro_batch = {micro_batch}
max_steps = 2
log_every = 1
overlap_every = 0
[cold_start.method]
name = "none"
{"[adapter]" if adapter else ""}
""",
        encoding="utf-8",
    )
    return file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="dudi")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=48_000)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--adapter", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import peak; from pathlib import Path"
        )
        built = f"{program}; print(peak.build(Path({name!r}), {given.hidden}, {given.layers}, {given.vocab}))"
        student = int(subprocess.run([sys.executable, "-c", built], capture_output=True, text=True, check=True).stdout)
        command = [
            sys.executable,
            "-m",
            "dudi",
            "run",
            str(recipe(folder, given.method, given.precision, given.micro_batch, given.adapter)),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        teacher = (folder / "teacher" / "model.safetensors").stat().st_size
    memory: dict[str, int] = {}
    for stage in summary["phases"].values():
        for phase, peak in stage["memory"].items():
            memory[phase] = max(peak, memory.get(phase, 0))
    frozen = 0.5 if given.precision == "bfloat16" else 1.0
    judges = given.method == "dudi"
    of_student = frozen * 4 * student if given.adapter else 16 * student + (frozen * 4 * student if judges else 0)
    needed = of_student + (frozen * teacher if judges else 0)
    libraries = memory["reading"]
    print(f"student {student / 1e6:.1f} M parameters; needed {needed / 1e6:.0f} MB, libraries {libraries / 1e6:.0f} MB")
    for phase, peak in memory.items():
        print(f"{phase:12s} {peak / 1e6:7.0f} MB, {(peak - libraries) / needed:.2f} of what is needed")


if __name__ == "__main__":
    main()
