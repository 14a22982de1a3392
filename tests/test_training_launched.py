"""Several processes train what one trains: the shipped accelerate configurations in two processes, on CPUs with gloo."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file
from tiny_llama import HELD_OUT, ROOT, tiny_params, tiny_sources

from trait_kit.training import launch, stages

ARM = {"arms": {"trait": ["in_domain+random", "passages"]}, "evaluations_per_stage": 1}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
CONFIGURATIONS = ["ddp", "fsdp2", "zero1"]


@pytest.fixture(scope="module")
def alone(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.TrainingResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        out = tmp_path_factory.mktemp("alone")
        return stages.train_arms(tiny_params(model_dir, **ARM), tiny_sources(), HELD_OUT, out)


def _accelerate(name: str, folder: Path, *command: str | Path) -> subprocess.CompletedProcess:
    """`accelerate launch` of a shipped configuration in two processes, in float32."""
    config = yaml.safe_load((ROOT / "params" / "accelerate" / f"{name}.yaml").read_text())
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**config, "mixed_precision": "no", "num_processes": 2}))
    port = ["--main_process_port", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), *port]
    return subprocess.run(
        [*launcher, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def _job(model_dir: Path, out: Path, **changes: object) -> tuple[stages.Work, dict[str, list[str]], Path]:
    work, chains = stages.prepare_job(tiny_params(model_dir, **ARM, **changes), tiny_sources(), HELD_OUT, out)
    launch.prepare(work.job)
    names = [stage["name"] for stage in work.job["stages"]]
    path = out / "launch.json"
    path.write_text(json.dumps({**work.job, "prepare": False, "train": names, "launched": True}))
    return work, chains, path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_two_processes_have_the_losses_and_the_model_of_one(
    name: str, model_dir: Path, alone: stages.TrainingResult, tmp_path: Path
) -> None:
    if name == "zero1" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    work, chains, job = _job(model_dir, tmp_path)
    done = _accelerate(name, tmp_path, ROOT / "tests" / "launched_worker.py", job)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    result = stages.finish(tiny_params(model_dir, **ARM), work, chains)
    assert (result.stages["processes"] == 2).all()
    assert result.log["value"].tolist() == pytest.approx(alone.log["value"].tolist(), abs=1e-4)
    weights, wanted = (load_file(one.models["trait"] / "model.safetensors") for one in (result, alone))
    assert set(wanted) <= set(weights)
    for key, tensor in wanted.items():
        assert (weights[key].float() - tensor).abs().max() < 1e-3


def test_train_is_one_command_alone_and_under_a_launcher(model_dir: Path, tmp_path: Path) -> None:
    """`trait-kit train` on a run whose steps 02 and 03 are there; the launched one gets the losses of the other."""
    for name in ("alone", "launched"):
        selections = tmp_path / name / "02_filter_web" / "selections"
        selections.mkdir(parents=True)
        (tmp_path / name / "03_write_passages").mkdir()
        sources = tiny_sources()
        pq.write_table(pa.table({"text": sources["random"]}), selections / "random.parquet")
        pq.write_table(pa.table({"text": sources["passages"]}), tmp_path / name / "03_write_passages" / "passages.parquet")
    pq.write_table(pa.table({"text": tiny_sources()["in_domain"] * 2}), tmp_path / "in_domain.parquet")
    experiment = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    experiment["common"] |= {"base_model": str(model_dir), "in_domain": str(tmp_path / "in_domain.parquet")}
    training = tiny_params(model_dir, **ARM).model_dump()
    common = {*experiment["common"], "run_dir", "seed"}
    experiment["training"] = {key: value for key, value in training.items() if key not in common}
    experiment["figures"] = {**experiment.get("figures", {}), "curve_arms": ["trait"]}
    experiment["evaluation"] = {**experiment.get("evaluation", {}), "reference_arm": "trait"}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    train = ["-m", "trait_kit.cli", "train", tmp_path / "experiment.yaml", "--run-dir"]
    one = subprocess.run(
        [sys.executable, *map(str, train), str(tmp_path / "alone")],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stdout + one.stderr
    two = _accelerate("ddp", tmp_path, *train, tmp_path / "launched")
    assert two.returncode == 0, (two.stdout + two.stderr)[-6000:]
    logs = [_log(tmp_path / name) for name in ("alone", "launched")]
    assert logs[0]["value"].tolist() == pytest.approx(logs[1]["value"].tolist(), abs=1e-4)
    again = subprocess.run(
        [sys.executable, *map(str, train), str(tmp_path / "launched")],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "False" in again.stdout and "True" not in again.stdout, again.stdout + again.stderr  # nothing new


def _log(run: Path) -> pd.DataFrame:
    paths = sorted((run / "04_train_two_stages" / "models" / "stages").glob("*/log.json"))
    return pd.concat([pd.DataFrame(json.loads(path.read_text())) for path in paths], ignore_index=True)
