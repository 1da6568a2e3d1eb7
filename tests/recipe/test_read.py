"""Reading recipe files: what `extends` and --set do, and one line for each way in which a file can be wrong."""

from __future__ import annotations

import pytest
from kit.recipes import GOOD, the_line

from dudi.errors import DudiError
from dudi.recipe.read import find_recipe, load_recipe, shipped_recipes


def write(folder, text: str | bytes, name: str = "r.toml"):
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def unreadable(file, *overrides: str) -> str:
    with pytest.raises(DudiError) as error:
        load_recipe(file, overrides)
    return the_line(error)


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
    file = write(tmp_path, GOOD.replace('name = "r"\n', "", 1), "my study.v2.toml")
    assert load_recipe(file).name == "my study.v2"
    assert load_recipe(file, ["name=other"]).name == "other"
    write(tmp_path, GOOD, "base.toml")
    assert load_recipe(write(tmp_path, 'extends = "base.toml"')).name == "r", "as any key of a base"


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


def test_extends_takes_a_shipped_recipe_by_its_name_where_no_such_file_is_beside_it(tmp_path):
    mine, shipped = load_recipe(write(tmp_path, 'extends = "lab/dudi"\ntraining.lr = 0.5')), load_recipe("lab/dudi")
    assert (mine.name, mine.training.lr) == ("r", 0.5)
    assert (mine.models, mine.limits, mine.method) == (shipped.models, shipped.limits, shipped.method)
    (tmp_path / "lab").mkdir()
    write(tmp_path, GOOD, "lab/dudi")
    assert load_recipe(tmp_path / "r.toml").models != shipped.models
    assert "no shipped recipe of this name" in unreadable(write(tmp_path, 'extends = "../../text/templates/en"'))


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
