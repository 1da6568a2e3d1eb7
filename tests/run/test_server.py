"""Generation stages that a server answers: the same answers, whatever it is like to ask it; and whom it must not be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kit
import pytest
from kit import runs
from kit.served import Served, serving

from dudi.errors import DudiError
from dudi.recipe.read import dump_recipe, parse_recipe
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import plan
from dudi.rollouts import Request, Sampling
from dudi.rollouts.connection import KEY, Connection
from dudi.rollouts.server import connect, seed
from dudi.run.pipeline import run
from dudi.run.prepare import load_chat
from dudi.run.rehearsal import rehearse_recipe

SECRET = "server-key-of-nobody-else"
GREEDY = 1e-6
"""A temperature at which no other token than the likeliest is taken."""


def recipe(folder: Path, url: str | None, output: str = "run", **rollouts: Any) -> Recipe:
    """SeqKD from the base student, in float64: eleven rows in three batches."""
    return runs.recipe(
        folder,
        {"name": "seqkd"},
        output=output,
        training={"epochs": 1.0},
        models={"precision": "float64"},
        cold_start={"method": {"name": "none"}},
        limits={**runs.LIMITS, "rollout": {"default": 8, "th": 5}},
        rollouts={"temperature": GREEDY, **({"server": url} if url else {}), **rollouts},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows, and a run without a server."""
    made = tmp_path_factory.mktemp("served")
    run(recipe(made, None, "local"), say=lambda _: None)
    return made


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(Served(folder / "teacher")) as made:
        yield made


def batches(out: Path) -> dict[str, str]:
    return {f.name: f.read_text() for f in sorted((out / "1-seqkd-responses" / "train").iterdir())}


def test_likeliest_answers_are_those_without_a_server(folder: Path, served: Served) -> None:
    said: list[str] = []
    out = run(recipe(folder, served.url, server_requests=3), say=said.append)
    runs.assert_same_end(out, folder / "local")
    assert (out / "1-seqkd-responses" / "cut.json").read_text() == (
        folder / "local" / "1-seqkd-responses" / "cut.json"
    ).read_text()
    assert any("not checked: that" in line and "has the weights of" in line for line in said), said
    r = recipe(folder, served.url)
    chat, _ = load_chat(r)
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text().splitlines()]
    bodies = {tuple(body["prompt"]): body for body in served.rows()}
    assert len(bodies) == len(served.rows()) == len(rows) and 1 < served.most <= 3
    for body in bodies.values():
        assert body["stop_token_ids"] == list(chat.stop_ids) and body["temperature"] == GREEDY
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
    limits = Counter(body["max_tokens"] for body in bodies.values())
    assert limits == Counter(r.limits.of("rollout", row["language"]) for row in rows)
    keys = [("teacher", "train", r.seed, 0, index) for index in range(len(rows))]
    assert {body["seed"] for body in bodies.values()} == {seed(key) for key in keys} and len(set(keys)) == len(rows)


def test_a_flaky_server_changes_nothing(folder: Path, served: Served, tmp_path: Path) -> None:
    faults = {1: "503", 2: "drop", 3: "half"}

    def fault(number: int) -> str | None:
        prompts = [tuple(body["prompt"]) for body in served.heard[: number + 1]]
        return None if len(prompts[-1]) == 1 else faults.get(prompts.count(prompts[-1]))

    served.fault = fault
    out = run(recipe(folder, served.url, str(tmp_path / "run")), say=lambda _: None)
    assert batches(out) == batches(folder / "local")
    asked = [(tuple(body["prompt"]), body["seed"]) for body in served.rows()]
    assert set(Counter(asked).values()) == {4} and len(set(asked)) == 11, "again with the same seed"


def test_what_is_answered_is_not_asked_again(folder: Path, served: Served, tmp_path: Path) -> None:
    """A server that goes away in the middle, and comes back."""
    r = recipe(folder, served.url, str(tmp_path / "run"), server_requests=2)
    served.fault = lambda number: "503" if number >= 8 else None
    with pytest.raises(DudiError, match=r"completions: status 503: .*busy.* \(8 tries\): start it"):
        run(r, say=lambda _: None)
    part = tmp_path / "run/1-seqkd-responses/train/rows-0.jsonl"
    kept = part.read_text()
    answered = [prompt for prompt in served.answered if len(prompt) > 1]
    assert len(kept.splitlines()) == len(answered) == 6
    part.write_text(kept + '{"index": 3, "ids": [5')  # as a kill may leave it
    served.fault = lambda number: None
    out = run(r, resume=True, say=lambda _: None)
    assert batches(out) == batches(folder / "local"), "and no part is left"
    runs.assert_same_end(out, folder / "local")
    rows = Counter(prompt for prompt in served.answered if len(prompt) > 1)
    assert len(rows) == 11 and set(rows.values()) == {1}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(folder: Path, served: Served, tmp_path: Path) -> None:
    r = recipe(folder, served.url, str(tmp_path / "run"), server_requests=1)
    (tmp_path / "r.toml").write_text(dump_recipe(r))
    served.change = lambda reply: time.sleep(0.3) or reply  # type: ignore[func-returns-value]
    command = [sys.executable, "-m", "dudi", "run", str(tmp_path / "r.toml"), "--no-rehearsal"]
    process = subprocess.Popen(command, env={**os.environ, "NO_PROXY": "127.0.0.1"})
    end = time.monotonic() + 300
    while len(served.answered) < 6 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and len(served.answered) >= 6
    out = run(r, resume=True, say=lambda _: None)
    runs.assert_same_end(out, folder / "local")
    again = [n for n in Counter(prompt for prompt in served.answered if len(prompt) > 1).values() if n > 1]
    assert len(again) <= 1, "the one under way when it was killed"


# ── whom it must not be ──────────────────────────────────────────────────────────────────────────────────────────────
def with_choice(**values: Any) -> Callable[[Served], None]:
    """Other values of an answer, once a check of its first token is over."""

    def set_change(served: Served) -> None:
        def change(reply: dict[str, Any]) -> dict[str, Any]:
            if served.heard[-1]["max_tokens"] > 1:
                reply["choices"][0] |= values
            return reply

        served.change = change

    return set_change


def other_tokenizer(served: Served, tokenizes: bool = True) -> None:
    served.tokenizer, served.tokenizes = kit.tokenizer(kit.VOCAB - 20), tokenizes


def unlike(**values: Any) -> Callable[[Served], None]:
    return lambda served: [setattr(served, name, value) for name, value in values.items()] and None


def last_id_refused(served: Served) -> None:
    served.reply = lambda path, body: None if body.get("prompt") else Served.reply(served, path, body)  # type: ignore[method-assign]


CASES: dict[str, tuple[Callable[[Served], None], str]] = {
    "another tokenizer": (
        other_tokenizer,
        r"has another tokenizer than the recipe's: it reads '.*' as \[\d.*\], not as",
    ),
    "another, by its prompts": (
        lambda served: other_tokenizer(served, tokenizes=False),
        "has another tokenizer than the recipe's",
    ),
    "another model": (
        unlike(name="other/thing"),
        r"serves 'other/thing', which is to be '.*teacher': serve that model",
    ),
    "no ids": (unlike(gives="nothing"), "it returns no token ids, and text cannot be trained on"),
    "fewer ids": (last_id_refused, f"status 404.*continue token id {kit.VOCAB - 1}, the tokenizer's last"),
    "a short context": (unlike(longest=40), r"holds 40 tokens, and a prompt of this run has \d+ with its answer"),
    "an id beyond": (with_choice(token_ids=[5, kit.VOCAB]), f"holds token id {kit.VOCAB}, and the tokenizer's last is"),
    "an answer that is cut": (with_choice(token_ids=[5, 6], finish_reason="length"), "has 2 tokens of .*, and no end"),
    "an answer given up": (with_choice(finish_reason="abort"), "was given up .finish_reason 'abort'"),
    "another stop": (with_choice(token_ids=[5], finish_reason="stop", stop_reason=None), "which is no stop token"),
    "no stop": (with_choice(token_ids=[5, 2, 7], finish_reason="stop"), "goes on after a stop token"),
    "another prompt": (with_choice(prompt_token_ids=[1]), r"is to another prompt: \d+ ids were sent and 1 read"),
    "ids for some only": (with_choice(token_ids=None), "has no token ids, though others had"),
    "no completions": (
        lambda s: setattr(s, "change", lambda _: {"choices": []}),
        "completions: choices: expected 1 or more",
    ),
    "it wants a key": (unlike(key=SECRET), f"status 401: .*give the server's key in the environment, as {KEY}"),
}


@pytest.mark.parametrize("case", CASES)
def test_whom_it_must_not_be(case: str, folder: Path, served: Served, tmp_path: Path) -> None:
    change, wanted = CASES[case]
    change(served)
    out = tmp_path / "run"
    with pytest.raises(DudiError, match=wanted) as error:
        run(recipe(folder, served.url, str(out)), say=lambda _: None)
    assert error.value.status == 2 and served.url in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not [*out.rglob("batch-*"), *out.rglob("rows-*")]
    assert bool(served.rows()) or not out.exists(), "before anything is written"


def test_one_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with serving(Served(folder / "teacher")) as gone:
        pass
    with pytest.raises(DudiError, match=r"no answer \(.*refused.*\) \(3 tries\): start it"):
        run(recipe(folder, gone.url, str(tmp_path / "run")), say=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_an_older_server_and_one_that_keeps_the_stop_token(folder: Path, served: Served) -> None:
    """Token ids in the place of texts; the check of its tokenizer is then left out, and said to be."""
    sampling = Sampling((2,), 0, kit.VOCAB, GREEDY)
    request = Request(tuple(range(3, 20)), ("key", 1), 8)
    wanted = connect(Connection(served.url), str(folder / "teacher"), None, sampling, 30).ask(request)
    served.gives, served.tokenizes = "return_tokens_as_token_ids", False
    older = connect(Connection(served.url), "x/y", str(folder / "teacher"), sampling, 30)
    assert older.ask(request) == wanted and "not checked: its tokenizer" in (older.check_tokenizer({"a": [1]}) or "")
    served.gives = "return_token_ids"
    with_choice(token_ids=[5, 6], finish_reason="stop", stop_reason=2)(served)
    kept = connect(Connection(served.url), str(folder / "teacher"), None, sampling, 30).ask(request)
    assert (kept.ids, kept.finished) == ((5, 6, 2), True)


def test_its_key_is_nowhere(folder: Path, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.key = SECRET
    monkeypatch.setenv(KEY, f"{SECRET}\n")
    said: list[str] = []
    out = run(recipe(folder, served.url, str(tmp_path / "run")), say=said.append)
    assert batches(out) == batches(folder / "local")
    assert not [f for f in out.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]
    monkeypatch.setenv(KEY, "another-key")
    with pytest.raises(DudiError, match=r"status 401: .*not Bearer \*\*\*") as error:
        run(recipe(folder, served.url, str(tmp_path / "again")), say=said.append)
    assert "another-key" not in str(error.value) and SECRET not in "".join(said)


# ── rehearsals, and writers that a run makes ─────────────────────────────────────────────────────────────────────────
def test_a_rehearsal_asks_for_one_row(folder: Path, served: Served, tmp_path: Path) -> None:
    (line,) = rehearse_recipe(recipe(folder, served.url, str(tmp_path / "run")))
    assert len(served.rows()) == 1 and "not checked: that" in line and not (tmp_path / "run").exists()
    served.change = lambda reply: {"choices": [{**reply["choices"][0], "token_ids": [kit.VOCAB]}]}
    with pytest.raises(DudiError, match=r"rehearsal of stage 'seqkd-responses': rollouts.server .* holds token id"):
        rehearse_recipe(recipe(folder, served.url, str(tmp_path / "run")))


@pytest.mark.slow
def test_the_teachers_weights_are_compared_where_they_are_loaded_anyway(
    folder: Path, served: Served, tmp_path: Path
) -> None:
    r = recipe(folder, served.url, str(tmp_path / "run")).model_dump(mode="json", exclude_none=True)
    r = {**r, "method": {"name": "seqkd", "variant": "jsd"}}
    assert rehearse_recipe(parse_recipe(r, "test")) == []
    server = connect(Connection(served.url), str(folder / "teacher"), None, Sampling((2,), 0, kit.VOCAB, 1.0), 30)
    assert len(server.log_probabilities([5, 6, 7]) or ()) == 2
    kit.save(tmp_path / "teacher", kit.model(3, hidden=64, rows=kit.VOCAB + 20), kit.tokenizer())
    served.name = str(served.folder)
    served.load(tmp_path / "teacher")
    with pytest.raises(DudiError, match=r"has other weights than .*teacher: its log-prob"):
        run(parse_recipe(r, "test"), say=lambda _: None)


@pytest.mark.slow
def test_spin_waits_for_its_writer(folder: Path, served: Served, tmp_path: Path) -> None:
    """The opponent is made by the run: it stops there, and goes on when that model is served."""
    r = recipe(folder, served.url, str(tmp_path / "run")).model_dump(mode="json", exclude_none=True)
    r |= {"method": {"name": "spin", "iterations": 1}, "cold_start": {"method": {"name": "sft"}}}
    r["training"]["max_steps"] = 1
    spin = parse_recipe(r, "test")
    assert [stage.name for stage in plan(spin)] == ["cold-start", "spin-responses", "spin"]
    said: list[str] = []
    with pytest.raises(DudiError, match=r"which is to be '.*run/1-cold-start/model': serve that model there"):
        run(spin, say=said.append, rehearsal=True)
    made = tmp_path / "run" / "1-cold-start" / "model"
    assert any(f"serve {made} and continue with --resume" in line for line in said)
    served.name = str(made)  # but of the teacher's weights
    with pytest.raises(DudiError, match=r"has other weights than .*1-cold-start/model"):
        run(spin, resume=True, say=said.append)
    served.load(made)
    out = run(spin, resume=True, say=said.append)
    assert (out / "3-spin" / "model").is_dir() and len(served.rows()) == 11


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("localhost:8000", "rollouts.server: expected an address such as http"),
        ("http://", "rollouts.server: expected an address such as http"),
        ("http://me:secret@host/v1", "rollouts.server: expected an address alone"),
        ("http://host/v1?key=secret", "rollouts.server: expected an address alone"),
    ],
)
def test_an_address_holds_no_secret(url: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(DudiError, match=wanted) as error:
        recipe(tmp_path, url)
    assert "secret" not in str(error.value)


def test_a_recipe_without_such_a_stage_has_no_use_for_it(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match=r"rollouts.server: no stage of this recipe writes answers before a training"):
        runs.recipe(tmp_path, {"name": "dudi"}, rollouts={"server": "http://host:8000/v1"})
