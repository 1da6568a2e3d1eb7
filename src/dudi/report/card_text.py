"""The text of a model card: what it was made of and how, how it is asked, what it scores, what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dudi import __version__
from dudi.languages import LANGUAGES
from dudi.methods import METHODS, Method, Teacher
from dudi.recipe.stages import STUDENT, TEACHER, Generate, Train
from dudi.records import FEW, Average
from dudi.report.card_facts import Facts, Origin, evaluator, last_part
from dudi.report.evals import Evaluation
from dudi.report.markdown import escaped
from dudi.report.results import language_name
from dudi.report.training import cut_short, sampled, signals
from dudi.signals import compared, judged, views


def text(facts: Facts, evaluations: Sequence[Evaluation]) -> str:
    """The Markdown below the front matter."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: `escaped` where a text is not ours
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["escaped"] = escaped
    text = environment.get_template("card.jinja").render(
        **_origin(facts),
        **_asked(facts),
        **_method(facts),
        table=_table,
        data=list(_data(facts)),
        settings=list(_settings(facts)),
        scores=[_scores(one) for one in evaluations],
        limits=list(_limits(facts, evaluations)),
        version=facts.run.environment.packages.get("dudi", __version__),
        versions=", ".join(f"{name} {version}" for name, version in facts.run.environment.packages.items()),
        device=f"{facts.run.environment.device}, processes: {facts.run.environment.processes}",
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _origin(facts: Facts) -> dict[str, Any]:
    """What it was made of."""
    models, method = facts.recipe.models, facts.stage.method
    hub_student, student = facts.model("models.student", models.student)
    taught = method.needs_larger_teacher and models.teacher is not None
    rows = sum(one.rows for one in facts.run.lengths.values())
    languages = ", ".join(LANGUAGES[l].name if l in LANGUAGES else l for l in facts.languages)
    return {
        "title": facts.title,
        "description": facts.recipe.description,
        "student": student,
        "hub_student": hub_student,
        "teacher": facts.model("models.teacher", str(models.teacher))[1] if taught else None,
        "method": f"{method.name} ({method.variant})",
        "conversations": f"{rows:,} conversations in {languages}",
        "source": f"From {'; '.join(map(_where, facts.manifest.origins))}.",
    }


def _where(origin: Origin) -> str:
    """How the text calls a source."""
    if origin.hub is not None:
        return f"[{origin.hub}](https://huggingface.co/datasets/{origin.hub}), commit `{origin.revision}`"
    return f"`{last_part(str(origin.source))}`, which is no data set of the hub"


def _asked(facts: Facts) -> dict[str, Any]:
    """How it is asked: what the folder says of template and sampling."""
    chat, g = facts.recipe.chat, facts.recipe.generation
    template = {"teacher": "the teacher", "student": "the base model"}.get(chat.template, last_part(chat.template))
    how = f"sampling at temperature {g.temperature:g}, top_p {g.top_p:g}" if g.do_sample else "greedy decoding"
    return {
        "template": "the base model" if facts.recipe.models.teacher is None and template[:3] == "the" else template,
        "kwargs": ", ".join(f"`{key} = {_toml(value)}`" for key, value in chat.kwargs.items()),
        "merge_system": chat.merge_system,
        "generation": f"{how}, at most {g.max_new_tokens} new tokens",
        "trust_remote_code": facts.recipe.models.trust_remote_code,
    }


def _method(facts: Facts) -> dict[str, Any]:
    """The method by the tables that it is trained from."""
    method = facts.stage.method
    responses = dict.fromkeys(view.response for view in views(method.signals))
    total = " + ".join(f"{s.weight:g} L_{s.name}" for s in method.signals)
    terms = [f"L_{s.name}: {s.description}" + (f": {s.formula}" if s.formula else "") for s in method.signals]
    moved = [one for one in signals(facts.run) if one.stage == facts.stage.name]
    return {
        "about_method": f"{method.name} ({method.variant}). {' '.join((METHODS[method.name].__doc__ or '').split())}",
        "equation": "\n".join([f"L = {total}", *_coin(method), "", *terms]),
        "responses": [(response.value, response.meaning) for response in responses],
        "judged": bool(judged(method.signals)),
        "self_taught": method.teacher is Teacher.EMA,
        "compared": bool(compared(method.signals)),
        "stages": [(f"`{facts.folder(one.name)}`", _told(facts, one)) for one in facts.stages],
        "moved": [(f"`{m.signal}`", *(_number(x, 4) for x in (m.first, m.last, m.held))) for m in moved],
    }


def _told(facts: Facts, stage: Train | Generate) -> str:
    """A stage in a line."""
    if isinstance(stage, Generate):
        return f"{_start(facts, stage.writer)} writes the responses `{stage.response.value}`"
    here = " (this model)" if stage is facts.stage else ""
    return f"{stage.method.name} ({stage.method.variant}), from {_start(facts, stage.start)}{here}"


def _start(facts: Facts, name: str) -> str:
    """A model by its name in a plan."""
    own = {STUDENT: "the base model", TEACHER: "the teacher"}
    of_stages = {stage.name: f"`{facts.folder(stage.name)}`" for stage in facts.stages}
    return {**own, **of_stages}.get(name) or f"`{last_part(name)}` (a cold start that was given)"


def _data(facts: Facts) -> Iterator[tuple[str, ...]]:
    """By language: what became of the rows read."""
    for l, lengths in facts.run.lengths.items():
        report = facts.run.data.get(l)
        read = [report.eval, sum(report.filtered.values()), sum(report.broken.values())] if report else ["-"] * 3
        characters = f"{lengths.characters_per_token:g}"
        cells = (lengths.rows, read[0], lengths.left_out, lengths.cut, *read[1:], characters)
        yield (language_name(l), *map(str, cells))


def _settings(facts: Facts) -> Iterator[tuple[str, str]]:
    """What a training like this one would be given."""
    r, t = facts.recipe, facts.stage.training
    trained = sum(one.rows for one in facts.run.lengths.values())
    yield "seed", str(r.seed)
    if facts.logged is not None:
        yield "optimizer steps", str(facts.logged.steps)
        yield "rows a step", str(t.batch)
        yield "passes over the rows", f"{facts.logged.steps / -(-trained // t.batch):.2f}"
    yield "learning rate", f"{t.lr:g}, {t.schedule}, {t.warmup_steps} steps of warm-up"
    yield "optimizer", f"AdamW, weight decay {t.weight_decay:g}, gradients clipped at {t.max_grad_norm:g}"
    yield "arithmetic", r.models.precision
    if r.models.teacher_quantization is not None:
        yield "the teacher's weights", f"linear layers in {r.models.teacher_quantization.removesuffix('bit')} bits"
    if r.adapter is not None:
        kind = ("rs" if r.adapter.use_rslora else "") + ("DoRA" if r.adapter.use_dora else "LoRA")
        modules = r.adapter.target_modules
        on = modules if isinstance(modules, str) else ", ".join(modules)
        of = f"{kind} on {on}, r {r.adapter.r}, lora_alpha {r.adapter.lora_alpha:g}"
        others = "as they were" if r.adapter.quantization is None else "what 4 bits (NF4) of them stand for"
        yield "trained", f"an adapter ({of}), merged into these weights; all others are {others}"
    for name in ("prompt", "total", *(("rollout", "teacher_prompt") if _samples(facts) else ())):
        yield f"longest {name.replace('_', ' ')}, tokens", _limit(getattr(r.limits, name))
    if _samples(facts):
        yield "temperature of rollouts", f"{r.rollouts.temperature:g}"


def _samples(facts: Facts) -> bool:
    return any(view.response.sampled or view.response.stored for view in views(facts.stage.method.signals))


def _limits(facts: Facts, evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """What is known to be missing."""
    names = ", ".join(language_name(l) for l in facts.languages)
    yield f"It was trained on {names}; what it does in other languages was not looked at."
    longest = _limit(facts.recipe.limits.total)
    yield f"No conversation that it was trained on is longer than limits.total = {longest} tokens."
    cut = [f"{language_name(l)} {one.cut} of {one.rows}" for l, one in facts.run.lengths.items() if one.cut]
    if cut:
        yield f"Answers that were cut there, so that it read no end of them: {', '.join(cut)}."
    rows = [one for one in sampled(facts.run) if one.stage == facts.stage.name]
    yield from (f"At the end of its training, {line}" for line in cut_short(rows))
    yield "Nothing in its training aims at safety or at truth beyond that of the rows and of the teacher."
    if evaluations:
        yield (
            f"The scores are of one training (seed {facts.recipe.seed}): another seed gives others, and how far"
            " they lie apart is not known from these."
        )


def _scores(one: Evaluation) -> dict[str, Any]:
    """An evaluation as a table: languages by competencies."""
    table, about = one.table, one.about

    def row(name: str, overall: Average, by_competency: Mapping[str, Average]) -> tuple[str, ...]:
        return (name, str(overall), *(str(by_competency.get(c, "")) for c in table.competencies))

    def named(l: str) -> str:
        return language_name(l) + ("" if l in table.averaged else ", not averaged")

    languages = [*table.averaged, *(l for l in table.languages if l not in table.averaged)]
    rows = [row(named(l), table.by_language[l], table.by_competency[l]) for l in languages]
    limit = f", the first {about.decoding.limit} of each task and language" if about.decoding.limit else ""
    spread = " ±: standard deviation over decoding seeds." if len(table.seeds) > 1 else ""
    interval = " In brackets: the 95 % interval over items." if table.overall.low is not None else ""
    if table.few:
        names = ", ".join(map(language_name, table.few))
        interval += f" Too narrow to trust, of fewer than {FEW} items: {names}."
    return {
        "title": f"{about.benchmark.name}, version {about.benchmark.version}",
        "how": (
            f"By {evaluator(one)} on {len(one.items)} items{limit}; {one.decoding}; {about.decoding.dtype}."
            f" Normalised: 0 is chance, 100 the best there is.{spread}{interval} Benchmark"
            f" `{about.benchmark.sha256[:12]}`."
        ),
        "head": ("language", "score", *table.competencies),
        "rows": [*rows, row("average", table.overall, table.competency_overall)],
        "missing": table.refused,
    }


def _coin(method: Method) -> list[str]:
    if method.coin is None:
        return []
    return [f"where each step has one side of a coin: on_policy with probability {method.coin:g}, else off_policy"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)] if len(head) > 2 else ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _limit(value: Any) -> str:
    """One limit, or those of languages."""
    return ", ".join(f"{l} {n}" for l, n in value.items()) if isinstance(value, dict) else str(value)


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
