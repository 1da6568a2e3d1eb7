"""`dudi data push`: the rows of a run, or those that `dudi data prepare` wrote, as a data set of the hub.

They go as they are, with a manifest that says where they come from, and only under a license that lets them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi

from dudi import __version__
from dudi.data.load import Rows, read_rows
from dudi.data.settings import HUB_NAME, path_of
from dudi.errors import DudiError
from dudi.languages import LANGUAGES
from dudi.report.card import CARD
from dudi.report.card_facts import Manifest, Origin, last_part
from dudi.report.markdown import escaped
from dudi.run.push import Upload, check, check_hub, check_name, hub_errors, own_paths
from dudi.strict import read_one

LICENSES = (
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "odc-by", "odbl", "pddl", "unlicense", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    *("cdla-sharing-1.0", "bsd-2-clause", "bsd-3-clause"),
)
"""By the hub's names: those that let anybody pass on a part of the data. (The kinds with "nd" let nobody change it.)"""
ROWS = ("train.jsonl", "eval.jsonl")


def prepare(path: str, repo: str, license: str | None) -> Upload:
    """What would be sent; nothing is asked of the network.

    Raises `DudiError` without a license that lets it be, for rows that are not those of their manifest, and for what
    holds a secret or a path of this machine.
    """
    check_name(repo)
    given = Path(path).expanduser()
    folder = given / "data" if (given / "recipe.toml").is_file() else given
    if not (folder / "manifest.json").is_file():
        raise DudiError(f"{path!r} is neither a run's folder nor one of `dudi data prepare`: it holds no manifest.json")
    allowed = _allowed(license)
    rows, origins = read_rows(folder), read_one(Manifest, folder / "manifest.json").origins
    made = {
        name: (json.dumps(_unplaced(value, _local(rows, origins)), ensure_ascii=False, indent=2) + "\n").encode()
        for name, value in (("manifest.json", rows.manifest), ("report.json", rows.report.as_json()))
    }
    card = _card(repo, allowed, rows, origins)
    here = folder.resolve()
    own = own_paths(here.parent, here.parent)
    names = [name for name in ROWS if (folder / name).stat().st_size]
    for name in names:
        for number, line in enumerate((folder / name).read_bytes().splitlines(), 1):
            check(f"{folder / name}: line {number}", line, own, others_words=True)
    for name, data in {**made, CARD: card.encode()}.items():
        check(folder / name, data, own)
    sizes = {name: (folder / name).stat().st_size for name in names} | {name: len(data) for name, data in made.items()}
    sizes[CARD] = len(card.encode())
    left = [file.name for file in sorted(folder.iterdir()) if file.name not in sizes]
    return Upload(folder, repo, tuple(sizes.items()), tuple(left), card, "dataset", made)


def check_sources(upload: Upload, license: str) -> list[str]:
    """That the data sets on the hub that the rows are from are under that license there; lines of what cannot be told.

    Raises `DudiError` where the hub says another, or has readers accept terms.
    """
    check_hub()
    lines = []
    for origin in read_one(Manifest, upload.folder / "manifest.json").origins:
        if origin.hub is None:
            continue
        with hub_errors(origin.hub):
            there = HfApi().dataset_info(origin.hub, revision=origin.revision)
        if there.gated:
            raise DudiError(f"{origin.hub}: each reader accepts its terms on the hub: a copy would go round them")
        named = None if there.card_data is None else there.card_data.get("license")
        named = [named] if isinstance(named, str) else list(named or ())
        if named and license not in named:
            raise DudiError(
                f"{origin.hub} is under {', '.join(named)} on the hub, and not under {license}: give --license"
                f" {named[0]}, or push its rows apart from others"
            )
        if not named:
            lines.append(f"{origin.hub} names no license on the hub: that it is {license} is yours to know")
    return lines


def _allowed(license: str | None) -> str:
    if license is None:
        raise DudiError(
            "whose rows are they, and who may have them? Give --license with the hub's name of the license that they"
            " are under, such as cc-by-4.0"
        )
    if license not in LICENSES:
        raise DudiError(
            f"--license {license}: not one that is known to let a part of the data be passed on: {', '.join(LICENSES)}"
        )
    return license


def _local(rows: Rows, origins: tuple[Origin, ...]) -> list[str]:
    """Sources that are files or folders of a machine."""
    named = [origin.source for origin in origins if origin.hub is None] + [rows.manifest.get("eval_source")]
    here = [name for name in named if name is not None and (path_of(name).exists() or not HUB_NAME.fullmatch(name))]
    return [name for name in here if Path(name).name != name]


def _unplaced(value: Any, local: list[str]) -> Any:
    """A JSON value with files and folders called by the last part of their path."""
    if isinstance(value, dict):
        return {_unplaced(key, local): _unplaced(inner, local) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_unplaced(inner, local) for inner in value]
    if isinstance(value, str):
        for name in local:
            value = value.replace(name, last_part(name))
    return value


def _card(repo: str, license: str, rows: Rows, origins: tuple[Origin, ...]) -> str:
    """The README.md: the hub's metadata, and what the rows are, by the manifest."""
    train, held_out = (Counter(example.l for example in part) for part in (rows.train, rows.eval))
    languages = sorted({*train, *held_out})
    files = [{"split": "train", "path": "train.jsonl"}]
    files += [{"split": "validation", "path": "eval.jsonl"}] if rows.eval else []
    head = DatasetCardData(
        language=languages,
        license=license,
        task_categories=["text-generation"],
        source_datasets=[origin.hub for origin in origins if origin.hub is not None] or None,
        tags=["dudi"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    table = [
        f"| {LANGUAGES[l].name if l in LANGUAGES else l} (`{l}`) | {train[l]:,} | {held_out[l]:,} |" for l in languages
    ]
    m = rows.manifest
    drawn = m.get("rows_per_language")
    return "\n".join(
        [
            f"---\n{head.to_yaml()}\n---\n# {escaped(repo.rpartition('/')[2])}",
            "\nConversations as dudi trains on them: one JSON object a line, with `id`, `language` and `messages`, of"
            " which\nthe last is the answer that is trained on.",
            f"\n**License.** {license}, in the words of whoever published this. It has to be that of the sources, too.",
            "\n## Rows\n\n| language | training | evaluation |\n| --- | ---: | ---: |",
            *table,
            "\n## Sources\n",
            *(f"- {_source(origin)}" for origin in origins),
            f"\nRows of each language: {'all' if drawn is None else f'{drawn:,} drawn'}, by seed {m.get('seed')}."
            " `report.json` says what was left out, and why;\n`manifest.json` how the rows are made again, with the"
            " versions that made them. SHA-256 of the files:\n",
            *(f"- `{part}.jsonl`: `{m['sha256'][part]}`" for part in ("train", *(["eval"] if rows.eval else []))),
            "\n## Use\n",
            f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo}", split="train")\n```',
            f'\nIn a recipe of dudi: `data.source = "{repo}"`.',
            "\n## Limits\n",
            "Nobody has read these rows for what is private, wrong or harmful in them on behalf of this copy; they were"
            " searched for keys\nand tokens of well-known forms, and hold none of those.",
            f"\nWritten by dudi {__version__}.\n",
        ]
    )


def _source(origin: Origin) -> str:
    if origin.hub is not None:
        return f"[{origin.hub}](https://huggingface.co/datasets/{origin.hub}), commit `{origin.revision}`"
    return f"`{last_part(str(origin.source))}`, which is no data set of the hub"
