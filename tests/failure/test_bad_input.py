"""Bad input: one clear line on standard error, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from kit.command import Dudi, command, write_recipe
from kit.runs import digests

from dudi.data import hub, rows
from dudi.files import read_lines
from dudi.models import load as dudi_models
from dudi.recipe.read import load_recipe
from dudi.run import pipeline as train
from dudi.run.machine import check_devices
from dudi.training import checkpoints

# ── by the real command ──────────────────────────────────────────────────────────────────────────────────────────────
REAL: list[tuple[list[str], str]] = [
    (["run", "nowhere.toml"], "no recipe 'nowhere.toml'"),
    (["check", "tiny", "--set", "method.name=dudy"], "unknown method: 'dudy'; did you mean 'dudi'?"),
    (["run", "tiny", "--set", "models.student=none/none/none", "--output", "{out}"], "models.student: no folder"),
    (["run", "tiny", "--output", "{out}", "--nproc", "2"], "--nproc says how many processes --launch starts"),
    (["check", "{folder}/deep.toml"], "deep.toml: not valid TOML: brackets nested too deeply"),
    (["check", "tiny", "--set", "chat.kwargs.token=hf_" + "a1" * 20], "looks like a token of the hub"),
    (["verbalize", "tiny", "--set", "training.lrr=1"], "unknown key in [training]: 'lrr'; did you mean 'lr'?"),
    (["data", "check", "{folder}/rows.jsonl"], "rows.jsonl: line 1: line: not JSON"),
    (["data", "check", "{folder}/nowhere.jsonl"], "data.source: no file or folder"),
    (["data", "prepare", "builtin", "--out", "{folder}"], "already holds something"),
    (["data", "prepare", "builtin", "--out", "{out}", "--format", "xml"], "--format: "),
    (["eval", "{folder}", "--benchmark", "{folder}", "--output", "{out}"], "no benchmark in "),
    (["report", "{folder}", "--output", "{out}"], "is not the folder of a run"),
    (["lab", "export", "{out}", "--weights", "{folder}"], "no finished lab build there"),
]


@pytest.mark.parametrize("argv, said", REAL, ids=lambda case: str(case)[:40])
def test_one_line_and_status_2_by_the_real_command(tmp_path: Path, argv: list[str], said: str) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    (folder / "deep.toml").write_text("a = " + "[" * 5000)
    (folder / "rows.jsonl").write_text("{\n")
    before = digests(folder)
    done = command(*(part.replace("{out}", str(out)).replace("{folder}", str(folder)) for part in argv))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("dudi: ") and said.replace("{folder}", str(folder)) in line
    assert done.stdout == "" or argv[:2] == ["data", "check"]  # which shows its table first
    assert not out.exists() and digests(folder) == before


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["run", "check", "verbalize"])
@pytest.mark.parametrize(
    "text, said",
    [
        (None, "no recipe"),
        ("name = ", "not valid TOML"),
        ("[[", "not valid TOML"),
        ("", "missing"),
    ],
)
def test_a_recipe_that_cannot_be_read(dudi: Dudi, name: str, text: str | None, said: str) -> None:
    dudi.file.unlink()
    if text is not None:
        dudi.file.write_text(text, encoding="utf-8")
    line = dudi.refused(name, str(dudi.file))
    assert said in line and "r.toml" in line
    assert not dudi.out.exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ("training.lrr=1", "unknown key in [training]: 'lrr'; did you mean 'lr'?"),
        ("method.name=dudy", "unknown method: 'dudy'; did you mean 'dudi'?"),
        ("method.variant=x", "unknown key of method dudi: 'variant'"),
        ("method.verbalizer=x", "method dudi: verbalizer: input should be 'none', 'english'"),
        ("method.lam=2", "method dudi: lam: "),
        ("data.languages=['klingon']", "unknown language 'klingon'"),
        ("data.languages=['jv']", "no row in jv; its languages: id, ms, my, ta, th, tl, vi"),
        ("data.source=nowhere.jsonl", "data.source: no file or folder 'nowhere.jsonl'"),
        ("training.batch=0", "training.batch: "),
        ("output=a{b}", "the only placeholder is {name}"),
        ("limits.prompt=1", "no row is left: all 14 prompts are longer than limits.prompt = 1 tokens"),
        ("method.include_english=yes", "method dudi: include_english: "),
        ("models.student=", "models.student: "),
        ("no-equals-sign", "expected key=value"),
    ],
)
def test_a_value_that_cannot_be_used(dudi: Dudi, change: str, said: str) -> None:
    assert said in dudi.run_refused(change)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
GOOD = {"language": "id", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def turns(*roles: str) -> dict[str, Any]:
    return {"language": "id", "messages": [{"role": role, "content": "t"} for role in roles]}


ROWS: list[tuple[Any, str]] = [
    (turns("user"), "assistant"),
    (turns("user", "assistant", "user"), "assistant"),
    (turns("user", "bot"), "bot"),
    ({"language": "id", "messages": "q"}, "messages"),
    (
        {"language": "id", "messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "a"}]},
        "content",
    ),
    (
        {"language": "id", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]},
        "content",
    ),
    ({"language": 3, "messages": GOOD["messages"]}, "language"),
    ({"messages": GOOD["messages"]}, "language"),
    ({"language": "klingon", "messages": GOOD["messages"]}, "klingon"),
    (["q", "a"], "object"),
    ({}, "language"),
]


@pytest.mark.parametrize("bad, said", ROWS, ids=lambda case: str(case)[:60])
def test_a_broken_row_is_named(dudi: Dudi, bad: Any, said: str) -> None:
    file = dudi.folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (GOOD, bad)), encoding="utf-8")
    line = dudi.run_refused(f"data.source='{file}'")
    assert "rows.jsonl: line 2" in line and said in line


@pytest.mark.parametrize(
    "text, said", [("{", "line 1: line: not JSON"), ("", "no row is left"), ("\n\n", "no row is left")]
)
def test_a_file_without_rows(dudi: Dudi, text: str, said: str) -> None:
    file = dudi.folder / "rows.jsonl"
    file.write_text(text, encoding="utf-8")
    line = dudi.run_refused(f"data.source='{file}'")
    assert said in line.replace(f"{file}: ", "")


def test_nothing_left_after_the_filters(dudi: Dudi) -> None:
    file = dudi.folder / "rows.jsonl"
    file.write_text(json.dumps(turns("user")) + "\n", encoding="utf-8")
    line = dudi.run_refused(f"data.source='{file}'", "data.bad_rows=skip")
    assert "no row of 'id' is left to train on" in line


def test_a_row_that_is_not_there(dudi: Dudi) -> None:
    for row in ("14", "-1"):
        assert f"--row {row}: the data has rows 0 to 13" in dudi.refused("verbalize", str(dudi.file), "--row", row)


@pytest.mark.parametrize(
    "argv, said",
    [
        ("--to klingon", "unknown language 'klingon'"),
        ("--to id", "the row is in 'id' itself"),
        ("--to vi --mode english", "mode 'english' chooses no language; use --mode crosslingual"),
        ("--to jv", "[names] has no 'jv'"),
    ],
)
def test_a_language_that_cannot_be_forced(dudi: Dudi, argv: str, said: str) -> None:
    assert said in dudi.refused("verbalize", str(dudi.file), *argv.split())


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_template_without_a_placeholder(dudi: Dudi) -> None:
    folder = dudi.folder / "templates"
    folder.mkdir()
    (folder / "my.toml").write_text('teacher = "{question}"\nstudent = "{question}"\n[names]\n', encoding="utf-8")
    line = dudi.run_refused(f"data.template_folder='{folder}'")
    assert "my.toml: " in line and "is missing" in line
    assert "data.template_folder: no folder" in dudi.run_refused("data.template_folder=nowhere")


@pytest.mark.parametrize(
    "text, said",
    [
        ("{% for", "the chat template refuses a conversation of turns (user)"),
        (
            "{{ raise_exception('only\nLatin') }}",
            "the chat template refuses a conversation of turns (user): only Latin",
        ),
        ("{{ messages + 3 }}", "the chat template refuses a conversation of turns (user)"),
        ("hello", "does not continue its own generation prompt"),
        ("{{ strftime_now('%d') }}", "prints today's date"),
    ],
)
def test_a_chat_template_that_cannot_be_used(dudi: Dudi, text: str, said: str) -> None:
    file = dudi.folder / "t.jinja"
    file.write_text(text, encoding="utf-8")
    assert said in dudi.run_refused(f"chat.template='{file}'")


def test_no_chat_template_at_all(dudi: Dudi) -> None:
    for name in ("student", "teacher"):
        kit.save(dudi.folder / name, kit.model(1, dtype=torch.float32), kit.tokenizer(template=None))
    sets = [f"models.{name}='{dudi.folder / name}'" for name in ("student", "teacher")]
    assert "the tokenizer has no chat template" in dudi.run_refused(*sets)
    assert 'chat.template: expected "teacher", "student" or a readable file' in dudi.run_refused("chat.template=x")


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return edit


def nan_weights(folder: Path) -> None:
    made = kit.model(1, dtype=torch.float32)
    with torch.no_grad():
        made.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    made.save_pretrained(folder)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no folder '{path}'; give a model folder or a hub name"),
    "not a model": (lambda f: [file.unlink() for file in f.iterdir()], "'{path}' cannot be loaded: "),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "'{path}' holds no weights"),
    "cut weights": (weights(lambda b: b[:4000]), "'{path}' cannot be loaded: "),
    "no safetensors": (weights(lambda b: b"x" * 999), "'{path}' cannot be loaded: "),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "'{path}' cannot be loaded: "),
    "unknown kind": (edit_config(model_type="nothing"), "'{path}' cannot be loaded: "),
    "no language model": (edit_config(model_type="clip"), "'{path}' cannot be loaded: "),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "'{path}' cannot be loaded: "),
    "a layer too few": (
        edit_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "the weights do not fit its config.json: 'model.layers.2.input_layernorm.weight' is missing",
    ),
    "other sizes": (edit_config(vocab_size=500), "the weights do not fit its config.json: 'model.embed_tokens.weight'"),
    "too few embeddings": (
        lambda f: kit.save(f, kit.model(1, rows=kit.VOCAB - 1, dtype=torch.float32), kit.tokenizer()),
        f"the model has {kit.VOCAB - 1} embeddings, but the tokenizer has {kit.VOCAB} tokens",
    ),
    "NaN": (nan_weights, "the model's logits are not finite"),
}


MODELS = [(what, fault) for what in ("models.student", "models.teacher", "cold_start.checkpoint") for fault in BROKEN]
MODELS.remove(("cold_start.checkpoint", "broken tokenizer"))  # which is not read


@pytest.mark.parametrize("what, fault", MODELS)
def test_a_model_that_cannot_be_used(dudi: Dudi, what: str, fault: str) -> None:
    path = dudi.folder / "broken"
    shutil.copytree(dudi.models / "student", path)
    break_it, said = BROKEN[fault]
    break_it(path)
    sets = [f"{what}='{path}'"]
    if what == "models.teacher":  # so that the first stage reads it
        sets += ["cold_start.method.name=none"]
    line = dudi.run_refused(*sets)
    name = what.split(".")[1].replace("checkpoint", "student") if fault == "NaN" else what
    assert line.startswith(f"{name}: ") and said.format(path=path) in line


def test_different_tokenizers(dudi: Dudi) -> None:
    other = kit.tokenizer()
    other.add_tokens(["zz9"])
    path = kit.save(dudi.folder / "other", kit.model(1, rows=kit.VOCAB + 6, dtype=torch.float32), other)
    line = dudi.run_refused(f"models.teacher='{path}'")
    assert f"different tokenizers ({kit.VOCAB} and {kit.VOCAB + 1} tokens; 'zz9' is None and {kit.VOCAB})" in line


def test_an_attention_that_is_not_installed(dudi: Dudi) -> None:
    if dudi_models.torch.cuda.is_available():
        pytest.skip("may be installed where there is a GPU")
    assert "models.student: " in dudi.run_refused("models.attention=flash_attention_2")


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class Response:
    """As much of an HTTP response as the errors look at."""

    def __init__(self, status: int) -> None:
        self.status_code, self.headers, self.request, self.text = status, {}, None, ""


def gated(*args: Any, **kwargs: Any) -> Any:
    raise GatedRepoError("401 https://signed.example/secret", response=Response(401))  # type: ignore[arg-type]


def gated_as_transformers_says_it(*args: Any, **kwargs: Any) -> Any:
    try:
        gated()
    except GatedRepoError as error:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it") from error


def missing(*args: Any, **kwargs: Any) -> Any:
    raise RepositoryNotFoundError("404", response=Response(404))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [gated, gated_as_transformers_says_it])
@pytest.mark.parametrize("what", ["student", "teacher"])
def test_a_gated_model(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, what: str, error: Any) -> None:
    whole = dudi_models.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        dudi_models.AutoTokenizer,
        "from_pretrained",
        lambda path, **more: error() if path == "meta-llama/Gated" else whole(path, **more),
    )
    line = dudi.run_refused(f"models.{what}=meta-llama/Gated")
    assert line == (
        f"models.{what}: 'meta-llama/Gated': the hub refuses access: accept the terms on"
        " https://huggingface.co/meta-llama/Gated, then give a token with `hf auth login` or HF_TOKEN"
    )


def test_a_model_that_the_hub_does_not_have(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dudi_models.AutoTokenizer, "from_pretrained", missing)
    line = dudi.run_refused("models.student=nobody/nothing")
    assert "models.student: 'nobody/nothing': the hub answered 404; check the name" in line


def test_gated_data_without_a_token(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.HuggingFaceHub, "listing", gated)
    line = dudi.run_refused("data.source=aisingapore/SEA-Instruct-2602", "data.format=sea_instruct")
    assert "'aisingapore/SEA-Instruct-2602'" in line and "accept its terms on" in line and "HF_TOKEN" in line
    assert "signed.example" not in line


def test_the_hub_is_switched_off(dudi: Dudi) -> None:
    assert "the hub is switched off (HF_HUB_OFFLINE)" in dudi.run_refused("data.source=nobody/nothing")
    assert "models.student: 'nobody/nothing' cannot be loaded: " in dudi.run_refused("models.student=nobody/nothing")


# ── the output folder ────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_occupied_folder_is_left_alone(dudi: Dudi) -> None:
    dudi.out.mkdir()
    (dudi.out / "mine.txt").write_text("mine")
    line = dudi.refused("run", str(dudi.file))
    assert "is occupied: go on with that run with --resume, or choose another folder with --output" in line
    assert digests(dudi.out).keys() == {"mine.txt"} and (dudi.out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "output, said",
    [("{f}/r.toml", "is occupied"), ("{f}/r.toml/run", "r.toml' is a file"), ("{f}/" + "x" * 300, "cannot be used")],
)
def test_an_output_path_that_cannot_be_a_folder(dudi: Dudi, output: str, said: str) -> None:
    before = digests(dudi.folder)
    assert said in dudi.refused("run", str(dudi.file), "--output", output.format(f=dudi.folder))
    assert digests(dudi.folder) == before


def test_an_unwritable_folder_is_found_before_the_data_is_read(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != dudi.folder)  # root may write anywhere
    monkeypatch.setattr(train, "prepare", lambda *args: pytest.fail("too late"))
    assert f"cannot be made: '{dudi.folder}' cannot be written to" in dudi.run_refused()


def test_an_empty_folder_may_be_used_and_stays_if_the_run_is_refused(dudi: Dudi, monkeypatch: Any) -> None:
    dudi.out.mkdir()
    monkeypatch.setattr(rows.os, "rename", no_space)
    assert "No space left on device" in dudi.refused("run", str(dudi.file))
    assert list(dudi.out.iterdir()) == []


# ── no disk space ────────────────────────────────────────────────────────────────────────────────────────────────────
def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for(name: str, whole: Any) -> Any:
    """A function that finds the disk full where a path with `name` in it is written."""

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        return no_space() if name in str(first) else whole(first, *args, **kwargs)

    return call


@pytest.mark.parametrize("name", ["recipe.toml", "lengths.json", "environment.json"])
@pytest.mark.parametrize("call", ["replace", "open", "fsync"])
def test_no_space_when_a_run_begins(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, name: str, call: str) -> None:
    if call == "replace":
        monkeypatch.setattr(os, "replace", full_for(name, os.replace))
    elif call == "open":
        monkeypatch.setattr(Path, "write_text", full_for(name, Path.write_text))
    else:
        monkeypatch.setattr(checkpoints, "flush", full_for(name, checkpoints.flush))
    assert "No space left on device; nothing was left there" in dudi.run_refused()


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_no_space_for_the_rows(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(rows.os, call, no_space if call == "rename" else full_later())
    line = dudi.run_refused()
    assert "No space left on device" in line and "nothing was left there" in line


def full_later(calls: int = 5) -> Any:
    """`os.fsync`, until the disk is full."""
    left, whole = [calls], os.fsync

    def call(handle: int) -> None:
        left[0] -= 1
        return whole(handle) if left[0] > 0 else no_space()

    return call


def half_written(self: Any, folder: Any, *args: Any, **kwargs: Any) -> None:
    """`save_pretrained` that runs out of space within a file."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    no_space()


def test_no_space_for_a_checkpoint_keeps_the_one_before(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dudi("run", str(dudi.file), "--output", str(dudi.folder / "whole")) == 0
    publish, calls = checkpoints.publish, []

    def second(staged: Path, final: Path) -> None:
        calls.append(final.name)
        return no_space() if len(calls) == 2 else publish(staged, final)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", second)
        line = dudi.refused("run", str(dudi.file))
    assert calls == ["checkpoint-1", "checkpoint-2"]
    assert "checkpoint-2: cannot be written" in line and "No space left on device" in line and "--resume" in line
    stage = dudi.out / "1-cold-start"
    assert [c.name for c in checkpoints.complete(stage)] == ["checkpoint-1"]
    assert not (stage / "model").exists() and not (dudi.out / "2-dudi").exists()
    assert dudi("run", str(dudi.file), "--resume") == 0
    assert same_results(dudi.out, dudi.folder / "whole")


def same_results(one: Path, other: Path) -> bool:
    """Metrics and weights, byte for byte."""
    a, b = digests(one), digests(other)
    names = [n for n in a if n.endswith("metrics.jsonl") or n.endswith("model/model.safetensors")]
    return len(names) == 4 and all(a[name] == b[name] for name in names)


def test_no_space_within_the_first_checkpoint(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", half_written)
        line = dudi.refused("run", str(dudi.file))
    assert "checkpoint-1: cannot be written" in line
    assert checkpoints.complete(dudi.out / "1-cold-start") == []
    assert dudi("run", str(dudi.file), "--resume") == 0


@pytest.mark.parametrize("error", ["os", "safetensors", "torch"])
def test_no_space_for_the_result_keeps_the_checkpoints(dudi: Dudi, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    from safetensors import SafetensorError

    errors = {
        "os": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "torch": RuntimeError("PytorchStreamWriter failed writing file data/0: No space left on device\nmore"),
    }

    whole = train.DistillationTrainer._save

    def fail(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        if Path(folder).name == checkpoints.STAGING:  # checkpoints are staged one folder deeper
            raise errors[error]
        whole(self, folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train.DistillationTrainer, "_save", fail)
        line = dudi.refused("run", str(dudi.file))
    assert "1-cold-start/model: cannot be written" in line and "No space left on device" in line
    stage = dudi.out / "1-cold-start"
    assert [c.name for c in checkpoints.complete(stage)] == ["checkpoint-1", "checkpoint-2"]
    assert not (stage / "model").exists()
    steps = read_lines(stage / "metrics.jsonl")
    assert dudi("run", str(dudi.file), "--resume") == 0
    assert read_lines(stage / "metrics.jsonl") == steps, "nothing is trained again"


def test_no_space_for_metrics(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    from dudi.training import monitors

    whole, calls = monitors.append_line, []

    def third(path: Path, entry: Any) -> None:
        calls.append(path)
        return no_space() if len(calls) == 5 else whole(path, entry)

    monkeypatch.setattr(monitors, "append_line", third)
    line = dudi.refused("run", str(dudi.file))
    assert "No space left on device; what is complete is kept: go on with --resume" in line
    assert dudi("run", str(dudi.file), "--resume") == 0


def test_no_space_for_generated_responses(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_recipe(dudi.folder, dudi.models, method='name = "seqkd"')
    argv = ("run", str(file), "--set", "cold_start.method.name=none")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_for("batch-000001", os.replace))
        line = dudi.refused(*argv)
    assert "go on with --resume" in line
    files = sorted(f.name for f in (dudi.out / "1-seqkd-responses" / "train").iterdir())
    assert files == ["batch-000000.jsonl"], "no half-written batch"
    assert dudi(*argv, "--resume") == 0


# ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one stage."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_recipe(folder, models, method='name = "sft"')
    train.run(load_recipe(file), say=lambda text: None)
    return folder


@pytest.mark.parametrize(
    "change, said",
    [
        ("training.lr=5e-4", "training.lr is 0.0005, but the run in "),
        ("seed=3", "seed is 3, but the run in "),
        ("method.loss_on=all_assistant", "method.loss_on is 'all_assistant', but the run in "),
        ("method.name=dft", "method.name is 'dft', but the run in "),
        ("limits.total={default = 600, my = 700}", "limits.total is {'default': 600, 'my': 700}, but the run in "),
        ("cold_start.training.lr=9.0", "cold_start.training.lr is 9.0, but the run in "),
        ("data.languages=['id']", "data.languages is ['id'], but the run in "),
        ("models.teacher=x", "models.teacher is 'x', but the run in "),
    ],
)
def test_resume_with_another_recipe_names_the_key(dudi: Dudi, finished: Path, change: str, said: str) -> None:
    out = dudi.folder / "run"
    shutil.copytree(finished / "run", out)
    before = digests(out)
    argv = ("run", str(finished / "r.toml"), "--resume", "--output", str(out))
    assert f"resume with another recipe: {said}" in dudi.refused(*argv, "--set", change)
    assert digests(out) == before
    assert dudi(*argv) == 0, "in another place it is the same run"


def test_resume_with_nothing_there(dudi: Dudi) -> None:
    line = dudi.refused("run", str(dudi.file), "--resume")
    assert f"nothing to resume in '{dudi.out}': it holds no recipe.toml; start without --resume" in line
    assert not dudi.out.exists()
    dudi.out.mkdir()
    assert "nothing to resume in" in dudi.refused("run", str(dudi.file), "--resume")


@pytest.mark.parametrize(
    "name, said", [("recipe.toml", "not valid TOML"), ("data/train.jsonl", "changed since it was")]
)
def test_resume_of_a_damaged_run(dudi: Dudi, finished: Path, name: str, said: str) -> None:
    out = dudi.folder / "run"
    shutil.copytree(finished / "run", out)
    with (out / name).open("a", encoding="utf-8") as file:
        file.write("[[")
    before = digests(out)
    assert said in dudi.refused("run", str(finished / "r.toml"), "--resume", "--output", str(out))
    assert digests(out) == before


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_several_gpus_without_a_launcher(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    line = dudi.run_refused()
    assert "4 GPUs are visible, but only one process was started" in line
    assert "torchrun --nproc-per-node 4 -m dudi run" in line and "CUDA_VISIBLE_DEVICES=0" in line
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_devices()


# ── a loss that is not finite ────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "method, signals",
    [('name = "sft"', "off_policy"), ('name = "dudi"', "off_policy, on_policy, sequence")],
)
def test_nan_weights_stop_the_run_and_keep_the_last_checkpoint(
    dudi: Dudi, monkeypatch: pytest.MonkeyPatch, method: str, signals: str
) -> None:
    file = write_recipe(dudi.folder, dudi.models, method=method)
    whole, seen = train.DistillationTrainer.training_step, []

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1:
            seen.extend(row.example.id for row in self.window_rows(1)[1])
            with torch.no_grad():
                self.student.base_model.embed_tokens.weight.fill_(float("nan"))
        return whole(self, *args, **kwargs)

    argv = ("run", str(file), "--set", "cold_start.method.name=none")
    with monkeypatch.context() as patch:
        patch.setattr(train.DistillationTrainer, "training_step", broken)
        line = dudi.refused(*argv, status=3)
    assert line.startswith(
        f"the loss is not finite at step 2 (signal {signals}; rows {', '.join(seen)}): checkpoint-1 is"
    )
    (stage,) = (f for f in dudi.out.iterdir() if f.name.startswith("1-"))
    (kept,) = checkpoints.complete(stage)
    assert kept.name == "checkpoint-1"
    model = dudi_models.AutoModelForCausalLM.from_pretrained(kept)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not (stage / "model").exists()
    assert [line["step"] for line in read_lines(stage / "metrics.jsonl")] == [1]
    assert dudi(*argv, "--resume") == 0


def test_a_learning_rate_far_too_large_stops_too(dudi: Dudi) -> None:
    line = dudi.refused("run", str(dudi.file), "--set", "training.lr=1e30", status=3)
    assert "the loss is not finite at step 2 (signal off_policy; rows " in line
