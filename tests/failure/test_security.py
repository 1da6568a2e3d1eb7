"""What hostile input can reach: nothing is executed, nothing secret is written, nothing runs without end."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import kit
import pytest
from kit.command import Dudi, write_recipe

import dudi as package
from dudi.data.conversation import MAX_CHARS, RowError, parse_conversations
from dudi.errors import DudiError
from dudi.recipe.read import load_recipe, shipped_recipes
from dudi.text import rendering
from dudi.text.chat import Chat

SOURCE = Path(package.__file__).parent
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(SOURCE.rglob("*.py"))}


# ── the source ───────────────────────────────────────────────────────────────────────────────────────────────────────
def faults(tree: ast.Module) -> Iterator[str]:
    """Calls that execute what they are given, or could."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"{node.lineno}: imports {n}" for n in names if n in ("pickle", "marshal", "shelve", "yaml"))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        true = {arg for arg, value in keywords.items() if isinstance(value, ast.Constant) and value.value is True}
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            yield f"{node.lineno}: {name}"
        pickles = keywords.get("allow_pickle")
        if name in ("numpy.load", "np.load") and not (isinstance(pickles, ast.Constant) and pickles.value is False):
            yield f"{node.lineno}: {name} without allow_pickle=False"
        if name.endswith(("pickle.load", "pickle.loads", "yaml.load", "joblib.load")):
            yield f"{node.lineno}: {name}"
        if name == "torch.load" and "weights_only" not in true:
            yield f"{node.lineno}: torch.load without weights_only=True"
        if "shell" in keywords:
            yield f"{node.lineno}: shell"
        if "trust_remote_code" in true:
            yield f"{node.lineno}: trust_remote_code=True"
        if name.split(".")[-1] == "Environment" and "autoescape" not in keywords:
            yield f"{node.lineno}: a page without autoescape"


@pytest.mark.parametrize("file", TREES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_nothing_in_the_source_executes_data(file: Path) -> None:
    assert list(faults(TREES[file])) == []


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')", "exec(x)", "import pickle", "from yaml import load", "pickle.loads(b)", "torch.load(f)",
        "torch.load(f, weights_only=False)", "subprocess.run(x, shell=True)", "load(x, trust_remote_code=True)",
        "os.system(x)", "jinja2.Environment(loader=x)",
    ],
)  # fmt: skip
def test_such_calls_would_be_found(text: str) -> None:
    assert list(faults(ast.parse(text)))


def test_no_recipe_trusts_remote_code() -> None:
    assert [name for name in shipped_recipes() if load_recipe(name).models.trust_remote_code] == []


def isolated(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; it may not reach for a network."""
    spy = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", spy + code],
        capture_output=True,
        text=True,
        timeout=600,
        env={**{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_importing_reaches_for_no_network() -> None:
    modules = [
        "dudi.cli",
        "dudi.run.pipeline",
        "dudi.run.verbalized",
        "dudi.data.load",
        "dudi.evals.evaluate",
        "dudi.report.write",
    ]
    assert isolated(f"import {', '.join(modules)}; print('fine')").strip() == "fine"


def test_the_command_switches_telemetry_off_whatever_the_environment_says() -> None:
    code = (
        "import sys; sys.argv = ['dudi', 'recipes']\n"
        "from dudi.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "from huggingface_hub import constants; print('off' if constants.HF_HUB_DISABLE_TELEMETRY else 'on')"
    )
    assert isolated(code, HF_HUB_DISABLE_TELEMETRY="0").split()[-1] == "off"


def test_a_training_reports_to_nobody(tmp_path: Path) -> None:
    args = kit.trainer(tmp_path, {"name": "sft"}).args
    assert (args.report_to, args.push_to_hub, args.hub_token) == ([], False, None)


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret(models: Path, tmp_path: Path) -> None:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TOKEN_FILE")
    secrets = {name: f"hf_{name.replace('_', '')}{'Secret' * 5}" for name in names}
    file = tmp_path / "home" / "token"
    file.parent.mkdir()
    file.write_text(secrets.pop("TOKEN_FILE"))
    planted = [*secrets.values(), file.read_text()]
    done = subprocess.run(
        [sys.executable, "-m", "dudi", "run", str(write_recipe(tmp_path, models)), "--set", "training.save_every=2"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **secrets, "HF_TOKEN_PATH": str(file)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    texts = [f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()]
    packed = [zipfile.ZipFile(io.BytesIO(text)) for text in texts if text[:2] == b"PK"]
    texts += [archive.read(name) for archive in packed for name in archive.namelist()]
    assert len(packed) >= 4, "optimizers and random states are archives"
    everything = b"\0".join([*texts, done.stdout.encode()])
    assert [secret for secret in planted if secret.encode() in everything] == []


@pytest.mark.parametrize("where", ["chat.kwargs.key", "description", "models.student", "output"])
def test_a_token_in_a_recipe_is_refused_and_not_repeated(dudi: Dudi, where: str) -> None:
    token = "hf_" + "aB3" * 12
    line = dudi.run_refused(f"{where}='x {token}'")
    assert f"{where}: looks like a hub token" in line and token not in line


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────
N = 20_000
BOMBS = {
    "round": "[" + "(" * N, "square": "[" * N, "signs": "[" + "-" * N + "1]", "not": "[" + "not " * N + "1]",
    "sum": "[" + "1+" * N + "1]", "attributes": "[a" + ".b" * N + "]", "calls": "[a" + "()" * N + "]",
    "lambdas": "[" + "lambda:" * N + "1]", "dicts": "[" + "{1:" * N, "digits": "[" + "9" * N + "]",
    "power": "[9**9**9**9]", "repeat": "['a' * 10**10]", "comparisons": "[" + "1<" * N + "1]",
    "f-string": "[f'" + "{" * N + "']", "range": "[list(range(10**12))]", "too long": "[" + "1," * MAX_CHARS + "]",
    "import": "[__import__('os').system('touch {victim}')]", "open": "[open('{victim}', 'w')]",
    "walrus": "[(x := open('{victim}', 'w'))]", "comprehension": "[open('{victim}', 'w') for _ in [1]]",
    "escape": "[().__class__.__base__.__subclasses__()]",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_conversation_is_a_broken_row(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with pytest.raises(RowError) as error:
        parse_conversations(BOMBS[name].replace("{victim}", str(victim)))
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    assert not victim.exists()


# ── chat templates ───────────────────────────────────────────────────────────────────────────────────────────────────
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'].system('touch {victim}') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch {victim}').read() }}",
    "joiner": "{{ joiner.__init__.__globals__ }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "groupby": "{{ messages|groupby('__class__') }}",
    "map": "{{ messages|map(attribute='__class__')|list }}" + "{{ 1 / 0 }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "mutation": "{{ messages.append(1) }}",
    "endless": LOOP,
    "wide range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "repeat": "{{ 'a' * 10 ** 11 }}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "padding": "{{ 'a'|center(10 ** 11) }}",
    "percent": "{{ '%10000000000d'|format(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "blocks": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "too long": "x" * (rendering.MAX_TEMPLATE + 1),
    "writes too much": "{% for i in range(99999) %}{% for j in range(99) %}aaaaaaaaaa{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_a_hostile_template_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    victim = tmp_path / "victim"
    text = ESCAPES[name].replace("{victim}", str(victim)) + kit.CHATML
    with pytest.raises(DudiError, match=r"the chat template (refuses|does not end|takes too much|is longer|writes mo)"):
        Chat(kit.tokenizer(template=None), text, {})
    assert not victim.exists()


def test_a_template_that_only_later_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    chat = Chat(kit.tokenizer(), "{% if messages|length > 2 %}" + LOOP + "{% endif %}" + kit.CHATML, {})
    assert chat.prompt(kit.message("a"))
    with pytest.raises(DudiError, match=r"does not end: 0.5 s on a conversation of turns \(user, assistant, user\)"):
        chat.prompt(kit.message("a", "b", "c"))
    assert chat.prompt(kit.message("a")), "the next conversation has its own time"


def test_a_device_is_no_template(dudi: Dudi) -> None:
    assert "chat.template: expected" in dudi.run_refused("chat.template=/dev/zero")


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "change, said",
    [
        ("name=..", "name: expected a name that can be a folder's"),
        ("name=../../victim", "name: expected a name that can be a folder's"),
        ("name=/etc/victim", "name: expected a name that can be a folder's"),
        ("name='a\\b'", "name: expected a name that can be a folder's"),
        ('name="a\\nb"', "name: expected a name that can be a folder's"),
        ("output={name.__class__}", "output: the only placeholder is {name}"),
        ("output={name:>100000000}", "output: the only placeholder is {name}"),
        ("output={name!r}", "output: the only placeholder is {name}"),
        ('output="a\\u0000b"', "output: expected text"),
        ('models.student="a\\u0000b"', "models.student: expected text"),
        ('data.source="a\\u0000b"', "data.source: expected text"),
        ('data.template_folder="a\\u0000b"', "data.template_folder: expected text"),
        ("name=\udcff", "name: expected text"),
        ("data.template_folder=/dev/null", "data.template_folder: no folder"),
        ("data.source=/dev/zero", "data.source: '/dev/zero' is neither a file nor a folder"),
        ("data.source=../../../../../../etc/passwd", "is neither a .jsonl nor a .parquet file"),
        ("models.student=/etc", "models.student: '/etc' cannot be loaded"),
        (".".join(["method", *"a" * 5000]) + "=1", "tables nested too deeply"),
        ("seed=" + "9" * 5000, "seed: "),
    ],
    ids=lambda case: repr(case)[:40],
)
def test_a_recipe_that_leads_elsewhere(dudi: Dudi, change: str, said: str) -> None:
    assert said in dudi.run_refused(change)


def test_extends_shows_nothing_of_a_file_that_is_no_recipe(dudi: Dudi) -> None:
    secret = dudi.folder / "passwd"
    secret.write_text("root:x:0:0:TopSecret:/root:/bin/bash\n")
    inner = dudi.folder / "a" / "b"
    inner.mkdir(parents=True)
    for base in ("../../passwd", str(secret), "../../../../../../../../../../etc/passwd"):
        (inner / "r.toml").write_text(f"extends = {json.dumps(base)}\n")
        line = dudi.refused("run", str(inner / "r.toml"))
        assert "passwd: not valid TOML" in line and "TopSecret" not in line and "root:" not in line


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\n" + "#" * (1 << 20), "larger than 1,048,576 bytes"),
        ("a = " + "[" * 40_000, "brackets nested too deeply"),
        ("a = " + "{a=" * 40_000, "brackets nested too deeply"),
        ("a = " + "9" * 40_000, "Exceeds the limit"),
    ],
    ids=lambda case: case[:12],
)
@pytest.mark.parametrize("kind", ["recipe", "verbalizer"])
def test_a_toml_file_that_would_take_all_day(dudi: Dudi, kind: str, text: str, said: str) -> None:
    if kind == "recipe":
        dudi.file.write_text(text)
        assert said in dudi.refused("run", str(dudi.file))
    else:
        folder = dudi.folder / "templates"
        folder.mkdir()
        (folder / "id.toml").write_text(text)
        assert re.search(
            f"id.toml: not a readable TOML file: .*{re.escape(said)}",
            dudi.run_refused(f"data.template_folder='{folder}'"),
        )
