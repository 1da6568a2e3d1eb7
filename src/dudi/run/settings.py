"""What no run could be made of, as far as a recipe alone tells: refused before anything is read or loaded."""

from __future__ import annotations

from collections.abc import Sequence

from dudi.data.settings import check_settings
from dudi.errors import DudiError
from dudi.recipe.schema import Limits, Recipe
from dudi.recipe.stages import Train, plan
from dudi.rollouts import check_engine
from dudi.run.paths import check_adapter, check_quantization
from dudi.text.template import check_template
from dudi.training.trackers import check_trackers


def check_recipe(recipe: Recipe) -> None:
    """All that is below, and the data's own settings. Raises `DudiError`."""
    check_settings(recipe.data)
    check_names(recipe)
    tables = any(isinstance(value, dict) for value in vars(recipe.limits).values())
    check_limits(recipe.limits, recipe.data.languages or (() if tables else ("all languages",)))
    check_evaluation(recipe, bool(recipe.data.eval_rows_per_language or recipe.data.eval_source))


def check_names(recipe: Recipe) -> None:
    """Raises `DudiError` for an engine, a tracker, a template or a package of adapters that there is not, or not
    here."""
    check_engine(recipe.rollouts.engine, recipe.rollouts.cuda_graph)
    check_trackers((*recipe.cold_start.training.report_to, *recipe.training.report_to))
    check_template(recipe.chat.template)
    check_adapter(recipe)
    check_quantization(recipe)


def check_limits(limits: Limits, languages: Sequence[str]) -> None:
    """Refuse, with `DudiError`, limits under which no answer could be trained on."""
    for l in languages:
        prompt, total = limits.of("prompt", l), limits.of("total", l)
        if total <= prompt:
            raise DudiError(
                f"limits.total = {total} for {l}: expected more than limits.prompt = {prompt}; it is x and y together,"
                " so that the longest x would leave no room for its answer"
            )


def check_evaluation(recipe: Recipe, held_out: bool) -> None:
    """Raises `DudiError` for evaluations that would have no rows. held_out: whether there are any."""
    trainings = [stage.training for stage in plan(recipe) if isinstance(stage, Train)]
    every = next((training.eval_every for training in trainings if training.eval_every), 0)
    if every and not held_out:
        raise DudiError(
            f"training.eval_every = {every}, but no row is held out: set data.eval_rows_per_language, or eval_every = 0"
        )
