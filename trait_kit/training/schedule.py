"""What happens at which step of a stage: the learning rate, held-out scores, checkpoints.

The paper trains with a 3% warm-up, a constant maximum, and an *exponential* decay over the last 10%
(WSD; appendix), a tail that the library's own WSD does not offer. Each stage has a schedule of its
own. (Fine-tuning has the library's cosine.)
"""

import math
import threading
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trait_kit.engine.files import write_json

FINAL_RATIO = 0.1  # of the maximum, reached at the last step; the paper does not name its value
CHECKPOINT_MARK = "complete.json"  # written last: a checkpoint without it was torn by a kill
STOP = threading.Event()  # set by SIGTERM: finish the step, write a checkpoint and leave


def wsd_phases(total_steps: int, warmup_fraction: float, decay_fraction: float) -> tuple[int, int, int]:
    """Steps of (warm-up, stable, decay), at least one at the maximum; where there is no room, the warm-up gives way first.

    Fractions round up, so that a short demo stage still has every phase (but 0.07 * 100 is
    7.000000000000001).
    """
    decay = min(math.ceil(round(decay_fraction * total_steps, 9)), total_steps - 1)
    warmup = min(math.ceil(round(warmup_fraction * total_steps, 9)), total_steps - 1 - decay)
    return warmup, total_steps - warmup - decay, decay


def wsd_factor(step: int, total_steps: int, warmup_fraction: float, decay_fraction: float) -> float:
    """Multiplier of the maximum learning rate for the update with 0-based index `step`.

    With w, s, d steps of warm-up, stable and decay: (step + 1) / (w + 1), then 1, then FINAL_RATIO
    ** ((step - w - s + 1) / d), so that no update is wasted at zero and the last one has exactly
    that ratio.
    """
    warmup, stable, decay = wsd_phases(total_steps, warmup_fraction, decay_fraction)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < warmup + stable or not decay:
        return 1.0
    return FINAL_RATIO ** min(1.0, (step - warmup - stable + 1) / decay)


class Milestones(TrainerCallback):
    """Held-out scores at evenly spaced steps; checkpoints by minutes and when told to leave."""

    def __init__(self, trainer: Any) -> None:
        stage, params = trainer.stage, trainer.job.params
        count = params.evaluations_per_stage
        self._evaluate_at = {round(stage.steps * index / count) for index in range(1, count + 1)}
        self._seconds = 60 * params.checkpoint_minutes
        self._trainer, self._saved = trainer, time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._steps_before = state.global_step
        if self._trainer.stage.parent is None and state.global_step == 0:
            self._trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        late = self._seconds > 0 and time.monotonic() - self._saved > self._seconds
        control.should_evaluate = state.global_step in self._evaluate_at
        stop, late = self._agreed(STOP.is_set()), self._agreed(late)
        control.should_training_stop |= stop
        control.should_save = (stop or late) and state.global_step < state.max_steps
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()
        if self._trainer.accelerator.is_main_process:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / CHECKPOINT_MARK, state.global_step)
        self._saved = time.monotonic()

    def _agreed(self, wish: bool) -> bool:
        """Whether any process wishes so; all of them ask at the same time."""
        if wish:
            self._trainer.accelerator.set_trigger()
        return self._trainer.accelerator.check_trigger()


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint of a stage."""
    whole = work.glob(f"checkpoint-*/{CHECKPOINT_MARK}")
    newest = max(whole, key=lambda mark: int(mark.parent.name.rpartition("-")[2]), default=None)
    return str(newest.parent) if newest else None
