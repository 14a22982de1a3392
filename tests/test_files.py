"""Files are whole or absent, tables fit their schema, and what goes wrong is said."""

import json
import math
import multiprocessing
import os
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trait_kit import tables
from trait_kit.engine.files import TraitError, atomic_path, digest, read_json, write_json, write_text


@pytest.fixture
def full_device(tmp_path) -> Path:
    """A device on which every write fails for lack of room: /dev/full, or one made like it."""
    if Path("/dev/full").exists():
        return Path("/dev/full")
    try:
        os.mknod(tmp_path / "full", 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        return tmp_path / "full"
    except (OSError, AttributeError):
        pytest.skip("there is no /dev/full here, and making one needs root")


@pytest.mark.parametrize(
    "fill",
    [
        lambda device: device.write_text("x" * 100_000),
        lambda device: pq.write_table(pa.table({"x": np.arange(100_000)}), device),
    ],
    ids=["text", "parquet"],
)
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, full_device, fill):
    path = write_text(tmp_path / "run" / "report.json", "old")
    expected = r"No room on the disk while writing .*report\.json.*run again"
    with pytest.raises(TraitError, match=expected), atomic_path(path) as temporary:
        temporary.write_text("half")
        fill(full_device)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a" / "model") as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("half")
        1 / 0  # noqa: B018
    assert list((tmp_path / "a").iterdir()) == []


def rewrite_for_ever(path: str) -> None:
    for number in range(10**9):
        write_json(path, {"number": number, "filler": "x" * 50_000})


def test_a_reader_never_sees_half_a_file_whenever_the_writer_is_killed(tmp_path):
    path = tmp_path / "report.json"
    for trial in range(3):
        writer = multiprocessing.get_context("spawn").Process(target=rewrite_for_ever, args=(str(path),))
        writer.start()
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.05 * trial)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert len(json.loads(path.read_text())["filler"]) == 50_000


def test_threads_that_write_one_file_do_not_take_each_others(tmp_path):
    def write(number: int) -> None:
        write_text(tmp_path / "report.html", f"{number} " * 2_000)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(200)))
    assert len(set((tmp_path / "report.html").read_text().split())) == 1
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("first", "second"):
        with atomic_path(tmp_path / "stage") as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["second"]


def test_json_refuses_what_is_not_a_number_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": math.nan})
    (tmp_path / "bad.json").write_text("{\n oops")
    with pytest.raises(TraitError, match=r"bad\.json, line 2"):
        read_json(tmp_path / "bad.json")


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_table_must_have_its_columns_and_no_nan(tmp_path):
    outcome = {
        "arm": "a",
        "seed": 0,
        "task": "t",
        "item_id": "1",
        "cluster": "c",
        "metric": "m",
        "value": 0.5,
        "prediction": "",
        "gold": "g",
    }
    path = tmp_path / "outcomes.parquet"
    tables.write(path, pd.DataFrame([outcome]), "outcomes")
    assert tables.read(path, "outcomes").to_pylist() == [outcome]
    with pytest.raises(TraitError, match="NaN in column value"):
        tables.write(path, pa.Table.from_pylist([{**outcome, "value": math.nan}]), "outcomes")
    with pytest.raises(TraitError, match=r"outcomes table does not fit its schema: .*gold"):
        tables.write(path, pd.DataFrame([outcome]).drop(columns="gold"), "outcomes")
    with pytest.raises(TraitError, match="does not fit its schema"):
        tables.write(path, pd.DataFrame([{**outcome, "seed": "zero"}]), "outcomes")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TraitError, match=r"outcomes\.parquet is not a readable Parquet file"):
        tables.read(path, "outcomes")
