"""`dudi push`: what of a model folder goes to the hub, looked at before anything is sent, then sent as one commit.
(`dudi data push` sends rows in the same way: `dudi.run.push_data`.)"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from dudi import __version__
from dudi.errors import DudiError
from dudi.models.files import check_weights, reading_model
from dudi.models.load import load_config
from dudi.models.refusals import has_tokenizer
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Models
from dudi.recipe.stages import folder_name, plan
from dudi.report.card import CARD, PLACEHOLDER
from dudi.strict import read_text

LEFT_OUT = ("complete.json", ".DS_Store", ".gitattributes", ".cache/*", ".git/*")
"""Not sent: sums that only a resumed run reads, and what file managers and the hub's own client leave."""
STATE = ("optimizer*", "scheduler*", "rng_state*", "training_args*", "trainer_state*", "dudi.json", "ema.safetensors")
"""What a training resumes from, by the name of the file; with folders `checkpoint-*` and `staging`."""
PRIVATE = (".env*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", "*credentials*")
SECRETS = {
    "a token of Hugging Face": rb"\bhf_[A-Za-z0-9]{30,}",
    "a key of AWS": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of GitHub": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})",
    "an API key (sk-...)": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a key of Google": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "a token of Slack": rb"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
FOLDERS = (
    r"home|homes|Users|root|tmp|var|opt|srv|mnt|media|Volumes|private|workspace|work|scratch|content|kaggle|projects?|proj"
    r"|shared?|local|export|storage|store|cluster|gpfs|lustre|nfs|fsx|raid|(?:data|disk|vol|ssd|nvme)\d*"
)
PATH = re.compile(
    rf"(?<![\w.:/~<-])/(?:{FOLDERS})/[\w.-]+[\w./-]*|file:///[\w./-]+|(?<!\w)[A-Za-z]:\\+[\w.-]+\\+[\w.-]+".encode()
)
"""An absolute path of a machine; other URLs have none of them."""
VOCABULARY = ("tokenizer.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken")
"""Files whose words are of the tokenizer's data, paths among them: only this machine's own are looked for."""
WEIGHTS = (".safetensors", ".bin")
READ_WITH = {
    "model": (*WEIGHTS, ".index.json"),
    "dataset": (".jsonl", ".json", ".parquet", ".csv", ".arrow", ".zst", ".gz", ".zip"),
}
"""Ends of names of files that are read because they are there: others of an earlier upload would be, too."""
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Upload:
    """A folder that may be sent. files: names and bytes. card: as it will be there; made: what else is not sent as it
    lies here."""

    folder: Path
    repo: str
    files: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...]
    card: str
    kind: Literal["model", "dataset"] = "model"
    made: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def licensed(self) -> bool:
        """Whether the card names a license."""
        return bool(
            REGEX_YAML_BLOCK.match(self.card) and ModelCard(self.card, ignore_metadata_errors=True).data.get("license")
        )


def prepare(path: str, repo: str) -> Upload:
    """What would be sent of a run's result, or of any model folder; nothing is asked of the network.

    Raises `DudiError` for a folder that is no whole model with a card, or that holds a secret, a training's state or a
    path of this machine.
    """
    check_name(repo)
    folder = _model(Path(path).expanduser())
    files, left_out = _files(folder)
    if CARD not in files:
        raise DudiError(f"{folder}: it has no {CARD}: write one (`dudi card` does, for a model in its run's folder)")
    if not has_tokenizer(folder):
        raise DudiError(f"{folder}: it has no tokenizer (tokenizer.json): nobody could use it")
    config = load_config(str(folder), "model", Models(student=str(folder)))
    with reading_model(str(folder), "model"):
        check_weights(folder, config, "model")
    own = own_paths(folder.resolve().parent, folder.resolve().parent.parent)
    for name in files:
        check(folder / name, _text(folder / name), own, any(fnmatch(Path(name).name, one) for one in VOCABULARY))
    card = read_text(folder / CARD).replace(PLACEHOLDER, repo)
    sizes = {name: (folder / name).stat().st_size for name in files} | {CARD: len(card.encode())}
    return Upload(folder, repo, tuple(sizes.items()), tuple(left_out), card)


def check_name(repo: str) -> None:
    """Raises `DudiError` for what the hub would not take as a name."""
    try:
        validate_repo_id(repo)
        owned = "/" in repo
    except HFValidationError:
        owned = False
    if not owned:
        raise DudiError(f"{repo!r} is no name on the hub: expected OWNER/NAME, such as me/my-student")


def _model(path: Path) -> Path:
    """The result of a run, or the model folder that is named."""
    if (path / "recipe.toml").is_file():
        stages = plan(load_recipe(path / "recipe.toml"))
        last = path / folder_name(stages, stages[-1].name) / "model"
        if not last.is_dir():
            raise DudiError(
                f"{str(path)!r}: the run has no result yet ({last} is not there): `dudi run` with --resume finishes it"
            )
        return last
    if not (path / "config.json").is_file():
        if not path.is_dir():
            raise DudiError(f"there is no folder {str(path)!r}: expected a run's, or a model's (RUN/2-dudi/model)")
        inner = sorted(file.parent for depth in ("", "*/*/") for file in path.glob(f"{depth}model/config.json"))
        hint = f"; there is {str(inner[-1])!r}" if inner else ""
        raise DudiError(f"{str(path)!r} is neither a run's folder nor a model's: it holds no config.json{hint}")
    return path


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """Files to send, and those that stay here. Raises `DudiError` for one that may not be sent, by its name."""
    sent: list[str] = []
    left_out: list[str] = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_dir() and not file.is_symlink():
            continue
        if any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            left_out.append(name)
            continue
        if any(fnmatch(file.name, pattern) for pattern in PRIVATE):
            raise DudiError(f"{file}: the name of a file with secrets: take it out of the model's folder")
        state = any(fnmatch(file.name, pattern) for pattern in STATE)
        if state or any(fnmatch(part, "checkpoint-*") or part == "staging" for part in name.split("/")[:-1]):
            raise DudiError(f"{file}: a training resumes from it, and nobody else needs it: take it out of the folder")
        if file.is_symlink() and folder.resolve().parent.name != "snapshots":  # those of the hub's cache are links
            raise DudiError(f"{file}: a link: what it leads to would be sent; put the file itself there")
        sent.append(name)
    return sent, left_out


def own_paths(beside: Path, run: Path) -> list[str]:
    """Paths that say who made something, and where: of this machine, where it lies, and those that its run's recipe
    names."""
    found = [str(path) for path in (Path.home(), Path.cwd(), beside) if len(path.parts) > 2]
    if (run / "recipe.toml").is_file():
        values: list[Any] = [load_recipe(run / "recipe.toml").model_dump()]
        while values:
            value = values.pop()
            if isinstance(value, dict):
                values += value.values()
            elif isinstance(value, list | tuple):
                values += value
            elif isinstance(value, str) and Path(value).is_absolute() and len(Path(value).parts) > 2:
                found.append(value)
    return found


def check(file: Path | str, data: bytes, own: Sequence[str], others_words: bool = False) -> None:
    """Raises `DudiError` where a file's text holds a secret (which is not repeated) or a path of a machine.

    own: the paths that are looked for anywhere; others_words: a vocabulary or rows, whose other paths are no secret.
    """
    for what, pattern in SECRETS.items():
        if re.search(pattern, data):
            raise DudiError(f"{file}: it holds what looks like {what}: take it out, and make it invalid")
    found = next((path for path in own if path.encode() in data), None)
    if found is None and not others_words:
        match = PATH.search(data)
        found = None if match is None else match[0].decode("utf-8", "replace")
    if found is not None:
        raise DudiError(f"{file}: it names {found[:80]!r}, a path of a machine: take it out")


def _text(file: Path) -> bytes:
    """What a file says in words: of weights, the header."""
    with file.open("rb") as opened:
        if file.suffix == ".safetensors":
            return opened.read(8 + min(int.from_bytes(opened.read(8), "little"), MAX_HEADER))
        return b"" if file.suffix in WEIGHTS else opened.read()


def check_hub() -> None:
    """Raises `DudiError` where nothing could be sent."""
    if is_offline_mode():
        raise DudiError("the hub is switched off (HF_HUB_OFFLINE): unset it to upload")
    if get_token() is None:
        raise DudiError("the hub needs a token that may write: log in with `hf auth login`, or set HF_TOKEN")


def send(upload: Upload, private: bool) -> str:
    """One commit with all files, in a repository that is made where there is none; returns its address.

    Raises `DudiError` without a token or network, where the hub refuses, where weights of another model are there that
    would be loaded instead, and where the repository is public and was to be private.
    """
    check_hub()
    api, kind, names = HfApi(), upload.kind, [name for name, _ in upload.files]
    with hub_errors(upload.repo):
        repo = api.create_repo(upload.repo, repo_type=kind, private=private or None, exist_ok=True).repo_id
        there = api.model_info(repo) if kind == "model" else api.dataset_info(repo)
        if private and not there.private:
            raise DudiError(f"{repo} is there already, and public: make it private on the hub, or choose another name")
        old = sorted(s.rfilename for s in there.siblings or () if s.rfilename.endswith(READ_WITH[kind]))
        if others := [name for name in old if name not in names]:
            this, read = ("this model has not", "loaded") if kind == "model" else ("is not of these rows", "read")
            raise DudiError(
                f"{repo} holds {others[0]} ({len(others)} such), which {this} and which might be {read} in its place:"
                " delete it there, or choose another name"
            )
        made = {**upload.made, CARD: upload.card.encode()}
        operations = [CommitOperationAdd(name, made.get(name, upload.folder / name)) for name in names]
        what = "model" if kind == "model" else "data set"
        message = f"Upload of a {what}, by dudi {__version__}"
        api.create_commit(repo, operations, repo_type=kind, commit_message=message)
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Whatever the hub's client raises, as one line; its own text may hold addresses with signatures."""
    try:
        yield
    except DudiError:
        raise
    except Exception as error:  # the client's own errors, its HTTP library's, the operating system's
        status = getattr(getattr(error, "response", None), "status_code", None)
        name = type(error).__name__ + (f", status {status}" if status else "")
        if status in (401, 403):
            advice = "the token may not write there: give one with write access, or a name of your own"
        elif status:
            advice = "the hub answered with an error; try again later"
        else:
            advice = "the hub cannot be reached: check the connection"
        raise DudiError(f"{repo}: {advice} ({name})") from None
