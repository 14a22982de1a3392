"""How much of an evaluation is the model's own work, how fast are texts generated, and how long is the whole math suite?

    python tests/benchmarks/evaluation.py [--items 60]
    python tests/benchmarks/evaluation.py --generation [--items 64]
    python tests/benchmarks/evaluation.py --suite FOLDER [--items 100]

The first: wall time of scoring likelihoods on gsm8k, math, mathqa and mmlu_stem (the last two with choices), without and
with 4 worked examples, against the time inside the model's forward passes in that very run. `--generation`: the same
prompts of gsm8k by lm-eval's own transformers model, one at a time, and by the kit's. `--suite`: nine math tasks, 4
worked examples, likelihood and generation for all items, seconds by task and kind; killed, it goes on (FOLDER keeps
outcomes and seconds). Prints JSON. The demo model and the public files in ../shared/data (see its README); asdiv and
tabmwp, which are not among them, are stood in for by two tasks that are generated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from local_tasks import BENCHMARKS, local_task

from trait_kit.engine.files import read_json, write_json
from trait_kit.evaluation import harness, suites
from trait_kit.models import resolve_model
from trait_kit.params import EvaluationParams
from trait_kit.tasks import load_problems

MODEL = Path(resolve_model("demo:smollm2-135m"))
SCORED = ["gsm8k", "math", "mathqa", "mmlu_stem"]
STAND_INS = ["word_problems", "linear_equations"]


def params(names: list[str], items: int, **more: Any) -> EvaluationParams:
    common = {"run_dir": "r", "in_domain": "d", "web": "w", "tasks": names, "test_items_per_task": items, "base_model": "m"}
    return EvaluationParams(**common, batch_size=16, **more)


def asked(chosen: EvaluationParams) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The problems and worked examples."""
    items, shots = chosen.test_items_per_task, None
    if chosen.few_shot:
        shots = suites.worked_examples(chosen.tasks, chosen.few_shot, items)
    return load_problems(chosen.tasks, "test", items), shots


def overhead(items: int) -> dict[str, Any]:
    """Ratio of wall to forward seconds; loading the model and reading the problems, the same for any size, stand apart."""
    found: dict[str, Any] = {"items_of_each_task": items}
    load, seconds = harness.load_model, {}

    def timed(function: Any, key: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **more)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - started
            return result

        return call

    def load_timed(*arguments: Any, **more: Any) -> Any:
        model = timed(load, "loading")(*arguments, **more)
        model.model.forward = timed(model.model.forward, "forward")
        return model

    harness.load_model = load_timed
    for few_shot in (0, 4):
        seconds.clear()
        with tempfile.TemporaryDirectory() as name:
            chosen = params([local_task(Path(name), task) for task in SCORED], items, few_shot=few_shot)
            problems, shots = asked(chosen)
            wall = timed(suites.evaluate_model, "wall")
            wall(MODEL, "base", 0, problems, {}, chosen, Path(name), shots)
        seconds["wall"] -= seconds["loading"]
        rounded = {f"{key}_s": round(value, 2) for key, value in seconds.items()}
        found[f"{few_shot} worked examples"] = {**rounded, "ratio": round(seconds["wall"] / seconds["forward"], 3)}
    return found


def generation(items: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        chosen = params([local_task(Path(name), "gsm8k")], items, few_shot=4, generate_items=items, likelihood=False)
        problems, shots = asked(chosen)
        prefix = "".join(f"{suites.prompt(row.question)} {row.solution}\n\n" for row in shots.itertuples())
        prompts = [prefix + suites.prompt(question) for question in problems["question"]]
    ours = harness.load_model(MODEL, batch_size=16, precision="auto")
    theirs = HFLM(ours.model, tokenizer=ours.tokenizer, batch_size=1, mixed_precision_dtype=ours.mixed_precision_dtype)
    found: dict[str, Any] = {"prompts": len(prompts)}
    texts = {}
    for name, model in (("kit", ours), ("HFLM", theirs)):
        settings = {"until": ["\nQuestion:"], "do_sample": False, "max_gen_toks": 192}
        requests = [Instance("generate_until", {}, (text, settings), place) for place, text in enumerate(prompts)]
        with harness.quiet(), ours._autocast():
            started = time.perf_counter()
            texts[name] = model.generate_until(requests)
            seconds = time.perf_counter() - started
        tokens = sum(len(ours.tok_encode(text)) for text in texts[name])
        found[name] = {"seconds": round(seconds, 1), "tokens": tokens, "tokens_per_s": round(tokens / seconds, 1)}
    found["ratio_of_seconds"] = round(found["HFLM"]["seconds"] / found["kit"]["seconds"], 2)
    found["equal_texts"] = sum(a == b for a, b in zip(texts["kit"], texts["HFLM"], strict=True))
    return found


def suite(items: int, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [local_task(folder, task) for task in BENCHMARKS] + STAND_INS
    kept = folder / "seconds.json"
    seconds: dict[str, float] = read_json(kept) if kept.exists() else {}
    started = time.perf_counter()

    def note(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        if match := re.search(r"base: (\S+) version \S+ (\(\w+\)), .* asked in ([\d.]+) s", line):
            seconds[f"{match[1]} {match[2]}"] = seconds.get(f"{match[1]} {match[2]}", 0.0) + float(match[3])
            write_json(kept, seconds)

    chosen = params(names, items, few_shot=4, generate_items=items)
    problems, shots = asked(chosen)
    suites.evaluate_model(MODEL, "base", 0, problems, {}, chosen, folder, shots, report=note)
    return {
        "items_of_each_task": items,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "minutes_of_all_units": round(sum(seconds.values()) / 60, 2),
        "minutes_of_this_run": round((time.perf_counter() - started) / 60, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=0, help="of each task; 60, 64 and 100 if not given")
    parser.add_argument("--generation", action="store_true")
    parser.add_argument("--suite", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.suite:
        found = {"suite": suite(options.items or 100, options.suite)}
    elif options.generation:
        found = {"generation": generation(options.items or 64)}
    else:
        found = {"overhead": overhead(options.items or 60)}
    found["machine"] = {"threads": torch.get_num_threads(), "precision": harness.resolve_precision("auto")}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
