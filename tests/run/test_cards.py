"""Model cards: made when a stage ends, the same bytes each time, made again with scores; what a reader wrote stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kit
import pytest
from huggingface_hub import ModelCard
from kit import reports
from kit.command import Dudi
from kit.reports import benchmark
from kit.runs import assert_same_end, recipe

from dudi.evals.respond import fingerprint
from dudi.recipe.schema import Recipe
from dudi.run.pipeline import run
from dudi.training import checkpoints
from dudi.training.monitors import Monitor

DUDI = {"name": "dudi"}
HOLD = {"eval_rows_per_language": 1}


def small(folder: Path, **tables: Any) -> Recipe:
    return recipe(folder, DUDI, number=24, data=HOLD, training={"max_steps": 2}, **tables)


def front(card: Path) -> dict[str, Any]:
    """The front matter, as the hub's own client reads it."""
    return dict(ModelCard(card.read_text(encoding="utf-8")).data.to_dict())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, rows and a run of two stages, never changed."""
    folder = tmp_path_factory.mktemp("cards")
    run(small(folder), say=lambda _: None)
    return folder


@pytest.fixture
def done(world: Path, tmp_path: Path) -> Path:
    """That run, to be changed."""
    shutil.copytree(world / "run", tmp_path / "run")
    return tmp_path / "run"


def scored(done: Path, bench: Path, name: str = "made", weights: str | None = None, **how: Any) -> Path:
    """An evaluation beside the last model, of its weights unless told otherwise."""
    model = done / "2-dudi" / "model"
    out = model.with_name("model.eval") / name
    given = {s: reports.answers(reports.read_benchmark(bench), {"default": 0.6}, s) for s in how.pop("seeds", (0,))}
    reports.evaluation(out, bench, given, **how)
    about = json.loads((out / "eval.json").read_text())
    about["model"]["weights_sha256"] = weights or fingerprint(model)["weights_sha256"]
    (out / "eval.json").write_text(json.dumps(about))
    return out


# ── when a stage ends ────────────────────────────────────────────────────────────────────────────────────────────────
def test_every_stage_has_a_card_that_the_hub_can_read(world: Path) -> None:
    for stage, method in (("1-cold-start", "sft"), ("2-dudi", "dudi")):
        data = front(world / "run" / stage / "model" / "README.md")
        assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
        assert data["tags"][0] == "dudi" and method in data["tags"]
        assert set(data["language"]) == {row["language"] for row in rows(world)}
        assert not {"license", "base_model", "datasets", "model-index"} & set(data), "nothing there is of the hub"


def rows(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "rows-24.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_it_says_of_method_and_rows(world: Path) -> None:
    text = (world / "run" / "2-dudi" / "model" / "README.md").read_text(encoding="utf-8")
    assert "L = 0.1 L_sequence + 0.5 L_off_policy + 0.5 L_on_policy\n" in text
    assert "L_on_policy: reverse_kl on y_tilde, verbalizer crosslingual: KL(S || T)\n" in text
    assert "`teacher` (a folder) as its teacher" in text
    assert "| `2-dudi` | dudi (full), from `1-cold-start` (this model) |" in text
    lengths = json.loads((world / "run" / "lengths.json").read_text())
    for code, one in lengths.items():
        assert re.search(rf"^\| \w+ \({code}\) \| {one['rows']} \| 1 \| ", text, re.MULTILINE), code
    assert "| optimizer steps | 2 |" in text and "| rows a step | 4 |" in text
    assert "None so far" in text
    cold = (world / "run" / "1-cold-start" / "model" / "README.md").read_text(encoding="utf-8")
    assert "L = 1 L_off_policy\n" in cold and "-log S(y_t)" in cold and "as its teacher" not in cold
    assert "# small, cold-start\n" in cold


class Killer(Monitor):
    def __init__(self) -> None:
        self.steps = 0

    def step(self, step: int, seconds: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_stopped_has_the_same_cards_and_no_path(world: Path, tmp_path: Path) -> None:
    """In another folder, with models and rows of the same names elsewhere."""
    again = small(tmp_path / "elsewhere", output="other")
    with pytest.raises(KeyboardInterrupt):
        run(again, say=lambda _: None, monitors=[Killer()])
    run(again, resume=True, say=lambda _: None)
    assert_same_end(world / "run", tmp_path / "elsewhere" / "other")
    for stage in ("1-cold-start", "2-dudi"):
        cards = [folder / stage / "model" / "README.md" for folder in (world / "run", tmp_path / "elsewhere/other")]
        assert cards[0].read_bytes() == cards[1].read_bytes()
        text = cards[0].read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w/:.])/\w+/", text.replace("https://", "")), "no absolute path"
        assert str(Path.home().name) not in re.findall(r"\w+", text) or Path.home().name == "root"


def test_several_sources_are_each_named(done: Path, dudi: Dudi) -> None:
    file, commit = done / "data" / "manifest.json", "c1899de289a04d12100db370d81485cdf75e47ca"
    sources = [{"source": "me/mine", "revision": commit, "weight": 2.0}, {"source": "/home/someone/more.jsonl"}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "source": None, "sources": sources}))
    assert dudi("card", str(done)) == 0, dudi.err
    card = done / "2-dudi" / "model" / "README.md"
    text = card.read_text(encoding="utf-8")
    assert front(card)["datasets"] == ["me/mine"] and "someone" not in text
    assert f"commit `{commit}`; `more.jsonl`, which is no data set of the hub." in text


def test_names_of_the_hub_are_named(done: Path, dudi: Dudi) -> None:
    commit = "c1899de289a04d12100db370d81485cdf75e47ca"
    cached = f"/home/someone/.cache/huggingface/hub/models--Qwen--Qwen2.5-3B/snapshots/{commit}"
    environment = json.loads((done / "environment.json").read_text())
    environment["models"] = {
        "models.student": {"path": "Qwen/Qwen2.5-0.5B", "commit": commit, "files": {}},
        "models.teacher": {"path": cached, "commit": commit, "files": {"config.json": {"size": 1}}},
    }
    (done / "environment.json").write_text(json.dumps(environment))
    manifest = json.loads((done / "data" / "manifest.json").read_text())
    (done / "data" / "manifest.json").write_text(
        json.dumps({**manifest, "source": "aisingapore/SEA-Instruct-2602", "revision": commit})
    )
    assert dudi("card", str(done)) == 0, dudi.err
    card = done / "2-dudi" / "model" / "README.md"
    assert front(card)["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert front(card)["datasets"] == ["aisingapore/SEA-Instruct-2602"]
    text = card.read_text(encoding="utf-8")
    assert f"[Qwen/Qwen2.5-3B](https://huggingface.co/Qwen/Qwen2.5-3B), commit `{commit}` as its teacher" in text
    assert "someone" not in text


def test_a_card_is_no_part_of_what_damage_is_looked_for_in(done: Path) -> None:
    model = done / "2-dudi" / "model"
    (model / "README.md").write_text("mine")
    assert checkpoints.damage(model) is None
    (model / "README.md").unlink()
    assert checkpoints.damage(model) is None
    (model / "config.json").write_text("{}")
    assert checkpoints.damage(model) is not None


# ── dudi card ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_scores_are_those_of_these_weights(done: Path, dudi: Dudi, tmp_path: Path) -> None:
    bench = benchmark(tmp_path / "bench", ("en", "id", "th"))
    mine = scored(done, bench, seeds=(3, 5), temperature=0.7)
    scored(done, bench, "others", weights="0" * 64)
    assert dudi("card", str(done / "2-dudi" / "model")) == 0, dudi.err
    assert "left out: 2-dudi/model.eval/others is an evaluation of other weights" in dudi.text
    table = json.loads((mine / "table.json").read_text())
    data = front(done / "2-dudi" / "model" / "README.md")
    (index,) = data["model-index"]
    found = {one["dataset"]["config"]: one["metrics"][0] for one in index["results"]}
    wanted = {"average": table["overall"], **table["by_language"]}
    assert {name: one["value"] for name, one in found.items()} == {
        name: round(cell["mean"], 2) for name, cell in wanted.items()
    }
    assert found["id"]["args"]["decoding_seeds"] == [3, 5] and found["id"]["args"]["temperature"] == 0.7
    assert {one["dataset"]["revision"] for one in index["results"]} == {
        json.loads((mine / "eval.json").read_text())["benchmark"]["sha256"]
    }
    text = (done / "2-dudi" / "model" / "README.md").read_text(encoding="utf-8")
    assert "temperature 0.7, decoding seeds 3, 5" in text and "one training (seed 0)" in text
    cell = table["by_language"]["id"]
    assert f"| Indonesian (id) | {cell['mean']:.1f} ± {cell['spread']:.1f} |" in text
    assert "| English (en), not averaged |" in text
    assert "model-index" not in front(done / "1-cold-start" / "model" / "README.md")


def test_who_evaluated_and_how_far_items_decide(done: Path, dudi: Dudi, tmp_path: Path) -> None:
    """Of an evaluation by another evaluator, with intervals."""
    out = scored(done, benchmark(tmp_path / "bench", ("id", "th")))
    about, table = (json.loads((out / name).read_text()) for name in ("eval.json", "table.json"))
    about["versions"]["lm_eval"] = "0.4.13"
    table["overall"] |= {"mean": 41.26, "low": 38.04, "high": 44.5}
    (out / "eval.json").write_text(json.dumps(about))
    (out / "table.json").write_text(json.dumps(table))
    assert dudi("card", str(done / "2-dudi" / "model")) == 0, dudi.err
    card = done / "2-dudi" / "model" / "README.md"
    text = card.read_text(encoding="utf-8")
    assert "By lm-evaluation-harness 0.4.13 within dudi 0.1.0 on " in text and "In brackets: the 95 %" in text
    assert "| average | 41.3 [38.0, 44.5] |" in text
    (average, *_) = front(card)["model-index"][0]["results"]
    args = average["metrics"][0]["args"]
    assert args["evaluator"] == "lm-evaluation-harness 0.4.13 within dudi 0.1.0"
    assert args["interval_95_over_items"] == [38.04, 44.5]


def test_how_it_is_asked_is_what_the_recipe_says(tmp_path: Path) -> None:
    jinja = "{{ note }}" + kit.CHATML
    (tmp_path / "mine.jinja").write_text(jinja)
    chat = {"template": str(tmp_path / "mine.jinja"), "kwargs": {"note": "hi", "thinking": False}, "merge_system": True}
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 33}
    changes = {"chat": chat, "generation": generation, "training": {"max_steps": 1}}
    made = recipe(tmp_path, {"name": "gkd"}, cold_start={"method": {"name": "none"}}, **changes)
    model = run(made, say=lambda _: None) / "1-gkd" / "model"
    text = (model / "README.md").read_text(encoding="utf-8")
    assert "it came from mine.jinja." in text and "`note = 'hi'`, `thinking = false`" in text
    assert "head of the first user turn" in text and (model / "chat_kwargs.json").is_file()
    assert "sampling at temperature 0.7, top_p 0.9, at most 33 new tokens" in text
    assert "L = 1 L_off_policy + 1 L_on_policy\n" in text and "on_policy with probability 0.5, else off_policy" in text
    assert "M = beta T + (1 - beta) S, beta = 0.5" in text


def test_what_its_reader_wrote_stays(done: Path, dudi: Dudi, tmp_path: Path) -> None:
    card = done / "2-dudi" / "model" / "README.md"
    text = card.read_text(encoding="utf-8")
    mine = text.replace("library_name:", "license: apache-2.0\nbase_model: Qwen/Qwen2.5-0.5B\nlibrary_name:", 1)
    mine = mine.replace("- dudi\n", "- dudi\n- ours\n", 1)
    mine = mine.replace("---\n<!--", "---\nBy us.\n\n<!--").replace("optimizer steps", "steps of ours")
    card.write_text(mine + "\n## Thanks\n\nTo all.\n", encoding="utf-8")
    assert dudi("card", str(done)) == 0, dudi.err
    again = card.read_text(encoding="utf-8")
    assert front(card)["license"] == "apache-2.0" and front(card)["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert front(card)["tags"] == ["dudi", "knowledge-distillation", "ours"]
    assert "---\nBy us.\n\n<!--" in again and again.endswith("\n## Thanks\n\nTo all.\n")
    assert "optimizer steps" in again and "steps of ours" not in again
    assert dudi("card", str(done)) == 0 and card.read_text(encoding="utf-8") == again


def test_what_its_reader_wrote_survives_a_longer_training(tmp_path: Path) -> None:
    def made(steps: int) -> Recipe:
        return recipe(tmp_path, {"name": "sft"}, training={"max_steps": steps, "schedule": "constant"})

    card = run(made(1), say=lambda _: None) / "1-sft" / "model" / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("tags:", "license: mit\ntags:", 1), encoding="utf-8")
    run(made(2), resume=True, say=lambda _: None)
    assert front(card)["license"] == "mit" and "| optimizer steps | 2 |" in card.read_text(encoding="utf-8")


REFUSED = {
    "somebody's own card": ("# Mine\n", "README.md: it has no '<!-- dudi card: written by `dudi card` from here -->'"),
    "broken front matter": ("---\na: [\n---\n", "README.md: its front matter cannot be read"),
    "front matter of another kind": ("---\n- a\n---\n", "README.md: its front matter cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_card_that_is_not_ours_is_left_alone(case: str, done: Path, dudi: Dudi) -> None:
    text, said = REFUSED[case]
    card = done / "1-cold-start" / "model" / "README.md"
    card.write_text(text, encoding="utf-8")
    assert said in dudi.refused("card", str(done / "1-cold-start" / "model"))
    assert card.read_text(encoding="utf-8") == text


def test_paths_that_have_no_card(done: Path, dudi: Dudi, tmp_path: Path) -> None:
    assert "is neither a run's folder nor a model in one" in dudi.refused("card", str(dudi.models / "student"))
    for path in (tmp_path / "nothing", Path("/model"), Path("/"), done / "2-dudi", done / "data"):
        assert "is neither a run's folder nor a model in one" in dudi.refused("card", str(path))
    shutil.copytree(done / "2-dudi", done / "2-dudi.old")
    assert "has no such training" in dudi.refused("card", str(done / "2-dudi.old" / "model"))
    assert dudi("card", str(done)) == 0 and dudi.text.count("card: ") == 2, "of the stages alone"
    shutil.rmtree(done / "2-dudi" / "model")
    shutil.rmtree(done / "1-cold-start" / "model")
    assert "no stage of this run has a model/ yet" in dudi.refused("card", str(done))
    assert "no model folder" in dudi.refused("card", str(done / "2-dudi" / "model"))


# ── what it tells its reader to do ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_its_code_runs(world: Path) -> None:
    model = world / "run" / "2-dudi" / "model"
    text = (model / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace("OWNER/NAME", str(model))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_it_cites_what_the_software_says_to_cite(world: Path) -> None:
    cff = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    text = " ".join((world / "run" / "2-dudi" / "model" / "README.md").read_text(encoding="utf-8").split())
    preferred = cff.split("preferred-citation:")[1]
    names = re.findall(r'given-names: "?([^"\n]+)"?\n\s+family-names: (\S+)', preferred)
    assert len(names) == 6 and " and ".join(" ".join(name) for name in names) in text
    (title,) = re.findall(r'title: "(.+)"', preferred)
    assert title in text.replace("{DuDi}", "DuDi") and "2606.04694" in text
