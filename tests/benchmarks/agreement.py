"""Do the kit's scores agree with lm-eval's own tasks? `python tests/benchmarks/agreement.py [--only NAMES] [--items 200]`

`extraction`: the same texts to both, without a model: worked solutions of GSM8K as they are, with another result, and with
the result as models print it; lm-eval's gsm8k (strict-match, flexible-extract) and gsm8k_cot against the kit's judge; MATH
solutions against minerva_math where its parser is installed. `gsm8k`: lm-eval's own task on local rows with the demo's
model, its texts judged by both. `mathqa`, `mmlu_stem`: lm-eval's own tasks against the kit's packed likelihoods, the same
prompts; for mmlu_stem also the kit's own prompt (no letters shown), which is another measure. Needs the local copies of
the benchmarks (tests/local_tasks.py). Printed: both scores, and every item on which they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.evaluator import evaluate
from lm_eval.filters.extraction import RegexFilter
from lm_eval.tasks import TaskManager

sys.path.insert(0, str(Path(__file__).parents[1]))
from local_tasks import LOCAL

from trait_kit.evaluation import suites
from trait_kit.evaluation.scoring_model import load_model, quiet
from trait_kit.fields import FieldError, render
from trait_kit.judging.answers import judge
from trait_kit.models import fast_precision, model_folder
from trait_kit.tasks import prompt

TASKS = Path(lm_eval.tasks.__file__).parent
FORMS = (  # how a text may end in a result, and what it has before it
    "#### {n}",
    "The answer is {n}.",
    "The answer is ${n}.",
    "So the answer is {n} dollars.",
    "Answer: {n}",
    "That makes {n}",
    "\\boxed{{{n}}}",
    "The answer is {n:,}.",
    "The answer is {n}.00.",
    "#### {n}\n\nQuestion: What is 1 + 1?\nAnswer: #### 2",
)


def rows(name: str, split: str = "test") -> list[dict[str, Any]]:
    with gzip.open(LOCAL / "math" / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


class TheirGsm8k:
    """lm-eval's filters and metric of one task file, applied to a text."""

    def __init__(self, file: str) -> None:
        config = yaml.safe_load((TASKS / "gsm8k" / file).read_text())
        (self.metric,) = config["metric_list"]
        self.filters = {
            entry["name"]: RegexFilter(
                **{key: value for key, value in entry["filter"][0].items() if key != "function"}
            )
            for entry in config["filter_list"]
        }

    def judge(self, text: str, gold: str) -> tuple[bool, bool]:
        """(flexible, strict)."""
        keys = ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
        more = {key: self.metric[key] for key in keys}
        return tuple(
            bool(
                exact_match_hf_evaluate([self.filters[name].apply([[text]], [{}])[0][0]], [gold], **more)[
                    "exact_match"
                ]
            )
            for name in ("flexible-extract", "strict-match")
        )


def report(name: str, pairs: list[tuple[bool, bool, str]], shown: int = 300) -> None:
    """Both scores in percent, and the texts on which the kit (first) and lm-eval (second) differ."""
    ours, theirs = (100 * sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    print(f"{name}: {len(pairs)} items, kit {ours:.2f}, lm-eval {theirs:.2f}, {len(differing)} differ")
    for kit, _, text in differing[:shown]:
        print(f"    {'only the kit' if kit else 'only lm-eval'}: {text}")


def extraction(items: int) -> None:
    plain, cot = TheirGsm8k("gsm8k.yaml"), TheirGsm8k("gsm8k-cot.yaml")
    whole = [row for row in rows("gsm8k")[:items] if re.search(r"#### -?\d[\d,]*$", row["answer"])]
    flexible, strict = [], []
    for row in whole:
        gold = row["answer"].rpartition("#### ")[2].replace(",", "")
        for text in (row["answer"], re.sub(r"#### .*", f"#### {int(gold) + 1}", row["answer"])):
            theirs, ours = plain.judge(text, row["answer"]), judge(text, gold, "number")
            asked = judge(re.sub(r"#### (.*)", r"The answer is \1.", text), gold, "number")
            flexible.append((ours[0], theirs[0], text[-60:]))
            strict.append((asked[1], theirs[1], text[-60:]))
    report("gsm8k solutions, right and wrong, flexible", flexible)
    report("gsm8k solutions, right and wrong, strict", strict)
    for form in FORMS:
        flexible, strict = [], []
        for row in whole:
            gold = row["answer"].rpartition("#### ")[2].replace(",", "")
            for result in (int(gold), int(gold) + 10):
                text = row["answer"].rpartition("####")[0] + form.format(n=result)
                theirs, ours = cot.judge(text, gold), judge(text, gold, "number")
                flexible.append((ours[0], theirs[0], f"{text[-60:]!r} for {gold}"))
                strict.append((ours[1], theirs[1], f"{text[-60:]!r} for {gold}"))
        for name, pairs in (("flexible", flexible), ("strict", strict)):
            report(f"gsm8k_cot {form!r} {name}", pairs, shown=2)  # one form, one reason
    math(items)


def math(items: int) -> None:
    """Solutions with their own answer (right) and with the answer of the next problem (wrong, unless it is the same)."""
    read = []
    for row in rows("math_hendrycks")[:items]:
        with contextlib.suppress(FieldError):  # some have an empty box
            read.append((row["solution"], render("{solution|boxed}", row)))
    own = [(judge(text, gold, "expression")[0], True, f"{text[-80:]!r} for {gold}") for text, gold in read]
    report("MATH solutions with their own answer (second: what is so)", own)
    asked = [(judge(f"So the answer is {gold}.", gold, "expression")[1], True, gold) for _, gold in read]
    report("MATH answers in the asked-for sentence, strict (second: what is so)", asked)
    others = [
        (
            judge(f"The answer is ${other}$.", gold, "expression")[0],
            other.split() == gold.split(),
            f"{other} for {gold}",
        )
        for (_, other), (_, gold) in itertools.pairwise(read)
    ]
    report("MATH, another problem's answer (second: the same letters)", others)


def their_samples(
    model: Any, file: str, folder: Path, data: dict[str, list[dict]], **changes: Any
) -> list[dict[str, Any]]:
    """lm-eval's own task file on local rows."""
    for split, lines in data.items():
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
    files = {split: str(folder / f"{split}.jsonl") for split in data}
    config = {"task": "theirs", "include": str(TASKS / file), "dataset_path": "json", "dataset_name": None}
    config |= {"dataset_kwargs": {"data_files": files}, **changes}
    (folder / "theirs.yaml").write_text(yaml.safe_dump(config))
    with quiet():
        tasks = TaskManager(include_defaults=False, include_path=str(folder)).load(["theirs"])
        return evaluate(model, tasks, bootstrap_iters=0, log_samples=True)["samples"]["theirs"]


def gsm8k(model: Any, items: int, folder: Path) -> None:
    data = {"train": rows("gsm8k", "train")[:200], "test": rows("gsm8k")[:items]}
    settings = {"until": ["Question:", "</s>"], "do_sample": False, "max_gen_toks": 96}
    samples = their_samples(model, "gsm8k/gsm8k.yaml", folder, data, num_fewshot=2, generation_kwargs=settings)
    flexible, strict = [], []
    for sample in samples:
        (text,), gold = sample["resps"][0], sample["doc"]["answer"].rpartition("#### ")[2]
        ours = judge(text, gold.replace(",", ""), "number")[0]
        asked = judge(re.sub(r"#### (.*)", r"The answer is \1.", text), gold.replace(",", ""), "number")[1]
        told = f"{text[-100:]!r} for {gold}"
        if sample["filter"] == "flexible-extract":
            flexible.append((ours, bool(sample["exact_match"]), told))
        else:
            strict.append((asked, bool(sample["exact_match"]), told))
    report("gsm8k, the model's texts, flexible", flexible)
    report("gsm8k, the model's texts, strict ('#### X' read as 'The answer is X.')", strict)


def our_choices(model: Any, folder: Path, items: list[dict[str, Any]]) -> list[bool]:
    """What the kit's task of choices says of the items, in their order."""
    shutil.copytree(suites.TEMPLATES, folder, dirs_exist_ok=True)
    unit = suites.Unit("ours", 1, {"choices": [{"asked": item["prompt"], **item} for item in items]})
    name = suites._write(unit, "choices", folder)
    with quiet():
        tasks = TaskManager(include_defaults=False, include_path=str(folder)).load([name])
        samples = evaluate(model, tasks, bootstrap_iters=0, log_samples=True)["samples"][name]
    return [bool(sample["choice_accuracy"]) for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


def choices(model: Any, name: str, items: int, folder: Path) -> None:
    if name == "mathqa":
        data = [{**row, "Problem": row["problem"]} for row in rows("mathqa")[:items]]
        file, metric, changes = (
            "mathqa/mathqa.yaml",
            "acc_norm",
            {"training_split": None, "validation_split": None},
        )
    else:
        data = rows("mmlu_stem")[:: max(1, 3018 // items)][:items]
        file, metric = "mmlu/default/_default_template_yaml", "acc"
        about = "The following are multiple choice questions (with answers) about {{type.replace('_', ' ')}}.\n\n"
        text = about + yaml.safe_load((TASKS / file).read_text())["doc_to_text"]
        changes = {"doc_to_text": text, "fewshot_split": None, "num_fewshot": 0}
    samples = their_samples(model, file, folder, {"test": data}, **changes)
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    asked = []
    for sample in samples:
        contexts, continuations = zip(*sample["arguments"], strict=True)
        options, gold = [text.removeprefix(" ") for text in continuations], int(sample["target"])
        item = {"id": str(sample["doc_id"]), "prompt": contexts[0], "choices": options, "gold": gold}
        asked.append({**item, "answer": options[gold]})
    kit = our_choices(model, folder / "kit", asked)
    told = [f"item {item['id']}: {item['choices']}, right is {item['answer']}" for item in asked]
    report(
        f"{name} ({metric})",
        [(ours, bool(of[metric]), text) for ours, of, text in zip(kit, samples, told, strict=True)],
    )
    if name == "mathqa":
        same = [
            item["prompt"] == prompt(" ".join(row["problem"].split()))
            for item, row in zip(asked, data, strict=True)
        ]
        print(f"    prompts that are the kit's own to the letter: {sum(same)} of {len(same)}")
    else:
        own = [
            {**item, "prompt": prompt(row["question"]), "choices": row["choices"]}
            for item, row in zip(asked, data, strict=True)
        ]
        own = [{**item, "answer": item["choices"][item["gold"]]} for item in own]
        right = our_choices(model, folder / "own", own)
        print(
            f"    the kit's own measure (likelihood of each text, no letters shown): {100 * sum(right) / len(right):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["extraction", "gsm8k", "mathqa", "mmlu_stem"])
    parser.add_argument("--items", type=int, default=200)
    options = parser.parse_args()
    model = None
    for name in options.only:
        if name == "extraction":
            extraction(options.items)
            continue
        model = model or load_model(
            Path(model_folder("demo:smollm2-135m")), batch_size=16, precision=fast_precision()
        )
        with tempfile.TemporaryDirectory() as folder:
            if name == "gsm8k":
                gsm8k(model, options.items, Path(folder))
            else:
                choices(model, name, options.items, Path(folder))


if __name__ == "__main__":
    main()
