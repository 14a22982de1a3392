"""Record what the local teacher answers for the shipped demos: `python tests/benchmarks/record_answers.py [EXPERIMENT ...]`.

Runs notebook 03's stage for each experiment, asking for what is not recorded yet, and writes all answers that these
experiments use to trait_kit/demo_data/answers.jsonl.gz. About an hour on two quiet cores for everything anew.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path

from trait_kit import params
from trait_kit.engine.ledger import Ledger
from trait_kit.passages.local import RECORDED
from trait_kit.passages.writing import write_passages
from trait_kit.runs import Step


def main(experiments: list[str]) -> None:
    rows = {}
    for experiment in experiments:
        with tempfile.TemporaryDirectory() as folder:
            step = Step.at("03_write_passages", params.load(experiment), folder)
            written = write_passages(step)
            print(json.dumps(written.bill, indent=1))
            rows |= {row[0]: row for row in Ledger(step.folder / "teacher_answers.sqlite").rows()}
    lines = "".join(json.dumps(rows[key], ensure_ascii=False) + "\n" for key in sorted(rows))
    with RECORDED.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream:
        stream.write(lines.encode())
    print(f"{len(rows):,} answers, {RECORDED.stat().st_size:,} bytes -> {RECORDED}")


if __name__ == "__main__":
    main(sys.argv[1:] or [str(Path("params") / name) for name in ("demo.yaml", "demo_ads.yaml")])
