"""Reading recipes: every kind of bad input gives one line that names the key; what `extends` and --set do.

The cases are made from the schema itself, so that a new key is covered when it is added.
"""

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from kit.recipes import KEYS, good, the_line

from dudi.errors import DudiError
from dudi.methods import METHODS, Loss, LossOn, Mode, build_method
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A good table with one value replaced."""
    table = good()
    inner = table
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value
    return table


def refused(table: dict[str, Any]) -> str:
    with pytest.raises(DudiError) as error:
        parse_recipe(table, "here.toml")
    line = the_line(error)
    assert line.startswith("here.toml: ")
    return line


# ── from the schema ──────────────────────────────────────────────────────────────────────────────────────────────────
SCHEMA = Recipe.model_json_schema()
SECTIONS = [(), *(path for path, is_table in KEYS if is_table)]


def schema_of(path: tuple[str, ...]) -> list[dict[str, Any]]:
    """The alternatives that the JSON schema gives for a key, references followed."""
    found = [SCHEMA]
    for part in path:
        found = [one["properties"][part] for one in found if "properties" in one]
        while any("$ref" in one or "anyOf" in one for one in found):
            found = [
                alternative
                for one in found
                for alternative in (
                    [SCHEMA["$defs"][one["$ref"].rsplit("/", 1)[1]]] if "$ref" in one else one.get("anyOf", [one])
                )
            ]
    return found


def out_of_range() -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, _ in KEYS:
        for one in schema_of(path):
            if "minimum" in one:
                yield path, one["minimum"] - 1
            if "exclusiveMinimum" in one:
                yield path, one["exclusiveMinimum"]
            if "maximum" in one:
                yield path, one["maximum"] + 1
            if "exclusiveMaximum" in one:
                yield path, one["exclusiveMaximum"]
            if "minLength" in one:
                yield path, ""
            if "enum" in one:
                yield path, one["enum"][0] + "x"
            if one.get("type") == "number":
                yield path, float("inf")
                yield path, float("nan")


def wrong_types() -> Iterator[tuple[tuple[str, ...], Any]]:
    wrong = {
        "string": (3, True, ["a"]),
        "integer": ("3", 1.5, True),
        "number": ("1.0", True),
        "boolean": ("yes", 1),
        "array": ("id", 3),
        "object": ("text", 3, ["a"]),
    }
    for path, _ in KEYS:
        yield path, datetime.date(2026, 1, 1)  # TOML has dates, a recipe has none
        kinds = {one.get("type") for one in schema_of(path)} - {"null"}
        if len(kinds) == 1:
            yield from ((path, value) for value in wrong[kinds.pop()])


def ids(case: Any) -> str:
    return ".".join(case) if isinstance(case, tuple) else repr(case)[:20]


def test_the_cases_cover_the_schema():
    assert {("training", "lr"), ("cold_start", "training", "lr"), ("limits", "total")} <= {p for p, _ in KEYS}
    assert len(SECTIONS) >= 11
    assert len(list(out_of_range())) > 60 and len(list(wrong_types())) > 150


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_unknown_key(section):
    names = [path[-1] for path, _ in KEYS if path[:-1] == section]
    for name in names:
        line = refused(changed((*section, f"{name}x"), 1))
        assert f"unknown key in [{'.'.join(section) or 'recipe'}]: '{name}x'; did you mean '{name}'?" in line
    line = refused(changed((*section, "qqq"), 1))
    assert f"choices: {', '.join(sorted(names))}" in line


@pytest.mark.parametrize("path, value", list(wrong_types()), ids=ids)
def test_wrong_type(path, value):
    line = refused(changed(path, value))
    assert f"{'.'.join(path)}" in line and "found" in line


@pytest.mark.parametrize("path, value", list(out_of_range()), ids=ids)
def test_out_of_range(path, value):
    line = refused(changed(path, value))
    assert f"{'.'.join(path)}: " in line and "found" in line


@pytest.mark.parametrize("path", [p for p, _ in KEYS if p in (("name",), ("method",), ("models",), ("data",))], ids=ids)
def test_missing(path):
    table = good()
    del table[path[0]]
    assert f"{path[0]}: missing" in refused(table)


@pytest.mark.parametrize("path", [("models", "student"), ("data", "source"), ("paper", "table"), ("paper", "average")])
def test_missing_in_a_table(path):
    table = good()
    del table[path[0]][path[1]]
    assert f"{'.'.join(path)}: missing" in refused(table)


# ── methods ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "method, said",
    [
        ({}, "method.name: missing; choices: dft, dudi"),
        ({"name": "duddi"}, "unknown method: 'duddi'; did you mean 'dudi'?"),
        ({"name": 3}, "unknown method: '3'"),
        ({"name": ["dudi"]}, "unknown method"),
        ({"name": {"a": 1}}, "unknown method"),
        ({"name": "dudi", "alfa": 1}, "unknown key of method dudi: 'alfa'; did you mean 'alpha'?"),
        ({"name": "sft", "alpha": 1}, "unknown key of method sft: 'alpha'"),
        ({"name": "dudi", "alpha": -0.1}, "method dudi: alpha: "),
        ({"name": "dudi", "alpha": "0.1"}, "method dudi: alpha: "),
        ({"name": "dudi", "alpha": True}, "method dudi: alpha: "),
        ({"name": "dudi", "alpha": float("inf")}, "method dudi: alpha: "),
        ({"name": "dudi", "lam": 1.5}, "method dudi: lam: "),
        ({"name": "dudi", "lam": float("nan")}, "method dudi: lam: "),
        ({"name": "dudi", "spin_beta": 0}, "method dudi: spin_beta: "),
        ({"name": "dudi", "jsd_beta": 1}, "method dudi: jsd_beta: "),
        ({"name": "dudi", "include_english": "no"}, "method dudi: include_english: "),
        ({"name": "dudi", "verbalizer": "mixed"}, "method dudi: verbalizer: input should be 'none', "),
        ({"name": "dudi", "divergence": "nll"}, "divergence: input should be 'forward_kl', 'reverse_kl' or 'jsd'"),
        ({"name": "dudi", "without": ["verbalizer"]}, "method dudi: without.0: input should be 'sequence', "),
        ({"name": "dudi", "without": "sequence"}, "method dudi: without: "),
        ({"name": "dudi", "without": ["sequence", "off_policy", "on_policy"]}, "dudi: no term is left"),
        ({"name": "dudi", "alpha": 0, "without": ["off_policy", "on_policy"]}, "dudi: no term is left"),
        ({"name": "spin", "variant": "offline"}, "method spin: variant: input should be 'original' or 'online'"),
        ({"name": "spin", "iterations": 0}, "method spin: iterations: "),
        ({"name": "spin", "iterations": 1.5}, "method spin: iterations: "),
        ({"name": "sdft", "ema_rate": 0}, "method sdft: ema_rate: "),
        ({"name": "sdft", "skip_tokens": -1}, "method sdft: skip_tokens: "),
        ({"name": "seqkd", "variant": "coin"}, "method seqkd: variant: "),
        ({"name": "gkd", "variant": "both"}, "method gkd: variant: "),
        ({"name": "sft", "loss_on": "first"}, "method sft: loss_on: "),
    ],
    ids=str,
)
def test_bad_method(method, said):
    assert said in refused(good() | {"method": method})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_defaults(name):
    assert parse_recipe(good() | {"method": {"name": name}}, "here").to_method().name == name


def test_values_that_toml_cannot_type_are_read():
    table = {"name": "dudi", "verbalizer": "mix", "divergence": "jsd", "without": ["sequence"], "alpha": 1}
    on = build_method(table).signals[-1]
    assert (on.view.verbalizer, on.loss) == (Mode.MIX, Loss.JSD)
    assert build_method({"name": "sft", "loss_on": "all_assistant"}).signals[0].view.loss_on is LossOn.ALL_ASSISTANT


@pytest.mark.parametrize(
    "cold, said",
    [
        ({"name": "spin"}, "cold_start.method.name: expected sft, dft, seqkd or none, found 'spin'"),
        ({"name": "sfft"}, "cold_start.method.name: "),
        ({"name": ["sft"]}, "cold_start.method.name: "),
        ({}, "cold_start.method.name: "),
        ({"name": "sft", "loss_onn": "last"}, "cold_start.method: unknown key of method sft: 'loss_onn'"),
        ({"name": "seqkd", "variant": "coin"}, "cold_start.method: method seqkd: variant: "),
        ({"name": "none", "loss_on": "last"}, "cold_start.method: `none` has no keys"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["dudi", "sft"])
def test_bad_cold_start_even_where_the_method_has_none(name, cold, said):
    assert said in refused(good() | {"method": {"name": name}, "cold_start": {"method": cold}})


@pytest.mark.parametrize("name", ["dudi", "gkd", "seqkd"])
def test_a_method_that_needs_a_teacher_says_so(name):
    line = refused(good() | {"method": {"name": name}, "models": {"student": "s"}})
    assert f"models.teacher: method '{name}' needs a teacher" in line


def test_a_cold_start_on_the_teachers_responses_needs_a_teacher_too():
    table = good() | {
        "method": {"name": "spin"},
        "models": {"student": "s"},
        "cold_start": {"method": {"name": "seqkd"}},
    }
    assert "models.teacher: method 'seqkd' needs a teacher" in refused(table)
    table["cold_start"]["checkpoint"] = "done"
    assert parse_recipe(table, "here").cold_start_method() is None


# ── languages and tables by language ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "path, value, said",
    [
        (("data", "languages"), ["id", "klingon"], "data.languages: unknown language 'klingon'"),
        (("data", "languages"), ["id", 3], "data.languages.1: "),
        (("data", "language"), "klingon", "data.language: unknown language 'klingon'"),
        (("limits", "total"), {"my": 512}, "limits: total: a table by language needs a `default`"),
        (("limits", "total"), {"default": 1, "burmese": 2}, "use the language code 'my' instead of 'burmese'"),
        (("limits", "total"), {"default": 1, "klingon": 2}, "limits: total: unknown language 'klingon'"),
        (("limits", "total"), {"default": 0}, "limits.total: expected a positive whole number"),
        (("limits", "total"), {"default": 1, "my": 1.5}, "limits.total: expected a positive whole number"),
        (("chat", "kwargs"), {"a\nb": [1]}, "chat.kwargs.a b: expected a text"),
    ],
    ids=ids,
)
def test_bad_language_or_table(path, value, said):
    assert said in refused(changed(path, value))


def test_limits_by_language():
    limits = parse_recipe(good() | {"limits": {"total": {"default": 256, "my": 512}}}, "here").limits
    assert [limits.of("total", code) for code in ("my", "id")] == [512, 256]
    assert limits.of("rollout", "my") == 256


def test_language_names_become_codes():
    recipe = parse_recipe(changed(("data", "languages"), ["Indonesian", "fil", "my"]), "here")
    assert recipe.data.languages == ("id", "tl", "my")


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_fault_in_training_is_one_fault_and_not_the_cold_starts():
    line = refused(good() | {"training": {"lrr": 1}})
    assert "unknown key in [training]" in line and "more fault" not in line
    assert "unknown key in [cold_start.training]" in refused(good() | {"cold_start": {"training": {"lrr": 1}}})


def test_more_faults_are_counted_and_a_misspelt_key_comes_first():
    line = refused(good() | {"seed": -1, "models": {"studnet": "s", "teacher": "t"}})
    assert "unknown key in [models]: 'studnet'; did you mean 'student'?" in line
    assert line.endswith("(and 2 more faults)")


@pytest.mark.parametrize("output", ["a{b}", "a{", "{}", "{name.x}"])
def test_output_has_one_placeholder(output):
    assert "output: the only placeholder is {name}, found" in refused(good() | {"output": output})


def test_a_long_value_is_cut():
    assert len(refused(changed(("training", "lr"), "x" * 10_000))) < 200
