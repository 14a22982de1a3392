"""What is to be trained: the tree of stages that the arms share, each stage known by everything that shapes its result.

Arms are chains (paper, section 3.3: in-domain and selected text first, then the task-oriented passages), and chains with
the same beginning form a tree. A stage's key covers its parent's key, its texts by content, its parameters, the held-out
items and the code, but not how the work is spread (micro-batch, processes, checkpoints): equal keys mean equal results.
Fine-tuning is one more stage after each chain and after the base model, in arms of its own: 'trait_fine_tuned'.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trait_kit import params as parameters
from trait_kit.engine.files import content, digest, read_json, write_json
from trait_kit.engine.machine import code_digest
from trait_kit.models import fast_precision
from trait_kit.params import TrainingParams

FINE_TUNED = "fine_tuned"  # ends the name of the arm that a fine-tuned model is
PROBLEMS = "train_problems"  # the source that fine-tuning reads

# A stage's key holds what they lead to (texts, tokens, rates, held-out items).
PLANNED = {
    "in_domain", "web", "tasks", "test_items_per_task", "base_model", "arms", "stage_tokens", "held_out_items",
    "fine_tune_epochs", "fine_tune_learning_rate", "fine_tune_tokens_per_batch",
}  # fmt: skip
# Modules that the worker imports and that shape no result.
WATCHING = ("trait_kit.params", "trait_kit.models", "trait_kit.engine.child", "trait_kit.engine.machine")

Chains = dict[str, list[str]]  # arm -> names of its stages


class Stage(BaseModel):
    name: str
    key: str
    parent: str | None  # name of the stage that it starts from; None: the base model
    place: int  # 1 for the first stage of a chain
    tokens_before: int  # that the stages before have read
    mixture: str
    tokens_per_batch: int
    learning_rate: float
    texts: dict[str, str] = {}  # source -> digest of its texts
    epochs: int = 0  # of fine-tuning, whose steps are known when it is packed
    steps: int = 0
    tokens: int = 0  # slots in whole batches, empty ones too
    ends_arm: bool = False  # its model is kept
    arms: list[str] = []
    # found by packing:
    accounting: list[dict[str, Any]] = []  # a row a source: see stages.TrainingResult
    consumed: dict[str, int] = {}  # tokens of each stream that it and those before have gone through
    padding: float = 0.0  # share of the slots that hold no token


class Job(BaseModel):
    """What a worker is given: the stages that are missing, and what they are made from."""

    params: TrainingParams
    base: str
    folder: Path
    stages: list[Stage]  # a parent before its children
    texts: dict[
        str, Path
    ]  # source -> Parquet file with a column `text`, of problems also `prompt`, its beginning
    held_out: dict[str, list[list[str]]]
    chains: Chains

    @property
    def stages_dir(self) -> Path:
        return self.folder / "stages"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def settled_precision(self) -> str:
        """bfloat16 or float32; measured once a run, so that it goes on as it began on another machine too."""
        path = self.folder / "precision.json"
        if self.params.precision != "auto":
            return self.params.precision
        if not path.exists():
            write_json(path, fast_precision())
        return read_json(path)


def processes() -> int:
    """How many a launcher (accelerate, torchrun) has started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def plan_stages(
    params: TrainingParams, sources: Mapping[str, Path], base_digest: str, held_out_digest: str
) -> tuple[list[Stage], Chains]:
    """The tree of stages, a parent before its children, and each arm's chain of names."""
    digests = {name: content(sources[name]) for name in sorted(params.sources)}
    shared = [base_digest, code_digest("trait_kit.training.worker", without=WATCHING), held_out_digest]
    shape = {name: value for name, value in parameters.shape(params).items() if name not in PLANNED}
    own = {"tokens_per_batch": params.tokens_per_batch, "learning_rate": params.learning_rate}
    chains: dict[str, list[Stage]] = {"base": []}
    for arm, stages in params.arms.items():
        chain = chains[arm] = []
        for mixture, budget in zip(stages, params.stage_tokens, strict=True):
            weights = parameters.weights(mixture)  # in alphabetical order, so a+b and b+a are one stage
            texts = {source: digests[source] for source in weights}
            named = "+".join(f"{weight}*{source}" if weight > 1 else source for source, weight in weights.items())
            reads = {"mixture": named, "steps": budget // params.tokens_per_batch, "texts": texts}
            chain.append(_next(chain, "+".join(texts), [shape, reads, *shared], **reads, **own))
    if params.fine_tune_epochs:
        batch = params.fine_tune_tokens_per_batch or params.tokens_per_batch
        own = {"tokens_per_batch": batch, "learning_rate": params.fine_tune_learning_rate}
        reads = {
            "mixture": PROBLEMS,
            "epochs": params.fine_tune_epochs,
            "texts": {PROBLEMS: content(sources[PROBLEMS])},
        }
        facts = [shape | own | {"decay_fraction": None}, reads, *shared]
        for arm, chain in list(chains.items()):
            chains[f"{arm}_{FINE_TUNED}"] = [*chain, _next(chain, FINE_TUNED, facts, **reads, **own)]
    del chains["base"]
    plan: dict[str, Stage] = {}
    for arm, chain in chains.items():
        for stage in chain:
            plan.setdefault(stage.name, stage).arms.append(arm)
        plan[chain[-1].name].ends_arm = True

    return list(plan.values()), {arm: [stage.name for stage in chain] for arm, chain in chains.items()}


def _next(before: list[Stage], reads: str, facts: list[Any], **known: Any) -> Stage:
    parent = before[-1] if before else None
    key = digest([parent.key if parent else "", *facts])
    return Stage(
        name=f"{len(before) + 1}-{reads}-{key[:12]}",
        key=key,
        parent=parent.name if parent else None,
        place=len(before) + 1,
        tokens_before=sum(stage.tokens for stage in before),
        tokens=known.get("steps", 0) * known["tokens_per_batch"],
        **known,
    )
