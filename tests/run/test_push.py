"""`dudi push`: what is looked at before anything is sent, and the real client of the hub against a small server that
answers as the hub does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.command import TOKEN, Dudi
from kit.hub import REPO, Hub
from safetensors.torch import load_file, save_file

CARD = "---\nlanguage: id\n---\n# small\n\nvllm serve OWNER/NAME\n"


@pytest.fixture
def model(tmp_path: Path, models: Path) -> Path:
    """A model folder with a card, as a run leaves it."""
    folder = tmp_path / "m"
    shutil.copytree(models / "student", folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "complete.json").write_text("{}")
    return folder


# ── what is looked at ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_dry_run_lists_everything_and_asks_nobody(dudi: Dudi, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    assert dudi("push", str(model), REPO) == 0, dudi.err
    names = {f.name for f in model.iterdir()} - {"complete.json"}
    for name in names - {"README.md"}:
        assert f"{(model / name).stat().st_size:,} bytes  {name}\n" in dudi.text
    assert f"{len(CARD.replace('OWNER/NAME', REPO)):,} bytes  README.md\n" in dudi.text
    assert "left out: complete.json" in dudi.text and f"vllm serve {REPO}" in dudi.text
    assert "the card names no license" in dudi.text
    assert dudi.text.endswith("nothing was uploaded: --yes does\n")
    assert (model / "README.md").read_text(encoding="utf-8") == CARD, "the card here stays as it is"
    (model / "README.md").write_text(CARD.replace("language", "license: mit\nlanguage"))
    assert dudi("push", str(model), REPO) == 0 and "license" not in dudi.text.rpartition("# small")[2]


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return change


def set_config(**values: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | values))

    return change


def in_header(**metadata: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / "model.safetensors"
        save_file(load_file(file), file, metadata={"format": "pt", **metadata})

    return change


def truncated(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def linked(model: Path) -> None:
    (model / "notes.txt").symlink_to("/etc/hostname")


def no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc"
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a token in a config": (set_config(note=TOKEN), "config.json: it holds what looks like a token of Hugging Face"),
    "a token in a card": (write("README.md", CARD + TOKEN), "README.md: it holds what looks like a token of Hugging"),
    "a token in a header": (in_header(note=TOKEN), "model.safetensors: it holds what looks like a token of Hugging"),
    "a token in a vocabulary": (write("vocab.json", f'{{"{TOKEN}": 1}}'), "vocab.json: it holds what looks like a tok"),
    "a token in a file without a kind": (
        write("notes", b"\xff\x00" + TOKEN.encode()),
        "notes: it holds what looks lik",
    ),
    "a key of AWS": (write("a.py", "k = 'AKIAIOSFODNN7EXAMPLE'"), "a.py: it holds what looks like a key of AWS"),
    "a token of GitHub": (write("a.txt", "ghp_" + "a1" * 18), "a.txt: it holds what looks like a token of GitHub"),
    "an API key": (write("more/a.txt", "sk-" + "a1" * 24), "more/a.txt: it holds what looks like an API key"),
    "a private key": (write("a.txt", KEY), "a.txt: it holds what looks like a private key"),
    ".env": (write(".env", "A=1"), ".env: the name of a file with secrets"),
    ".env of a stage": (write("more/.env.local", "A=1"), "more/.env.local: the name of a file with secrets"),
    "an optimizer": (write("optimizer.pt", "x"), "optimizer.pt: a training resumes from it"),
    "arguments": (write("training_args.bin", "x"), "training_args.bin: a training resumes from it"),
    "a checkpoint": (write("checkpoint-3/config.json", "{}"), "checkpoint-3/config.json: a training resumes from it"),
    "a moving average": (write("ema.safetensors", "x"), "ema.safetensors: a training resumes from it"),
    "a path of Linux": (set_config(_name_or_path="/home/someone/models/x"), "config.json: it names '/home/someone/mo"),
    "a path of macOS": (write("README.md", f"{CARD} /Users/me/x"), "README.md: it names '/Users/me/x', a path of a"),
    "a path of Windows": (set_config(note="C:\\Users\\me"), "config.json: it names"),
    "a path of a disk": (set_config(note="on /nvme0/me/x"), "config.json: it names '/nvme0/me/x'"),
    "a path of Windows, another disk": (write("a.md", "D:\\work\\me"), "a.md: it names"),
    "a path as a URL": (write("README.md", CARD + "file:///any/where"), "README.md: it names 'file:///any/where'"),
    "a path in a header": (in_header(note="/scratch/me/x"), "model.safetensors: it names '/scratch/me/x'"),
    "weights cut short": (truncated, "model.safetensors is truncated"),
    "a link": (linked, "notes.txt: a link: what it leads to would be sent"),
    "no card": (lambda m: (m / "README.md").unlink(), "it has no README.md: write one"),
    "no tokenizer": (no_tokenizer, "it has no tokenizer"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "holds no weights"),
    "no model": (lambda m: (m / "config.json").unlink(), "is neither a run's folder nor a model's"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_may_not_be_sent(case: str, dudi: Dudi, model: Path) -> None:
    change, said = CASES[case]
    change(model)
    for more in ((), ("--yes",)):
        line = dudi.refused("push", str(model), REPO, *more)
        assert said in line and TOKEN not in line


def test_this_machines_own_paths_are_found_in_a_vocabulary_too(dudi: Dudi, model: Path) -> None:
    """Where others' are words like any."""
    write("vocab.json", '{"/usr/lib/x": 1, "/home/a/b": 2, "see https://a.org/home/x": 3}')(model)
    assert dudi("push", str(model), REPO) == 0, dudi.err
    write("vocab.json", json.dumps({str(model.parent / "x"): 1}))(model)
    assert "vocab.json: it names" in dudi.refused("push", str(model), REPO)


def test_words_with_slashes_are_no_paths(dudi: Dudi, model: Path) -> None:
    text = "https://huggingface.co/data/x, and/or, 1/2, ../data/x, ./tmp/x, runs/home/x, ~/work/x, </data/x>"
    write("README.md", CARD + text)(model)
    assert dudi("push", str(model), REPO) == 0, dudi.err


@pytest.mark.parametrize("repo", ["a/b/c", "a b/c", "", "../x", "a/--", "warung"])
def test_names_that_the_hub_has_not(repo: str, dudi: Dudi, model: Path) -> None:
    assert "is no name on the hub: expected OWNER/NAME" in dudi.refused("push", str(model), repo)


def test_what_is_no_model_is_told_where_one_is(dudi: Dudi, model: Path) -> None:
    assert "there is no folder 'nowhere'" in dudi.refused("push", "nowhere", REPO)
    (dudi.folder / "runs/one/1-sft").mkdir(parents=True)
    shutil.copytree(model, dudi.folder / "runs/one/1-sft/model")
    for name in ("runs", "runs/one/1-sft"):
        said = dudi.refused("push", str(dudi.folder / name), REPO)
        assert said.endswith(f"it holds no config.json; there is {str(dudi.folder / 'runs/one/1-sft/model')!r}")


def test_of_a_run_its_result(dudi: Dudi, model: Path) -> None:
    run = dudi.folder / "run"
    assert dudi("run", str(dudi.file), "--set", 'method={name = "sft"}') == 0, dudi.err
    assert dudi("push", str(run), REPO) == 0, dudi.err
    assert f"from {run / '1-sft' / 'model'} to {REPO}:\n" in dudi.text and "left out: complete.json" in dudi.text
    note = run / "1-sft" / "model" / "merges.txt"
    note.write_text(f"{dudi.models}/student")
    assert f"merges.txt: it names '{dudi.models}/student'" in dudi.refused("push", str(run), REPO), "of its recipe"
    shutil.rmtree(run / "1-sft" / "model")
    assert "the run has no result yet" in dudi.refused("push", str(run), REPO)


# ── the real client, and a server ────────────────────────────────────────────────────────────────────────────────────
def test_all_files_go_as_one_commit(hub: Hub, model: Path, pushed: Dudi) -> None:
    assert pushed("push", str(model), REPO, "--private", "--yes") == 0, pushed.err
    (commit,) = hub.commits
    wanted = {f.name: f.read_bytes() for f in model.iterdir() if f.name != "complete.json"}
    assert commit == wanted | {"README.md": CARD.replace("OWNER/NAME", REPO).encode()}
    (created,) = hub.created
    assert created["name"] == "small" and created["organization"] == "someone"
    assert created.get("private") is True or created.get("visibility") == "private", "by version of the client"
    assert f"uploaded: {hub.address}/{REPO}\n" in pushed.text
    assert TOKEN not in pushed.text + pushed.err


def refused(dudi: Dudi, model: Path, *argv: str) -> str:
    """The line of an upload that is refused; what the client itself warns of may stand before it."""
    assert dudi("push", str(model), REPO, "--yes", *argv) == 2
    line = dudi.err.splitlines()[-1]
    assert line.startswith("dudi: ") and TOKEN not in dudi.err
    return line


def test_a_repository_of_another_model_or_that_is_public(hub: Hub, model: Path, pushed: Dudi) -> None:
    hub.there = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    line = refused(pushed, model)
    assert f"{REPO} holds model-00001-of-00002.safetensors (2 such), which this model has not" in line
    hub.there, hub.private = ["model.safetensors"], False
    assert "is there already, and public" in refused(pushed, model, "--private")
    assert hub.commits == []
    assert pushed("push", str(model), REPO, "--yes") == 0 and len(hub.commits) == 1


def test_without_a_token_or_network_or_leave(
    hub: Hub, model: Path, pushed: Dudi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        assert "the hub needs a token that may write: log in with `hf auth login`" in refused(pushed, model)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "the hub is switched off (HF_HUB_OFFLINE)" in refused(pushed, model)
    assert hub.heard == []
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert f"{REPO}: the hub cannot be reached: check the connection (" in refused(pushed, model)
    hub.refuse = 403
    assert "the token may not write there" in refused(pushed, model)
    assert hub.commits == []
