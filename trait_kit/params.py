"""An experiment: its file, a section a notebook, and every knob with its meaning, its limits, and checks across knobs.

One YAML file with a `common` section and one section a notebook is the only source of values. It is validated before
anything starts, and again in a notebook's second cell: a wrong value stops a run before any time is spent. Defaults exist
only where one value is right for every domain. What a knob does to a result is said once, on the knob.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from trait_kit.engine import mixtures
from trait_kit.engine.files import TraitError

# Sources of training text from notebook 03, read whole: passages, and what they have to beat (passages/controls.py).
WRITTEN = ("passages", "worked", "worked_same", "rephrased", "no_enlightenment", "permuted", "unrelated")
SPECIAL_TOKENS = 2  # a text's end token, and the begin token of some families of models
Method = Literal["random", "dsir", "fasttext", "fasttext_educational"]


def knob(default: Any = ..., *, shapes: bool = True, reads: str = "", steps: str = "", **limits: Any) -> Any:
    """A field of the experiment.

    `shapes`: whether another value could give another result (the number of workers could not). `reads`: the kind of input
    that it names, known by content: documents, tasks, model or file. `steps`: the sections that use it, if others too.
    """
    return Field(default, json_schema_extra={"shapes": shapes, "reads": reads, "steps": steps}, **limits)


def shape(experiment: Experiment, section: str) -> dict[str, Any]:
    """The knobs that shape the result of a section's step: its own, and those of other sections that it uses too."""
    found: dict[str, Any] = {}
    for name in (section, *SECTIONS):
        for field, info in SECTIONS[name].model_fields.items():
            said = info.json_schema_extra or {}
            if said.get("shapes", True) and section in (said.get("steps") or name).split():
                found.setdefault(field, getattr(getattr(experiment, name), field))
    return found


class Agreeing(BaseModel):
    """Values that have to fit each other, too; all that do not are told at once."""

    model_config = ConfigDict(extra="forbid")

    def wrong(self) -> Iterator[str]:
        yield from ()

    @model_validator(mode="after")
    def _agree(self) -> Agreeing:
        if told := "; ".join(self.wrong()):
            raise ValueError(told)
        return self


class Common(Agreeing):
    """Knobs that several notebooks share."""

    seed: int = knob(0, ge=0)  # of every random choice in the run
    # The scarce in-domain documents: demo:..., hf:owner/name, or files (see docs/own_domain.md)
    in_domain: str = knob(reads="documents", steps="classifier selection training evaluation figures")
    # The general corpus to mine: the same forms
    web: str = knob(reads="documents", steps="classifier selection training evaluation figures")
    # Downstream tasks: names of shipped task files, or paths of your own
    tasks: list[str] = knob(reads="tasks", min_length=1)
    # Test problems of each task: scored by 05, kept out of training by 01 to 03
    test_items_per_task: int = knob(gt=0)
    # demo:smollm2-135m, a local folder, or a hub id; its tokenizer counts all tokens
    base_model: str = knob(reads="model", steps="selection passages training evaluation")
    # A sentence-embedding model, for neighbours and the map: the same forms
    embedding_model: str = knob("demo:all-minilm-l6-v2", reads="model", steps="passages figures")


class TeacherParams(Common):
    """The endpoint that a notebook may ask: 01 for ratings, 03 for passages. Its key is in the variable OPENAI_API_KEY."""

    teacher: Literal["local", "openai", "none"] = "local"  # a small model on this machine; any endpoint; nobody is asked
    teacher_model: str = ""  # name the endpoint expects
    teacher_base_url: str = knob("", shapes=False)  # http://127.0.0.1:8000/v1, or a load balancer's
    teacher_serve: str = knob("", shapes=False)  # instead: what starts a server, "vllm serve Qwen/Qwen3-32B"
    teacher_concurrency: int = knob(8, shapes=False, ge=1)  # requests in flight
    teacher_max_tokens: int = knob(1_024, ge=1)  # of an answer, thinking aloud included
    teacher_extra: dict[str, Any] = {}  # more fields of a request's body: temperature, seed, stop, thinking off
    max_cost_usd: float = knob(0.0, shapes=False, ge=0)  # never passed; 0 agrees only to what costs nothing

    def wrong(self) -> Iterator[str]:
        addressed = self.teacher_model and bool(self.teacher_base_url) != bool(self.teacher_serve)
        if self.teacher == "openai" and not addressed:
            yield "teacher is openai, so set teacher_model and teacher_base_url (or teacher_serve instead)"


class ClassifierParams(TeacherParams):
    """01: the fastText domain classifier and the educational-value model (paper, section 3.1)."""

    negatives_per_positive: int = knob(10, ge=1)  # general documents sampled for one in-domain document
    dimension: int = knob(16, ge=1)  # of the word vectors; folding makes scoring cost independent of it
    epochs: int = knob(25, ge=1)  # passes over the labelled documents
    learning_rate: float = knob(0.5, gt=0)  # of fastText, falling linearly to 0
    buckets: int = knob(200_000, ge=1_000)  # hashed n-gram rows
    teacher: Literal["local", "openai", "none"] = "none"  # who rates educational value; the demo's web brings its labels
    educational_sample: int = knob(2_000, ge=60)  # web documents rated, to train on


class SelectionParams(Common):
    """02: score every web document once, then choose by token budget (paper, section 3.1)."""

    token_budget: int = knob(gt=0)  # tokens of the base model's tokenizer that each method selects
    methods: list[Method] = knob(min_length=1, steps="classifier selection")  # compared at the same budget
    min_educational: float = knob(1.0, ge=0, le=2)  # fasttext_educational keeps documents scored at least this
    min_tokens: int = knob(20, ge=1)  # shorter documents are dropped, counted
    max_tokens: int = knob(4_096, ge=1)  # longer ones too
    near_duplicate: float = knob(0.8, ge=0, le=1)  # texts this alike (Jaccard, word 5-grams) are kept once; 0: all
    documents_per_shard: int = knob(5_000, ge=1)  # the unit of work and of resume
    executor: Literal["local", "ray", "slurm"] = knob("local", shapes=False)  # a cluster needs a shared folder
    workers: int = knob(1, shapes=False, ge=1)  # processes that score shards
    slurm: dict[str, str] = knob({}, shapes=False)  # partition, time, qos, ... as datatrove names them
    max_quarantined: float = knob(0.01, ge=0, le=1)  # share of documents that may be unreadable

    def wrong(self) -> Iterator[str]:
        if self.min_tokens > self.max_tokens:
            yield f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})"
        if self.executor == "slurm" and "partition" not in self.slurm:
            yield "executor is slurm, so slurm must name a partition, for instance slurm: {partition: cpu}"


class PassageParams(TeacherParams):
    """03: task-oriented passages: problems, a paragraph for each, an enlightenment paragraph (paper, section 3.2)."""

    # What its problems share: topic or entity, as the task files say; or a topic found for them: concepts of mathematics in
    # the question, what the teacher says, or neighbours by embedding
    grouping: Literal["topic", "entity", "concepts", "teacher", "embedding"]
    problems_per_task: int = knob(gt=0)  # training problems taken from each task
    n_groups: int = knob(gt=0)  # passages asked for
    problems_per_group: int = knob(3, ge=2, le=8)  # of different tasks as far as they go round
    max_uses: int = knob(2, ge=1)  # passages that one problem may appear in
    # gold: worked solutions where there are any; teacher: it writes all; both: gold, the teacher's kept for a control
    paragraphs: Literal["gold", "teacher", "both"] = "gold"
    prompts: str = knob("", reads="file")  # your own wording: a YAML like passages/prompts/generic.yaml
    teacher_steps: Literal["sentences", "paragraph"] = "paragraph"  # enlightenment: a request a sentence, or one
    max_attempts: int = knob(3, ge=1)  # times that what fails a check is asked for
    max_passage_tokens: int = knob(1_024, ge=1)  # longer passages are rejected

    @property
    def kind(self) -> str:
        """What passages are centred on, in the paper's words."""
        return "entity" if self.grouping == "entity" else "knowledge"


class TrainingParams(Common):
    """04: two-stage continual pre-training (paper, section 3.3 and appendix)."""

    seed: int = knob(0, ge=0)  # common.seed unless set here: draws training text and its order alone
    items_seed: int = knob(0, shapes=False, exclude=True)  # common.seed: draws documents and items
    # arm -> its stages, each a mixture: in_domain+15*random. Sources: in_domain, selection methods, what is in WRITTEN.
    # Arms whose first stages agree train them once.
    arms: dict[str, list[str]] = knob(min_length=1)
    stage_tokens: list[int] = knob(min_length=1)  # of each stage, the same for all arms; empty slots count
    context_length: int = knob(1_536, ge=16)  # tokens a packed row; a passage is in it whole or not at all
    tokens_per_batch: int = knob(1_536, ge=16)  # tokens an optimizer step
    rows_per_device: int = knob(1, shapes=False, ge=0)  # halved where memory runs out; 0: start with a batch
    learning_rate: float = knob(2e-5, gt=0)  # maximum of the WSD schedule
    warmup_fraction: float = knob(0.03, ge=0, lt=1)  # of each stage, linear
    decay_fraction: float = knob(0.10, ge=0, lt=1)  # exponential decay over this last part
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: the faster one, by measuring this machine
    evaluations_per_stage: int = knob(3, ge=1)  # held-out scores in each stage, evenly spaced in tokens
    held_out_items: int = knob(12, ge=1)  # validation problems, and documents of each kind, in those scores
    task_scores: bool = False  # also score the choices of the tasks' validation problems, as often
    checkpoint_minutes: float = knob(0.0, shapes=False, ge=0)  # between checkpoints within a stage; 0: its end
    accelerate_config: str = knob("", shapes=False)  # a YAML for several GPUs or nodes; empty: one process
    activation_checkpointing: bool = knob(False, shapes=False)  # a third more time, less memory
    fine_tune_epochs: int = knob(0, ge=0)  # over the tasks' train problems, a second model an arm; 0: none
    fine_tune_learning_rate: float = knob(5e-6, gt=0)  # maximum of its cosine schedule
    fine_tune_tokens_per_batch: int = knob(0, ge=0)  # 0: as tokens_per_batch

    @property
    def sources(self) -> set[str]:
        """Every source that an arm reads."""
        return {source for stages in self.arms.values() for stage in stages for source in mixtures.weights(stage)}

    def wrong(self) -> Iterator[str]:
        for arm, stages in self.arms.items():
            if arm == "base" or arm.endswith("_fine_tuned"):
                yield f"arms: '{arm}' is named like the untrained or a fine-tuned model; rename it"
            if len(stages) != len(self.stage_tokens):
                yield f"arms: {arm} has {len(stages)} stage(s), but stage_tokens has {len(self.stage_tokens)}"
        row, rows = self.context_length, max(1, self.rows_per_device)
        for name in ("tokens_per_batch", "fine_tune_tokens_per_batch"):
            if (size := getattr(self, name)) % (row * rows):
                yield f"{name} ({size}) must be a multiple of context_length x rows_per_device ({row} x {rows})"
        if (fewest := min(self.stage_tokens)) < self.tokens_per_batch:
            yield f"stage_tokens ({fewest}) is less than one batch (tokens_per_batch = {self.tokens_per_batch})"
        if self.warmup_fraction + self.decay_fraction > 1:
            yield "warmup_fraction + decay_fraction is more than 1"


class EvaluationParams(Common):
    """05: every arm on the tasks' held-out problems, and what it forgot."""

    general_documents: int = knob(60, ge=1)  # held-out general documents, for forgetting
    in_domain_documents: int = knob(30, ge=1)  # held-out in-domain documents
    foreign_tasks: list[str] = knob([], reads="tasks")  # in no arm: text of another kind, to forget
    few_shot: NonNegativeInt | dict[str, NonNegativeInt] = 0  # worked examples before each problem; by task: {gsm8k: 8}
    generate_items: int = knob(0, ge=0)  # of each task, answered and marked exactly; slow on CPU
    max_new_tokens: int = knob(192, ge=1)  # of a generated answer
    general_tasks: list[str] = []  # lm-eval's, by name or YAML path, for forgetting
    endpoint_url: str = knob("", shapes=False)  # models on a server: http://127.0.0.1:8000/v1
    endpoint_model: str = ""  # the name it expects, such as 'mine-{arm}'
    batch_size: int = knob(8, shapes=False, ge=1)  # sequences scored at once; of an endpoint, in one request
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # as in training
    reference_arm: str = "trait"  # paired tests compare every other arm with this one
    control_arm: str = ""  # what it has to beat; empty: the first of worked, worked_same, selected, base
    # What decides, named before the run; where no task has it, bits of the answer stand for it, and the verdict says so
    main_metric: Literal["bits_per_number_token", "answer_bits_per_byte", "bits_per_byte", "prefers_gold"] = (
        "bits_per_number_token"
    )

    def wrong(self) -> Iterator[str]:
        if bool(self.endpoint_url) != bool(self.endpoint_model):
            yield "endpoint_url and endpoint_model go together; without both the models run here"


class FigureParams(Common):
    """06: the paper's figures and tables, and one report."""

    map_documents: int = knob(400, ge=10)  # documents of each kind on the map


class Experiment(Agreeing):
    """A whole experiment: one section a notebook, each merged with `common`."""

    classifier: ClassifierParams
    selection: SelectionParams
    passages: PassageParams
    training: TrainingParams
    evaluation: EvaluationParams
    figures: FigureParams

    def wrong(self) -> Iterator[str]:
        methods, passages, training = self.selection.methods, self.passages, self.training
        for source in training.sources.difference(("in_domain", *WRITTEN, *methods)):
            yield f"training.arms names the source '{source}', but selection.methods does not produce it"
        rated = self.classifier.teacher != "none" or self.classifier.web.startswith("demo:")
        if "fasttext_educational" in methods and not rated:
            yield (
                "selection.methods has fasttext_educational, a filter by ratings, but nobody rates: set classifier.teacher "
                "to local or openai, or take the method out (and write fasttext where training.arms names it)"
            )
        if passages.grouping == "teacher" and passages.teacher == "none":
            yield "passages.grouping is teacher, so one is asked: set passages.teacher to local or openai"
        arms = {"base", *training.arms}
        arms |= {f"{arm}_fine_tuned" for arm in arms if training.fine_tune_epochs}
        for name in ("reference_arm", "control_arm"):
            if (arm := getattr(self.evaluation, name)) and arm not in arms:
                yield f"evaluation.{name} names the arm '{arm}', but training.arms has {', '.join(sorted(arms))}"
        longest, row = passages.max_passage_tokens, training.context_length
        if training.sources & set(WRITTEN) and longest + SPECIAL_TOKENS > row:
            yield f"max_passage_tokens ({longest}) + {SPECIAL_TOKENS} must fit uncut into context_length ({row})"
        if "rephrased" in training.sources and passages.paragraphs != "both":
            yield "training.arms names 'rephrased', the teacher's wording, so passages.paragraphs must be both"


SECTIONS: dict[str, type[Common]] = {name: field.annotation for name, field in Experiment.model_fields.items()}
# A knob of an earlier version -> what to do without it
REMOVED = yaml.safe_load(Path(__file__).with_name("removed_knobs.yaml").read_text(encoding="utf-8"))


def run_folder(path: Path | str, run_dir: Path | str | None = None) -> Path:
    """Where an experiment runs: `run_dir`, or runs/<name of its file>; a run's own params.yaml belongs to that run."""
    path = Path(path).absolute()
    own = path.parent if path.name == "params.yaml" else Path("runs", path.stem)
    return Path(run_dir or own).absolute()


def load(path: Path | str, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read and validate an experiment file; `overrides` maps 'section.field' to a value."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraitError(f"{path} is no YAML file ({error}). The shipped experiments are in params/.") from None
    if not isinstance(raw, dict) or not all(isinstance(section, dict) for section in raw.values()):
        raise TraitError(f"{path}: expected the sections common, {', '.join(SECTIONS)}, each with fields and values.")
    for key, value in (overrides or {}).items():
        section, _, field = key.partition(".")
        raw[section] = {**raw.get(section, {}), field: value}
    return parse(raw, origin=str(path))


def read_overrides(texts: list[str] | None) -> dict[str, Any]:
    """The values of `--set section.field=value`; a value is YAML."""
    found = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not (equals and key.strip().partition(".")[2]):
            raise TraitError(f"--set {text}: write it as section.field=value, for instance training.learning_rate=1e-5.")
        found[key.strip()] = yaml.safe_load(value)
    return found


def parse(raw: dict[str, dict[str, Any]], origin: str) -> Experiment:
    """Validate an experiment (also turns the string '1e-4', which YAML 1.1 leaves a string, into 1e-4).

    Errors name the file, the section, the field and a near name.
    """
    common = raw.get("common", {})
    sections = {name: {**common, **raw.get(name, {})} for name in (*SECTIONS, *raw) if name != "common"}
    sections["training"].setdefault("items_seed", common.get("seed", 0))
    try:
        return Experiment(**sections)
    except ValidationError as error:
        told = dict.fromkeys(_message(item, common) for item in error.errors())
        raise TraitError(f"{origin}: {'; '.join(told)}") from None


def dump(experiment: Experiment) -> str:
    """The whole experiment as its file would say it, every default written out."""
    sections = experiment.model_dump()
    common = {field: sections["figures"][field] for field in Common.model_fields}
    own = {name: {k: v for k, v in values.items() if k not in common or v != common[k]} for name, values in sections.items()}
    return yaml.safe_dump({"common": common, **own}, sort_keys=False, allow_unicode=True)


def _message(item: Any, common: dict[str, Any]) -> str:
    """One of pydantic's findings in the words of the file."""
    section, *path = item["loc"] or ("",)
    field = ".".join(map(str, path))
    if item["type"] == "missing":
        return f"the field '{field}' is missing; add it to section {section} or to common"
    if item["type"] != "extra_forbidden":
        got = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
        return ": ".join(filter(None, (section, field, item["msg"].removeprefix("Value error, ") + got)))
    if not field:
        return f"unknown section '{section}'{_near(section, SECTIONS)}"
    section, known = ("common", Common) if field in common else (section, SECTIONS[section])
    return f"section {section}: unknown field '{field}'{_near(field, known.model_fields)}"


def _near(name: str, known: Collection[str]) -> str:
    if name in REMOVED:
        return f"; it is gone, so take the line out: {REMOVED[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}."
