"""Answers: greedy decoding against brute force; neither the batch nor the padding changes one; sampling repeats."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import kit
import pytest
import torch
from kit.evals import rows, save_model, write
from transformers import GenerationConfig, PreTrainedModel

from dudi.errors import DudiError
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.respond import Responder, fingerprint, load_responder, weight_files
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine
from dudi.text.chat import Chat

LENGTH = 12


@cache
def model() -> PreTrainedModel:
    """float64, with a head padded beyond the vocabulary; untied, so that it does not repeat its last token."""
    return kit.model(3, rows=kit.VOCAB + 6, tied=False).requires_grad_(False).eval()


@cache
def chat() -> Chat:
    return Chat(kit.tokenizer(), None, {})


@pytest.fixture
def bench(tmp_path: Path) -> Benchmark:
    return read_benchmark(write(tmp_path))


@torch.no_grad()
def brute_force(prompt: tuple[int, ...], limit: int, stops: tuple[int, ...]) -> tuple[int, ...]:
    """The likeliest token of the vocabulary, again and again: no cache, no padding, no batch."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        ids.append(int(model()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, : kit.VOCAB].argmax()))
        if ids[-1] in stops:
            break
    return tuple(ids[len(prompt) :])


def prompts(bench: Benchmark) -> list[tuple[int, ...]]:
    return [tuple(chat().prompt(i.prompt)) for i in bench.items]


def common_token(bench: Benchmark) -> int:
    """A token in the middle of greedy answers, to stop at."""
    return _common_token(tuple(prompts(bench)))


@cache
def _common_token(prompts: tuple[tuple[int, ...], ...]) -> int:
    answers = [brute_force(p, LENGTH, ()) for p in prompts]
    counts = {t: sum(t in a for a in answers) for a in answers for t in a[1:-1]}
    return min((t for t in counts if counts[t] < len(answers)), key=lambda t: (-counts[t], t))


def test_temperature_0_is_argmax(bench: Benchmark) -> None:
    stops = (*chat().stop_ids, common_token(bench))
    sampler = LocalEngine(Sampling(stops, chat().pad, chat().vocab, 0.0))
    asked = prompts(bench)
    limits = [LENGTH - k % 4 for k in range(len(asked))]
    wanted = [brute_force(p, n, stops) for p, n in zip(asked, limits, strict=True)]
    found = sampler(model(), [Request(p, (0, k), n) for k, (p, n) in enumerate(zip(asked, limits, strict=True))])
    assert [r.ids for r in found] == wanted
    assert [r.finished for r in found] == [ids[-1] in stops for ids in wanted]
    assert {r.finished for r in found} == {True, False}  # both occur
    assert len({r.ids for r in found}) > len(asked) // 2  # and the answers differ


def test_greedy_draws_nothing(bench: Benchmark) -> None:
    sampler = LocalEngine(Sampling(chat().stop_ids, chat().pad, chat().vocab, 0.0))
    one, other = ([Request(p, (key,), LENGTH) for p in prompts(bench)] for key in ("a", "b"))
    assert sampler(model(), one) == sampler(model(), other)


def test_greedy_never_takes_a_padded_row(bench: Benchmark) -> None:
    padded = kit.model(3, rows=kit.VOCAB + 6, tied=False).eval()
    with torch.no_grad():
        padded.get_output_embeddings().weight[kit.VOCAB :].mul_(100)
    sampler = LocalEngine(Sampling(chat().stop_ids, chat().pad, chat().vocab, 0.0))
    found = sampler(padded, [Request(p, (0,), LENGTH) for p in prompts(bench)])
    assert max(i for r in found for i in r.ids) < kit.VOCAB


def responder(bench: Benchmark, temperature: float = 0.0, batch: int = 64) -> Responder:
    return Responder(model(), chat(), (*chat().stop_ids, common_token(bench)), temperature, batch)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_neither_batch_nor_order_nor_company_changes_an_answer(bench: Benchmark, temperature: float) -> None:
    items = list(bench.items)
    wanted = responder(bench, temperature).answer(items, bench, 7)
    for batch in (1, 2, 5):
        assert responder(bench, temperature, batch).answer(items, bench, 7) == wanted
    assert responder(bench, temperature).answer(items[::-1], bench, 7) == wanted[::-1]
    assert responder(bench, temperature, 3).answer(items[4:9], bench, 7) == wanted[4:9]
    assert [a.tokens for a in wanted if not a.finished] == [
        bench.max_new_tokens(i) for i, a in zip(items, wanted, strict=True) if not a.finished
    ]


def test_sampling_repeats_by_seed_and_item(bench: Benchmark) -> None:
    asked = responder(bench, 1.5)
    one = asked.answer(bench.items, bench, 1)
    torch.rand(5)  # no hidden state
    assert asked.answer(bench.items, bench, 1) == one
    other = asked.answer(bench.items, bench, 2)
    assert sum(a.text != b.text for a, b in zip(one, other, strict=True)) > len(one) // 2
    renamed = [i.model_copy(update={"id": f"{i.id}x"}) for i in bench.items]
    assert [a.text for a in asked.answer(renamed, bench, 1)] != [a.text for a in one]


def test_the_text_has_no_stop_token(bench: Benchmark) -> None:
    asked = responder(bench)
    for item, answer in zip(bench.items, asked.answer(bench.items, bench, 0), strict=True):
        ids = brute_force(tuple(chat().prompt(item.prompt)), bench.max_new_tokens(item), asked.stop_ids)
        assert (answer.tokens, answer.finished) == (len(ids), ids[-1] in asked.stop_ids)
        kept = [i for i in (ids[:-1] if answer.finished else ids) if i not in chat().tokenizer.all_special_ids]
        assert answer.text == chat().decode(kept)


def test_progress_counts_every_item_that_is_asked(bench: Benchmark) -> None:
    seen: list[int] = []
    responder(bench, batch=5).answer(bench.items, bench, 0, seen.append)
    assert seen == [5, 5, 2] and len(rows()) == 12


def test_a_prompt_that_cannot_be_asked_is_an_error_of_that_item(bench: Benchmark) -> None:
    no_system = kit.CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )
    asked = dataclasses.replace(responder(bench), chat=Chat(kit.tokenizer(), no_system, {}))
    found = asked.answer(bench.items, bench, 0)
    assert [i.id for i, a in zip(bench.items, found, strict=True) if a.error] == ["l2"]
    assert found[-1].error is not None and "refuses" in found[-1].error
    assert found[:-1] == responder(bench).answer(bench.items[:-1], bench, 0)


def test_a_prompt_longer_than_the_model_is_an_error_of_that_item(bench: Benchmark) -> None:
    short = kit.model(3, rows=kit.VOCAB + 6, tied=False).eval()
    lengths = [len(p) + bench.max_new_tokens(i) for p, i in zip(prompts(bench), bench.items, strict=True)]
    short.config.max_position_embeddings = max(lengths) - 1
    found = dataclasses.replace(responder(bench), model=short).answer(bench.items, bench, 0)
    assert [a.error is not None for a in found] == [n == max(lengths) for n in lengths]


# ── from a folder ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_folder_brings_its_template_and_all_its_stops(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    GenerationConfig(eos_token_id=[2, 5, 10_000]).save_pretrained(tmp_path)
    loaded = load_responder(path)
    assert loaded.stop_ids == (2, 5)  # and none that is no token
    assert loaded.model.dtype is torch.float32 and not loaded.model.training
    assert loaded.chat.template == kit.CHATML


def test_a_model_without_template_needs_one(tmp_path: Path) -> None:
    path = kit.save(tmp_path, kit.model(1, dtype=torch.float32), kit.tokenizer(template=None))
    with pytest.raises(DudiError, match=r"no chat template.*--template FILE"):
        load_responder(path)
    assert load_responder(path, template=kit.CHATML).chat.template == kit.CHATML


def test_fingerprint_is_of_what_answers(tmp_path: Path) -> None:
    one, same, other = (Path(save_model(tmp_path / n, seed)) for n, seed in (("one", 1), ("same", 1), ("other", 2)))
    first = fingerprint(one)
    assert fingerprint(same) == first
    assert fingerprint(other)["weights_sha256"] != first["weights_sha256"]
    (same / "optimizer.safetensors").write_bytes(b"x")
    (same / "trainer_state.json").write_text("{}")
    assert fingerprint(same) == first and [f.name for f in weight_files(same)] == ["model.safetensors"]
    (same / "chat_template.jinja").write_text("other")
    assert fingerprint(same)["files_sha256"] != first["files_sha256"]
    assert fingerprint(same)["weights_sha256"] == first["weights_sha256"]
    GenerationConfig(do_sample=True, temperature=0.7).save_pretrained(one)
    assert fingerprint(one)["generation_config"]["temperature"] == 0.7


def test_a_broken_generation_config(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(DudiError, match=r"generation_config\.json: not valid JSON"):
        fingerprint(tmp_path)
