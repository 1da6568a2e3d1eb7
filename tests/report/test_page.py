"""The three files: numbers of hand-made inputs, escaping, nothing from the network, the same bytes twice."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from kit import reports
from typer.testing import CliRunner

from dudi.cli import app
from dudi.records import benchmark_files
from dudi.report.blocks import signed
from dudi.report.evals import find_evals, read_evals
from dudi.report.runs import read_runs
from dudi.report.side_by_side import choose
from dudi.report.write import write_report

EVIL = '<script src="http://evil.example/x.js">alert(1)</script>'


def numbers(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    return found


def text(page: Path, name: str = "report.html") -> str:
    return (page.parent / name).read_text(encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def both(run: Path, evals: Path, bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything on it."""
    given = [f"base={evals / 'base'}", f"DuDi={evals / 'dudi'}", f"drawn={evals / 'drawn'}"]
    return write_report([run], given, "base", tmp_path_factory.mktemp("both") / "out", bench)


def test_scores_are_those_of_the_table(both: Path, evals: Path) -> None:
    found = {e["name"]: e for e in numbers(both)["evaluations"]}
    assert list(found) == ["base", "DuDi", "drawn"]
    tables = {n: json.loads((evals / n.lower() / "table.json").read_text(encoding="utf-8")) for n in found}
    for name, table in tables.items():
        for key in ("by_language", "overall", "overall_without_translation", "by_competency", "competency_overall"):
            assert found[name]["scores"][key] == table[key]
        gap = table["overall"]["mean"] - tables["base"]["overall"]["mean"]
        assert found[name]["difference"]["average"] == pytest.approx(gap)
    row = re.search(r"^\| average \| (.*) \|$", text(both, "report.md"), re.M)
    assert row
    base, dudi, drawn = (tables[n]["overall"] for n in ("base", "DuDi", "drawn"))
    assert row[1].split(" | ") == [
        f"{base['mean']:.1f}",
        f"{dudi['mean']:.1f} ({signed(dudi['mean'] - base['mean'])})",
        f"{drawn['mean']:.1f} ± {drawn['spread']:.1f} ({signed(drawn['mean'] - base['mean'])})",
    ]


def test_training_numbers_of_a_hand_made_run(both: Path) -> None:
    (run,) = numbers(both)["runs"]
    by_name = {s["signal"]: s for s in run["signals"]}
    assert by_name["off_policy"] == {
        "stage": "dudi", "signal": "off_policy", "weight": 0.5, "first": 4.0, "last": 0.5, "held": 0.75
    }  # fmt: skip
    assert by_name["sequence"]["last"] == 0.25 and by_name["sequence"]["held"] is None
    assert run["rollouts"][0] == {
        "stage": "dudi", "view": "y_tilde", "language": "all", "rows": 8.0, "length": 15.0, "share_cut": 0.25,
        "eos_rate": 0.75,
    }  # fmt: skip
    assert run["seconds"] == {"dudi": {"reading": 2.0, "loading": 0.5, "saving": 1.0, "rollout": 1.0, "student": 3.0}}
    assert run["memory"]["dudi"]["student"] == 3 * 2**29
    markdown = text(both, "report.md")
    assert "| dudi: off_policy | 0.5 | 4.0000 | 0.5000 | 0.7500 |" in markdown
    assert "| stage | steps | reading | loading | saving | rollout | student | total | a step |" in markdown
    seconds = "2.0 (1.00 GiB) | 0.5 | 1.0 (0.50 GiB) | 1.0 | 3.0 (1.50 GiB) | 7.5 (1.50 GiB) | 2.00"
    assert f"| dudi | 2 | {seconds} |" in markdown
    assert "| Thai (th) | 20 | 4 | 0 | 4 | 12 | 1 | 2 | 1.25 |" in markdown
    assert "| all languages | 40 | 8 | 0 | 8 | 24 | 2 | 4 |  |" in markdown


def test_time_and_memory_of_every_stage(tmp_path: Path) -> None:
    """The writing of answers is a stage without steps; a training may not have come to its first checkpoint."""
    folder = reports.run(tmp_path / "r")
    (folder / "1-dudi").rename(folder / "2-dudi")
    (folder / "2-dudi" / "phases.json").unlink()
    (folder / "1-seqkd-responses").mkdir()
    phases = {"seconds": {"loading": 1.0, "generation": 5.0}, "memory": {"generation": 2**30}}
    (folder / "1-seqkd-responses" / "phases.json").write_text(json.dumps(phases))
    page = write_report([folder])
    rows = [line for line in text(page, "report.md").split("## Time")[1].splitlines() if line.startswith("| ")]
    assert rows[-2:] == [
        "| seqkd-responses |  | 1.0 | 5.0 (1.00 GiB) |  |  | 6.0 (1.00 GiB) |  |",
        "| dudi | 2 |  |  | 1.0 | 3.0 | 4.0 | 2.00 |",
    ]
    assert "Loading, evaluation and saving are not in it yet: dudi." in text(page)


def test_the_first_and_last_rollouts_are_there_as_text(run: Path, both: Path) -> None:
    """Two from either end of each view and language, with the languages that make fonts and direction right."""
    html = text(both)
    section = html[html.index('<section id="samples">') :]
    section = section[: section.index("</section>")]
    assert re.findall(r"<summary>(.*?)</summary>", section) == ["Thai (th): 8 responses", "Burmese (my): 8 responses"]
    lines = [json.loads(line) for line in (run / "1-dudi" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        there = f'<dd lang="{line["l_z"] or line["language"]}" dir="auto">{line["text"]}</dd>' in section
        assert there == (line["step"] != 30), "the middle one of five is left out"
    for code in ("th", "my"):
        prompts = re.findall(rf'<p class="prompt" lang="{code}" dir="auto">(.*?)</p>', section, re.S)
        assert len(prompts) == 8
        assert all(p.startswith("… ") and p.endswith("assistant") and len(unescape(p)) <= 165 for p in prompts)
    assert section.count("asked for in Vietnamese (vi)") == 8
    assert section.count("cut at the limit") == section.count("ended by itself") == 8
    assert "y_tilde 10" not in text(both, "report.md") and "## Sampled responses as text" in text(both, "report.md")


def test_runs_share_the_fold_of_a_language(tmp_path: Path) -> None:
    runs = [reports.run(tmp_path / name, languages=of) for name, of in (("a", ("th",)), ("b", ("th", "my")))]
    html = text(write_report(runs, output=tmp_path / "out"))
    assert (
        "<summary>Thai (th): 16 responses</summary>" in html and "<summary>Burmese (my): 8 responses</summary>" in html
    )
    assert "<h3>a, dudi</h3>" in html and "<h3>b, dudi</h3>" in html


def test_a_method_that_samples_nothing_has_no_rollouts_on_the_page(tmp_path: Path) -> None:
    folder = reports.run(tmp_path / "r")
    (folder / "1-dudi" / "rollouts.jsonl").unlink()
    assert 'id="samples"' not in text(write_report([folder]))


def test_the_mean_of_a_fifth_is_weighted(tmp_path: Path) -> None:
    reports.run(tmp_path / "r", losses=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    (one,) = numbers(write_report([tmp_path / "r"]))["runs"]
    off_policy = next(s for s in one["signals"] if s["signal"] == "off_policy")
    assert off_policy["first"] == pytest.approx((1 * 100 + 2 * 200) / 300)
    assert off_policy["last"] == pytest.approx((9 * 900 + 10 * 1000) / 1900)


def test_seeds_and_their_limits_are_said(both: Path) -> None:
    markdown = text(both, "report.md")
    assert "base: greedy" in markdown and "drawn: temperature 0.7, decoding seeds 3, 5" in markdown
    assert "not how much another training would" in markdown and "several training runs" in markdown
    assert "shown, not averaged" in markdown and "| English (en), not averaged |" in markdown


def test_refused_averages_are_a_dash_with_the_reason(bench: Path, tmp_path: Path) -> None:
    b = reports.read_benchmark(bench)
    answers = reports.answers(b, {"default": 0.6})
    at = next(n for n, item in enumerate(b.items) if item.language == "th")
    answers[at] = reports.Answer("", 0, False, "the template refuses it")
    reports.evaluation(tmp_path / "e", bench, {0: answers})
    page = write_report([], [f"e={tmp_path / 'e'}"], output=tmp_path / "out")
    assert re.search(r"^\| Thai \(th\) \| - \|$", text(page, "report.md"), re.M)
    assert "e: sentiment, th: 1 of 4 items could not be asked: the template refuses it" in text(page)
    assert numbers(page)["evaluations"][0]["scores"]["overall"]["mean"] is None
    assert any("1 score is missing" in line for line in numbers(page)["warnings"])


def test_runs_alone(run: Path, tmp_path: Path) -> None:
    page = write_report([run], output=tmp_path / "out")
    assert "Scores" not in text(page, "report.md") and "## Training" in text(page, "report.md")
    assert numbers(page)["evaluations"] == []


def test_evaluations_alone(evals: Path, tmp_path: Path) -> None:
    page = write_report([], [f"a={evals / 'base'}"], output=tmp_path / "out")
    assert "## Training" not in text(page, "report.md") and "## Scores" in text(page, "report.md")
    assert "Is the difference" not in text(page)
    assert {f.name for f in (tmp_path / "out" / "figures").iterdir()} == {"averages.png", "languages.png"}


def test_evaluations_below_runs_are_found(run: Path, evals: Path, tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(run, tmp_path / name)) for name in ("one", "two"))
    shutil.copytree(evals / "base", first / "eval" / "b")
    shutil.copytree(evals / "dudi", first / "1-dudi" / "model.eval" / "made")
    shutil.copytree(evals / "dudi", second / "eval")
    page = write_report([first])
    assert page == first / "report" / "report.html"
    assert [e["name"] for e in numbers(page)["evaluations"]] == ["b", "1-dudi"]
    assert [name for name, _ in find_evals([("one", first), ("two", second)])] == ["one/b", "one/1-dudi", "two"]


def test_everything_is_escaped(run: Path, evals: Path, bench: Path, tmp_path: Path) -> None:
    b = reports.read_benchmark(bench)
    answers = [reports.Answer(f"{EVIL} | `x` \u202e\x00", 3, True) for _ in b.items]
    reports.evaluation(tmp_path / "e", bench, {0: answers})
    evil = tmp_path / "<b>run"
    shutil.copytree(run, evil)
    with (evil / "1-dudi" / "rollouts.jsonl").open("a", encoding="utf-8") as file:
        line = {**reports.texts(60, ("th",))[0], "prompt": f"{EVIL}\u202e", "text": f"{EVIL}\x00", "view": "<b>"}
        file.write(json.dumps(line) + "\n")
    page = write_report(
        [evil],
        [f"<script>x</script>={tmp_path / 'e'}", f"b={evals / 'base'}"],
        output=tmp_path / "out",
        benchmark=bench,
    )
    html = text(page)
    assert "<script" not in html and "<b>" not in html and "&lt;script" in html
    assert "\u202e" not in html and "\x00" not in html and "⟨202E⟩" in html
    assert "<script" not in text(page, "report.md").replace("\\<", "")
    for line in text(page, "report.md").splitlines():
        if line.startswith("| Thai"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 7, 8, 10)


class Reader(HTMLParser):
    """Tags with their attributes; and whether they close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_asks_nothing_of_the_network(both: Path) -> None:
    html = text(both)
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"} == set()
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#" if tag == "a" else "data:image/png;base64,")
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "://" not in html and "url(" not in html and "@import" not in html


def test_pictures_are_files_and_in_the_page(both: Path) -> None:
    listed = numbers(both)["figures"]
    assert listed and all((both.parent / name).read_bytes().startswith(b"\x89PNG") for name in listed)
    assert text(both).count("data:image/png;base64,") == len(listed)
    assert {f"figures/{f.name}" for f in (both.parent / "figures").iterdir()} == set(listed)


def test_responses_carry_their_language_and_a_mark_in_words(both: Path) -> None:
    html = text(both)
    for code in ("th", "ta", "my", "vi"):
        assert f'<p class="prompt" lang="{code}" dir="auto">' in html and f'<dd lang="{code}" dir="auto">' in html
    assert "✓ right" in html and "✗ wrong" in html and "chrF++ 100" in html
    assert reports.WORDS["my"]["ask"] in html and "<details>" in html


def test_without_the_benchmark_the_page_says_so(evals: Path, tmp_path: Path) -> None:
    html = text(write_report([], [f"a={evals / 'base'}"], output=tmp_path / "out"))
    assert "Prompts and accepted answers are not shown" in html and "capital/th/" in html
    assert reports.WORDS["my"]["ask"] not in html


def test_prompts_from_the_folder_that_an_evaluation_names(bench: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bench, tmp_path / "bench"))
    reports.simple(tmp_path / "e", copy, 0.5, named=True)
    given = [f"a={tmp_path / 'e'}"]
    assert reports.WORDS["ta"]["ask"] in text(write_report([], given, output=tmp_path / "one"))
    (copy / "items" / "th.jsonl").unlink()
    changed = text(write_report([], given, output=tmp_path / "two"))
    assert reports.WORDS["ta"]["ask"] not in changed and "is gone or was changed" in changed


def test_the_hash_is_the_one_of_evaluations(bench: Path) -> None:
    digest = hashlib.sha256()
    for file in (bench / "benchmark.json", *sorted((bench / "items").iterdir())):
        digest.update(f"{file.relative_to(bench).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    assert benchmark_files(bench).sha256 == reports.read_benchmark(bench).sha256 == digest.hexdigest()


def test_items_are_spread_over_tasks_and_show_where_models_differ(evals: Path) -> None:
    read = read_evals([(n, evals / n) for n in ("base", "dudi")])
    for language in read[0].table.languages:
        chosen = choose(read, language)
        assert len(set(chosen)) == 6 and chosen == choose(read, language)
        tasks = {read[0].items[at].task for at in chosen}
        assert tasks == {r.task for r in read[0].items if r.language == language}
    differing = {at for at, (a, b) in enumerate(zip(read[0].items, read[1].items, strict=True)) if a.value != b.value}
    chosen_in_th = {task: [at for at in choose(read, "th") if read[0].items[at].task == task] for task in reports.TASKS}
    for task, here in chosen_in_th.items():
        possible = {at for at in differing if (read[0].items[at].task, read[0].items[at].language) == (task, "th")}
        assert set(here) & possible or not possible


def test_the_same_input_gives_the_same_bytes(run: Path, evals: Path, bench: Path, tmp_path: Path) -> None:
    given = [f"base={evals / 'base'}", f"drawn={evals / 'drawn'}"]
    for name in ("one", "two"):
        write_report([run], given, output=tmp_path / name, benchmark=bench)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_pictures_of_an_earlier_report_go_and_other_files_stay(run: Path, evals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    page = write_report([run], output=out)
    (out / "figures" / "mine.png").write_bytes(b"mine")
    assert len(numbers(page)["figures"]) > 3
    write_report([], [f"a={evals / 'base'}"], output=out)
    assert {f.name for f in (out / "figures").iterdir()} == {"mine.png", "averages.png", "languages.png"}


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = read_runs([reports.run(tmp_path / n / "0") for n in ("a", "b")])
    assert [run.label for run in runs] == ["a/0", "b/0"]
    page = write_report([tmp_path / "a" / "0", tmp_path / "b" / "0"])
    assert len(numbers(page)["figures"]) == len(set(numbers(page)["figures"]))


def test_no_torch_is_loaded(run: Path, evals: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from dudi.report.write import write_report
write_report([Path({str(run)!r})], [{f"a={evals / 'base'}"!r}], output=Path({str(tmp_path / "out")!r}))
heavy = ("torch", "transformers", "datasets", "dudi.evals", "dudi.training.trainer")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command(run: Path, evals: Path, tmp_path: Path) -> None:
    arguments = ["report", str(run), "--eval", f"base={evals / 'base'}", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "report.html" in done.output
