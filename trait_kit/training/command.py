"""`trait-kit train`: what notebook 04 trains, without the notebook, in one process or in those of a launcher.

Alone it starts its worker (and with accelerate_config the launcher) itself. Under `accelerate launch` or torchrun, one node
or several, every process runs this: the first one reads, tokenises and packs, then all train. The run's folder must be one
that all nodes see. Notebook 04, run afterwards, finds everything trained.
"""

from __future__ import annotations

from pathlib import Path

from trait_kit.params import TrainingParams
from trait_kit.training import launch, sources, stages, worker
from trait_kit.training.plan import Job


def train(params: TrainingParams, run_dir: Path) -> None:
    """Train every arm that is not trained yet and say what it took. TraitError where an earlier step is missing."""
    models = run_dir / "04_train_two_stages" / "models"
    if launch.is_launched():
        result = _launched(params, run_dir, models)
    else:
        result = stages.train(params, *sources.inputs(params, run_dir), models)
    if result:
        columns = ["arm", "stage", "mixture", "tokens", "tokens_per_second", "mfu", "device_hours", "sharding", "new"]
        print(result.stages[columns].to_string(index=False))
        print(f"Models: {models / 'stages'}. `trait-kit run ... --from 04` shows what they learnt and trains nothing anew.")


def _launched(params: TrainingParams, run_dir: Path, models: Path) -> stages.TrainingResult | None:
    """In every process of a launch; the first one returns the result."""
    if launch.is_first():
        job, chains = stages.prepare_job(params, *sources.inputs(params, run_dir), models)
        if job.stages:
            worker.prepare(job)
    launch.wait_for_all()
    path = models / "work" / "job.json"
    if path.exists():
        worker.train(Job.load(path))
    launch.wait_for_all()
    return stages.finish(job, chains) if launch.is_first() else None
