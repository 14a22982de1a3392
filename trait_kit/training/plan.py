"""What is to be trained: the tree of stages that the arms share, each stage known by everything that shapes its result.

Arms are chains (paper, section 3.3: in-domain and selected text first, then the task-oriented passages), and chains with
the same beginning form a tree. A stage's key covers its parent's key, its texts by content, its parameters, the held-out
items and the code, so equal keys mean equal results. How the work is spread (micro-batch, processes, checkpoints) is in no
key. Fine-tuning, where asked for, is one more stage after each chain and after the base model, in arms of its own:
'trait_fine_tuned'. For ablations, all stages of an arm can also be one: under one schedule, or with their texts mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trait_kit import params as parameters
from trait_kit.engine.closure import code_digest
from trait_kit.engine.files import TraitError, digest, read_json, sha256, write_json, write_text
from trait_kit.models import fast_precision
from trait_kit.params import TrainingParams
from trait_kit.training.sampling import sources_of

FINE_TUNED = "fine_tuned"  # ends the name of the arm that a fine-tuned model is
PROBLEMS = "train_problems"  # what fine-tuning reads, in the accounting

# A stage's key holds what these lead to (its texts, parts, rates, held-out items) and not these themselves.
PLANNED = {
    "in_domain", "web", "tasks", "test_items_per_task", "base_model", "arms", "stage_tokens", "replay", "held_out_items",
    "schedule", "fine_tune_epochs", "fine_tune_learning_rate", "fine_tune_tokens_per_batch", "fine_tune_problems",
}  # fmt: skip
# Modules that the worker imports and that shape no result.
WATCHING = (
    "trait_kit.params",
    "trait_kit.models",
    "trait_kit.engine.child",
    "trait_kit.engine.machine",
    "trait_kit.training.throughput",
)


@dataclass(frozen=True)
class Part:
    """What one of the paper's stages reads, in whole batches."""

    mixture: str
    replay: float
    steps: int
    tokens: int


@dataclass
class Stage:
    """One Trainer run: its parts are packed one after the other, or all together, under one schedule."""

    name: str
    key: str
    parent: str | None  # name of the stage whose weights it starts from; None: the base model
    place: int  # 1 for the first stage of a chain
    tokens_before: int  # that the stages before have read
    places: int = 1
    mixture: str = ""
    texts: dict[str, str] = field(default_factory=dict)  # source -> digest of its texts
    parts: list[Part] = field(default_factory=list)
    together: bool = False  # all parts mixed
    tokens_per_batch: int = 0
    learning_rate: float = 0.0
    epochs: int = 0  # of fine-tuning, which reads problems; its steps are known when these are packed
    steps: int = 0
    tokens: int = 0  # in whole batches
    ends_arm: bool = False  # its model is an arm's own, and is kept
    arms: list[str] = field(default_factory=list)
    # What packing found out.
    accounting: list[dict[str, Any]] = field(default_factory=list)  # stage, source, tokens, epochs, available
    consumed: dict[str, int] = field(default_factory=dict)  # tokens of each stream that it and the stages before have read
    documents: int = 0
    cut: int = 0  # documents, or problems, that were cut
    efficiency: float = 0.0  # share of the slots that hold a token
    mean_attended: float = 0.0  # tokens that a token attends to, itself included

    def save(self, folder: Path) -> Path:
        return write_json(folder / "stage.json", asdict(self))

    @staticmethod
    def load(folder: Path) -> Stage:
        return TypeAdapter(Stage).validate_json((folder / "stage.json").read_text(encoding="utf-8"))


@dataclass
class Job:
    """The stages that are missing, and where they are made: what a worker is given."""

    params: TrainingParams
    base: str
    base_digest: str
    held_out_digest: str
    folder: Path
    stages: list[Stage]  # a parent before its children
    texts: dict[str, Path]  # source -> Parquet file with a column `text`
    launched: bool = False  # in the processes of a launcher

    @property
    def stages_dir(self) -> Path:
        return self.folder / "stages"

    @property
    def work(self) -> Path:
        """What is removed at the end."""
        return self.folder / "work"

    def settled_precision(self) -> str:
        """bfloat16 or float32; measured once a run, so that what is resumed elsewhere goes on as it began."""
        path = self.folder / "precision.json"
        if self.params.precision != "auto":
            return self.params.precision
        if not path.exists():
            write_json(path, fast_precision())
        return read_json(path)

    def save(self) -> Path:
        return write_text(self.work / "job.json", TypeAdapter(Job).dump_json(self, indent=1).decode())

    @staticmethod
    def load(path: Path | str) -> Job:
        return TypeAdapter(Job).validate_json(Path(path).read_text(encoding="utf-8"))


def plan_stages(
    params: TrainingParams,
    sources: Mapping[str, Path],
    base_digest: str,
    held_out_digest: str,
    problems: Sequence[tuple[str, str]] = (),
) -> tuple[list[Stage], dict[str, list[str]]]:
    """The tree of stages, each arm's to its end before the next arm's, and each arm's chain of stage names."""
    if not params.arms:
        raise TraitError("training.arms is empty: name at least one arm, for instance raw: [in_domain].")
    texts = {name: _texts_digest(name, sources) for name in sorted(named_sources(params))}
    tuned_on = _pairs_digest(problems) if params.fine_tune_epochs else ""
    shape, shared = parameters.shape(params), [code_digest("trait_kit.training.worker", without=WATCHING), held_out_digest]
    plan: dict[str, Stage] = {}
    chains: dict[str, list[str]] = {}
    tuned: dict[str, list[str]] = {}
    for arm, mixtures in [*([("base", [])] if tuned_on else []), *params.arms.items()]:
        chain: list[Stage] = []
        for parts in _grouped(params, mixtures):
            chain.append(_stage(params, shape, parts, texts, chain[-1] if chain else None, [base_digest, *shared]))
        _add(plan, chains, arm, chain)
        if tuned_on:
            chain = [*chain, _tuning(params, shape, chain[-1] if chain else None, [base_digest, tuned_on, *shared])]
            _add(plan, tuned, f"{arm}_{FINE_TUNED}", chain)
    return list(plan.values()), {arm: chain for arm, chain in (chains | tuned).items() if chain}


def stage_key(shape: Mapping[str, Any], *facts: Any) -> str:
    """Digest of the parameters that shape a stage (`shape`, less what the plan has used) and of its other facts."""
    return digest([{name: value for name, value in shape.items() if name not in PLANNED}, *facts])


def named_sources(params: TrainingParams) -> set[str]:
    """Every source that an arm reads, replayed text included."""
    return {
        source
        for mixtures in params.arms.values()
        for mixture, replay in zip(mixtures, _replay(params), strict=True)
        for source in sources_of(mixture, replay)
    }


def _add(plan: dict[str, Stage], chains: dict[str, list[str]], arm: str, chain: list[Stage]) -> None:
    chains[arm] = [stage.name for stage in chain]
    for stage in chain:
        known = plan.setdefault(stage.name, stage)
        known.arms.append(arm)
        known.ends_arm |= stage is chain[-1]


def _replay(params: TrainingParams) -> list[float]:
    return params.replay or [0.0] * len(params.stage_tokens)


def _grouped(params: TrainingParams, mixtures: Sequence[str]) -> list[list[Part]]:
    """The parts of each stage of an arm: one, or all of them where there is one schedule."""
    parts = []
    for mixture, replay, budget in zip(mixtures, _replay(params), params.stage_tokens, strict=bool(mixtures)):
        steps = budget // params.tokens_per_batch
        parts.append(Part("+".join(sorted(mixture.split("+"))), replay, steps, steps * params.tokens_per_batch))
    return [[part] for part in parts] if params.schedule == "per_stage" or not parts else [parts]


def _stage(
    params: TrainingParams,
    shape: Mapping[str, Any],
    parts: list[Part],
    digests: Mapping[str, str],
    parent: Stage | None,
    facts: list[Any],
) -> Stage:
    named = [sources_of(part.mixture, part.replay) for part in parts]
    texts = {source: digests[source] for sources in named for source in sources}
    together = params.schedule == "one_stage"
    read = [[part.mixture, part.replay, part.tokens] for part in parts]
    stage = _after(parent, stage_key(shape, parent.key if parent else "", read, together, texts, *facts), sorted(texts))
    stage.places = len(params.stage_tokens) if len(parts) == 1 else 1
    stage.mixture = "+".join(sorted(texts)) if together else " → ".join("+".join(sources) for sources in named)
    stage.texts, stage.parts, stage.together = texts, parts, together
    stage.tokens_per_batch, stage.learning_rate = params.tokens_per_batch, params.learning_rate
    stage.steps, stage.tokens = sum(part.steps for part in parts), sum(part.tokens for part in parts)
    return stage


def _tuning(params: TrainingParams, shape: Mapping[str, Any], parent: Stage | None, facts: list[Any]) -> Stage:
    batch = params.fine_tune_tokens_per_batch or params.tokens_per_batch
    rate = params.fine_tune_learning_rate
    shape = {**shape, "learning_rate": rate, "decay_fraction": None, "tokens_per_batch": batch, "max_epochs": None}
    stage = _after(parent, stage_key(shape, parent.key if parent else "", params.fine_tune_epochs, *facts), [FINE_TUNED])
    stage.places, stage.mixture, stage.epochs = stage.place, PROBLEMS, params.fine_tune_epochs
    stage.tokens_per_batch, stage.learning_rate = batch, rate
    return stage


def _after(parent: Stage | None, key: str, reads: list[str]) -> Stage:
    """A stage that begins where its parent ends."""
    place, before = 1, 0
    if parent:
        place = parent.place + (1 if parent.together else len(parent.parts))
        before = parent.tokens_before + parent.tokens
    name = f"{place}-{'+'.join(reads)}-{key[:12]}"
    return Stage(name=name, key=key, parent=parent.name if parent else None, place=place, tokens_before=before)


def _texts_digest(name: str, sources: Mapping[str, Path]) -> str:
    if name not in sources:
        given = ", ".join(sorted(sources)) or "none"
        raise TraitError(f"training.arms names the source '{name}', but only {given} were given.")
    if not sources[name].is_file():
        raise TraitError(f"training: {sources[name]} does not exist. Run the step that writes it first.")
    return sha256(sources[name])


def _pairs_digest(problems: Sequence[tuple[str, str]]) -> str:
    """Digest of the (prompt, target) pairs to fine-tune on; TraitError where there are none."""
    if not problems:
        raise TraitError("training: fine_tune_epochs is set, but there are no train problems. Set it to 0, or add a task.")
    for prompt, target in problems:
        if not (prompt.strip() and target.strip()):
            raise TraitError(f"training: a train problem has an empty prompt or target (prompt {prompt[:80]!r}).")
    return digest(list(problems))
