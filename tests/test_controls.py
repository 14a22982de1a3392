"""What passages have to beat: each control has the passages' problems and lacks exactly what it is the control for."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from trait_kit import tables
from trait_kit.engine.files import TraitError
from trait_kit.params import WRITTEN
from trait_kit.passages import controls
from trait_kit.tasks import prompt

TOPICS = ["area", "area", "area", "ratio", "ratio", "ratio", "speed", "speed", "speed"]


@pytest.fixture
def problems() -> pd.DataFrame:
    """Four problems a passage, three of them in it."""
    names = [f"t{number % 3}/{number}" for number in range(36)]
    return pd.DataFrame(
        {
            "id": names,
            "task": [name.partition("/")[0] for name in names],
            "question": [f"What is {number} and {number}?" for number in range(36)],
            "answer": [str(2 * number) for number in range(36)],
            "solution": [
                None if number == 1 else f"It is {2 * number}. The answer is {2 * number}."
                for number in range(36)
            ],
            "topic": [TOPICS[number // 4] for number in range(36)],
            "split": "train",
        }
    ).assign(choices=None, entity=None, template=None)[tables.SCHEMAS["problems"].names]


@pytest.fixture
def passages(problems: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for number, topic in enumerate(TOPICS):
        chosen = problems.iloc[4 * number : 4 * number + 3]
        told = [f"Twice: {answer}." for answer in chosen["answer"]]
        end = f"All {number} are about {topic}."
        parts = [f"{prompt(question)} {one}" for question, one in zip(chosen["question"], told, strict=True)]
        rows.append(
            {"id": f"p-{number}", "problem_ids": chosen["id"].tolist(), "shared": topic, "paragraphs": told,
             "enlightenment": end, "text": "\n\n".join([*parts, end])}
        )  # fmt: skip
    return pd.DataFrame(rows)


def test_worked_controls_have_all_problems_or_the_passages_own(problems, passages):
    every, same = controls.worked(problems, passages), controls.worked_same(problems, passages)
    assert len(every) == 36 and len(same) == 27 and set(same) < set(every)
    assert every[0] == f"{prompt('What is 0 and 0?')} It is 0. The answer is 0."
    assert every[1].endswith("Answer: 2")  # without a solution, the answer
    used = set(passages["problem_ids"].explode())
    assert [name in used for name in problems["id"]] == [text in same for text in every]


def test_no_enlightenment_and_permuted_change_the_last_paragraph_alone(problems, passages):
    bare = controls.no_enlightenment(problems, passages)
    for text, row in zip(bare, passages.itertuples(), strict=True):
        assert row.text == f"{text}\n\n{row.enlightenment}"
    topic = dict(zip(bare, passages["shared"], strict=True)) | dict(
        zip(passages["enlightenment"], passages["shared"], strict=True)
    )
    moved = [text.rpartition("\n\n") for text in controls.permuted(problems, passages)]
    assert sorted(body for body, _, _ in moved) == sorted(bare)
    assert sorted(end for _, _, end in moved) == sorted(passages["enlightenment"])
    assert all(topic[body] != topic[end] for body, _, end in moved)
    skewed = passages.assign(shared=["one"] * 6 + ["two"] * 3)  # three of the first find nobody else
    assert len(controls.permuted(problems, skewed)) == 6


def test_unrelated_groups_hold_every_paragraph_once_and_share_nothing(problems, passages):
    found = controls.unrelated(problems, passages)
    topic = dict(zip(map(prompt, problems["question"]), problems["topic"], strict=True))
    parts = [text.split("\n\n") for text in found]
    assert all(len({topic[part.rpartition(" Twice")[0]] for part in group}) == len(group) == 3 for group in parts)
    bare = "\n\n".join(controls.no_enlightenment(problems, passages)).split("\n\n")
    assert sorted(part for group in parts for part in group) == sorted(bare)
    assert found == controls.unrelated(problems, passages.sample(frac=1, random_state=3))
    assert controls.unrelated(problems, passages.assign(shared="one")) == []


def test_every_control_is_read_from_what_step_03_wrote(problems, passages, tmp_path: Path):
    folder = tmp_path / "03_write_passages"
    folder.mkdir()
    problems.to_parquet(folder / "problems.parquet")
    passages.to_parquet(folder / "passages.parquet")
    assert {"passages", *controls.CONTROLS} == set(WRITTEN)
    for name in controls.CONTROLS.keys() - {"rephrased"}:
        assert controls.texts(name, tmp_path) == controls.CONTROLS[name](problems, passages)
    with pytest.raises(
        TraitError, match=r"'rephrased' needs .*rephrased\.parquet.* with passages\.paragraphs: both"
    ):
        controls.texts("rephrased", tmp_path)
    told = pd.DataFrame({"id": problems["id"], "text": "In other words: " + problems["question"]})
    told.to_parquet(folder / "rephrased.parquet")
    used = set(passages["problem_ids"].explode())
    assert controls.texts("rephrased", tmp_path) == told.loc[told["id"].isin(used), "text"].tolist()
    passages.assign(shared="one").to_parquet(folder / "passages.parquet")
    with pytest.raises(TraitError, match="the control 'unrelated' has no text"):
        controls.texts("unrelated", tmp_path)
