"""The cards of a run's models: made when a stage ends, and again by `dudi card`, with evaluations of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dudi.errors import DudiError
from dudi.files import write_text
from dudi.recipe.read import load_recipe
from dudi.recipe.stages import folder_name, plan
from dudi.report.card import CARD, make_card
from dudi.report.evals import Evaluation, find_evals, read_eval
from dudi.report.runs import read_runs
from dudi.strict import read_text


@dataclass(frozen=True)
class Written:
    """A card that was written. left_out: evaluations beside the model that are of other weights."""

    file: Path
    evaluations: tuple[str, ...]
    left_out: tuple[str, ...]


def models_of(path: Path) -> tuple[Path, list[Path]]:
    """(run folder, models in it): of a run all that are finished, in the order of stages; or the one that is named.

    Raises `DudiError` where a path is neither.
    """
    path = path.expanduser()
    if (path / "recipe.toml").is_file():
        stages = plan(load_recipe(path / "recipe.toml"))
        models = [path / folder_name(stages, stage.name) / "model" for stage in stages]
        found = [folder for folder in models if folder.is_dir()]
        if not found:
            raise DudiError(f"{str(path)!r}: no stage of this run has a model/ yet")
        return path, found
    here = path.resolve()
    run = here.parent.parent
    if here.name != "model" or not (run / "recipe.toml").is_file():
        raise DudiError(
            f"{str(path)!r} is neither a run's folder nor a model in one (RUN/2-dudi/model): what a card says is read"
            " from the run"
        )
    if not here.is_dir():
        raise DudiError(f"no model folder {str(path)!r}")
    return run, [here]


def write_cards(path: Path) -> Iterator[Written]:
    """The cards of a run, or of one model in it, with the evaluations of their weights that lie in the run."""
    folder, models = models_of(path)
    here = folder.resolve()
    evaluations = [read_eval(str(found.relative_to(here)), found) for _, found in find_evals([(here.name, here)])]
    for model in models:
        mine, left_out = _of_weights(model, evaluations)
        text = card_of(folder, model, mine)
        try:
            write_text(model / CARD, text)
        except OSError as error:
            raise DudiError(f"{model / CARD}: cannot be written ({error.strerror or error})") from None
        yield Written(model / CARD, tuple(one.name for one in mine), left_out)


def card_of(folder: Path, model: Path, evaluations: Sequence[Evaluation] = ()) -> str:
    """The card of a stage's model, in its place or about to be there. What its reader may change in the one that is
    there stays."""
    file = model / CARD
    try:
        (run,) = read_runs([folder])
        return make_card(run, model.parent.name, evaluations, read_text(file) if file.is_file() else None)
    except DudiError as error:
        raise DudiError(f"{file}: {error}") from None


def _of_weights(model: Path, found: Sequence[Evaluation]) -> tuple[tuple[Evaluation, ...], tuple[str, ...]]:
    """The evaluations of this model's weights; and the names of those beside it that are of others."""
    if not found:
        return (), ()
    from dudi.evals.respond import fingerprint  # with torch: only where there is something to compare

    weights = fingerprint(model)["weights_sha256"]
    mine = tuple(one for one in found if one.about.model.weights_sha256 == weights)
    beside = [one for one in found if one.folder.parent == model.resolve().with_name("model.eval")]
    return mine, tuple(one.name for one in beside if one not in mine)
