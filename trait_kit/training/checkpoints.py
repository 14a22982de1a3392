"""When a stage is scored and saved, and what a checkpoint on disk is worth."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trait_kit.engine.files import TraitError, read_json, write_json
from trait_kit.params import TrainingParams
from trait_kit.training.plan import Stage

CHECKPOINT_MARK = "complete.json"  # written last: a checkpoint without it was torn by a kill
CHECKPOINTS_KEPT = 2  # of the stage that is being trained
STOP = threading.Event()  # set by SIGTERM: write a checkpoint and leave


class Milestones(TrainerCallback):
    """Held-out and task scores at evenly spaced steps; checkpoints by tokens, by minutes and when told to leave."""

    trainer: Any  # the StageTrainer, once it is made

    def __init__(self, stage: Stage, params: TrainingParams) -> None:
        every = lambda count: {round(stage.steps * index / count) for index in range(1, count + 1)}  # noqa: E731
        self.score_at = every(params.task_scores_per_stage)
        self.evaluate_at = every(params.evaluations_per_stage) | self.score_at
        interval = params.checkpoint_tokens
        self.checkpoint_steps = max(1, interval // stage.tokens_per_batch) if interval else 0
        self.checkpoint_seconds = 60 * params.checkpoint_minutes
        self.stage = stage
        self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stage.parent is None and state.global_step == 0:
            self.trainer.evaluate()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self._agreed(STOP.is_set()):
            self.trainer.stop_here()
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_evaluate = state.global_step in self.evaluate_at
        self.trainer.scoring = state.global_step in self.score_at
        due = self.checkpoint_steps and state.global_step % self.checkpoint_steps == 0
        late = self.checkpoint_seconds and self._agreed(time.monotonic() - self._saved > self.checkpoint_seconds)
        control.should_save = bool(due or late) and state.global_step < state.max_steps
        if state.global_step < state.max_steps and self._agreed(STOP.is_set()):
            self.trainer.stop_here()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.is_main_process:
            work = Path(args.output_dir)
            write_json(work / f"checkpoint-{state.global_step}" / CHECKPOINT_MARK, {"key": self.stage.key})
            for old in sorted(_whole(work), reverse=True)[CHECKPOINTS_KEPT:]:
                shutil.rmtree(work / f"checkpoint-{old}")
        self._saved = time.monotonic()

    def _agreed(self, wish: bool) -> bool:
        """Whether any process wishes so; all of them ask at the same time."""
        if self.trainer.args.world_size == 1:
            return wish
        wishes = torch.tensor(float(wish), device=self.trainer.args.device)
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
        return bool(wishes.item())


def last_checkpoint(work: Path, stage: Stage) -> str | None:
    """The newest whole checkpoint of a stage; torn ones are removed. TraitError for one of another stage or model."""
    whole = _whole(work)
    for folder in work.glob("checkpoint-*"):
        if int(folder.name.rpartition("-")[2]) not in whole and os.environ.get("RANK", "0") == "0":
            shutil.rmtree(folder, ignore_errors=True)
    if not whole:
        return None
    folder = work / f"checkpoint-{max(whole)}"
    if read_json(folder / CHECKPOINT_MARK)["key"] != stage.key:
        raise TraitError(f"training: {folder} is a checkpoint of another model or stage. Remove it and run again.")
    return str(folder)


def _whole(work: Path) -> set[int]:
    return {int(mark.parent.name.rpartition("-")[2]) for mark in work.glob(f"checkpoint-*/{CHECKPOINT_MARK}")}
