"""Reading recipes: every kind of bad input gives one line that names the key; what `extends` and --set do.

The cases are made from the schema itself, so that a new key is covered when it is added.
"""

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from kit.recipes import GOOD, KEYS, good

from dudi.errors import DudiError
from dudi.methods import METHODS, Loss, LossOn, Mode, build_method
from dudi.recipe.read import find_recipe, load_recipe, parse_recipe, shipped_recipes
from dudi.recipe.schema import Recipe


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A good table with one value replaced."""
    table = good()
    inner = table
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value
    return table


def the_line(error: pytest.ExceptionInfo[DudiError]) -> str:
    """The message, which is one line."""
    text = str(error.value)
    assert text and len(text.splitlines()) == 1 and "Traceback" not in text
    return text


def refused(table: dict[str, Any]) -> str:
    with pytest.raises(DudiError) as error:
        parse_recipe(table, "here.toml")
    line = the_line(error)
    assert line.startswith("here.toml: ")
    return line


def write(folder, text: str | bytes, name: str = "r.toml"):
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def unreadable(file, *overrides: str) -> str:
    with pytest.raises(DudiError) as error:
        load_recipe(file, overrides)
    return the_line(error)


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


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "text, said",
    [
        ("name = ", "not valid TOML"),
        ("[method\nname = 1", "not valid TOML"),
        (GOOD + "[method]\n", "not valid TOML"),
        ("\x00", "not valid TOML"),
        ("a = " + "[" * 5000, "brackets nested too deeply"),
        (b'name = "\xff"', "not UTF-8"),
        (GOOD.encode("utf-16"), "not UTF-8"),
        ("extends = 3\n" + GOOD, "extends: expected a file name or a list of them, found 3"),
        ('extends = ["a.toml", 3]\n' + GOOD, "extends: expected a file name or a list of them"),
        ('extends = "nope.toml"\n' + GOOD, "extends: no file 'nope.toml' beside it"),
        ('extends = "."\n' + GOOD, "extends: no file '.' beside it"),
        ('extends = "r.toml"\n' + GOOD, "`extends` goes in a circle (r.toml -> r.toml)"),
        ("", "missing"),
    ],
    ids=lambda case: repr(case)[:30],
)
def test_bad_file(tmp_path, text, said):
    line = unreadable(write(tmp_path, text))
    assert said in line and "r.toml" in line


def test_a_longer_circle(tmp_path):
    write(tmp_path, 'extends = "c.toml"', "b.toml")
    write(tmp_path, 'extends = "b.toml"', "c.toml")
    assert "goes in a circle (r.toml -> b.toml -> c.toml -> b.toml)" in unreadable(write(tmp_path, 'extends="b.toml"'))


def test_what_is_nested_without_end_is_one_line(tmp_path):
    deep = ".".join("a" * 2000) + " = 1"
    write(tmp_path, deep, "base.toml")
    for k in range(1000):
        write(tmp_path, f'extends = "{k + 1}.toml"', f"{k}.toml")
    write(tmp_path, GOOD, "1000.toml")
    for text in (deep, f'extends = "base.toml"\n{deep}', 'extends = "0.toml"'):
        assert "r.toml: tables nested too deeply, or too many files" in unreadable(write(tmp_path, text))


def test_a_byte_order_mark_is_no_fault(tmp_path):
    assert load_recipe(write(tmp_path, GOOD.encode("utf-8-sig"))).name == "r"


@pytest.mark.parametrize("name", ["nope.toml", "dudi", "../config", "_paper/..", "\0", "no/such/folder.toml"])
def test_no_such_recipe(name):
    assert "no recipe" in unreadable(name)


def test_a_misspelt_name_is_answered_with_the_nearest():
    assert "did you mean 'qwen2.5-0.5b/dudi'?" in unreadable("qwen2.5-0.5b/duddi")


def test_a_folder_is_not_a_recipe(tmp_path):
    assert "is a folder" in unreadable(tmp_path)


def test_shipped_recipes_are_found_by_name_and_bases_are_not_listed():
    assert all(find_recipe(name).is_file() for name in shipped_recipes())
    assert not any(part.startswith("_") for name in shipped_recipes() for part in name.split("/"))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_recipe_without_a_name_is_called_as_its_file(tmp_path):
    nameless = GOOD.replace('name = "r"\n', "", 1)
    file = write(tmp_path, nameless, "my study.v2.toml")
    assert load_recipe(file).name == "my study.v2"
    assert load_recipe(file, ["name=other"]).name == "other"
    write(tmp_path, GOOD, "base.toml")
    assert load_recipe(write(tmp_path, 'extends = "base.toml"')).name == "r", "as any key of a base"
    assert "name: missing" in refused({key: value for key, value in good().items() if key != "name"})


def test_a_shipped_recipe_is_called_as_its_path_by_whichever_way_it_is_found(tmp_path):
    assert load_recipe(find_recipe("lab/dudi")).name == load_recipe("lab/dudi").name == "lab-dudi"
    (tmp_path / "link").symlink_to(find_recipe("lab/dudi").parent)
    assert load_recipe(tmp_path / "link" / "dudi.toml").name == "lab-dudi"
    text = f'extends = "{find_recipe("lab/dudi").as_posix()}"'
    assert load_recipe(write(tmp_path, text, "mine.toml")).name == "mine"


# ── extends ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_extends_merges_tables_key_by_key(tmp_path):
    write(tmp_path, GOOD + "[training]\nlr = 1.0\nbatch = 2\n[limits]\ntotal = 9\n", "a.toml")
    write(tmp_path, "[training]\nlr = 3.0\n", "b.toml")
    file = write(tmp_path, 'extends = ["a.toml", "b.toml"]\n[limits]\ntotal = {default = 8, my = 7}\n')
    recipe = load_recipe(file)
    assert (recipe.training.lr, recipe.training.batch) == (3.0, 2)
    assert recipe.limits.of("total", "my") == 7


@pytest.mark.parametrize("where", ["method", "cold_start.method"])
def test_a_method_of_another_name_replaces_the_base_whole(tmp_path, where):
    base = GOOD.replace('[method]\nname = "dudi"', f'[{where}]\nname = "seqkd"\njsd_beta = 0.3')
    base += '[method]\nname = "spin"\n' if where != "method" else ""
    write(tmp_path, base, "a.toml")

    def read(text):
        recipe = load_recipe(write(tmp_path, f'extends = "a.toml"\n[{where}]\n{text}'))
        return recipe.method if where == "method" else recipe.cold_start.method

    assert read('variant = "jsd"') == {"name": "seqkd", "jsd_beta": 0.3, "variant": "jsd"}
    assert read('name = "seqkd"\nvariant = "jsd"') == {"name": "seqkd", "jsd_beta": 0.3, "variant": "jsd"}
    assert read('name = "sft"') == {"name": "sft"}


def test_the_cold_start_inherits_training(tmp_path):
    text = GOOD + "[training]\nlr = 1.0\nepochs = 2.0\n[cold_start.training]\nepochs = 5.0\n"
    recipe = load_recipe(write(tmp_path, text), ["training.batch=4"])
    cold = recipe.cold_start.training
    assert (cold.lr, cold.epochs, cold.batch) == (1.0, 5.0, 4)


# ── --set ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("item", ["seed", "=3", "", "a..b=3", ".seed=3", "seed.=3"])
def test_malformed_set(tmp_path, item):
    assert f"--set {item!r}: expected key=value" in unreadable(write(tmp_path, GOOD), item)


@pytest.mark.parametrize(
    "item, said",
    [
        ("name.x=3", "--set 'name.x=3': 'name' is a value, not a table"),
        ("seed=one", "seed: "),
        ("seed=", "seed: "),
        ("seed=" + "[" * 5000, "seed: "),
        ("training.lrr=1", "unknown key in [training]: 'lrr'; did you mean 'lr'?"),
        ("trainning.lr=1", "unknown key in [recipe]: 'trainning'; did you mean 'training'?"),
        ("training=1", "training: expected a table, found 1"),
        ("training.lr=fast", "training.lr: "),
        ("data.languages=id,vi", "data.languages: expected an array, found 'id,vi'"),
        ("method.name=gkdd", "unknown method: 'gkdd'; did you mean 'gkd'?"),
        ("method=gkd", "method: expected a table, found 'gkd'"),
        ("a\nb=1", "unknown key in [recipe]: 'a\\nb'"),
        ("seed=1\nname='q'", "seed: "),
    ],
    ids=lambda case: repr(case)[:30],
)
def test_bad_set(tmp_path, item, said):
    assert said in unreadable(write(tmp_path, GOOD), item)


@pytest.mark.parametrize(
    "item, read",
    [
        ("seed=7", lambda r: r.seed == 7),
        (" training.lr = 1e-4 ", lambda r: r.training.lr == 1e-4),
        ("method.verbalizer=mix", lambda r: r.method["verbalizer"] == "mix"),
        ('method.verbalizer="mix"', lambda r: r.method["verbalizer"] == "mix"),
        ("models.student=some/folder", lambda r: r.models.student == "some/folder"),
        ("models.student=a=b", lambda r: r.models.student == "a=b"),
        ("data.languages=['id', 'vi']", lambda r: r.data.languages == ("id", "vi")),
        ("limits.total.my=5", None),
        ("limits.total={default = 4, my = 5}", lambda r: r.limits.of("total", "my") == 5),
        ("data.quality_filter=false", lambda r: r.data.quality_filter is False),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_set(tmp_path, item, read):
    file = write(tmp_path, GOOD)
    if read is None:
        assert "limits: total: a table by language needs a `default`" in unreadable(file, item)
    else:
        assert read(load_recipe(file, [item]))
