"""What the paper prints beside what was measured: the rows of one of its tables, as the shipped recipes quote them."""

from __future__ import annotations

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe, shipped_recipes
from dudi.recipe.schema import Paper
from dudi.report.blocks import Section, Table, Text, number
from dudi.report.results import language_name


def paper_section(table: str, benchmark: str) -> Section:
    """The table's rows as columns, as in the comparison. Raises `DudiError` for a table that no recipe quotes."""
    quoted = {name: paper for name in shipped_recipes() if (paper := load_recipe(name).paper) is not None}
    found = {name: paper for name, paper in quoted.items() if table in _tables(paper)}
    if not found:
        known = ", ".join(sorted({one for paper in quoted.values() for one in _tables(paper)}, key=int))
        raise DudiError(f"--paper {table!r}: no recipe quotes such a table of the paper; expected one of {known}")
    languages = list(dict.fromkeys(l for paper in found.values() for l in paper.languages))
    rows = [(language_name(l), *(number(paper.languages.get(l)) for paper in found.values())) for l in languages]
    rows.append(("average", *(number(paper.average) for paper in found.values())))
    text = (
        "As the paper prints them: SEA-HELM, averages of seven competencies, four seeds. Only scores of SEA-HELM by the"
        f" same aggregation can be set beside them; those above are of the benchmark {benchmark}."
    )
    students = {name.split("/")[0] for name in found}
    heads = [name if len(students) > 1 else name.split("/")[1] for name in found]
    caption = f"Average by language, {', '.join(sorted(students))}"
    blocks = (Table(caption, ("language", *heads), tuple(rows), 1), Text(text, "note"))
    return Section("paper", f"The paper's table {table}", blocks)


def _tables(paper: Paper) -> list[str]:
    return paper.table.split(", ")
