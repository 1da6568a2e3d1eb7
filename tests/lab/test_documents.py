"""What the lab's models read: a function of seed, model and step, in the order and the shares that are promised."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from kit.lab import MICRO

from dudi.lab.build import read_tokenizer
from dudi.lab.documents import POOL, PROMPT, Documents
from dudi.lab.plans import Plan
from dudi.lab.rows import lesson

SCRIPTS = {"th": "[\u0e00-\u0e7f]", "ta": "[\u0b80-\u0bff]", "my": "[\u1000-\u109f]"}
STUDENT, TEACHER = MICRO.models["student-small"], MICRO.models["teacher"]


@pytest.mark.parametrize("plan", [STUDENT, TEACHER], ids=["student", "teacher"])
def test_the_documents_of_a_step_are_a_function_of_seed_model_and_step(built: Path, plan: Plan) -> None:
    tokenizer = read_tokenizer(built)

    def documents(*key: int | str) -> Documents:
        return Documents(plan, tokenizer, key)

    base = documents(0, "a")
    steps = [base.step(n) for n in range(POOL + 3)]
    assert all(len(step) == plan.rows for step in steps)
    for number in (POOL + 2, 5, 0, POOL):  # in any order, from the start or not
        assert documents(0, "a").step(number) == base.step(number) == steps[number]
    assert documents(1, "a").step(0) != steps[0] != documents(0, "b").step(0)
    assert len({str(step) for step in steps}) == len(steps)


def test_what_a_teacher_reads_counts_alike_document_by_document(built: Path) -> None:
    tokenizer = read_tokenizer(built)
    kinds = Counter[str]()
    documents = Documents(replace(TEACHER, rows=16), tokenizer, (0, "t"))
    for ids, weight in (one for step in range(POOL) for one in documents.step(step)):
        assert len(ids) == len(weight)
        if ids[-1] == tokenizer.pad_token_id:
            kinds["text"] += 1
            assert weight == pytest.approx([1 / len(ids)] * len(ids))
        else:
            kinds["lesson"] += 1
            assert ids[-1] == tokenizer.eos_token_id
            answer = len(ids) - ids[::-1].index(tokenizer.convert_tokens_to_ids("<|im_start|>"))
            answer += len(tokenizer("assistant\n", add_special_tokens=False)["input_ids"])
            assert weight[:answer] == pytest.approx([PROMPT / answer] * answer)
            assert weight[answer:] == pytest.approx([1 / (len(ids) - answer)] * (len(ids) - answer))
    assert 2.5 < kinds["lesson"] / kinds["text"] < 6


def test_a_demonstration_is_learned_from_like_an_answer(built: Path) -> None:
    documents = Documents(TEACHER, read_tokenizer(built), (0, "t"))
    rng, seen = random.Random(0), 0
    for _ in range(300):
        x, _, shown = lesson(rng, documents.verbalizer)
        if shown is not None:
            prompt = documents.chat.prompt(x)
            weights = documents._shown(prompt, shown)
            assert documents.tokenizer.decode([i for i, w in zip(prompt, weights, strict=True) if w]).strip() == shown
            assert sum(weights) == pytest.approx(1)
            seen += 1
    assert 60 < seen < 240


@pytest.mark.slow
def test_a_teacher_learns_one_language_after_the_other_and_z_last(built: Path) -> None:
    tokenizer, plan = read_tokenizer(built), replace(TEACHER, rows=16, steps=10_000, tuning=1_000)

    def read(step: int) -> tuple[dict[str, float], float]:
        """Shares of the documents that have letters of each script, and that show a demonstration."""
        reads = Documents(plan, tokenizer, (0, "t"))
        documents = [d for k in range(4 * POOL) for d in reads.step(step + k)]  # enough for shares to 2 %
        texts = [tokenizer.decode(ids) for ids, _ in documents]
        found = {l: sum(bool(re.search(r, text)) for text in texts) / len(texts) for l, r in SCRIPTS.items()}
        return found, sum(weight[0] == 0 and max(weight) > 0 for _, weight in documents) / len(documents)

    english, burmese, all_of_them, with_z, tuned = (read(step) for step in (320, 1376, 4400, 4512, 10_000))
    assert max(english[0].values()) < 0.05 and english[1] == 0  # a few are asked to answer in another language
    assert burmese[0]["my"] > 0.4 and max(burmese[0]["th"], burmese[0]["ta"]) < 0.05 and burmese[1] == 0
    assert min(all_of_them[0].values()) > 0.1 and all_of_them[1] == 0
    assert min(with_z[0].values()) > 0.1 and 0.25 < with_z[1] < 0.5
    assert min(tuned[0].values()) > 0.1 and 0.5 < tuned[1] < 0.65


def test_a_base_student_reads_plain_text_and_exercises_that_count_alike(built: Path) -> None:
    tokenizer = read_tokenizer(built)
    documents = Documents(replace(STUDENT, rows=16, steps=10_000), tokenizer, (0, "s"))
    kinds, scripts = Counter[str](), Counter[str]()
    for ids, weight in (one for step in range(8000, 8000 + POOL) for one in documents.step(step)):
        text = tokenizer.decode(ids[:-1])
        assert len(ids) == len(weight) and ids[-1] == tokenizer.pad_token_id and "<|im_start|>" not in text
        solution = sum(w == weight[-1] for w in weight)
        kinds["text" if solution == len(ids) else "exercise"] += 1
        assert weight[-solution:] == pytest.approx([1 / solution] * solution)
        if asked := len(ids) - solution:
            assert weight[:asked] == pytest.approx([PROMPT / asked] * asked)
        scripts.update(l for l, r in SCRIPTS.items() if re.search(r, text))
        scripts["other"] += max(text) < "\u0b00"
    assert 0.8 < kinds["text"] / kinds["exercise"] < 1.25
    assert 0 < scripts["my"] < scripts["th"] < 0.5 * scripts["other"]


def test_a_base_student_meets_one_language_after_the_other(built: Path) -> None:
    documents = Documents(replace(STUDENT, rows=16, steps=10_000), read_tokenizer(built), (0, "s"))
    often = [
        {l for l, r in SCRIPTS.items() if sum(bool(re.search(r, text)) for text in texts) > len(texts) / 3}
        for texts in ([documents.tokenizer.decode(ids) for ids, _ in documents.step(step)] for step in (320, 1377))
    ]
    assert often == [set(), {"my"}]  # now and then, a line with its translation is of two
