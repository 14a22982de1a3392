"""Passages that cannot help: `python tests/benchmarks/nulls.py params/demo.yaml RUN [--foreign OTHER_RUN]`.

Steps 01 to 03 of a finished run are taken over, its passages are replaced, `selected`, `worked` and `trait` are trained and
tested as ever, and what the report's first screen says is printed: it may claim no gain over the control. `shuffled`: each
problem with another passage's worked solution. `foreign`: the passages of another run, of another domain. The control
`worked` keeps the true problems.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from trait_kit import params, pipeline, runs
from trait_kit.engine.files import atomic_path

ARMS = ("selected", "worked", "trait")
PASSAGES = Path("03_write_passages", "passages.parquet")


def shuffled(passages: pd.DataFrame, _: pd.DataFrame | None) -> pd.DataFrame:
    """Each paragraph is that of the next passage, so that no problem stands beside its own solution."""
    others = [*passages["paragraphs"][1:], passages["paragraphs"][0]]
    texts = []
    for text, own, other in zip(passages["text"], passages["paragraphs"], others, strict=True):
        for place, paragraph in enumerate(own):
            text = text.replace(paragraph, other[place % len(other)], 1)
        texts.append(text)
    return passages.assign(text=texts, paragraphs=others)


def foreign(passages: pd.DataFrame, others: pd.DataFrame | None) -> pd.DataFrame:
    """The texts of the others, as often as it takes; problems and names stay, for the control."""
    assert others is not None, "foreign passages come from another run: --foreign RUN"
    drawn = others.iloc[[place % len(others) for place in range(len(passages))]].reset_index(drop=True)
    return passages.assign(**{name: drawn[name] for name in ("text", "paragraphs", "enlightenment")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--foreign", type=Path)
    given = parser.parse_args()
    others = pd.read_parquet(given.foreign / PASSAGES) if given.foreign else None
    arms = params.load(given.experiment).training.arms
    chosen = params.load(given.experiment, {"training.arms": {arm: arms[arm] for arm in ARMS}})
    said = {}
    for plant in (shuffled, foreign)[: 1 + bool(given.foreign)]:
        folder = given.run.absolute().with_name(f"{given.run.name}-{plant.__name__}")
        for name in list(runs.STEPS)[:3]:
            if not (folder / name).exists():
                runs.adopt(given.run, name, folder)
        with atomic_path(folder / PASSAGES) as temporary:
            plant(pd.read_parquet(given.run / PASSAGES), others).to_parquet(temporary)
        pipeline.run(chosen, folder)
        summary = runs.finished(folder, "05_evaluate")["summary"]
        said[plant.__name__] = {key: summary[key] for key in ("question", "headline", "good")}
        print(plant.__name__, json.dumps(said[plant.__name__], indent=1), flush=True)
    sys.exit(any(each["good"] for each in said.values()))


if __name__ == "__main__":
    main()
