"""The local teacher (`engine.llama`) as a writer of passages.

It is small, so it is asked one thing at a time, a sentence a problem. What it answered for the
shipped demos is in the package; another seed or size asks it anew.
"""

import gzip
import json
from pathlib import Path
from typing import Any

from trait_kit.engine import llama

RECORDED = Path(__file__).parents[1] / "demo_data" / "answers.jsonl.gz"
_ASKED = {"temperature": 0.2, "seed": 0, "stop": ["\n"]}


def as_endpoint(params: Any) -> Any:
    """The parameters of an endpoint that is this model."""
    asked = {**_ASKED, **params.teacher_extra}
    return llama.as_endpoint(params, teacher_max_tokens=200, teacher_extra=asked, teacher_steps="sentences")


def recorded() -> tuple[str, list[list[Any]]]:
    """(the day on which it was asked for the shipped demos, its answers as `Ledger.keep` takes them)."""
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        return json.loads(next(lines)), [json.loads(line) for line in lines]
