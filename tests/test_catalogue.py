"""Ads problems from a user's product catalogue: true, within the formats' limits, split by product, robust."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from trait_kit.catalogue_problems import TASKS
from trait_kit.product_texts import MAX_DESCRIPTION, MAX_TITLE, Text, clean

from trait_kit import tables
from trait_kit.catalogue import Catalogue, CatalogueFiles
from trait_kit.engine.files import TraitError
from trait_kit.tasks import fingerprint, load_problems, load_task

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / ".." / "shared" / "data" / "ads" / "products_vespa" / "products.jsonl.gz"
ESCI = ROOT / ".." / "shared" / "data" / "ads" / "esci_sample"
COLUMNS = {"id": "{id}", "title": "{title}", "description": "{description}", "category": "{category}"}
RELEVANCE = ("query_ad_relevance", "query_landing_page_relevance")

BRANDS = ["Fernwick", "Oakmoor", "Tarnside", "Bellacre", "Dunhollow", "Mossgate", "Larkfell", "Winterby", "Harrowell"]
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
LOOKS = [("Slate", "ash"), ("Cobalt", "steel"), ("Amber", "canvas"), ("Forest", "zinc"), ("Rust", "oak"), ("Sky", "cotton")]
LOOKS += [("Moss", "copper"), ("Plum", "beech"), ("Sand", "willow"), ("Coal", "hemp"), ("Mint", "brass")]


def product(brand: str, kind: str, number: int) -> dict[str, object]:
    colour, material = LOOKS[number % 11]
    model = f"{brand[0]}{kind[0].upper()}{10 + number}"
    title = f"{brand} {model} Heavy Duty {kind.title()} for {GOODS[kind].title()}, {colour}, Pack of {1 + number % 3}"
    description = (
        f"## {title}\n\n* This {kind} is made of {material} for {GOODS[kind]} &amp; much more.\n"
        f"* Every {kind} from **{brand}** is checked by hand before it leaves the workshop in small boxes.\n"
        "Get ready to enjoy it!"
    )
    return {"id": f"B{number:04d}", "title": title, "description": description, "category": f"Garden > {kind.title()}s"}


@pytest.fixture(scope="module")
def products() -> list[dict[str, object]]:
    pairs = [(brand, kind) for brand in BRANDS for kind in GOODS]
    return [product(brand, kind, number) for number, (brand, kind) in enumerate(pairs)]


def write_rows(path: Path, rows: list[dict], **options: str) -> Path:
    if path.name.endswith((".csv", ".tsv")):
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else options.get("sep", ","))
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        text = json.dumps(rows) if path.name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
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


def catalogue(folder: Path, products: list[dict], **more: str) -> Catalogue:
    return Catalogue(CatalogueFiles(products=str(write_rows(folder / "products.jsonl", products)), **COLUMNS, **more))


# ------------------------------------------------------------------------------------------------------------- problems


def test_one_file_gives_the_seven_tasks(train: pd.DataFrame) -> None:
    tables.conform(train, "problems")
    assert set(train["task"]) == set(TASKS)
    assert Counter(train["task"]).most_common()[-1][1] >= 60
    by_entity = train.groupby("entity")
    assert (by_entity["task"].nunique() == 7).mean() > 0.9
    assert (by_entity["topic"].nunique() == 1).all()
    assert train["topic"].str.startswith("buying ").all()
    assert "buying a garden trowel" in set(train["topic"])
    assert "buying work gloves" in set(train["topic"])
    for row in train.itertuples():
        assert row.solution.endswith(f" The answer is {row.answer.rstrip('.')}."), row.id
        assert 60 <= len(row.solution) <= 500
        assert row.answer in row.choices
        assert len(set(row.choices)) == (2 if row.task in RELEVANCE else 4)
        assert "\n" not in row.question


def test_limits_are_kept_and_printed_lengths_are_right(train: pd.DataFrame) -> None:
    counted = 0
    for row in train[~train["task"].isin([*RELEVANCE, "query_rewriting"])].itertuples():
        parts = row.answer.split(" | ")
        limits = {1: (MAX_DESCRIPTION if "description" in row.task else MAX_TITLE,), 2: (MAX_TITLE, MAX_DESCRIPTION)}
        assert len(parts) == (2 if row.task == "ad_generation" else 1)
        assert all(len(part) <= limit for part, limit in zip(parts, limits[len(parts)], strict=True)), row.answer
        said = re.findall(r"(?:It has|page:|The title has|description) (\d+) (?:of|characters)", row.solution)
        assert [int(count) for count in said] == [len(part) for part in parts], row.solution
        counted += 1
        old = re.search(r"The old title has (\d+) characters", row.solution)
        if old:
            assert int(old[1]) == len(row.question.partition(" Title: ")[2])
    assert counted > 200


def test_golds_have_only_words_of_the_products_own_text(train: pd.DataFrame, products: list[dict]) -> None:
    texts = {str(row["title"]).split()[1].lower(): f"{row['title']} {row['description']}".lower() for row in products}
    for row in train[train["task"] != "query_rewriting"].itertuples():
        if row.task in RELEVANCE:
            continue
        own = texts[row.entity.split()[1].lower()]
        for word in re.findall(r"\w+", row.answer.lower()):
            assert word in own, (row.answer, own)
        if row.task == "description_generation":
            assert row.answer.rstrip(".") in row.question  # verbatim on the page it is asked for


def test_what_solutions_say_of_offers_is_true(train: pd.DataFrame) -> None:
    judged = train[train["task"].isin(RELEVANCE)]
    assert 0.3 < (judged["answer"] == "relevant").mean() < 0.7
    for row in judged.itertuples():
        query = re.search(r"Query: (.*?)\. (?:Ad title|Landing page): ", row.question)[1]
        offer = re.split(r"Query: .*?\. (?=Ad title|Landing page)", row.question)[1].lower()
        quoted = re.findall(r"(?<!\w)'([\w./-]+)'(?!\w)", row.solution)
        lacked = re.findall(r"'([\w./-]+)'", row.solution.partition("nowhere says")[2])
        assert all(word in query for word in quoted), row.solution
        assert all(word not in offer for word in lacked), (row.solution, offer)
        assert all(word in offer for word in set(quoted) - set(lacked)), (row.solution, offer)
        assert bool(lacked) == (row.answer == "irrelevant")
        if lacked:  # hard: it shares something with the query
            assert len(quoted) > len(lacked)


def test_rewriting_keeps_what_is_wanted_and_drops_the_rest(train: pd.DataFrame) -> None:
    rows = train[train["task"] == "query_rewriting"]
    for row in rows.itertuples():
        wordy = row.question.partition(": ")[2].split()
        assert set(row.answer.split()) <= set(wordy)
        assert len(row.answer.split()) < len(wordy)
        assert not {"i", "want", "do", "please", "buy"} & set(row.answer.split())
        assert all(word.lower() in row.entity.lower() for word in row.answer.split())


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


def test_near_identical_titles_share_a_split(tmp_path: Path, products: list[dict]) -> None:
    sizes = [dict(products[0], id=f"S{n}", title=f"{products[0]['title']} {n} inch XL") for n in range(40)]
    colours = ["Teal", "Plum", "Coral", "Ochre", "Ivory"]
    painted = [dict(products[9], id=c, title=f"Dunhollow Long Lasting Left Hand Small {c} Garden Trowel") for c in colours]
    found = catalogue(tmp_path, [*products[10:], *sizes, *painted])
    splits = {name: item.split for name, item in found.products.items()}
    assert len({split for name, split in splits.items() if name.startswith("S")}) == 1
    assert len({splits[name] for name in colours if name in splits}) == 1
    assert sum(name in splits for name in colours) > 1
    assert len(set(splits.values())) == 3


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
        {**good, "id": 4, "title": 12345},
        {**good, "id": 5, "title": "☃☃☃ 🎉"},
        {**good, "id": 6, "title": "A Fine Thing", "description": None},
        {**good, "id": 7, "title": "Another Fine Thing", "description": "long " * 2_000_000},
        {**good, "id": 8, "title": "A third thing", "description": ["a", "list"]},
        {**good, "id": None, "title": "A thing without id"},
        {**good, "id": "B0001", "title": "A thing with the id of another"},
        {**good, "id": 9, "title": good["title"].upper()},
        {**good, "id": 10, "title": "word " * 400},
    ]
    path = write_shop(tmp_path, [*products, *rows])
    with (tmp_path / "products.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "cut off\n[1, 2]\n"text"\n' + "[" * 100_000 + "\n")
    frame = load_problems([path], "train", 1_000)
    assert list(frame["id"]) == list(train["id"])
    skipped = frame.attrs["report"]["title_generation"]["skipped"]
    assert {
        "title is missing": 2,
        "title is not text": 2,
        "title has no readable words": 1,
        "title is longer than 500 characters": 1,
        "description is missing": 1,
        "description is not text": 1,
        "description is longer than 50,000 characters": 1,
        "id is missing": 1,
        "product id occurs before": 1,
        "title occurs before": 1,
        "row is not valid JSON": 2,
        "row has no named fields": 2,
    }.items() <= skipped.items()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("## Trowel\n\n**Strong** &amp; light", "Strong & light"),
        ("<ul><li>Ash handle</li><li>Steel</li></ul>", "Ash handle. Steel"),
        ("See [our page](http://x.example) now\u200b\u00a0!", "See our page now !"),
        ("Tom\u2019s \u201cbest\u201d 4\u00d75\u2122 \U0001f389 caf\u00e9\x07", 'Tom\'s "best" 4x5 caf\u00e9'),
        ("a < b and c > d", "a < b and c > d"),
    ],
)
def test_copy_becomes_plain_text(text: str, plain: str) -> None:
    assert clean(text) == plain


def test_has_and_lacks_are_strict() -> None:
    text = Text("Tarnside TW-12 Garden Trowels, rustproof")
    assert text.has("trowel")
    assert text.has("12")
    assert not text.has("row")
    assert not text.lacks("rust")  # part of a word: neither
    assert text.lacks("saw")


def test_task_files_say_what_is_wrong(tmp_path: Path, products: list[dict]) -> None:
    shop = write_shop(tmp_path, products)
    assert load_task(f"{shop}#title_generation").kind == "text"
    assert load_task(f"{shop}#query_ad_relevance").kind == "choice"
    assert list(load_problems([f"{shop}#ad_generation"], "test", 3)["task"]) == ["ad_generation"] * 3
    with pytest.raises(TraitError, match=r"no task 'title'; it has query_rewriting"):
        load_task(f"{shop}#title")
    with pytest.raises(TraitError, match="Two tasks have the name 'ad_generation'"):
        load_problems([shop, f"{shop}#ad_generation"], "train", 2)
    one = {"source": "catalogue:title_rewriting", "catalogue": {"products": "products.jsonl", **COLUMNS}}
    (tmp_path / "titles.yaml").write_text(yaml.safe_dump(one), encoding="utf-8")
    frame = load_problems([str(tmp_path / "titles.yaml")], "train", 1_000)
    assert set(frame["task"]) == {"titles"}
    for changes, message in (
        ({"title": "{titel}"}, r"no usable product \(120 rows: title is missing\).*no column 'titel' \(columns: id, title"),
        ({"title": "{title|boxd}"}, "catalogue.title.*boxd"),
        ({"prodcts": 1}, "prodcts"),
        ({"judgments": "none.csv"}, r"catalogue\.judgments: none\.csv does not exist"),
        ({"judgments": "products.jsonl"}, "no column 'query_id'"),
    ):
        with pytest.raises(TraitError, match=message):
            load_problems([write_shop(tmp_path, products, **changes)], "train", 2)
    (tmp_path / "odd.yaml").write_text("{name: a, source: 'catalogue:titles', catalogue: {products: p}}", encoding="utf-8")
    with pytest.raises(TraitError, match=r"odd\.yaml"):
        load_task(str(tmp_path / "odd.yaml"))


def test_fingerprint_follows_every_file_of_the_catalogue(tmp_path: Path, products: list[dict]) -> None:
    write_rows(tmp_path / "queries.csv", [{"query": "fernwick garden trowel"}])
    shop = write_shop(tmp_path, products, queries="queries.csv")
    before = fingerprint(shop)
    assert fingerprint(shop) == before
    write_rows(tmp_path / "queries.csv", [{"query": "fernwick garden trowel"}, {"query": "oakmoor hand saw"}])
    assert fingerprint(shop) != before


# ------------------------------------------------------------------------------------------------------- real queries


def judgments(products: list[dict]) -> list[dict]:
    """A query for every product ('cheap' tells nothing, 'wooden' is not said of it): E for it, I and S for two others."""
    rows = []
    for place, row in enumerate(products):
        brand, _, _, _, first, second = str(row["title"]).split()[:6]
        query = f"cheap wooden {second} {first} {brand}".lower()
        other, between = products[(place + 1) % len(products)], products[(place + 2) % len(products)]
        rows += [{"query": query, "product_id": row["id"], "esci_label": "E"}]
        rows += [{"query": query, "product_id": other["id"], "esci_label": "I"}]
        rows += [{"query": query, "product_id": between["id"], "esci_label": "S"}]
    return rows


def check_judged(frame: pd.DataFrame, products: list[dict]) -> None:
    judged = {(row["query"], row["product_id"]): row["esci_label"] for row in judgments(products)}
    queries, ids = {query for query, _ in judged}, {str(row["title"])[:40]: row["id"] for row in products}
    used = Counter()
    pages = frame[frame["task"] == "query_landing_page_relevance"]
    for row in pages.itertuples():
        query, _, page = row.question.partition("Query: ")[2].partition(". Landing page: ")
        if query in queries:
            label = judged.get((query, ids[page[:40]]))
            used[label, row.answer] += 1
    assert set(used) <= {("E", "relevant"), ("I", "irrelevant"), (None, "irrelevant")}  # S never; unjudged as negative only
    assert used["E", "relevant"] > 3
    assert used["I", "irrelevant"] > 3
    rewritten = [row.question for row in frame[frame["task"] == "query_rewriting"].itertuples()]
    assert sum("cheap wooden" in question for question in rewritten) > 10


def test_esci_judgments_give_queries_and_labels(tmp_path: Path, products: list[dict]) -> None:
    write_rows(tmp_path / "judged.parquet", judgments(products))
    frame = load_problems([write_shop(tmp_path, products, judgments="judged.parquet")], "train", 1_000)
    check_judged(frame, products)
    positive = frame[(frame["answer"] == "relevant") & frame["question"].str.contains("cheap wooden")]
    assert positive["solution"].str.contains("does not repeat 'wooden', but it has", regex=False).all()


def test_wands_judgments_are_joined_by_query_id(tmp_path: Path, products: list[dict]) -> None:
    esci = judgments(products)
    numbers = {query: place for place, query in enumerate(dict.fromkeys(row["query"] for row in esci))}
    names = {"E": "Exact", "S": "Partial", "I": "Irrelevant"}
    labels = [
        {"id": n, "query_id": numbers[row["query"]], "product_id": row["product_id"], "label": names[row["esci_label"]]}
        for n, row in enumerate(esci)
    ]
    queries = [{"query_id": number, "query": query, "query_class": "Tools"} for query, number in numbers.items()]
    write_rows(tmp_path / "label.csv", labels, sep="\t")
    write_rows(tmp_path / "query.csv", queries, sep="\t")
    frame = load_problems([write_shop(tmp_path, products, judgments="label.csv", queries="query.csv")], "train", 1_000)
    check_judged(frame, products)


def test_queries_stay_in_one_split_and_odd_judgments_are_counted(tmp_path: Path, products: list[dict]) -> None:
    shared = [{"query": "heavy duty garden trowel", "product_id": row["id"], "esci_label": "E"} for row in products]
    odd = [
        {"query": "heavy duty", "product_id": "nowhere", "esci_label": "E"},
        {"query": "heavy duty", "product_id": "B0001", "esci_label": "5"},
        {"query": "", "product_id": "B0001", "esci_label": "E"},
    ]
    write_rows(tmp_path / "judged.jsonl", [*shared, *odd])
    found = catalogue(tmp_path, products, judgments=str(tmp_path / "judged.jsonl"))
    assert len({item.split for item in found.products.values() if item.queries}) == 1
    assert found.skipped["judgment of a product that is not there"] == 1
    assert found.skipped["judgment without its query"] == 1
    assert sum(count for reason, count in found.skipped.items() if "unknown label" in reason) == 1
    assert found.skipped["query is of another split than its product"] > 10


def test_clicks_and_plain_queries_find_their_products(tmp_path: Path, products: list[dict]) -> None:
    title = str(products[0]["title"])
    events = [
        {"query": "fernwick trowel heavy", "title": title, "action": "click"},
        {"query": "fernwick trowel duty", "title": title, "action": "impression"},
        {"query": "red sports car", "title": title, "action": "add_to_cart"},
    ]
    plain = [{"query": f"{brand.lower()} duty hand saw"} for brand in BRANDS] + [{"query": "heavy duty"}]
    write_rows(tmp_path / "events.jsonl", events)
    write_rows(tmp_path / "plain.csv", plain)
    paths = {"events": str(tmp_path / "events.jsonl"), "queries": str(tmp_path / "plain.csv")}
    found = catalogue(tmp_path, products, **paths)
    used = {query: item.name for item in found.products.values() for query in item.queries}
    assert len(used) > 4
    assert all(name.split()[0].lower() == query.split()[0] for query, name in used.items())
    assert not {"fernwick trowel duty", "red sports car", "heavy duty"} & set(used)


# -------------------------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data/ads (public product feeds) is not there")
def test_a_real_marketplace_feed(tmp_path: Path) -> None:
    shop = {"catalogue": {"products": str(REAL), "queries": str(ESCI / "judgments150q.jsonl.gz"), **COLUMNS}}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(shop), encoding="utf-8")
    begun = time.process_time()
    train = load_problems([str(tmp_path / "shop.yaml")], "train", 1_000)
    test = load_problems([str(tmp_path / "shop.yaml")], "test", 300)
    assert time.process_time() - begun < 60
    assert Counter(train["task"]) == dict.fromkeys(TASKS, 1_000)
    assert Counter(test["task"]) == dict.fromkeys(TASKS, 300)
    assert not set(train["entity"]) & set(test["entity"])
    assert (train.groupby("entity")["task"].nunique() >= 4).sum() > 900
    whole = " ".join([*train["question"], *train["solution"]])
    assert not re.search(r"##|\*\*|&amp;|<br|\ufffd|[\x00-\x1f]", whole)
    for row in train[train["answer"] == "irrelevant"].itertuples():
        lacked = re.findall(r"'([a-z]+)'", row.solution.partition("nowhere says")[2])
        offer = re.split(r"(?:Ad title|Landing page): ", row.question)[1].lower()
        assert not any(re.search(rf"\b{word}\b", offer) for word in lacked), row.question
