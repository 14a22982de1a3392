"""`trait-kit train`: what notebook 04 trains, without the notebook, in one process or in those of a launcher.

Alone it starts its worker (and with accelerate_config the launcher) itself. Under `accelerate launch` or torchrun, one node
or several, every process runs this: the first one reads, tokenises and packs, then all train. The run's folder must be one
that all nodes see. Notebook 04, run afterwards, finds everything trained.
"""

from __future__ import annotations

from pathlib import Path

from trait_kit.engine.files import read_json, write_json
from trait_kit.params import TrainingParams
from trait_kit.training import launch, stages, worker
from trait_kit.training.sources import fine_tuning_pairs, held_out_sets, training_sources


def train(params: TrainingParams, run_dir: Path) -> None:
    """Train every arm that is not trained yet and say what it took. TraitError where an earlier step is missing."""
    models = run_dir / "04_train_two_stages" / "models"
    job_file = models / "work" / "launch.json"
    if not launch.is_first():
        launch.wait_for_all()
        if job_file.exists():
            worker.run(read_json(job_file))
        launch.wait_for_all()
        return
    folders = (run_dir / "02_filter_web" / "selections", run_dir / "03_write_passages" / "passages.parquet")
    inputs = (training_sources(params, *folders), held_out_sets(params), models, fine_tuning_pairs(params))
    if launch.is_launched():
        work, chains = stages.prepare_job(params, *inputs)
        if work.job["stages"]:
            launch.prepare(work.job)
            names = [stage["name"] for stage in work.job["stages"]]
            write_json(job_file, {**work.job, "prepare": False, "train": names, "launched": True})
        launch.wait_for_all()
        if work.job["stages"]:
            worker.run(read_json(job_file))
        launch.wait_for_all()
        result = stages.finish(params, work, chains)
    else:
        result = stages.train_arms(params, *inputs)
    columns = ["arm", "stage", "mixture", "tokens", "tokens_per_second", "mfu", "device_hours", "new"]
    print(result.stages[columns].to_string(index=False))
    print(
        f"Models: {models / 'stages'}. Notebook 04 shows what they learnt: trait-kit run ... --from 04 trains nothing anew."
    )
