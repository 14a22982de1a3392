"""Ads problems from a user's product catalogue: true, within the formats' limits, split by product, robust."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from local_tasks import LOCAL

from trait_kit import tables
from trait_kit.engine.files import TraitError
from trait_kit.tasks import ADS_TASKS as TASKS
from trait_kit.tasks import fingerprint, load_problems, load_tasks

ROOT = Path(__file__).resolve().parents[1]
REAL = LOCAL / "ads" / "products_vespa" / "products.jsonl.gz"
COLUMNS = {"id": "{id}", "title": "{title}", "description": "{description}", "category": "{category}"}
RELEVANCE = ("query_ad_relevance", "query_landing_page_relevance")

BRANDS = [
    "Fernwick",
    "Oakmoor",
    "Tarnside",
    "Bellacre",
    "Dunhollow",
    "Mossgate",
    "Larkfell",
    "Winterby",
    "Harrowell",
]
BRANDS += ["Pikestone", "Quillon", "Ravensmere"]
GOODS = {  # kind -> what it is for
    "garden trowel": "planting bulbs and herbs",
    "plant saucer": "seedlings on the windowsill",
    "hand saw": "pruning old branches",
    "work gloves": "thorny hedges",
    "seed tray": "the first sowing of spring",
    "hose reel": "long lawns",
    "bird feeder": "finches and tits",
    "camping lantern": "dark evenings outdoors",
    "rain jacket": "wet days on the allotment",
    "tool belt": "work on the ladder",
}
LOOKS = [
    ("Slate", "ash"),
    ("Cobalt", "steel"),
    ("Amber", "canvas"),
    ("Forest", "zinc"),
    ("Rust", "oak"),
    ("Sky", "cotton"),
]
LOOKS += [("Moss", "copper"), ("Plum", "beech"), ("Sand", "willow"), ("Coal", "hemp"), ("Mint", "brass")]


def product(brand: str, kind: str, number: int) -> dict[str, object]:
    colour, material = LOOKS[number % 11]
    model = f"{brand[0]}{kind[0].upper()}{10 + number}"
    title = (
        f"{brand} {model} Heavy Duty {kind.title()} for {GOODS[kind].title()}, {colour}, Pack of {1 + number % 3}"
    )
    description = (
        f"## {title}\n\n* This {kind} is made of {material} for {GOODS[kind]} &amp; much more.\n"
        f"* Every {kind} from **{brand}** is checked by hand before it leaves the workshop in small boxes.\n"
        "Get ready to enjoy it!"
    )
    return {
        "id": f"B{number:04d}",
        "title": title,
        "description": description,
        "category": f"Garden > {kind.title()}s",
    }


@pytest.fixture(scope="module")
def products() -> list[dict[str, object]]:
    pairs = [(brand, kind) for brand in BRANDS for kind in GOODS]
    return [product(brand, kind, number) for number, (brand, kind) in enumerate(pairs)]


def write_rows(path: Path, rows: list[dict], **options: str) -> Path:
    if path.name.endswith((".csv", ".tsv")):
        pd.DataFrame(rows).to_csv(
            path, index=False, sep="\t" if path.suffix == ".tsv" else options.get("sep", ",")
        )
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        text = (
            json.dumps(rows) if path.name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        )
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_shop(folder: Path, rows: list[dict], name: str = "products.jsonl", **more: object) -> str:
    write_rows(folder / name, rows)
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump({"catalogue": {"products": name, **COLUMNS, **more}}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, products: list[dict]) -> str:
    return write_shop(tmp_path_factory.mktemp("shop"), products)


@pytest.fixture(scope="module")
def train(shop: str) -> pd.DataFrame:
    return load_problems([shop], "train", 1_000)


@pytest.fixture(scope="module")
def many() -> list[dict]:
    """300 products of ten categories."""
    pairs = [(f"{brand} {line}", kind) for line in ("One", "Two", "Three") for brand in BRANDS for kind in GOODS]
    return [product(brand, kind, number) for number, (brand, kind) in enumerate(pairs)][:300]


def own(products: list[dict]) -> dict[str, dict[str, str]]:
    """title -> the product's fields as they stand, in one line each."""
    return {str(row["title"]): {name: " ".join(str(row[name]).split()) for name in row} for row in products}


# ------------------------------------------------------------------------------------------------------------- problems


def test_300_products_give_all_seven_tasks_and_none_sells_another_product(
    tmp_path: Path, many: list[dict]
) -> None:
    shop, products = write_shop(tmp_path, many), own(many)
    parts = {split: load_problems([shop], split, 1_000) for split in ("train", "validation", "test")}
    frame = pd.concat(parts.values())
    tables.conform(frame, "problems")
    counts = frame.groupby(["task", "split"]).size()
    assert counts["title_generation"].sum() == 300
    assert set(frame["task"]) == set(TASKS)
    assert counts.min() >= 10
    for row in frame.itertuples():
        fields = products[row.entity]
        assert row.topic == fields["category"]
        assert row.answer in row.choices
        assert len(set(row.choices)) == (2 if row.task in RELEVANCE else 4)
        assert row.solution.endswith(f"The answer is {row.answer.rstrip('.')}.")
        if row.task in RELEVANCE:
            shows_own = fields["description"] in row.question
            assert shows_own == (row.answer == "relevant")
        else:
            gold = {
                "description_generation": fields["description"],
                "ad_generation": f"{row.entity} | {fields['description']}",
            }
            assert row.answer == gold.get(row.task, row.entity)  # its own title and description, as they stand
    judged = frame[frame["task"].isin(RELEVANCE)]
    assert 0.4 < (judged["answer"] == "relevant").mean() < 0.6


def test_wrong_offers_are_of_the_category_and_of_the_split(train: pd.DataFrame, products: list[dict]) -> None:
    by_title = own(products)
    splits = set(train["entity"])
    for row in train[train["task"] == "query_ad_relevance"].itertuples():
        shown = row.question.partition("Ad title: ")[2].partition(". Ad description:")[0]
        assert shown in splits
        assert (shown == row.entity) == (row.answer == "relevant")
        siblings = [title for title in splits if by_title[title]["category"] == row.topic]
        if len(siblings) > 6:
            assert by_title[shown]["category"] == row.topic


def test_real_queries_stand_in_the_questions_and_belong_to_one_split(tmp_path: Path, many: list[dict]) -> None:
    asked = [{**row, "query": [f"a {row['title'].split()[0].lower()} thing", "other"]} for row in many[:100]]
    asked += [{**row, "query": f"what number {n} is"} for n, row in enumerate(many[100:200])] + many[200:]
    shop = write_shop(
        tmp_path,
        [{"query": None, **row} for row in asked],
        query="{query if query is string else (query or [''])|first}",
    )
    frames = {split: load_problems([shop], split, 1_000) for split in ("train", "test")}
    used = {}
    for split, frame in frames.items():
        questions = " ".join(frame["question"])
        used[split] = set(re.findall(r"Query: (a \w+ thing|what number \d+ is)\.", questions))
        assert len(used[split]) > 3
        assert "Query: other" not in questions
    assert not used["train"] & used["test"]
    assert (
        frames["train"].attrs["report"]["ad_generation"]["skipped"][
            "query belongs to another split than its product"
        ]
        > 5
    )
    rewriting = frames["train"][frames["train"]["task"] == "query_rewriting"]["question"]
    assert rewriting.str.contains("Query: Garden >").any()  # without a query: the category as it stands


# ---------------------------------------------------------------------------------------------------------------- splits


def test_no_product_is_in_two_splits_and_seeds_only_order(shop: str, train: pd.DataFrame) -> None:
    parts = {split: load_problems([shop], split, 1_000, seed) for split, seed in (("validation", 3), ("test", 4))}
    again = load_problems([shop], "train", 1_000, seed=9)
    assert set(again["id"]) == set(train["id"])
    assert list(again["id"]) != list(train["id"])
    names = [set(frame["entity"]) for frame in (train, *parts.values())]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert len(names[0]) > len(names[2]) > 3
    shown = " ".join(train["question"])  # nor as somebody's hard negative
    for name in names[2]:
        assert name not in shown


def test_the_first_problems_are_the_same_in_every_process(shop: str, train: pd.DataFrame) -> None:
    code = f"from trait_kit.tasks import load_problems; print(*load_problems([{shop!r}], 'train', 5)['id'])"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    small = done.stdout.split()
    for place, task in enumerate(TASKS):
        assert small[5 * place : 5 * place + 5] == list(train[train["task"] == task]["id"])[:5]


def test_titles_that_begin_alike_share_a_split(tmp_path: Path, products: list[dict]) -> None:
    sizes = [dict(products[0], id=f"S{n}", title=f"{products[0]['title']} {n} inch XL") for n in range(40)]
    frames = [
        load_problems([write_shop(tmp_path, [*products[10:], *sizes])], split, 1_000)
        for split in ("train", "test")
    ]
    holding = [any(" inch XL" in title for title in frame["entity"]) for frame in frames]
    assert sum(holding) < 2


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["p.json", "p.jsonl.gz", "p.csv", "p.tsv", "p.parquet"])
def test_every_form_of_file_gives_the_same_problems(
    tmp_path: Path, products: list[dict], train: pd.DataFrame, name: str
) -> None:
    frame = load_problems([write_shop(tmp_path, products, name)], "train", 1_000)
    assert list(frame["id"]) == list(train["id"])


def test_hostile_rows_are_skipped_and_counted(tmp_path: Path, products: list[dict], train: pd.DataFrame) -> None:
    good = products[0]
    rows = [
        {"id": 1, "description": "no title"},
        {**good, "id": 2, "title": None},
        {**good, "id": 3, "title": {"en": "A dictionary"}},
        {**good, "id": 4, "title": ["A list"]},
        {**good, "id": 5, "title": "\u2603\u2603"},
        {**good, "id": 6, "title": "A Fine Thing", "description": None},
        {**good, "id": 7, "title": "Another Fine Thing", "description": "long " * 2_000_000},
        {**good, "id": 8, "title": "A third thing", "description": ["a", "list"]},
        {**good, "id": None, "title": "A thing without id"},
        {**good, "id": 9, "title": good["title"].upper()},
        {**good, "id": 10, "title": "word " * 400},
    ]
    path = write_shop(tmp_path, [*products, *rows])
    with (tmp_path / "products.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "cut off\n[1, 2]\n"text"\n' + "[" * 100_000 + "\n")
    frame = load_problems([path], "train", 1_000)
    assert list(frame["id"]) == list(train["id"])
    assert frame.attrs["report"]["title_generation"]["skipped"] == {
        "title cannot be read": 1,
        "title is missing": 2,
        "title is not text": 2,
        "title is longer than 300 characters": 1,
        "description is missing": 1,
        "description is not text": 1,
        "description is longer than 2,000 characters": 1,
        "id is missing": 1,
        "title occurs before": 1,
        "not valid JSON": 2,
        "no named fields": 2,
    }


def test_task_files_say_what_is_wrong(tmp_path: Path, products: list[dict]) -> None:
    shop = write_shop(tmp_path, products)
    tasks = load_tasks([shop])
    assert (tasks["title_generation"].kind, tasks["query_ad_relevance"].kind) == ("text", "choice")
    assert list(load_problems([shop], "test", 3)["task"]) == [name for name in tasks for _ in range(3)]
    assert list(load_tasks([f"{shop}#ad_generation"])) == ["ad_generation"]
    with pytest.raises(TraitError, match=r"no task 'title'; it has query_rewriting"):
        load_tasks([f"{shop}#title"])
    with pytest.raises(TraitError, match="Two tasks have the name 'ad_generation'"):
        load_problems([shop, f"{shop}#ad_generation"], "train", 2)
    for changes, message in (
        ({"title": "{titel}"}, r"products\.jsonl, row 1: title cannot be read: .*'titel' is undefined"),
        ({"title": "{title|boxd}"}, r"catalogue.title\s.*boxd"),
        ({"prodcts": 1}, "prodcts"),
    ):
        with pytest.raises(TraitError, match=message):
            load_problems([write_shop(tmp_path, products, **changes)], "train", 2)


def test_a_changed_catalogue_is_another_task(tmp_path: Path, products: list[dict]) -> None:
    shop = write_shop(tmp_path, products)
    before = fingerprint(shop)
    assert fingerprint(shop) == before
    write_rows(tmp_path / "products.jsonl", products[1:])
    assert fingerprint(shop) != before
    assert products[0]["title"] not in set(load_problems([shop], "train", 1_000)["entity"])


# -------------------------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not REAL.is_file(), reason="TRAIT_KIT_TEST_DATA names no folder of public data")
def test_a_real_marketplace_feed(tmp_path: Path) -> None:
    shop = {"catalogue": {"products": str(REAL), **COLUMNS}}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(shop), encoding="utf-8")
    train = load_problems([str(tmp_path / "shop.yaml")], "train", 300)
    test = load_problems([str(tmp_path / "shop.yaml")], "test", 100)
    assert Counter(train["task"]) == dict.fromkeys(TASKS, 300)
    assert Counter(test["task"]) == dict.fromkeys(TASKS, 100)
    assert not set(train["entity"]) & set(test["entity"])
    assert (train.groupby("entity")["task"].nunique() == 7).mean() > 0.95
