"""Answers from a server, in a run: that its model and tokenizer are the recipe's, and what of that cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dudi import processes
from dudi.errors import DudiError
from dudi.models.reader import check_head
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import STUDENT, TEACHER, Generate, Stage, Train, folder_name
from dudi.rollouts import Request, Rollout, Sampling
from dudi.rollouts.connection import Connection
from dudi.rollouts.server import Server, connect, is_same
from dudi.run.prepare import Prepared
from dudi.training.served import Asking, generate_served
from dudi.training.stored import read_responses
from dudi.training.window import Row

TOKENS, PROMPTS = 128, 2
"""Of the prompts by whose log-probabilities a server's weights are told from others."""
NEAR = 0.15
"""How far these may lie from the writer's own in the mean: bfloat16 logits are some hundredths off on either side."""
CHARACTERS = 200
"""Of each text by which tokenizers are compared."""
PLAIN = "A 1 22 333,  \n\t{x: [4.5]}  'é' 🙂 "


def is_served(recipe: Recipe, stages: Sequence[Stage], stage: Generate, trial: bool) -> bool:
    """Whether a server answers. In a rehearsal none can, where the writer is yet to be trained."""
    return recipe.rollouts.server is not None and not (trial and _is_made_here(stages, stage))


def check_server(prepared: Prepared, stages: tuple[Stage, ...], folder: Path) -> list[str]:
    """That a server is there for what is to be answered, before anything is written; lines to say.

    Raises `DudiError`.
    """
    if prepared.recipe.rollouts.server is None or not processes.is_first():
        return []
    lines: list[str] = []
    for stage in stages:
        if not isinstance(stage, Generate) or _answered(prepared, folder / folder_name(stages, stage.name)):
            continue
        if _is_made_here(stages, stage):
            served = _path(prepared.recipe, stages, stage, folder)
            lines.append(f"{stage.name}: once {stage.writer} has its result, serve {served} and continue with --resume")
        else:
            path = _path(prepared.recipe, stages, stage, folder)
            server, said = connected(prepared, path)
            lines += said
            if not _is_loaded(stages, stage):
                lines.append(f"{_unchecked(server, path)}, which this run does not load")
    return list(dict.fromkeys(lines))


def ready(
    prepared: Prepared,
    stages: tuple[Stage, ...],
    stage: Generate,
    folder: Path,
    load: Callable[[], PreTrainedModel],
    say: Callable[[str], None],
) -> Server:
    """The server of a generation stage, whose model and tokenizer are the recipe's; what cannot be told is said.

    load: of the writer. Raises `DudiError`.
    """
    path = _path(prepared.recipe, stages, stage, folder)
    with processes.together():
        server, said = connected(prepared, path)
    if _is_loaded(stages, stage):
        model = load()
        with processes.together():
            said += check_weights(server, model, prepared.train.rows, path)
    else:
        said.append(f"{_unchecked(server, path)}, which this run does not load")
    for line in said:
        say(line)
    return server


def connected(prepared: Prepared, path: str) -> tuple[Server, list[str]]:
    """The server, with the model of that path; and what could not be checked, in lines.

    Raises `DudiError` where it serves no such model, or one of another tokenizer.
    """
    recipe, chat = prepared.recipe, prepared.chat
    rows = [*prepared.train.rows, *prepared.eval.rows]
    longest = max(len(row.x) + recipe.limits.of("rollout", row.example.l) for row in rows)
    sampling = Sampling(chat.stop_ids, chat.pad, chat.vocab, recipe.rollouts.temperature)
    assert recipe.rollouts.server is not None
    connection = Connection(recipe.rollouts.server)
    server = connect(connection, path, recipe.rollouts.server_model, sampling, longest)
    first = {row.example.l: row.example for row in reversed(rows)}
    texts = [PLAIN, *(example.y[:CHARACTERS] for example in first.values())]
    texts += [str(chat.tokenizer.convert_ids_to_tokens(id)) for id in chat.stop_ids]
    said = server.check_tokenizer({text: chat.tokenizer.encode(text, add_special_tokens=False) for text in texts})
    root = server.card.root
    lines = [] if said is None else [said]
    if root is not None and not is_same(path, root):
        lines.append(f"{connection.where}: {server.card.id!r} was loaded from {root!r}; it is taken for {path!r}")
    return server, lines


def check_weights(server: Server, model: PreTrainedModel, rows: Sequence[Row], what: str) -> list[str]:
    """That a server's weights are a model's, by what both say of some prompts; a line if the server says nothing.

    Raises `DudiError` where they are others. Some that differ little are not told apart.
    """
    check_head(model, server.sampling.vocab, what)
    for row in rows[:PROMPTS]:
        prompt = row.x[:TOKENS]
        theirs = server.log_probabilities(prompt)
        if theirs is None:
            return [f"{_unchecked(server, what)}: it gives no log-probabilities of a prompt (echo, logprobs)"]
        ids = torch.tensor([prompt], device=model.device)
        with torch.no_grad():
            ours = model.eval()(ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        far = float((ours.cpu() - torch.tensor(theirs, dtype=torch.float64)).abs().mean())
        if not far <= NEAR:
            raise DudiError(
                f"{server.connection.where}: {server.card.id!r} has other weights than {what}: its log-probabilities of"
                f" a prompt's tokens are {far:.2f} off in the mean, and roundings less than {NEAR}: serve that model"
            )
    return []


def answer(
    prepared: Prepared,
    server: Server,
    rows: Sequence[Row],
    key: tuple[int | str, ...],
    here: Path,
    progress: Callable[[int, int], None],
    halted: Callable[[], bool],
    trial: bool,
) -> None:
    """A server's answers to some rows, in batches. trial: of a rehearsal, which asks for the first and takes it for all
    of them."""
    recipe = prepared.recipe
    ask: Callable[[Request], Rollout] = _once(server.ask) if trial else server.ask
    at_once = 1 if trial else max(recipe.rollouts.server_requests // processes.place()[1], 1)
    asking = Asking(ask, at_once, server.connection.give_up, halted)
    generate_served(asking, rows, key, recipe.limits, recipe.training.batch, here, progress)


def _once(ask: Callable[[Request], Rollout]) -> Callable[[Request], Rollout]:
    """The first answer, to whatever is asked."""
    first: list[Rollout] = []

    def once(request: Request) -> Rollout:
        if not first:
            first.append(ask(request))
        return first[0]

    return once


def _path(recipe: Recipe, stages: tuple[Stage, ...], stage: Generate, folder: Path) -> str:
    """Where the writer's weights are, or its name on the hub."""
    if _is_made_here(stages, stage):
        return str(folder / folder_name(stages, stage.writer) / "model")
    own = {STUDENT: recipe.models.student, TEACHER: recipe.models.teacher}
    return own.get(stage.writer) or stage.writer


def _is_made_here(stages: Sequence[Stage], stage: Generate) -> bool:
    """Whether the writer is the result of an earlier stage."""
    return stage.writer in [one.name for one in stages]


def _is_loaded(stages: Sequence[Stage], stage: Generate) -> bool:
    """Whether this run loads the writer's weights itself, so that they can be compared with the server's."""
    compared = any(isinstance(one, Train) and one.method.judged_by_larger for one in stages)
    return stage.writer != TEACHER or compared


def _unchecked(server: Server, path: str) -> str:
    return f"{server.connection.where}: not checked: that {server.card.id!r} has the weights of {path!r}"


def _answered(prepared: Prepared, here: Path) -> bool:
    batch = prepared.recipe.training.batch
    splits = {"train": prepared.train.rows, "eval": prepared.eval.rows}
    return all(read_responses(here / split, rows, batch) is not None for split, rows in splits.items())
