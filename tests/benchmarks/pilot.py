"""Passages against controls on scarce real problems: `python tests/benchmarks/pilot.py [--folder runs/pilot] [--items 200]`.

The premise of the method, small: some 48 train problems of GSM8K, those of the passages that pass, are all that there is
(public files in TRAIT_KIT_TEST_DATA), and every arm reads the same number of tokens made of them. Three seeds of training;
the local teacher writes the enlightenments and, for `rephrased`, its own solutions. Ends with the arms compared.
"""

import argparse
import gzip
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from local_tasks import LOCAL

from trait_kit import pipeline

SEEDS = (0, 1, 2)
SPLITS = {"train": "train.jsonl", "validation": "train.jsonl", "test": "test.jsonl"}
ARMS = {
    "worked": ["worked_same"],
    "rephrased": ["rephrased"],
    "permuted": ["permuted"],
    "trait": ["passages"],
}


def halves(folder: Path) -> list[str]:
    """GSM8K as two tasks, every second problem each: a passage joins problems of different tasks."""
    shipped = yaml.safe_load(Path("trait_kit/task_files/gsm8k.yaml").read_text(encoding="utf-8"))
    paths = []
    for first, name in enumerate(("gsm8k_even", "gsm8k_odd")):
        (folder / name).mkdir(exist_ok=True)
        for part in ("train", "test"):
            with gzip.open(LOCAL / "math" / "gsm8k" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
                (folder / name / f"{part}.jsonl").write_text("".join(list(lines)[first::2]), encoding="utf-8")
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(
            yaml.safe_dump(shipped | {"name": name, "source": str(folder / name), "splits": SPLITS})
        )
    return [str(path) for path in paths]


def sweep(folder: Path, items: int) -> Path:
    """The sweep's file: one experiment, whose web is the demo's (nothing of it is read), at three seeds."""
    common = {"in_domain": "demo:math/in_domain", "web": "demo:math/web", "tasks": halves(folder)}
    common |= {"test_items_per_task": items // 2, "base_model": "demo:smollm2-135m"}
    passages = {
        "grouping": "concepts",
        "problems_per_task": 60,
        "n_groups": 22,
        "max_uses": 1,
        "paragraphs": "both",
    }
    evaluation = {"few_shot": 2, "main_metric": "bits_per_number_token", "control_arm": "worked"}
    sections = {
        "common": common,
        "selection": {"token_budget": 4_000, "methods": ["random"]},
        "passages": passages,
        "training": {"arms": ARMS, "stage_tokens": [18_432], "learning_rate": 1.0e-4},
        "evaluation": evaluation | {"general_documents": 20, "in_domain_documents": 10},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    path = folder / "pilot.yaml"
    plan = {"experiment": "experiment.yaml", "grid": {"training.seed": list(SEEDS)}}
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/pilot").absolute())
    parser.add_argument("--items", type=int, default=200)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    pipeline.sweep(sweep(given.folder, given.items), given.folder, parallel=2)


if __name__ == "__main__":
    main()
