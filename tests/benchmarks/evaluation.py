"""How much of an evaluation is the model's own work, and how long is the whole math suite?

    python tests/benchmarks/evaluation.py [--items 60]
    python tests/benchmarks/evaluation.py --suite FOLDER [--items 100]

The first: wall time of scoring likelihoods on gsm8k, math, mathqa and mmlu_stem (the last two with choices), without and
with 4 worked examples, against the time inside the model's forward passes in that very run. `--suite`: nine math tasks, 4
worked examples, likelihood and generation for all items, seconds by task and kind; killed, it goes on (FOLDER keeps
answers and seconds). Prints JSON. The demo model and the public files in the folder TRAIT_KIT_TEST_DATA; asdiv and
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

import torch
from local_tasks import BENCHMARKS, local_task

from trait_kit.engine.files import read_json, write_json
from trait_kit.evaluation import outcomes, suites
from trait_kit.models import fast_precision, model_folder
from trait_kit.params import EvaluationParams
from trait_kit.tasks import load_problems, load_tasks

MODEL = Path(model_folder("demo:smollm2-135m"))
SCORED = ["gsm8k", "math", "mathqa", "mmlu_stem"]
STAND_INS = ["word_problems", "linear_equations"]


def params(names: list[str], items: int, **more: Any) -> EvaluationParams:
    common = {"in_domain": "d", "web": "w", "tasks": names, "test_items_per_task": items, "base_model": "m"}
    common = {name: value for name, value in common.items() if name in EvaluationParams.model_fields}
    return EvaluationParams(**common, batch_size=16, **more)


def asked(chosen: EvaluationParams, folder: Path) -> list[suites.Unit]:
    items, shots = chosen.test_items_per_task, None
    if chosen.few_shot:
        shots = suites.worked_examples(chosen)
    problems = load_problems(chosen.tasks, "test", items)
    return suites.build(problems, {}, chosen, folder / "lm_eval", shots, load_tasks(chosen.tasks))


def overhead(items: int) -> dict[str, Any]:
    """Ratio of wall to forward seconds; loading the model and writing the tasks, the same for any size, stand apart."""
    found: dict[str, Any] = {"items_of_each_task": items}
    load, seconds = outcomes.load_model, {}

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

    outcomes.load_model = load_timed
    for few_shot in (0, 4):
        seconds.clear()
        with tempfile.TemporaryDirectory() as name:
            chosen = params([local_task(Path(name), task) for task in SCORED], items, few_shot=few_shot)
            units = asked(chosen, Path(name))
            timed(outcomes.evaluate_model, "wall")(MODEL, "base", 0, units, chosen, Path(name) / "answers")
        seconds["wall"] -= seconds["loading"]
        rounded = {f"{key}_s": round(value, 2) for key, value in seconds.items()}
        found[f"{few_shot} worked examples"] = {
            **rounded,
            "ratio": round(seconds["wall"] / seconds["forward"], 3),
        }
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
    outcomes.evaluate_model(MODEL, "base", 0, asked(chosen, folder), chosen, folder / "answers", report=note)
    return {
        "items_of_each_task": items,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "minutes_of_all_units": round(sum(seconds.values()) / 60, 2),
        "minutes_of_this_run": round((time.perf_counter() - started) / 60, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=0, help="of each task; 60 and 100 if not given")
    parser.add_argument("--suite", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.suite:
        found = {"suite": suite(options.items or 100, options.suite)}
    else:
        found = {"overhead": overhead(options.items or 60)}
    found["machine"] = {"threads": torch.get_num_threads(), "precision": fast_precision()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
