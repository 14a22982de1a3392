"""Several processes train what one trains: the shipped accelerate configurations in two processes, on CPUs with gloo."""

from __future__ import annotations

import importlib.util
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
from tiny_llama import HELD_OUT, ROOT, text_files, tiny_params, tiny_sources, trained

from trait_kit.engine.files import read_json
from trait_kit.training import stages

ARM = {"arms": {"trait": ["in_domain+random", "passages"]}, "evaluations_per_stage": 1}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def alone(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.TrainingResult:
    return trained(tiny_params(model_dir, **ARM), tmp_path_factory.mktemp("alone"))


def _accelerate(name: str, *command: str | Path) -> None:
    """`accelerate launch` of a shipped configuration in two processes, in the precision of the experiment."""
    config = str(ROOT / "params" / "accelerate" / f"{name}.yaml")
    counts = ["--num_processes", "2", "--main_process_port", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, *counts]
    done = subprocess.run(
        [*launcher, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.mark.parametrize("name", ["fsdp2", "zero1"])
def test_two_processes_have_the_losses_and_the_model_of_one(
    name: str, model_dir: Path, alone: stages.TrainingResult, tmp_path: Path
) -> None:
    if name == "zero1" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    params = tiny_params(model_dir, **ARM, accelerate_config=f"params/accelerate/{name}.yaml")
    job = stages.prepare_job(params, (text_files(tiny_sources(), tmp_path), HELD_OUT), tmp_path)
    _accelerate(name, ROOT / "tests" / "launched_worker.py", job.work / "job.json")
    result = stages.finish(job)
    assert (result.stages["processes"] == 2).all()
    assert (result.stages["sharding"] == name[:4]).all()
    assert result.stages["name"].tolist() == alone.stages["name"].tolist()
    assert result.log["value"].tolist() == pytest.approx(alone.log["value"].tolist(), abs=1e-4)
    weights, wanted = (load_file(one.models["trait"] / "model.safetensors") for one in (result, alone))
    assert set(wanted) <= set(weights)
    for key, tensor in wanted.items():
        assert (weights[key].float() - tensor).abs().max() < 1e-3


def test_train_is_one_command_alone_and_under_a_launcher(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`trait-kit train` on a run whose steps 02 and 03 are there, under a launcher (ddp) of which its file knows nothing.

    The record says what really ran, the losses are those of one process, and notebook 04 finds everything trained.
    """
    run, out = tmp_path / "run", tmp_path / "out"
    selections, passages = run / "02_filter_web" / "selections", run / "03_write_passages" / "passages.parquet"
    selections.mkdir(parents=True)
    passages.parent.mkdir()
    pq.write_table(pa.table({"text": tiny_sources()["random"]}), selections / "random.parquet")
    pq.write_table(pa.table({"text": tiny_sources()["passages"]}), passages)
    pq.write_table(pa.table({"text": tiny_sources()["in_domain"] * 2}), tmp_path / "in_domain.parquet")
    experiment = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    experiment["common"] |= {"base_model": str(model_dir), "in_domain": str(tmp_path / "in_domain.parquet")}
    experiment["passages"]["max_passage_tokens"] = 30  # rows have 32
    experiment["training"] = {
        key: value
        for key, value in tiny_params(model_dir, **ARM, accelerate_config="params/accelerate/fsdp2.yaml")
        .model_dump()
        .items()
        if key not in {*experiment["common"], "seed"}
    }
    experiment["evaluation"] = {**experiment.get("evaluation", {}), "reference_arm": "trait"}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    _accelerate("ddp", "-m", "trait_kit.cli", "train", tmp_path / "experiment.yaml", "--run-dir", run)
    reports = [read_json(path) for path in (run / "04_train_two_stages").glob("models/stages/*/stage.json")]
    assert [(report["sharding"], report["processes"]) for report in reports] == [("ddp", 2)] * 2

    from trait_kit import params

    params = params.load(tmp_path / "experiment.yaml").training
    stages.train_run(params, run)
    said = capsys.readouterr().out
    assert "False" in said and "True" not in said  # nothing new
    texts, held_out = stages.inputs_of(params, run)
    known = {name: pq.read_table(path)["text"].to_pylist() for name, path in texts.items()}
    single = trained(params.model_copy(update={"accelerate_config": ""}), out, known, held_out)
    assert _values(run / "04_train_two_stages" / "models") == pytest.approx(_values(out), abs=1e-4)
    assert set(single.stages["name"]) == {report["name"] for report in reports}


def _values(models: Path) -> list[float]:
    logs = [pd.DataFrame(read_json(path)) for path in sorted(models.glob("stages/*/log.json"))]
    return pd.concat(logs, ignore_index=True)["value"].tolist()
