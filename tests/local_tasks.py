"""The paper's benchmarks from local copies in the folder TRAIT_KIT_TEST_DATA, read with the shipped task files' fields."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from trait_kit.tasks import load_task

LOCAL = Path(os.environ.get("TRAIT_KIT_TEST_DATA", "no such folder"))
_OPTIONS = {"answer": "{options|lettered|pick(Answer)}", "choices": "{options|lettered}"}
_TRAINED = {"train": "train.jsonl.gz", "validation": "train.jsonl.gz", "test": "test.jsonl.gz"}
_TESTED = {"train": None, "validation": None, "test": "test.jsonl.gz"}
BENCHMARKS: dict[
    str, tuple[str, dict, dict]
] = {  # shipped task -> (folder, its splits, fields that its columns change)
    "gsm8k": ("gsm8k", _TRAINED, {}),
    "math": ("math_hendrycks", _TRAINED, {}),
    "svamp": ("svamp", _TESTED, {}),
    "mawps": ("mawps", _TESTED, {"question": "{input}", "answer": "{target|number}", "solution": None}),
    "mathqa": ("mathqa", _TESTED, {"question": "{problem}", "topic": "{type}"}),
    "mmlu_stem": ("mmlu_stem", _TESTED, {"topic": "{type}"}),
    "sat_math": ("sat_math", _TESTED, {"question": "{question}", **_OPTIONS}),
}


def local_task(folder: Path, shipped: str) -> str:
    """A task file in `folder` for the local copy of a shipped task."""
    source, splits, fields = BENCHMARKS[shipped]
    raw = load_task(shipped).model_dump(exclude={"origin"})
    raw.update(source=str(LOCAL / "math" / source), splits=splits, fields={**raw["fields"], **fields})
    path = folder / f"{shipped}.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(path)
