"""Made-up evaluations in the very format of `dudi eval`, in eight languages, and runs in that of `dudi run`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dudi.evals.aggregate import aggregate
from dudi.evals.answers import Answer, grade
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.metrics import METRICS
from dudi.recipe.read import dump_recipe, parse_recipe
from dudi.records import Item

WORDS: dict[str, dict[str, Any]] = {
    "en": {
        "moods": ("positive", "negative"),
        "ask": "Is this positive or negative?",
        "good": ["The food was delicious and the staff were kind.", "What a beautiful day!"],
        "bad": ["The room was dirty.", "I waited two hours and nobody came."],
        "capital": ("What is the capital of {}?", {"Thailand": "Bangkok", "Vietnam": "Hanoi", "Japan": "Tokyo"}),
        "list": "Name three colours, separated by commas.",
        "colours": "red, yellow, green",
        "sentences": ["The market opens at six in the morning.", "My mother cooks rice every day."],
    },
    "id": {
        "moods": ("positif", "negatif"),
        "ask": "Apakah ini positif atau negatif?",
        "good": ["Makanannya enak sekali dan pelayannya ramah.", "Hari ini indah sekali!"],
        "bad": ["Kamarnya kotor.", "Saya menunggu dua jam dan tidak ada yang datang."],
        "capital": ("Apa ibu kota {}?", {"Thailand": "Bangkok", "Vietnam": "Hanoi", "Jepang": "Tokyo"}),
        "list": "Sebutkan tiga warna, dipisahkan dengan koma.",
        "colours": "merah, kuning, hijau",
        "sentences": ["Pasar buka pukul enam pagi.", "Ibu saya memasak nasi setiap hari."],
    },
    "vi": {
        "moods": ("tích cực", "tiêu cực"),
        "ask": "Câu này tích cực hay tiêu cực?",
        "good": ["Món ăn rất ngon và nhân viên thân thiện.", "Hôm nay trời đẹp quá!"],
        "bad": ["Phòng bẩn quá.", "Tôi đợi hai tiếng mà không ai đến."],
        "capital": ("Thủ đô của {} là gì?", {"Thái Lan": "Băng Cốc", "Việt Nam": "Hà Nội", "Nhật Bản": "Tokyo"}),
        "list": "Hãy kể tên ba màu, cách nhau bằng dấu phẩy.",
        "colours": "đỏ, vàng, xanh",
        "sentences": ["Chợ mở cửa lúc sáu giờ sáng.", "Mẹ tôi nấu cơm mỗi ngày."],
    },
    "th": {
        "moods": ("บวก", "ลบ"),
        "ask": "ข้อความนี้เป็นบวกหรือลบ",
        "good": ["อาหารอร่อยมากและพนักงานก็ใจดี", "วันนี้อากาศดีจริง ๆ"],
        "bad": ["ห้องสกปรก", "ฉันรอสองชั่วโมงแต่ไม่มีใครมา"],
        "capital": ("เมืองหลวงของ{}คืออะไร", {"ไทย": "กรุงเทพมหานคร", "เวียดนาม": "ฮานอย", "ญี่ปุ่น": "โตเกียว"}),
        "list": "บอกชื่อสีสามสี คั่นด้วยเครื่องหมายจุลภาค",
        "colours": "แดง, เหลือง, เขียว",
        "sentences": ["ตลาดเปิดตอนหกโมงเช้า", "แม่ของฉันหุงข้าวทุกวัน"],
    },
    "ta": {
        "moods": ("நேர்மறை", "எதிர்மறை"),
        "ask": "இது நேர்மறையா, எதிர்மறையா?",
        "good": ["உணவு மிகவும் சுவையாக இருந்தது, பணியாளர்கள் அன்பாக நடந்துகொண்டார்கள்.", "இன்று மிக அழகான நாள்!"],
        "bad": ["அறை அழுக்காக இருந்தது.", "நான் இரண்டு மணி நேரம் காத்திருந்தேன், யாரும் வரவில்லை."],
        "capital": (
            "{} நாட்டின் தலைநகரம் எது?",
            {"தாய்லாந்து": "பாங்காக்", "வியட்நாம்": "ஹனோய்", "ஜப்பான்": "டோக்கியோ"},
        ),
        "list": "மூன்று நிறங்களை காற்புள்ளியால் பிரித்துச் சொல்லுங்கள்.",
        "colours": "சிவப்பு, மஞ்சள், பச்சை",
        "sentences": ["சந்தை காலை ஆறு மணிக்குத் திறக்கிறது.", "என் அம்மா தினமும் சோறு சமைக்கிறார்."],
    },
    "tl": {
        "moods": ("positibo", "negatibo"),
        "ask": "Positibo ba ito o negatibo?",
        "good": ["Ang sarap ng pagkain at mabait ang mga tauhan.", "Ang ganda ng araw ngayon!"],
        "bad": ["Marumi ang kuwarto.", "Dalawang oras akong naghintay at walang dumating."],
        "capital": ("Ano ang kabisera ng {}?", {"Thailand": "Bangkok", "Vietnam": "Hanoi", "Hapon": "Tokyo"}),
        "list": "Magbigay ng tatlong kulay, pinaghihiwalay ng kuwit.",
        "colours": "pula, dilaw, berde",
        "sentences": ["Nagbubukas ang palengke nang alas-sais ng umaga.", "Araw-araw nagsasaing ang nanay ko."],
    },
    "ms": {
        "moods": ("positif", "negatif"),
        "ask": "Adakah ini positif atau negatif?",
        "good": ["Makanannya sedap dan pekerjanya baik hati.", "Indah sungguh hari ini!"],
        "bad": ["Biliknya kotor.", "Saya tunggu dua jam tetapi tiada sesiapa datang."],
        "capital": ("Apakah ibu negara {}?", {"Thailand": "Bangkok", "Vietnam": "Hanoi", "Jepun": "Tokyo"}),
        "list": "Namakan tiga warna, dipisahkan dengan koma.",
        "colours": "merah, kuning, hijau",
        "sentences": ["Pasar dibuka pada pukul enam pagi.", "Emak saya memasak nasi setiap hari."],
    },
    "my": {
        "moods": ("အကောင်း", "အဆိုး"),
        "ask": "ဒါက အကောင်းလား၊ အဆိုးလား။",
        "good": ["အစားအသောက်က အရမ်းကောင်းပြီး ဝန်ထမ်းတွေလည်း သဘောကောင်းတယ်။", "ဒီနေ့ ရာသီဥတု သာယာလိုက်တာ။"],
        "bad": ["အခန်းက ညစ်ပတ်တယ်။", "နှစ်နာရီစောင့်ပေမဲ့ ဘယ်သူမှ မလာဘူး။"],
        "capital": ("{}ရဲ့ မြို့တော်က ဘာလဲ။", {"ထိုင်း": "ဘန်ကောက်", "ဗီယက်နမ်": "ဟနွိုင်း", "ဂျပန်": "တိုကျို"}),
        "list": "အရောင်သုံးမျိုးကို ပုဒ်ဖြတ်နဲ့ ခွဲပြီး ပြောပါ။",
        "colours": "အနီ၊ အဝါ၊ အစိမ်း",
        "sentences": ["ဈေးက မနက်ခြောက်နာရီမှာ ဖွင့်တယ်။", "အမေက နေ့တိုင်း ထမင်းချက်တယ်။"],
    },
}
TASKS = {
    "sentiment": {"competency": "NLU", "metric": "choice", "max_new_tokens": 8},
    "translation-to": {"competency": "NLG", "metric": "chrf", "max_new_tokens": 32, "group": "translation"},
    "translation-from": {"competency": "NLG", "metric": "chrf", "max_new_tokens": 32, "group": "translation"},
    "format": {"competency": "Instruction following", "metric": "constraints", "max_new_tokens": 24},
    "capital": {"competency": "Knowledge", "metric": "exact", "max_new_tokens": 12},
}


def benchmark(folder: Path, languages: Sequence[str] = tuple(WORDS), name: str = "made") -> Path:
    """A benchmark folder; English is shown and not averaged."""
    (folder / "items").mkdir(parents=True)
    description = {
        "name": name,
        "version": 1,
        "competencies": list(dict.fromkeys(task["competency"] for task in TASKS.values())),
        "averaged": [l for l in languages if l != "en"],
        "translation": ["NLG"],
        "tasks": TASKS,
    }
    (folder / "benchmark.json").write_text(json.dumps(description), encoding="utf-8")
    for l in languages:
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items(l))
        (folder / "items" / f"{l}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def items(l: str) -> list[dict[str, Any]]:
    """The items of one language."""
    w, english = WORDS[l], WORDS["en"]
    found: list[dict[str, Any]] = []

    def add(task: str, text: str, **more: Any) -> None:
        messages = [{"role": "user", "content": text}]
        found.append({"id": f"{task}/{l}/{len(found)}", "task": task, "language": l, "messages": messages, **more})

    for mood, texts in zip(w["moods"], (w["good"], w["bad"]), strict=True):
        for text in texts:
            add("sentiment", f"{text}\n{w['ask']}", choices=list(w["moods"]), targets=[mood])
    for ours, theirs in zip(w["sentences"], english["sentences"], strict=True):
        if l != "en":
            add("translation-to", theirs, targets=[ours])
            add("translation-from", ours, targets=[theirs], response_language="en")
    add("format", w["list"], constraints={"count": 3, "distinct": True}, response_language=l)
    question, facts = w["capital"]
    for place, capital in facts.items():
        add("capital", question.format(place), targets=[capital])
    return found


def gold(item: Item) -> str:
    """A right answer."""
    return item.targets[0] if item.targets else str(WORDS[item.language]["colours"])


def wrong(item: Item, n: int) -> str:
    """A wrong one: of the kind that small models give."""
    others = [WORDS[item.language]["sentences"][n % 2][:14], gold(item)[: max(len(gold(item)) // 2, 1)] + " " * (n % 2)]
    return str(others[n % 2]) + " " + WORDS[item.language]["moods"][0][:2] * (n % 3)


def answers(bench: Benchmark, right: Mapping[str, float], seed: int = 0) -> list[Answer]:
    """An answer for each item; right: the share of right ones by language (`default` for the others)."""
    found = []
    for n, item in enumerate(bench.items):
        share = right.get(item.language, right["default"])
        known = (n * 7 + seed * 3) % 10 < 10 * share
        text = gold(item) if known else wrong(item, n + seed)
        found.append(Answer(text, 2 + len(text) // 3, known or n % 3 > 0))
    return found


def evaluation(
    folder: Path,
    bench_folder: Path,
    given: Mapping[int, Sequence[Answer]],
    model: str = "model",
    temperature: float = 0.0,
    named: bool = False,
) -> Path:
    """An output folder of `dudi eval`. given: seed -> answers. named: eval.json says where the benchmark is."""
    bench = read_benchmark(bench_folder)
    folder.mkdir(parents=True)
    scores = []
    for seed, answered in given.items():
        rows = [grade(item, answer, bench) for item, answer in zip(bench.items, answered, strict=False)]
        _lines(folder / f"responses-{seed}.jsonl", [row.as_dict() for row in rows])
        scores += task_scores(rows, bench, model, seed)
    _lines(folder / "scores.jsonl", [score.as_dict() for score in scores])
    about = {
        "model": {"path": model, "weights_sha256": _weights(given), "files_sha256": "0", "generation_config": None},
        "benchmark": {"name": bench.name, "version": 1, "sha256": bench.sha256},
        "decoding": {
            "temperature": temperature,
            "seeds": list(given),
            "batch": 64,
            "limit": None,
            "dtype": "float32",
            "attention": None,
            "template_sha256": None,
            "chat_kwargs": {},
            "engine": "local",
        },
        "versions": {"dudi": "0.1.0", "torch": "2.13.0"},
        "marks": {task.metric: METRICS[task.metric].mark for task in bench.tasks.values()},
    }
    if named:
        about["benchmark"]["path"] = str(bench_folder)
    (folder / "eval.json").write_text(json.dumps(about), encoding="utf-8")
    table = aggregate(scores, bench).as_dict()
    (folder / "table.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    return folder


def _weights(given: Mapping[int, Sequence[Answer]]) -> str:
    """Models that answer differently have other weights."""
    return hashlib.sha256(repr(given).encode()).hexdigest()


def simple(folder: Path, bench_folder: Path, share: float, **more: Any) -> Path:
    """A greedy evaluation with a share of right answers."""
    return evaluation(folder, bench_folder, {0: answers(read_benchmark(bench_folder), {"default": share})}, **more)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def entry(loss: float, count: float, weight: float, languages: Sequence[str]) -> dict[str, Any]:
    """A signal of a line of metrics.jsonl."""
    by_language = {l: {"loss": loss, "count": count / len(languages)} for l in languages}
    return {"loss": loss, "count": count, "by_language": by_language, "weight": weight}


def rollouts(length: float, cut: float, languages: Sequence[str]) -> dict[str, Any]:
    """A view's rollouts of a line of metrics.jsonl."""
    cell = {"length": length, "share_cut": cut, "eos_rate": 1 - cut}
    by_language = {l: {**cell, "rows": 4.0} for l in languages}
    return {**cell, "rows": 4.0 * len(languages), "by_language": by_language}


def run(
    folder: Path,
    losses: Sequence[float] = (4.0, 3.0, 2.0, 1.0, 0.5),
    cut: float = 0.25,
    seed: int = 0,
    languages: Sequence[str] = ("th", "my"),
    name: str = "made",
) -> Path:
    """A run folder of one stage, ten steps a line."""
    stage = folder / "1-dudi"
    stage.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for n, loss in enumerate(losses, 1):
        line = {"step": 10 * n, "epoch": 0.1 * n, "lr": 1e-3, "loss": loss, "grad_norm": 1.0 / n}
        line["signal"] = {
            "sequence": entry(loss / 2, 8, 0.1, languages),
            "off_policy": entry(loss, 100 * n, 0.5, languages),
        }
        line["rollout"] = {"y_tilde": rollouts(10.0 + n, cut, languages)}
        measured = {"entropy_student": 3.0, "entropy_teacher": 2.0, "overlap": 0.5, "overlap_mass": 0.4, "count": 9.0}
        line["measure"] = {"y": {**measured, "by_language": {}}}
        lines.append(line)
    held = {"loss": 0.7, "signal": {"off_policy": entry(0.75, 10, 0.5, languages)}}
    lines.append({"step": 10 * len(losses), "eval": held})
    _lines(stage / "metrics.jsonl", lines)
    _lines(stage / "times.jsonl", [{"step": n, "rollout": 0.5, "student": 1.5} for n in (1, 2)])
    outside = {"reading": 2.0, "loading": 0.5, "saving": 1.0}
    peaks = {"reading": 2**30, "student": 3 * 2**29, "saving": 2**29}
    (stage / "phases.json").write_text(json.dumps({"seconds": outside, "memory": peaks}), encoding="utf-8")
    steps = [10 * n for n in range(1, len(losses) + 1)]
    _lines(stage / "rollouts.jsonl", [line for step in steps for line in texts(step, languages)])
    recipe = {
        "name": name,
        "seed": seed,
        "output": str(folder),
        "method": {"name": "dudi"},
        "models": {"student": "models/student", "teacher": "models/teacher"},
        "data": {"source": "builtin"},
        "cold_start": {"checkpoint": "models/sft"},
    }
    (folder / "recipe.toml").write_text(dump_recipe(parse_recipe(recipe, "made")), encoding="utf-8")
    data = {"read": 20, "duplicated": 1, "filtered": {"short": 2}, "broken": {}, "zawgyi": 1, "undrawn": 0, "eval": 4}
    of = {l: {**data, "kept": 12, "faults": []} for l in languages}
    lengths = {l: {"rows": 11, "left_out": 1, "cut": 2, "characters_per_token": 1.25} for l in languages}
    environment = {"packages": {"dudi": "0.1.0", "torch": "2.13.0"}, "device": "cpu", "processes": 1}
    (folder / "data").mkdir()
    for file, value in (
        ("data/report.json", {"languages": of, "notes": []}),
        ("lengths.json", lengths),
        ("environment.json", environment),
        ("summary.json", {}),
    ):
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return folder


def texts(step: int, languages: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of rollouts.jsonl: of each language y' to x, and y~ to p_z; those of the later steps end by themselves."""
    lines = []
    for language in languages:
        for view, l_z in (("y_prime", None), ("y_tilde", "vi")):
            prompt = f"{WORDS[language]['ask']} " * 20 + "<|im_start|>assistant\n"
            text = f"{view} {step} {WORDS[l_z or language]['sentences'][0]}"
            about = {"step": step, "view": view, "language": language, "l_z": l_z, "row": step + 3}
            lines.append({**about, "prompt": prompt[-300:], "text": text, "finished": step > 20})
    return lines


def _lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
