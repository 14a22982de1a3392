"""Record what the local teacher answers for the shipped demos: `python tests/benchmarks/record_answers.py [EXPERIMENT ...]`.

Runs notebook 03's stage for each experiment, asking for what is not recorded yet, and writes the answers that these
experiments use to trait_kit/demo_data/answers.jsonl.gz. Some two hours on two quiet cores for everything anew. With
paragraphs in the teacher's own words as well (passages.paragraphs: both), for the control `rephrased`, and with more
groups than the demos make (GROUPS), to see how many pass.
"""

from __future__ import annotations

import datetime
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

from trait_kit import params
from trait_kit.engine.ledger import Ledger
from trait_kit.passages.teachers import RECORDED
from trait_kit.passages.writing import write_passages
from trait_kit.runs import Step

GROUPS = {"demo": 36, "demo_ads": 24}


def noted(method: Callable, used: set[str]) -> Callable:
    """A method of the ledger that notes the key it is called with: what stands in the ledger unused is not shipped."""

    def call(ledger: Ledger, key: str, *rest):
        used.add(key)
        return method(ledger, key, *rest)

    return call


def main(files: list[str]) -> None:
    rows: dict[str, tuple] = {}
    used: set[str] = set()
    Ledger.find, Ledger.record = (noted(method, used) for method in (Ledger.find, Ledger.record))
    for experiment in files:
        name = Path(experiment).stem
        folder = Path("runs", f"recording-{name}")  # kept: killed, it goes on
        for more in ({"paragraphs": "both"}, {"n_groups": GROUPS[name]} if name in GROUPS else {}):
            chosen = params.load(experiment, {f"passages.{field}": value for field, value in more.items()})
            step = Step("03_write_passages", chosen, folder)
            print(json.dumps(write_passages(step).bill, indent=1))
        ledger = Ledger(step.folder / "teacher_answers.sqlite")
        rows |= {key: (key, *found) for key in sorted(used) if (found := ledger.find(key))}
    lines = [
        json.dumps(str(datetime.date.today())),
        *(json.dumps(rows[key], ensure_ascii=False) for key in sorted(rows)),
    ]
    with RECORDED.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream:
        stream.write("\n".join(lines).encode())
    print(f"{len(rows):,} answers, {RECORDED.stat().st_size:,} bytes -> {RECORDED}")


if __name__ == "__main__":
    main(sys.argv[1:] or [str(Path("params") / name) for name in ("demo.yaml", "demo_ads.yaml")])
