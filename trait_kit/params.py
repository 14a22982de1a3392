"""One pydantic model a notebook: every knob, its meaning, its limits, and checks across knobs.

An experiment is one YAML file with a `common` section and one section a notebook. A notebook receives the flat union
`{**common, **section}` from papermill; the same union is validated before papermill starts and again in the notebook's
second cell, so a misspelt or impossible value stops a run before any time is spent.
Defaults exist only where one value is right for every domain; whatever describes the experiment must be written down.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trait_kit.engine.files import TraitError

Method = Literal["random", "dsir", "fasttext", "fasttext+educational"]
Budget = int  # tokens of the base model's tokenizer
PositiveFloat = Field(gt=0)


class Common(BaseModel):
    """Knobs that every notebook shares."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    run_dir: str = Field(min_length=1)  # folder of this run; relative to the project's root
    seed: int = Field(0, ge=0)  # of every random choice in the run
    in_domain: str  # the scarce in-domain documents: demo:..., hf:owner/name, or files (see data/corpus.py)
    web: str  # the general corpus to mine: the same forms
    tasks: list[str] = Field(min_length=1)  # downstream tasks: names of shipped task files, or paths of your own
    test_items_per_task: int = Field(gt=0)  # test problems of each task: scored by 05, kept out of training by 02 and 03
    base_model: str  # demo:smollm2-135m, a local folder, or a hub id; its tokenizer counts all tokens


class TeacherParams(Common):
    """The endpoint that a notebook may ask: 01 for ratings, 03 for passages, 05 for its judge."""

    teacher_model: str = ""  # name the endpoint expects
    teacher_base_url: str = ""  # for instance http://127.0.0.1:8000/v1; several servers of the model: separate with commas
    teacher_serve: Literal["", "vllm", "transformers"] = ""  # instead of an address: the kit starts this server itself
    teacher_key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key; never the key itself
    teacher_concurrency: int = Field(8, ge=1)  # requests in flight at each address
    teacher_timeout: float = Field(120.0, gt=0)  # seconds a request
    teacher_max_tokens: int = Field(4_096, ge=1)  # of an answer, thinking aloud included
    teacher_temperature: float | None = Field(None, ge=0, le=2)  # None: the endpoint's own
    prices: str = "params/prices.yaml"  # what models cost; at an address outside your network the model must be listed
    max_cost_usd: float = Field(0.0, ge=0)  # stop asking before this is passed; 0 agrees only to what costs nothing

    @model_validator(mode="after")
    def _one_address(self) -> TeacherParams:
        if self.teacher_serve and self.teacher_base_url:
            raise ValueError("teacher_serve starts a server of its own, so leave teacher_base_url empty (or the other way)")
        return self

    def _require_endpoint(self, chosen: str) -> None:
        if not (self.teacher_model and (self.teacher_base_url or self.teacher_serve)):
            raise ValueError(f"{chosen}, so teacher_model and teacher_base_url must be set (or teacher_serve)")


class ClassifierParams(TeacherParams):
    """01: the fastText domain classifier and the educational-value model (paper, section 3.1)."""

    negatives_per_positive: int = Field(10, ge=1)  # general documents sampled for one in-domain document
    held_out_fraction: float = Field(0.2, gt=0, lt=0.9)  # of the labelled documents, for the precision-recall curve
    min_documents: int = Field(20, ge=2)  # fewest documents a side that are worth training on
    dimension: int = Field(16, ge=1)  # of the word vectors; folding makes scoring cost independent of it
    epochs: int = Field(25, ge=1)  # passes over the labelled documents
    learning_rate: float = Field(0.5, gt=0)  # of fastText, falling linearly to 0
    word_ngrams: int = Field(2, ge=1, le=5)  # words, pairs, ... up to this many words
    buckets: int = Field(200_000, ge=1_000)  # hashed n-gram rows
    educational_source: Literal["weak", "llm", "model"] = "weak"  # a rule, LLM ratings, or a ready model
    educational_sample: int = Field(2_000, ge=60)  # web documents given Low/Mid/High labels to train on
    educational_ratings: int = Field(0, ge=0)  # llm: most documents of the sample that are rated; 0 means all
    educational_model: str = ""  # model: a fastText .bin, or hf:owner/name/file.bin on the hub
    educational_normalisation: Literal["none", "words-1"] = "none"  # model: what it was trained on; words-1: the kit's own

    def training_options(self) -> dict[str, Any]:
        """What both models are trained with, by the names of `selection.classifier`'s functions."""
        names = (
            "seed",
            "dimension",
            "epochs",
            "learning_rate",
            "word_ngrams",
            "buckets",
            "held_out_fraction",
            "min_documents",
        )
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _educational(self) -> ClassifierParams:
        if self.educational_source == "llm":
            self._require_endpoint("educational_source is llm")
        if self.educational_source == "model" and not self.educational_model:
            raise ValueError("educational_source is model, so educational_model must name a fastText .bin")
        return self


class SelectionParams(Common):
    """02: score every web document once, then choose by token budget (paper, section 3.1)."""

    token_budget: Budget = Field(gt=0)  # tokens that each method selects, to within one document
    methods: list[Method] = Field(min_length=1)  # compared at the same budget
    min_educational: float = Field(1.0, ge=0, le=2)  # fasttext+educational keeps documents scored at least this
    min_tokens: int = Field(20, ge=1)  # shorter documents are dropped, counted
    max_tokens: int = Field(4_096, ge=1)  # longer ones too
    near_duplicate: float = Field(0.8, ge=0, le=1)  # texts this similar (Jaccard, word 5-grams) are kept once; 0 keeps all
    token_counts: Literal["all", "candidates"] = "all"  # counted by the tokenizer for all web text, or estimated at first
    documents_per_shard: int = Field(5_000, ge=1)  # the unit of work and of resume
    executor: Literal["local", "ray", "slurm"] = "local"  # what runs the shards; a cluster needs a folder that all nodes see
    workers: int = Field(1, ge=1)  # processes that score shards; a single local one is the notebook's own
    slurm_partition: str = ""  # slurm: where to run
    slurm_time: str = "20:00:00"  # slurm: limit of one task
    max_quarantined: float = Field(0.01, ge=0, le=1)  # share of documents that may be unreadable before the step fails

    @model_validator(mode="after")
    def _lengths(self) -> SelectionParams:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})")
        if len(set(self.methods)) != len(self.methods):
            raise ValueError("methods names one method twice")
        if self.executor == "slurm" and not self.slurm_partition:
            raise ValueError("executor is slurm, so slurm_partition must be set")
        return self


class PassageParams(TeacherParams):
    """03: task-oriented passages: problems, a paragraph for each, an enlightenment paragraph (paper, section 3.2)."""

    grouping: Literal["knowledge", "entity"]  # what the problems of a passage share
    # Where it is found: field (the task file's topic or entity), text (entity: a name that stands in the question),
    # concepts (knowledge: of mathematics, recognised), teacher (knowledge: topics it is asked for), embedding (neighbours)
    shared_from: Literal["field", "text", "concepts", "teacher", "embedding"] = "field"
    problems_per_task: int = Field(gt=0)  # training problems taken from each task
    n_groups: int = Field(gt=0)  # passages asked for
    problems_per_group: int = Field(3, ge=2, le=8)  # each from a different task
    max_uses: int = Field(2, ge=1)  # passages that one problem may appear in
    entity_names: str = ""  # text: a file with one name a line, beside the entities that the problems have
    embedding_model: str = "demo:all-minilm-l6-v2"  # of problems and passages: a local folder or hub id
    max_similarity: float = Field(0.9, gt=0, le=1)  # embedding: problems more alike than this (cosine) are not joined
    # full, or an ablation: no_enlightenment, single_task (all problems of one task), pairs (questions with bare answers),
    # no_gold_checks (nothing compares a paragraph with its problem and answer)
    variant: Literal["full", "no_enlightenment", "single_task", "pairs", "no_gold_checks"] = "full"
    teacher: Literal["offline", "openai"] = "offline"  # offline composes from gold solutions; openai asks an LLM
    prompt: str = ""  # a Jinja template of your own (its path) instead of the kit's
    max_attempts: int = Field(1, ge=1)  # times that a group is asked for, as long as its passage is rejected
    min_passage_tokens: int = Field(60, ge=1)  # shorter passages are rejected
    max_passage_tokens: int = Field(1_024, ge=1)  # longer passages are rejected
    paraphrase_similarity: float = Field(0.0, ge=0, le=1)  # passages that say the same (cosine) are kept once; 0: all are
    groups_per_shard: int = Field(1_000, ge=1)  # with several workers: the unit of work and of resume
    executor: Literal["local", "ray", "slurm"] = "local"  # what asks; a cluster needs a folder that all nodes see
    workers: int = Field(1, ge=1)  # processes, each with teacher_concurrency; a single local one is the notebook's own
    slurm_partition: str = ""  # slurm: where to run
    slurm_time: str = "20:00:00"  # slurm: limit of one task

    @model_validator(mode="after")
    def _teacher(self) -> PassageParams:
        if self.teacher == "openai":
            self._require_endpoint("teacher is openai")
        if self.min_passage_tokens >= self.max_passage_tokens:
            raise ValueError("min_passage_tokens must be smaller than max_passage_tokens")
        needed = {"field": self.grouping, "text": "entity"}.get(self.shared_from, "knowledge")
        if self.grouping != needed:
            raise ValueError(f"shared_from is {self.shared_from}, so grouping must be {needed}")
        if self.shared_from == "teacher":
            self._require_endpoint("shared_from is teacher")
        if self.prompt and not self.prompt.endswith(".jinja"):
            raise ValueError("prompt must be the path of a file that ends in .jinja")
        if self.executor == "slurm" and not self.slurm_partition:
            raise ValueError("executor is slurm, so slurm_partition must be set")
        return self


class TrainingParams(Common):
    """04: two-stage continual pre-training (paper, section 3.3 and appendix)."""

    # arm -> its stages; a stage is a '+'-joined mixture of in_domain, passages, and selection methods (random, dsir, ...).
    # Arms whose first stages agree train them once.
    arms: dict[str, list[str]]
    stage_tokens: list[int] = Field(min_length=1)  # tokens of each stage, the same for all arms
    replay: list[float] = []  # part of each stage that is general text (the random selection), for instance [0.0, 0.05]
    max_epochs: float = Field(0.0, ge=0)  # passes over a source in an arm, where its stage has others to go on with; 0: any
    schedule: Literal["per_stage", "across_stages", "one_stage"] = "per_stage"  # one_stage: texts mixed
    context_length: int = Field(512, ge=16)  # tokens a packed row
    tokens_per_batch: int = Field(1_024, ge=16)  # tokens an optimizer step
    rows_per_device: int = Field(1, ge=0)  # micro-batch; accumulation makes up tokens_per_batch; 0: as many as fit
    learning_rate: float = Field(2e-5, gt=0)  # maximum of the WSD schedule
    warmup_fraction: float = Field(0.03, ge=0, lt=1)  # of each stage, linear
    decay_fraction: float = Field(0.10, ge=0, lt=1)  # exponential decay over this last part
    weight_decay: float = Field(0.1, ge=0)  # of AdamW
    max_gradient_norm: float = Field(1.0, gt=0)  # gradients are clipped to this
    max_loss_rise: float = Field(3.0, ge=0)  # nats above the recent median, three steps on end, stop the run; 0: never
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the hardware multiplies it fast
    evaluations_per_stage: int = Field(3, ge=1)  # held-out scores in each stage, evenly spaced in tokens
    held_out_items: int = Field(12, ge=1)  # validation problems, and documents of each kind, in those scores
    task_scores_per_stage: int = Field(0, ge=0)  # scores of the tasks' validation problems in each stage; 0: none
    checkpoint_tokens: int = Field(0, ge=0)  # tokens between checkpoints within a stage; 0: only its end
    checkpoint_minutes: float = Field(0.0, ge=0)  # minutes between checkpoints; 0: by tokens only
    checkpoints_kept: int = Field(2, ge=1)  # of the stage that is being trained
    accelerate_config: str = ""  # an accelerate YAML for several GPUs or nodes; empty: one process
    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"  # auto: flash attention where it is installed
    activation_checkpointing: Literal["auto", "always", "never"] = "auto"  # auto: where memory would not do without
    compile_layers: bool = False  # torch.compile of each layer: minutes at the start, then faster
    fused_loss: bool = False  # Liger's kernels: no logits in memory; needs liger-kernel and CUDA
    lora_rank: int = Field(0, ge=0)  # train low-rank adapters and merge them after each stage; 0: all weights
    price_per_gpu_hour: float = Field(0.0, ge=0)  # for the cost in progress and report, in any currency
    report_to: Literal["none", "tensorboard"] = "none"  # also log to runs/.../tensorboard
    fine_tune_epochs: int = Field(0, ge=0)  # passes over the tasks' train problems, into a second model an arm; 0: none
    fine_tune_learning_rate: float = Field(5e-6, gt=0)  # maximum of its cosine schedule
    fine_tune_tokens_per_batch: int = Field(0, ge=0)  # 0: as tokens_per_batch
    fine_tune_problems: int = Field(1_000, ge=1)  # train problems of each task, at most

    @model_validator(mode="after")
    def _arms(self) -> TrainingParams:
        sources = {"in_domain", "passages", "random", "dsir", "fasttext", "fasttext_educational"}
        if "base" in self.arms:
            raise ValueError("arms: 'base' is the untrained model and always there; leave it out")
        taken = [arm for arm in self.arms if arm.endswith("_fine_tuned")] if self.fine_tune_epochs else []
        if taken:
            raise ValueError(f"arms: {taken[0]} ends like the arms that fine_tune_epochs adds; choose another name")
        for arm, stages in self.arms.items():
            if len(stages) != len(self.stage_tokens):
                raise ValueError(
                    f"arms: {arm} has {len(stages)} stage(s), but stage_tokens has {len(self.stage_tokens)}: they must agree"
                )
            for source in {source for stage in stages for source in stage.split("+")}:
                if source not in sources:
                    raise ValueError(f"arms: {arm} names the source '{source}'{_suggest(source, sources)}")
        rows = max(1, self.rows_per_device)
        for field in ("tokens_per_batch", "fine_tune_tokens_per_batch"):
            if getattr(self, field) % (self.context_length * rows):
                raise ValueError(
                    f"{field} ({getattr(self, field)}) must be a multiple of context_length x rows_per_device "
                    f"({self.context_length} x {rows})"
                )
        if self.replay and len(self.replay) != len(self.stage_tokens):
            raise ValueError(f"replay has {len(self.replay)} fraction(s), but there are {len(self.stage_tokens)} stage(s)")
        if any(not 0 <= fraction < 1 for fraction in self.replay):
            raise ValueError(f"replay ({self.replay}): each fraction must be at least 0 and below 1")
        if self.lora_rank and self.accelerate_config:
            raise ValueError("lora_rank trains on one device: leave accelerate_config empty")
        for tokens in self.stage_tokens:
            if tokens < self.tokens_per_batch:
                raise ValueError(
                    f"stage_tokens ({tokens}) is less than one batch (tokens_per_batch = {self.tokens_per_batch})"
                )
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError("warmup_fraction + decay_fraction is more than 1")
        return self


class EvaluationParams(TeacherParams):
    """05: every arm on the tasks' held-out problems, and what it forgot."""

    general_documents: int = Field(60, ge=1)  # held-out general documents, for forgetting
    in_domain_documents: int = Field(30, ge=1)  # held-out in-domain documents
    few_shot: int = Field(0, ge=0)  # worked examples before each problem
    generate_items: int = Field(0, ge=0)  # problems of each task answered by generation and marked exactly; slow on CPU
    max_new_tokens: int = Field(192, ge=1)  # of a generated answer
    likelihood: bool = True  # bits per byte, choices and documents; false where an endpoint gives no log-probabilities
    general_tasks: list[str] = []  # lm-eval tasks by name (hellaswag, arc_easy, ...) or YAML path, for forgetting
    general_items: int = Field(200, ge=1)  # items of each general task
    backend: Literal["transformers", "vllm", "endpoint"] = "transformers"  # what runs the models
    endpoint_url: str = ""  # endpoint: for instance http://127.0.0.1:8000/v1
    endpoint_model: str = ""  # endpoint: the name it expects, for instance 'mine-{arm}'; with the tokenizer of base_model
    endpoint_version: int = Field(1, ge=1)  # endpoint: raise when another model is served under the same name
    endpoint_key_variable: str = "OPENAI_API_KEY"  # endpoint: environment variable that holds the key; never the key itself
    endpoint_timeout: float = Field(120.0, ge=1)  # endpoint: seconds a request
    batch_size: int = Field(8, ge=1)  # sequences scored at once; of an endpoint, requests in flight
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # as in training
    confidence: float = Field(0.95, gt=0.5, lt=1)  # of every interval
    reference_arm: str = "trait"  # paired tests compare every other arm with this one
    judge_items: int = Field(0, ge=0)  # generated ads of each task that a language model compares with the reference arm's

    @model_validator(mode="after")
    def _something_to_ask(self) -> EvaluationParams:
        if self.judge_items:
            self._require_endpoint("judge_items is set")
        if self.judge_items > self.generate_items:
            raise ValueError("judge_items must not be larger than generate_items, which writes the texts")
        if self.backend == "endpoint" and not (self.endpoint_url and self.endpoint_model):
            raise ValueError("backend is endpoint, so endpoint_url and endpoint_model must be set")
        if not (self.likelihood or self.generate_items):
            raise ValueError("likelihood is false, so generate_items must be above 0")
        return self


class FigureParams(Common):
    """06: the paper's figures and tables, and one report."""

    map_documents: int = Field(400, ge=10)  # documents of each kind on the map
    embedding_model: str = "demo:all-minilm-l6-v2"  # a sentence-embedding model: local folder or hub id
    umap_neighbors: int = Field(30, ge=2)  # larger: global structure; smaller: local detail
    umap_min_dist: float = Field(0.3, ge=0, le=1)  # how tightly points may pack
    curve_arms: list[str] = Field(["selected", "trait"], min_length=1)  # arms on the score-against-tokens figure
    title: str = "TRAIT experiment"  # heading of the report


SECTIONS: dict[str, type[Common]] = {
    "classifier": ClassifierParams,
    "selection": SelectionParams,
    "passages": PassageParams,
    "training": TrainingParams,
    "evaluation": EvaluationParams,
    "figures": FigureParams,
}


class Experiment(BaseModel):
    """A whole experiment file: `common` and one section a notebook, each already merged with `common`."""

    model_config = ConfigDict(extra="forbid")

    classifier: ClassifierParams
    selection: SelectionParams
    passages: PassageParams
    training: TrainingParams
    evaluation: EvaluationParams
    figures: FigureParams

    @model_validator(mode="after")
    def _sections_agree(self) -> Experiment:
        available = {"in_domain", "passages"} | {method_folder(method) for method in self.selection.methods}
        for arm, stages in self.training.arms.items():
            replayed = {"random"} if any(self.training.replay) else set()
            for source in ({source for stage in stages for source in stage.split("+")} | replayed) - available:
                raise ValueError(f"training.arms: {arm} trains on '{source}', but selection.methods does not produce it")
        arms = {"base", *self.training.arms}
        if self.training.fine_tune_epochs:
            arms |= {f"{arm}_fine_tuned" for arm in arms}
        for field, names in (
            ("evaluation.reference_arm", [self.evaluation.reference_arm]),
            ("figures.curve_arms", self.figures.curve_arms),
        ):
            for name in names:
                if name not in arms:
                    raise ValueError(f"{field} names the arm '{name}', but training.arms has {', '.join(sorted(arms))}")
        return self


def method_folder(method: str) -> str:
    """The name of a selection method in file names and in training.arms ('+' joins sources there)."""
    return method.replace("+", "_")


def load(path: Path | str, overrides: list[str] | None = None, run_dir: str | None = None) -> Experiment:
    """Read and validate an experiment file; `overrides` are 'section.field=value' with YAML values."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TraitError(f"{path} does not exist. The shipped experiments are in params/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraitError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise TraitError(f"{path}: expected the sections common, {', '.join(SECTIONS)}.")
    for override in overrides or []:
        key, equals, value = override.partition("=")
        section, dot, field = key.strip().partition(".")
        if not (equals and dot):
            raise TraitError(f"--set {override}: write it as section.field=value, for instance training.learning_rate=1e-5.")
        raw.setdefault(section, {})
        raw[section] = {**(raw[section] or {}), field: yaml.safe_load(value)}
    if run_dir:
        raw["common"] = {**(raw.get("common") or {}), "run_dir": run_dir}
    return parse(raw, origin=str(path))


def parse(raw: dict[str, Any], origin: str) -> Experiment:
    """Validate the sections of an experiment; errors name the file, the section, the field and a near name."""
    known = {"common", *SECTIONS}
    for name, value in raw.items():
        if name not in known:
            raise TraitError(f"{origin}: unknown section '{name}'{_suggest(name, known)}")
        if not isinstance(value, dict):
            raise TraitError(f"{origin}: section '{name}' must be a mapping of fields to values.")
    common = raw.get("common", {})
    for field in common:
        if field not in Common.model_fields:
            raise TraitError(f"{origin}, section common: unknown field '{field}'{_suggest(field, Common.model_fields)}")
    sections = {name: validate(name, {**common, **raw.get(name, {})}, f"{origin}, section {name}") for name in SECTIONS}
    try:
        return Experiment(**sections)
    except ValidationError as error:
        raise TraitError(f"{origin}: {_first(error)}") from None


def validate(section: str, values: dict[str, Any], origin: str) -> Common:
    """Validate one notebook's flat parameters (also turns the string '1e-4', which YAML 1.1 leaves a string, into 1e-4)."""
    model = SECTIONS[section]
    try:
        return model(**values)
    except ValidationError as error:
        messages = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                messages.append(f"unknown field '{field}'{_suggest(field, model.model_fields)}")
            elif item["type"] == "missing":
                messages.append(f"the field '{field}' is missing; add it to this section or to common")
            else:
                messages.append(f"{field}: {_message(item)}" if field else _message(item))
        raise TraitError(f"{origin}: " + "; ".join(messages)) from None


def _first(error: ValidationError) -> str:
    return _message(error.errors()[0])


def _message(item: Any) -> str:
    got = "" if item["type"] == "value_error" else f" (got {item['input']!r})"
    return item["msg"].removeprefix("Value error, ") + got


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}."
