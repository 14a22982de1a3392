"""An experiment: one YAML file with a `common` section and one a notebook, the only source of values.

All knobs, and what has to fit together, are checked before anything starts. What a knob means, its type, default and
limits are said once, in knobs.yaml; it has a default where one value is right for every domain.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, create_model, model_validator
from pydantic.types import NonNegativeFloat

from trait_kit.engine.files import TraitError, read_yaml

# sources of training text from notebook 03, read whole: passages and their controls
WRITTEN = ("passages", "worked", "worked_same", "rephrased", "no_enlightenment", "permuted", "unrelated")
SPECIAL_TOKENS = 2  # a text's end token, and some models' begin token
Method = Literal["random", "dsir", "fasttext", "fasttext_educational"]
Price = tuple[NonNegativeFloat, NonNegativeFloat] | None  # USD for a million tokens in and out
Shown = NonNegativeInt | dict[str, NonNegativeInt]  # worked examples, by task where it is a mapping
_KIT = {"shapes": True, "reads": "", "steps": ""}  # what the kit has to know of a knob
# REMOVED: of an earlier version -> what to do instead
_KNOBS, REMOVED = (read_yaml(Path(__file__).with_name(name)) for name in ("knobs.yaml", "removed_knobs.yaml"))


def _with_knobs(section: str, base: type[BaseModel]) -> Any:
    fields: dict[str, Any] = {}
    for name, said in _KNOBS[section].items():
        kind = (
            Literal[tuple(said.pop("one_of"))]
            if "one_of" in said
            else said.pop("type", type(said.get("default")))
        )
        extra = {key: said.pop(key, default) for key, default in _KIT.items()}
        fields[name] = (kind, Field(description=said.pop("about"), json_schema_extra=extra, **said))
    return create_model(section, __base__=base, __module__=__name__, **fields)  # where the types' names are known


def shape(part: Common, section: str = "") -> dict[str, Any]:
    """The knobs of a part of an experiment that shape the result of its step, or of another `section`'s."""
    own = next(name for name, model in SECTIONS.items() if type(part) is model)
    said = {field: info.json_schema_extra for field, info in type(part).model_fields.items()}
    uses = {
        name
        for name, extra in said.items()
        if extra["shapes"] and (section or own) in (extra["steps"] or own).split()
    }
    return {name: getattr(part, name) for name in said if name in uses}


class Agreeing(BaseModel):
    """Values that have to fit each other; all faults are told at once."""

    model_config = ConfigDict(extra="forbid")

    def wrong(self) -> Iterator[str]:
        yield from ()

    @model_validator(mode="after")
    def _agree(self) -> Agreeing:
        if told := "; ".join(self.wrong()):
            raise ValueError(told)
        return self


class Common(_with_knobs("common", Agreeing)):
    """Knobs that several notebooks share."""


class TeacherParams(_with_knobs("teacher", Common)):
    """Whom a notebook may ask: 01 for ratings, 03 for passages."""

    def wrong(self) -> Iterator[str]:
        addressed = self.teacher_model and bool(self.teacher_base_url) != bool(self.teacher_serve)
        if self.teacher == "openai" and not addressed:
            yield "teacher is openai, so set teacher_model and teacher_base_url (or teacher_serve instead)"


class ClassifierParams(_with_knobs("classifier", TeacherParams)):
    """01: the fastText domain classifier and the educational-value model (paper, section 3.1)."""


class SelectionParams(_with_knobs("selection", Common)):
    """02: score every web document once, then choose by token budget (paper, section 3.1)."""

    def wrong(self) -> Iterator[str]:
        if self.min_tokens > self.max_tokens:
            yield f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})"
        if self.executor == "slurm" and "partition" not in self.slurm:
            yield "executor is slurm, so slurm must name a partition, for instance slurm: {partition: cpu}"


class PassageParams(_with_knobs("passages", TeacherParams)):
    """03: passages of problems, a paragraph for each, and an enlightenment (paper, section 3.2)."""

    @property
    def kind(self) -> str:
        return "entity" if self.grouping == "entity" else "knowledge"


class TrainingParams(_with_knobs("training", Common)):
    """04: two-stage continual pre-training (paper, section 3.3 and appendix)."""

    @property
    def sources(self) -> set[str]:
        return {source for stages in self.arms.values() for stage in stages for source in weights(stage)}

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


class EvaluationParams(_with_knobs("evaluation", Common)):
    """05: every arm on the tasks' held-out problems, and what it forgot."""


class FigureParams(_with_knobs("figures", Common)):
    """06: the paper's figures and tables, and one report."""


class Experiment(Agreeing):
    """One section a notebook, each merged with `common`."""

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
                "to openai, or write fasttext there and in training.arms"
            )
        arms = {"base", *training.arms}
        arms |= {f"{arm}_fine_tuned" for arm in arms if training.fine_tune_epochs}
        for name in ("reference_arm", "control_arm"):
            if (arm := getattr(self.evaluation, name)) and arm not in arms:
                yield f"evaluation.{name} names the arm '{arm}', but training.arms has {', '.join(sorted(arms))}"
        for name in ("tasks", "test_items_per_task", "seed", "in_domain", "web"):
            parts = [part for part in vars(self).values() if name != "seed" or part is not training]
            if len({str(getattr(part, name)) for part in parts}) > 1:
                yield f"{name} is one for all sections, so set it in common (training.seed alone may differ)"
        for name in self.evaluation.foreign_tasks:
            if name.partition("#")[0] in {task.partition("#")[0] for task in passages.tasks}:
                yield f"evaluation.foreign_tasks names {name}, which arms train on"
        longest, row = passages.max_passage_tokens, training.context_length
        if training.sources & set(WRITTEN) and longest + SPECIAL_TOKENS > row:
            yield f"max_passage_tokens ({longest}) + {SPECIAL_TOKENS} must fit uncut into context_length ({row})"

        if "rephrased" in training.sources and passages.paragraphs != "both":
            yield "training.arms names 'rephrased', the teacher's wording, so passages.paragraphs must be both"


SECTIONS: dict[str, type[Common]] = {name: field.annotation for name, field in Experiment.model_fields.items()}


def weights(mixture: str) -> dict[str, int]:
    """Of 'in_domain+15*random', source -> weight, in alphabetical order; named twice, their sum. ValueError."""
    found: Counter[str] = Counter()
    for part in mixture.split("+"):
        weight, star, source = part.strip().rpartition("*")
        if star and not (weight.isdigit() and int(weight)):
            raise ValueError(f"'{part}' is no weight and source; write it as in_domain+15*random")
        found[source] += int(weight or 1)
    return dict(sorted(found.items()))


def run_folder(path: Path | str, run_dir: Path | str | None = None) -> Path:
    """Where an experiment runs: `run_dir`, or runs/<name of its file>; a run's own params.yaml, there."""
    path = Path(path).absolute()
    return Path(run_dir or (path.parent if path.name == "params.yaml" else Path("runs", path.stem))).absolute()


def load(path: Path | str, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read and check an experiment file; `overrides`: 'section.field' -> value."""
    try:
        raw = read_yaml(path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraitError(f"{path} cannot be read ({error}). Shipped ones are in params/.") from None
    if isinstance(raw, dict) and all(section is None or isinstance(section, dict) for section in raw.values()):
        raw = {name: section or {} for name, section in raw.items()}
    else:
        raise TraitError(
            f"{path}: expected sections common, {', '.join(SECTIONS)}. A task file is named in `tasks`."
        )
    for key, value in (overrides or {}).items():
        section, _, field = key.partition(".")
        raw[section] = {**raw.get(section, {}), field: value}
    return parse(raw, origin=str(path))


def read_overrides(texts: list[str] | None) -> dict[str, Any]:
    """Of `--set section.field=value`."""
    found = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (equals and key.strip().partition(".")[2]):
            raise TraitError(f"--set {text}: write section.field=value in YAML, as training.learning_rate=1e-5.")
    return found


def parse(raw: dict[str, dict[str, Any]], origin: str) -> Experiment:
    """Check an experiment, where '1e-4', a string in YAML 1.1, is a number; errors name section, field, a near name."""
    common = raw.get("common", {})
    sections = {name: {**common, **raw.get(name, {})} for name in (*SECTIONS, *raw) if name != "common"}
    sections["training"].setdefault("items_seed", common.get("seed", 0))
    try:
        return Experiment(**sections)
    except ValidationError as error:
        told = "; ".join(dict.fromkeys(_message(item, common) for item in error.errors()))
        raise TraitError(f"{origin}: {told}") from None


def dump(experiment: Experiment) -> str:
    sections = experiment.model_dump()
    common = {field: sections["figures"][field] for field in Common.model_fields}
    own = {
        name: {k: v for k, v in values.items() if k not in common or v != common[k]}
        for name, values in sections.items()
    }
    return yaml.safe_dump({"common": common, **own}, sort_keys=False, allow_unicode=True)


def _message(item: Any, common: dict[str, Any]) -> str:
    section, *path = item["loc"] or ("",)
    field = ".".join(map(str, path))
    if item["type"] == "missing":
        about = SECTIONS[section].model_fields[field].description
        return f"the field '{field}' is missing; add it to section {section} or to common: {about}"
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
