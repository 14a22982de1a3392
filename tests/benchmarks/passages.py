"""Passages at scale from real problem pools, of joined worked solutions: how many, how fast, what is rejected, what leaks.

Run by hand: `python tests/benchmarks/passages.py --output docs/results/passages.json`; see README.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import speed
from local_tasks import BENCHMARKS, LOCAL, local_task

from trait_kit import tables
from trait_kit.engine.files import read_json, write_json
from trait_kit.engine.questions import QuestionIndex
from trait_kit.models import token_counter
from trait_kit.params import PassageParams
from trait_kit.passages import quality
from trait_kit.passages.grouping import plan_groups
from trait_kit.passages.quality import screen_problems
from trait_kit.passages.teachers import Teacher
from trait_kit.passages.writing import write_groups
from trait_kit.tasks import every_test_question, load_problems

_SHOP = f"""about: Products of a toy and music shop.
catalogue:
  products: {LOCAL / "ads/products_vespa/products.jsonl.gz"}
  id: "{{id}}"
  title: "{{title}}"
  description: "{{description}}"
  category: "{{category}}"
"""


def math(folder: Path, groups: int) -> tuple[list[str], list[str], dict]:
    """Train problems of GSM8K and MATH, joined by mathematical concepts; test sets of all seven local benchmarks."""
    tasks = {name: local_task(folder, name) for name in BENCHMARKS}
    return [tasks["gsm8k"], tasks["math"]], list(tasks.values()), {"grouping": "concepts"}


def math_embedding(folder: Path, groups: int) -> tuple[list[str], list[str], dict]:
    """The same problems, joined as neighbours in an embedding."""
    train, test, _ = math(folder, groups)
    return train, test, {"grouping": "embedding"}


def ads(folder: Path, groups: int) -> tuple[list[str], list[str], dict]:
    """The seven ads tasks of a product catalogue, joined by the product."""
    shop = folder / "shop.yaml"
    shop.write_text(_SHOP, encoding="utf-8")
    return [str(shop)], [str(shop)], {"grouping": "entity", "problems_per_group": 4, "problems_per_task": 3_000}


def measure(pool, folder: Path, groups: int) -> dict:
    started = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - started - sum(seconds.values()), 1)

    train, test, shape = pool(folder, groups)
    common = {"in_domain": "-", "web": "-", "tasks": train, "base_model": "demo:smollm2-135m"}
    sizes = {"problems_per_task": 100_000, "test_items_per_task": 2_000, "n_groups": groups, "max_uses": 12}
    p = PassageParams(**{**common, **sizes, "max_passage_tokens": 2_048, "teacher": "none", **shape})
    problems = load_problems(p.tasks, "train", p.problems_per_task, p.seed)
    questions = every_test_question(test, p.test_items_per_task, p.seed)
    lap("loading")
    kept, screened = screen_problems(problems, questions)
    lap("screening")
    kept, made = plan_groups(kept, p)
    lap("grouping")
    bill = write_groups(made, Teacher(p), p, folder, questions, token_counter(p.base_model))
    lap("writing and checking")
    passages = tables.read(folder / "passages.parquet", "passages").to_pandas()
    rejected = tables.read(folder / "rejected.parquet", "rejected").to_pandas()
    subject = dict(zip(problems["id"], problems["task"] + "/" + problems["topic"].fillna(""), strict=True))
    tasks = Counter(task for tasks in passages["tasks"] for task in set(tasks))
    return {
        "machine": speed.machine(),
        "screened": screened.to_dict("records"),
        "test questions": len(questions),
        "groups": len(made),
        "passages": len(passages),
        "seconds": seconds | {"all": round(time.perf_counter() - started, 1)},
        "peak memory, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "passages of two tasks or more": sum(len(set(tasks)) > 1 for tasks in passages["tasks"]),
        "passages of two tasks or subjects": sum(
            len({subject[i] for i in ids}) > 1 for ids in passages["problem_ids"]
        ),
        "passages by task": dict(sorted(tasks.items())),
        "test questions in passages": len(QuestionIndex(questions).find(passages["text"].tolist())),
        "outcomes": quality.yield_by_reason(passages, rejected).to_dict("records"),
        "groups without a passage": len(made) - bill["passages"],
        "tokens": int(passages["n_tokens"].sum()),
    }


POOLS = {"math": (math, 23_000), "math_embedding": (math_embedding, 5_000), "ads": (ads, 3_000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(POOLS), action="append")
    parser.add_argument("--groups", type=int, help="asked for, instead of each pool's own number")
    parser.add_argument("--keep", type=Path, help="folder for the passages, to read them")
    parser.add_argument(
        "--output", type=Path, help="JSON file; pools that are not measured now stay as they are in it"
    )
    options = parser.parse_args()
    results = read_json(options.output) if options.output and options.output.exists() else {}
    for name, (pool, groups) in POOLS.items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep / name if options.keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            results[name] = measure(pool, folder, options.groups or groups)
        print(name, json.dumps(results[name], indent=1, default=str), flush=True)
        if options.output:
            write_json(options.output, results)


if __name__ == "__main__":
    main()
