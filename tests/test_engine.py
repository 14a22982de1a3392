"""Shards on any engine: the same selection, and what survives when processes are killed.

Work is done by functions of this module, which the engine's processes import by name: the kit's own, made slow so that a
kill finds something to interrupt, or made to fail.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_random import FOLDER

from trait_kit.engine import shards as engine
from trait_kit.engine.files import TraitError
from trait_kit.engine.shards import Place
from trait_kit.params import ClassifierParams
from trait_kit.selection import scoring
from trait_kit.selection.budget import Limits
from trait_kit.selection.choosing import select
from trait_kit.selection.classifier import train_domain_classifier
from trait_kit.selection.dsir import DsirModel
from trait_kit.selection.scoring import ModelFiles, score_corpus, score_shard, shard_path

SHARDS, ROWS = 24, 20
METHODS = ("dsir", "fasttext")
TWO = Place(workers=2)


# What runs in the engine's processes


def slow_shard(job: Path, number: int) -> None:
    time.sleep(0.05)
    score_shard(job, number)


def failing_shard(job: Path, number: int) -> None:
    if number == 7:
        raise ValueError("the seventh is bad")
    score_shard(job, number)


def refusing_shard(job: Path, number: int) -> None:
    raise TraitError("Bring a better shard.")


def drive(origin: str, folder: str) -> None:
    """A driver process of its own: scores slowly with two workers, then selects."""
    scoring.score_shard = slow_shard
    made(Path(origin), Path(folder), TWO)


# A corpus of many small shards


def texts(seed: int, n: int) -> list[str]:
    generator = random.Random(seed)
    words = "theorem proof lemma integral market river football garden number music".split()  # noqa: SIM905
    return [
        " ".join(f"{generator.choice(words)} {generator.randrange(10**4)}" for _ in range(25)) for _ in range(n)
    ]


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A folder with a corpus and models."""
    folder = tmp_path_factory.mktemp("origin")
    records = [{"id": f"d{k}", "text": text} for k, text in enumerate(texts(0, SHARDS * ROWS))]
    pq.write_table(pa.Table.from_pylist(records), folder / "web.parquet", row_group_size=ROWS)
    inside, outside = [f"theorem proof {text}" for text in texts(1, 40)], texts(2, 40)
    params = ClassifierParams.model_construct(dimension=4, epochs=3, buckets=500)
    train_domain_classifier(inside, outside, folder / "domain.bin", params)
    DsirModel.fit(inside, outside, buckets=200).save(folder / "dsir.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(origin, tmp_path_factory) -> dict[str, bytes]:
    return made(origin, tmp_path_factory.mktemp("expected"), Place())


def made(origin: Path, folder: Path, place: Place) -> dict[str, bytes]:
    """Score and select into a folder: the bytes of each selection."""
    scored = score(origin, folder, place)
    options = {"base_model": str(FOLDER), "place": place}
    select(scored, folder / "selections", METHODS, Limits(tokens=4_000, min_tokens=5), **options)
    return {path.name: path.read_bytes() for path in sorted((folder / "selections").glob("*.parquet"))}


def score(origin: Path, folder: Path, place: Place, corpus: Path | None = None, **options) -> scoring.Scoring:
    files = ModelFiles(str(origin / "domain.safetensors"), dsir=str(origin / "dsir.safetensors"))
    options = {"documents_per_shard": ROWS, "place": place, **options}
    return score_corpus(str(corpus or origin / "web.parquet"), files, folder / "scores", **options)


def done(folder: Path) -> dict[str, int]:
    """The shards that are scored, with their times."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "scores").glob("scores-*.parquet")}


def driver(origin: Path, folder: Path) -> subprocess.Popen:
    code = f"import test_engine; test_engine.drive({str(origin)!r}, {str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE, text=True)


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent), str(Path(engine.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    """The engine's processes find this module."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


# Engines agree


def test_two_workers_select_what_one_does(origin, expected, tmp_path):
    assert made(origin, tmp_path, TWO) == expected
    assert set(expected) == {
        "contaminated.parquet",
        "dsir.parquet",
        "fasttext.parquet",
        "near_duplicates.parquet",
    }
    assert len(done(tmp_path)) == SHARDS
    assert pq.read_metadata(tmp_path / "selections" / "fasttext.parquet").num_rows > 20


# Kills


def wait_for(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing after {seconds} s")


def workers_of(pid: int) -> list[psutil.Process]:
    """The driver's processes that do shards: children of the one from which they are forked."""
    return [worker for server in psutil.Process(pid).children() for worker in server.children()]


def kill_at(victim: str, moment: float, origin: Path, folder: Path) -> str:
    """Start a driver; SIGKILL a worker or the driver when it is `moment` (0 to 1) done: what it says.

    It ends within seconds, and nothing that it started lives on.
    """
    process = driver(origin, folder)
    try:
        wait_for(lambda: len(done(folder)) >= max(1, moment * (SHARDS - 8)))
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        (workers_of(process.pid)[0] if victim == "worker" else process).kill()
        killed = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - killed < 50
        assert not psutil.wait_procs(everyone, timeout=30)[1]
        return said
    finally:
        process.kill()
        process.wait()


def check_kill(
    victim: str, moment: float, origin: Path, expected: dict[str, bytes], folder: Path, place: Place
) -> None:
    said = kill_at(victim, moment, origin, folder)
    before = done(folder)
    assert len(before) < SHARDS
    if victim == "worker":
        assert "TraitError: scores stopped: a worker process was killed" in said
    score(origin, folder, place)
    assert before.items() <= done(folder).items()
    assert made(origin, folder, place) == expected


@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_after_a_kill_one_worker_finishes_what_two_began_without_doing_shards_again(
    origin, expected, tmp_path, victim
):
    check_kill(victim, 0.6, origin, expected, tmp_path, Place())


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "driver"])
def test_after_kills_at_ten_random_moments_the_same_selection(origin, expected, tmp_path, victim):
    generator = random.Random(victim)
    for round_ in range(10):
        check_kill(
            victim, generator.random(), origin, expected, tmp_path / str(round_), TWO if round_ % 2 else Place()
        )


# Failures


FAILURES = [(failing_shard, "shard 7: ValueError: the seventh is bad"), (refusing_shard, "Bring a better shard")]


@pytest.mark.parametrize(("work", "message"), FAILURES)
def test_a_shard_that_fails_says_why(origin, tmp_path, monkeypatch, work, message):
    monkeypatch.setattr(scoring, "score_shard", work)
    with pytest.raises(TraitError, match=message):
        score(origin, tmp_path, TWO)
    assert len(done(tmp_path)) < SHARDS


def damaged_corpus(folder: Path) -> dict[str, tuple[Path, int, str]]:
    """name -> (file, records that cannot be used, what is said about it), beside a sound file of 200 documents."""
    folder.mkdir()
    rows = [{"id": f"d{k}", "text": text, "url": "u"} for k, text in enumerate(texts(9, 400))]
    pq.write_table(pa.Table.from_pylist(rows[:200]), folder / "sound.parquet", row_group_size=ROWS)
    lines = gzip.compress("".join(json.dumps(row) + "\n" for row in rows[200:240]).encode())
    (folder / "cut.jsonl.gz").write_bytes(lines[: len(lines) // 2])
    pq.write_table(
        pa.Table.from_pylist(rows[240:280]),
        folder / "page.parquet",
        row_group_size=10,
        use_dictionary=False,
        write_page_checksum=True,
    )
    with (folder / "page.parquet").open("r+b") as file:
        start = pq.read_metadata(folder / "page.parquet").row_group(2).column(1).data_page_offset
        file.seek(start + 1_500)  # behind its header
        file.write(b"\xff" * 50)
    nulls = [{**row, "text": None if k % 4 == 0 else row["text"]} for k, row in enumerate(rows[280:320])]
    pq.write_table(pa.Table.from_pylist(nulls), folder / "nulls.parquet", row_group_size=20)
    pq.write_table(pa.table({"id": ["x"] * 30, "content": ["y"] * 30}), folder / "other.parquet")
    numbers = pa.table({"id": list(range(20)), "text": list(range(20))})
    pq.write_table(numbers, folder / "numbers.parquet")
    mixed = pa.table(
        {"text": pa.array([row["text"] for row in rows[320:]], pa.large_binary()), "id": list(range(80))}
    )
    pq.write_table(mixed, folder / "mixed.parquet")  # another order and other types, but usable
    return {
        "page": (folder / "page.parquet", 10, "damaged: its data after record 20"),
        "nulls": (folder / "nulls.parquet", 10, "no text"),
        "other": (folder / "other.parquet", 30, "has no column 'text'"),
        "numbers": (folder / "numbers.parquet", 20, "holds int64, not strings"),
        "cut": (folder / "cut.jsonl.gz", 0, "damaged: its data after"),
    }


@pytest.mark.parametrize("place", [Place(), pytest.param(TWO, marks=pytest.mark.slow)], ids=["one", "two"])
def test_what_cannot_be_read_is_counted_up_to_the_limit_and_stops_the_job_beyond(origin, tmp_path, place):
    damages = damaged_corpus(tmp_path / "web")
    scored = score(origin, tmp_path, place, tmp_path / "web" / "*", max_quarantined=0.5)
    rejected = scoring.read_shards(scored.folder, "rejected", len(scored.shards)).to_pylist()
    for path, records, reason in damages.values():
        found = [row for row in rejected if row["source"] == str(path)]
        assert found and all(reason in row["reason"] for row in found)
        assert sum(row["records"] for row in found) == records or path.suffix == ".gz"
    assert {row["source"] for row in rejected} == {str(path) for path, _, _ in damages.values()}
    ids = [name for batch in scored.batches() for name in batch["id"].to_pylist()]
    read = {f"d{k}" for k in [*range(200), *range(240, 260), *range(270, 320)]} - {
        f"d{k}" for k in range(280, 320, 4)
    }
    cut = {f"d{k}" for k in range(200, 240)}
    assert set(ids) <= read | cut | set(map(str, range(80)))
    assert len(set(ids) & read) > 0.85 * len(read)  # but for the held out
    again = tmp_path / "again"
    with pytest.raises(
        TraitError,
        match=r"cannot be used, more than max_quarantined \(5\.00%\) .* most of them: .*(other|numbers|cut)\.",
    ):
        score(origin, again, place, tmp_path / "web" / "*", max_quarantined=0.05)
    with pytest.raises(TraitError, match="more than max_quarantined"):  # nor does what is done already hide it
        score(origin, tmp_path, place, tmp_path / "web" / "*", max_quarantined=0.05)


def test_the_worst_file_is_the_one_that_lost_most(origin, tmp_path):
    """Ten rows of one kind outweigh a stretch of two."""
    (tmp_path / "web").mkdir()
    sound = texts(9, 40)
    for name, bad in (("a", 10), ("z", 2)):
        column = [None if k < bad else text for k, text in enumerate(sound)]
        pq.write_table(
            pa.table({"id": [f"{name}{k}" for k in range(40)], "text": column}),
            tmp_path / "web" / f"{name}.parquet",
        )
    with pytest.raises(TraitError, match=r"12 of \d+ web documents .* most of them: .*a\.parquet: no text"):
        score(origin, tmp_path, Place(), tmp_path / "web" / "*", max_quarantined=0.14)


# Slurm: a stand-in for its commands, which runs the array on this machine; the launch script is datatrove's own

SBATCH = r"""#!/bin/bash
# Keeps the script (datatrove deletes its own), refuses an option without its value, returns at once as sbatch does.
for script; do :; done
for argument; do case "$argument" in --export=ALL,*) export "${argument#--export=ALL,}";; esac; done
if grep -E '^#SBATCH --[a-z-]+=?$' "$script" | grep -qv -- --requeue; then echo "option requires an argument" >&2; exit 1; fi
if ! grep -q '^#SBATCH --dependency' "$script"; then  # the summing up of statistics afterwards is left out
  kept="$(mktemp)"; cp "$script" "$kept"; cp "$script" "$STAND_IN/script"
  last=$(grep -oP '^#SBATCH --array=0-\K[0-9]+' "$kept")
  for task in $(seq 0 "$last"); do
    touch "$STAND_IN/$task.waits"
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost setsid bash -c 'bash "$0"; rm "$1"' "$kept" "$STAND_IN/$task.waits" \
      < /dev/null > "$STAND_IN/$task.out" 2>&1 &
  done
fi
echo "Submitted batch job 42"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do case "$1" in -n) shift 2;; *) shift;; esac; done
exec "$@"
"""
SQUEUE = """#!/bin/bash
[[ "$*" == "--noheader --jobs 42" ]] || exit 1
ls "$STAND_IN" | grep waits || true
"""
SCONTROL = """#!/bin/bash
echo localhost  # of show hostnames
"""
COMMANDS = {"sbatch": SBATCH, "srun": SRUN, "squeue": SQUEUE, "scontrol": SCONTROL}
SLURM = Place(executor="slurm", workers=2, slurm={"partition": "test", "time": "00:10:00", "mem_per_cpu_gb": 1})


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    for name, script in COMMANDS.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setattr(engine, "_POLL_SECONDS", 0.1)
    return folder


def test_slurm_runs_the_shards_as_an_array(origin, expected, tmp_path, stand_in):
    """Not Slurm itself: see the stand-in above."""
    score(origin, tmp_path, Place())
    for number in range(3):
        (tmp_path / "scores" / f"scores-{number:05d}.parquet").unlink()
    before = done(tmp_path)
    score(origin, tmp_path, SLURM)
    assert len(list(stand_in.glob("*.out"))) == 3
    script = (stand_in / "script").read_text()
    for line in ("array=0-2%2", "partition=test", "time=00:10:00", "mem-per-cpu=1G", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in script
    assert before.items() <= done(tmp_path).items()
    assert made(origin, tmp_path, Place()) == expected


def test_a_shard_that_fails_under_slurm_ends_the_wait(origin, tmp_path, monkeypatch, stand_in):
    monkeypatch.setattr(scoring, "score_shard", refusing_shard)
    with pytest.raises(TraitError, match="Bring a better shard"):
        score(origin, tmp_path, SLURM, documents_per_shard=6 * ROWS)


def test_a_task_that_slurm_kills_ends_the_wait(origin, tmp_path, stand_in):
    (stand_in / "srun").write_text("#!/bin/bash\nkill -9 $$")
    with pytest.raises(TraitError, match="not all shards were finished"):
        score(origin, tmp_path, SLURM, documents_per_shard=6 * ROWS)


# Ray: a cluster of several nodes, each with its processes, on this machine


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "memory": 5 * 2**30, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    cluster.extra = [cluster.add_node(**node) for _ in range(2)]
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


RAY = Place(executor="ray", workers=2)


@pytest.mark.slow
def test_ray_survives_the_loss_of_a_node(origin, tmp_path, cluster, monkeypatch):
    """An actor of Ray takes seconds to start, so there are fewer and larger shards here."""
    size = {"documents_per_shard": 3 * ROWS}
    n_shards = len(score(origin, tmp_path / "here", Place(), **size).shards)
    monkeypatch.setattr(scoring, "score_shard", slow_shard)
    left = []

    def kill_a_node():
        wait_for(lambda: len(done(tmp_path / "ray")) >= 2, 120)
        left.append(n_shards - len(done(tmp_path / "ray")))
        cluster.remove_node(cluster.extra.pop(), allow_graceful=False)

    thread = threading.Thread(target=kill_a_node)
    thread.start()
    with contextlib.suppress(TraitError):  # it may finish on the node that is left, or say that it could not
        score(origin, tmp_path / "ray", RAY, **size)
    thread.join()
    assert left[0] > 0
    before = done(tmp_path / "ray")
    again = score(origin, tmp_path / "ray", RAY, **size)
    assert before.items() <= done(tmp_path / "ray").items()
    for number in range(n_shards):
        path = shard_path(again.folder, "scores", number)
        assert path.read_bytes() == (tmp_path / "here" / "scores" / path.name).read_bytes()


def test_leftovers_of_killed_workers_go_and_work_in_progress_stays(origin, tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    old, young = folder / ".scores-00000.parquet.tmp-1", folder / ".scores-00001.parquet.tmp-2"
    for path in (old, young):
        path.write_text("x")
    os.utime(old, (0, 0))
    score(origin, tmp_path, Place())
    assert young.exists() and not old.exists()
