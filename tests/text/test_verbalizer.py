"""The verbalizer: who reads what in each mode, the draw of l_z, template files of one's own, the shipped ones."""

from __future__ import annotations

import shutil
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dudi.errors import DudiError
from dudi.example import Example, Message
from dudi.languages import LANGUAGES
from dudi.methods import Mode, Response, View
from dudi.text.verbalizer import TEMPLATES, Verbalizer, read_template

SEVEN = ("id", "vi", "th", "ta", "tl", "ms", "my")
EIGHT = (*SEVEN, "en")
X, Y = "Apa itu {language}?", "Itu {demonstration}."


def example(l: str, *earlier: Message, y: str = Y) -> Example:
    return Example((*earlier, Message("user", X)), y, l, "row")


def view(mode: Mode, english: bool = True) -> View:
    return View(Response.Y_TILDE, mode, english)


@cache
def template(code: str) -> dict[str, Any]:
    """A shipped file, read here once more, apart from the code under test."""
    return tomllib.loads((TEMPLATES / f"{code}.toml").read_text(encoding="utf-8"))


def filled(code: str, key: str, l_z: str | None) -> str:
    """A template with the placeholders replaced one by one, from a text that has none of the values in it yet."""
    pieces = (
        template(code)[key].replace("{question}", "\0Q").replace("{demonstration}", "\0D").replace("{language}", "\0L")
    )
    name = "" if l_z is None else template(code)["names"][l_z]
    return pieces.replace("\0Q", X).replace("\0D", Y).replace("\0L", name)


def last(turns: tuple[Message, ...]) -> str:
    assert turns[-1].role == "user"
    return turns[-1].content


# ── who reads what ───────────────────────────────────────────────────────────────────────────────────────────────────
# mode -> student's text, teacher's text, l_z, of a row in `l` for which `z` was drawn
READS = {
    Mode.NONE: lambda l, z: (X, X, None),
    Mode.ENGLISH: lambda l, z: (X, filled("en", "teacher_unnamed", None), None),
    Mode.MULTILINGUAL: lambda l, z: (X, filled(l, "teacher", l), l),
    Mode.CROSSLINGUAL: lambda l, z: (filled(l, "student", z), filled(l, "teacher", z), z),
}


@pytest.mark.parametrize("l", EIGHT)
@pytest.mark.parametrize("mode", list(Mode))
def test_who_reads_what(mode: Mode, l: str) -> None:
    verbalizer = Verbalizer(EIGHT)
    kinds = set()
    for row in range(40):
        v = verbalizer(view(mode), example(l), 0, row)
        as_drawn = mode
        if mode is Mode.MIX:
            as_drawn = Mode.MULTILINGUAL if v.l_z == l else Mode.CROSSLINGUAL
        kinds.add(as_drawn)
        if as_drawn is Mode.CROSSLINGUAL:
            assert v.l_z in set(EIGHT) - {l}
        assert (last(v.student), last(v.teacher), v.l_z) == READS[as_drawn](l, v.l_z)
    assert kinds == ({Mode.MULTILINGUAL, Mode.CROSSLINGUAL} if mode is Mode.MIX else {mode})


@pytest.mark.parametrize("l", EIGHT)
def test_the_teachers_text_has_question_demonstration_instruction_in_this_order(l: str) -> None:
    for l_z in set(EIGHT) - {l}:
        z = last(Verbalizer(EIGHT)(view(Mode.CROSSLINGUAL), example(l), 0, 0, l_z).teacher)
        name = template(l)["names"][l_z]
        assert z.startswith(X)
        assert 0 <= z.index(X) < z.index(Y) < z.rindex(name)
        p_z = last(Verbalizer(EIGHT)(view(Mode.CROSSLINGUAL), example(l), 0, 0, l_z).student)
        assert p_z.startswith(X) and name in p_z.removeprefix(X) and Y not in p_z


@pytest.mark.parametrize("mode", [Mode.ENGLISH, Mode.MULTILINGUAL, Mode.CROSSLINGUAL, Mode.MIX])
def test_only_the_last_user_turn_is_rewritten(mode: Mode) -> None:
    earlier = (Message("system", "S"), Message("user", "u1"), Message("assistant", "a1"))
    row = example("vi", *earlier)
    for k in range(10):
        v = Verbalizer(SEVEN)(view(mode), row, 0, k)
        assert v.teacher[:-1] == v.student[:-1] == earlier
        assert last(v.teacher) != X
        assert last(v.teacher).count(X) == 1


def test_without_a_verbalizer_the_row_itself_is_read() -> None:
    row = example("my", Message("system", "S"))
    v = Verbalizer(SEVEN)(view(Mode.NONE), row, 0, 0)
    assert v.student is row.x and v.teacher is row.x


@pytest.mark.parametrize(
    "text", ["{language}", "{question} {demonstration}", "{", "}{", "{0}", "{{x}}", "%s", r"\1", r"\g<0>"]
)
def test_braces_within_x_and_y_are_left_alone(text: str) -> None:
    row = Example((Message("user", f"q{text}q"),), f"d{text}d", "id", "row")
    for l_z in ("en", "th"):
        v = Verbalizer(SEVEN)(view(Mode.CROSSLINGUAL), row, 0, 0, l_z)
        wanted = template("id")["teacher"].replace("{language}", template("id")["names"][l_z])
        before, between, after = wanted.replace("{demonstration}", "{question}").split("{question}")
        assert last(v.teacher) == f"{before}q{text}q{between}d{text}d{after}"
        assert f"q{text}q" in last(v.student)


# ── the draw ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("l, english", [("id", True), ("my", True), ("th", False), ("en", True)])
def test_l_z_is_uniform(l: str, english: bool) -> None:
    rows, v = 2000, Verbalizer(SEVEN, 5)
    chosen = Counter(v(view(Mode.CROSSLINGUAL, english), example(l), 1, row).l_z for row in range(rows))
    wanted = ({*SEVEN, "en"} if english else set(SEVEN)) - {l}
    assert set(chosen) == wanted
    mean = rows / len(wanted)
    assert sum((n - mean) ** 2 / mean for n in chosen.values()) < 26.1, chosen  # p < 0.0005


@pytest.mark.parametrize("mode", [Mode.CROSSLINGUAL, Mode.MIX])
def test_the_draw_is_a_pure_function_of_seed_epoch_and_row(mode: Mode) -> None:
    def drawn(seed: int, epoch: int, rows: range) -> list[str | None]:
        v = Verbalizer(SEVEN, seed)
        return [v(view(mode), example("id", y=f"{seed}{epoch}{r}"), epoch, r).l_z for r in rows]

    base = drawn(0, 0, range(60))
    assert drawn(0, 0, range(60)) == base
    assert drawn(0, 0, range(59, -1, -1)) == base[::-1]  # the order of calls is nothing
    for other in (drawn(1, 0, range(60)), drawn(0, 1, range(60)), drawn(0, 0, range(60, 120))):
        assert other != base
        assert sum(a == b for a, b in zip(other, base, strict=True)) < 40


def test_mix_is_half_and_half() -> None:
    rows, v = 2000, Verbalizer(SEVEN)
    own = sum(v(view(Mode.MIX), example("ta"), 0, row).l_z == "ta" for row in range(rows))
    assert abs(own - rows / 2) < 4 * (rows / 4) ** 0.5


def test_mix_draws_the_half_apart_from_the_language() -> None:
    """Otherwise one half would see some of the languages only."""
    v = Verbalizer(SEVEN)
    assert {v(view(Mode.MIX), example("ta"), 0, row).l_z for row in range(400)} == {*SEVEN, "en"}
    without = {v(view(Mode.MIX, english=False), example("ta"), 0, row).l_z for row in range(400)}
    assert without == set(SEVEN), "an even number of choices"


# ── files of one's own ───────────────────────────────────────────────────────────────────────────────────────────────
def write(folder: Path, code: str, **changed: Any) -> Path:
    """A template file for `code`; a value None leaves its key out."""
    table: dict[str, Any] = {
        "teacher": "T {question} | {demonstration} | {language}",
        "student": "S {question} | {language}",
        "names": {c: f"{code}:{c}" for c in (*EIGHT, "jv")},
    }
    if code == "en":
        table["teacher_unnamed"] = "U {question} | {demonstration}"
    table |= changed
    names = table.pop("names")
    lines = [
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in table.items()
        if value is not None
    ]
    if names is not None:
        lines += ["[names]", *(f'{c} = "{n}"' if isinstance(n, str) else f"{c} = {n}" for c, n in names.items())]
    folder.mkdir(exist_ok=True)
    file = folder / f"{code}.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_a_folder_of_ones_own_replaces_language_by_language(tmp_path: Path) -> None:
    write(tmp_path, "id")
    v = Verbalizer(SEVEN, folder=tmp_path)
    assert last(v(view(Mode.CROSSLINGUAL), example("id"), 0, 0, "vi").teacher) == f"T {X} | {Y} | id:vi"
    assert last(v(view(Mode.CROSSLINGUAL), example("id"), 0, 0, "vi").student) == f"S {X} | id:vi"
    assert last(v(view(Mode.CROSSLINGUAL), example("vi"), 0, 0, "id").teacher) == filled("vi", "teacher", "id")


def test_a_ninth_language_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, "jv")
    for code in SEVEN:
        names = {**template(code)["names"], "jv": f"{code}-jv"}
        write(tmp_path, code, names=names)
    nine = (*SEVEN, "jv")
    v = Verbalizer(nine, folder=tmp_path)
    v.check(view(Mode.CROSSLINGUAL), nine)
    assert last(v(view(Mode.CROSSLINGUAL), example("jv"), 0, 0, "th").teacher) == f"T {X} | {Y} | jv:th"
    assert "id-jv" in last(v(view(Mode.CROSSLINGUAL), example("id"), 0, 0, "jv").student)
    assert "jv" in {v(view(Mode.CROSSLINGUAL), example("id"), 0, row).l_z for row in range(100)}


MODES = (Mode.CROSSLINGUAL, Mode.MIX, Mode.MULTILINGUAL)
NAMES = {c: c for c in EIGHT}
BAD = [  # what is changed in the file of `id`, what is said after the file's name, in which modes it is found
    ({"teacher": "{question} {language}"}, "teacher: the placeholder {demonstration} is missing", tuple(Mode)[1:]),
    ({"teacher": "{demonstration} {language}"}, "teacher: the placeholder {question} is missing", tuple(Mode)[1:]),
    ({"student": "{question}"}, "student: the placeholder {language} is missing", tuple(Mode)[1:]),
    ({"student": "{question} { language }"}, "student: the placeholder {language} is missing", tuple(Mode)[1:]),
    ({"student": "{question} {language} {demonstration}"}, "student: unknown placeholder {demonstration}", MODES),
    ({"teacher": "{question} {demonstration} {language} {name}"}, "teacher: unknown placeholder {name}", MODES),
    ({"teacher": None}, "teacher: expected a text, found None", MODES),
    ({"student": 3}, "student: expected a text, found 3", MODES),
    ({"techer": "x"}, "unknown key 'techer'; choices: teacher, teacher_unnamed, student, names", MODES),
    ({"names": None}, "[names]: expected a table of language code = name", MODES),
    ({"names": NAMES | {"vi": ""}}, "[names]: expected a table of language code = name", MODES),
    ({"names": NAMES | {"vi": 3}}, "[names]: expected a table of language code = name", MODES),
    ({"names": {c: c for c in EIGHT if c != "vi"}}, "[names] has no 'vi'; add what 'vi' is called in", MODES[:2]),
    ({"names": {c: c for c in EIGHT if c != "en"}}, "[names] has no 'en'", MODES[:2]),
    ({"names": {c: c for c in EIGHT if c != "id"}}, "[names] has no 'id'", MODES[1:]),
]


@pytest.mark.parametrize("changed, said, modes", BAD, ids=lambda case: str(case)[:40])
def test_a_bad_file_is_found_before_training(tmp_path: Path, changed: dict[str, Any], said: str, modes: Any) -> None:
    file = write(tmp_path, "id", **changed)
    for mode in modes:
        for seed in range(3):  # whatever the draw
            with pytest.raises(DudiError) as error:
                Verbalizer(SEVEN, seed, tmp_path).check(view(mode), SEVEN)
            assert str(error.value).startswith(f"{file}: {said}"), mode
            assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", [b"teacher = ", b"\xff\xfe", b"[names", b"\x00"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "id.toml").write_bytes(text)
    with pytest.raises(DudiError, match="not a readable TOML file") as error:
        Verbalizer(SEVEN, 0, tmp_path).check(view(Mode.CROSSLINGUAL), SEVEN)
    assert str(error.value).startswith(f"{tmp_path / 'id.toml'}: ") and len(str(error.value).splitlines()) == 1


def test_a_language_without_a_template(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(DudiError, match=r"no verbalizer template for language 'jv': add jv.toml to"):
            Verbalizer(("id", "jv"), 0, folder).check(view(Mode.MULTILINGUAL), ("id", "jv"))
    Verbalizer(("id", "jv")).check(view(Mode.NONE), ("id", "jv"))
    Verbalizer(("id", "jv")).check(view(Mode.ENGLISH), ("id", "jv"))  # reads the English file only


def test_the_english_mode_reads_a_key_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path, "en", teacher_unnamed=None)
    with pytest.raises(DudiError) as error:
        Verbalizer(SEVEN, 0, tmp_path).check(view(Mode.ENGLISH), SEVEN)
    assert str(error.value).startswith(f"{file}: missing key 'teacher_unnamed'")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match=r"data.template_folder: no folder"):
        Verbalizer(SEVEN, 0, tmp_path / "none")


def test_one_language_without_english_is_refused_before_training() -> None:
    with pytest.raises(DudiError, match="no language to choose for rows in 'id'"):
        Verbalizer(("id",)).check(view(Mode.CROSSLINGUAL, english=False), ("id",))
    Verbalizer(("id",)).check(view(Mode.CROSSLINGUAL), ("id",))


def test_names_that_are_not_needed_may_be_missing(tmp_path: Path) -> None:
    write(tmp_path, "id", names={"vi": "vi"})
    two = ("id", "vi")
    Verbalizer(two, 0, tmp_path).check(view(Mode.CROSSLINGUAL, english=False), two)
    with pytest.raises(DudiError, match="has no 'en'"):
        Verbalizer(two, 0, tmp_path).check(view(Mode.CROSSLINGUAL), two)


# ── the shipped files ────────────────────────────────────────────────────────────────────────────────────────────────
PLACEHOLDERS = {
    "teacher": ["{question}", "{demonstration}", "{language}"],
    "teacher_unnamed": ["{question}", "{demonstration}"],
    "student": ["{question}", "{language}"],
}
SCRIPT_PREFIX = {"Latin": "LATIN", "Thai": "THAI", "Tamil": "TAMIL", "Myanmar": "MYANMAR"}


def texts(code: str) -> dict[str, str]:
    return {key: value for key, value in template(code).items() if key != "names"}


def test_the_shipped_files_are_those_of_the_eight_languages() -> None:
    assert {file.stem for file in TEMPLATES.iterdir()} == set(LANGUAGES) == set(EIGHT)


@pytest.mark.parametrize("code", EIGHT)
def test_a_shipped_file_has_all_texts_and_distinct_names(code: str) -> None:
    assert set(texts(code)) == {"teacher", "student"} | ({"teacher_unnamed"} if code == "en" else set())
    names = template(code)["names"]
    assert set(names) == set(EIGHT)
    assert len(set(names.values())) == 8
    assert all(name == name.strip() for name in names.values())


@pytest.mark.parametrize("code", EIGHT)
def test_a_shipped_text_has_each_placeholder_once_and_no_blanks_around(code: str) -> None:
    for key, text in texts(code).items():
        assert text == text.strip()
        assert [text.count(p) for p in PLACEHOLDERS[key]] == [1] * len(PLACEHOLDERS[key])
        places = [text.index(p) for p in PLACEHOLDERS[key] if p != "{language}"]
        assert places == sorted(places) and places[0] == 0
        assert not any(line != line.strip() for line in text.splitlines())
        assert text.count("{") == text.count("}") == len(PLACEHOLDERS[key])


@pytest.mark.parametrize("code", EIGHT)
def test_a_shipped_file_is_in_its_own_script_and_normalized(code: str) -> None:
    prefix = SCRIPT_PREFIX[LANGUAGES[code].script]
    for text in (*texts(code).values(), *template(code)["names"].values()):
        assert unicodedata.is_normalized("NFC", text)
        for placeholder in PLACEHOLDERS["teacher"]:
            text = text.replace(placeholder, "")
        letters = [c for c in text if unicodedata.category(c)[0] in "LMN"]
        assert letters or not text.strip()
        assert {unicodedata.name(c).split()[0] for c in letters} <= {prefix}
        assert not any(unicodedata.category(c) in ("Cf", "Co", "Cn") for c in text), "invisible characters"


def test_vietnamese_is_written_with_its_marks() -> None:
    words = "".join(texts("vi").values()).lower().split()
    assert {"dưới", "đây", "lời", "bằng"} <= set(words)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("english", [True, False])
def test_the_shipped_files_pass_the_check(mode: Mode, english: bool) -> None:
    Verbalizer(EIGHT).check(view(mode, english), EIGHT)


def test_a_copy_of_the_shipped_folder_is_a_valid_folder_of_ones_own(tmp_path: Path) -> None:
    shutil.copytree(TEMPLATES, tmp_path / "t")
    v = Verbalizer(SEVEN, folder=tmp_path / "t")
    assert {code: t.texts for code, t in v.templates.items()} == {code: texts(code) for code in EIGHT}
    assert read_template(tmp_path / "t" / "th.toml").names == template("th")["names"]
