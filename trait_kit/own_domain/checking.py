"""`trait-kit check`: opens what an experiment names, before a run spends time on it.

It calls what the steps call, so it says what they will say: an error would stop the run, a warning makes its result worth
less. Of a web the beginning is opened, of the hub names are asked for, no teacher is asked anything.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trait_kit import params, pipeline
from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import agree
from trait_kit.evaluation import suites
from trait_kit.evaluation.comparison import MIN_ITEMS, clusters_needed
from trait_kit.models import load_tokenizer, token_counter
from trait_kit.own_domain.scaffold import about_tokens
from trait_kit.params import Common, Experiment, PassageParams
from trait_kit.passages import writing
from trait_kit.passages.grouping import plan_groups
from trait_kit.passages.material import Group
from trait_kit.passages.quality import Beside
from trait_kit.passages.teachers import Teacher, local_teacher, recorded
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import list_shards, read_shard
from trait_kit.tasks import load_problems, load_tasks

_AROUND = 100  # tokens of a teacher's last paragraph, at least


@dataclass
class Checked:
    file: str
    found: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """Its fault keeps no other part from being looked at; what it prints is found."""
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                yield
        except TraitError as error:
            self.errors += {str(error)} - {*self.errors}
        self.found += printed.getvalue().splitlines()

    def __str__(self) -> str:
        said = [f"{self.file}: {f'{len(self.errors)} to mend' if self.errors else 'valid'}", *self.found]
        said += [f"Warning: {text}" for text in self.warnings] + [f"To mend: {text}" for text in self.errors]
        return "\n  ".join(said)


def check(path: Path) -> Checked:
    """Of a sweep every point's values, and what the first one names."""
    told = Checked(str(path))
    with told.part():
        experiment = _first_point(path)
        p = experiment.selection
        for look in (_names, _web):
            with told.part():
                look(p, told)
        reached = not any(text.startswith("The dataset") for text in told.warnings)
        if reached and not told.errors:
            _tasks(experiment, told)
            with told.part():
                of_hub = f"In-domain documents: {p.in_domain}, read by the run."
                told.found.append(of_hub if p.in_domain.startswith("hf:") else in_domain_documents(p).said)
        if reached and not told.errors:
            _passages(experiment.passages, told)
    return told


def _first_point(path: Path) -> Experiment:
    if path.is_file() and re.search(rb"^[\"']?(grid|points)[\"']?\s*:", path.read_bytes(), re.MULTILINE):
        points = pipeline.read_sweep(path)
        print(f"A sweep of {len(points)} runs; opened is what the first one names.")
        return points[0][1]
    return params.load(path)


def _names(p: Common, told: Checked) -> None:
    from huggingface_hub import HfApi

    sources = [p.in_domain, p.web, *(task.source for task in load_tasks(p.tasks).values())]
    at_hub = [("dataset", re.split("[@#]", source[3:])[0]) for source in sources if source.startswith("hf:")]
    for where in ("base_model", "embedding_model"):
        if _at_hub(name := getattr(p, where)):
            at_hub.append(("model", name))
        else:
            with told.part():
                load_tokenizer(name, where)
    for kind, name in dict.fromkeys(at_hub):
        try:
            if not HfApi().repo_exists(name, repo_type=kind):
                told.errors.append(f"The hub has no {kind} '{name}' that you may read.")
        except Exception as error:  # each of its libraries has its own
            told.warnings.append(
                f"The {kind} {name} was not opened: the hub is out of reach ({type(error).__name__})."
            )


def _at_hub(model: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model)) and not Path(model).is_dir()


def _web(p: Common, told: Checked) -> None:
    if p.web.startswith("hf:"):
        return
    shards = list_shards(p.web, p.seed)
    documents, rejected, _ = next(read_shard(shards[0], p.seed))
    told.found.append(f"Web: {len(shards):,} shards, {len(documents):,} documents at its beginning.")
    for reject in rejected[:1]:
        (told.warnings if len(documents) else told.errors).append(
            f"{reject.source}, row {reject.row}: {reject.reason}; {len(rejected):,} such at the web's beginning."
        )


def _tasks(experiment: Experiment, told: Checked) -> None:
    """As many items of each split as the steps ask for; the loader tells of what is skipped."""
    p, few = experiment.selection, -(-experiment.training.held_out_items // len(experiment.selection.tasks))
    wanted = {"train": experiment.passages.problems_per_task, "validation": few, "test": p.test_items_per_task}
    for split, count in wanted.items():
        with told.part():
            problems = load_problems(p.tasks, split, count, p.seed)
            taken = ", ".join(f"{n:,} of {task}" for task, n in problems["task"].value_counts().items())
            told.found.append(f"{split}: {len(problems):,} problems ({taken})")
            told.warnings += [
                f"{task}: all answers of {split} are the same."
                for task, rows in problems.groupby("task")
                if rows["answer"].nunique() == 1 < len(rows)
            ]
            clusters = problems[["template", "entity", "id"]].bfill(axis=1)["template"].nunique()
            needed = clusters_needed(len(experiment.training.arms))
            if split == "test" and (len(problems) < MIN_ITEMS or clusters < needed):
                told.warnings.append(
                    f"{len(problems)} test items, {clusters} clusters: a verdict needs {MIN_ITEMS} in {needed}. "
                    f"Bring more, of other patterns (test_items_per_task is {count}), or train fewer arms."
                )
    if (config := experiment.training.accelerate_config) and not Path(config).is_file():
        told.errors.append(f"accelerate_config: there is no file {config}.")
    with told.part():
        if foreign := experiment.evaluation.foreign_tasks:
            load_problems(foreign, "test", 1, p.seed)
        examples = suites.worked_examples(experiment.evaluation)
        for task in load_tasks(p.tasks):
            suites.shown(task, examples, suites.n_examples(experiment.evaluation, task))


def _passages(p: PassageParams, told: Checked) -> None:
    """Groups as step 03 makes them, before a teacher has written a word."""
    few = writing.quick(p)
    material, _, tests = writing.load_material(few)
    problems, groups = plan_groups(material, few)
    told.found.append(
        f"Passages: {len(groups):,} of {p.n_groups:,} groups, of {'the first ' * (few != p)}{len(problems):,} problems."
    )
    if len(groups) < p.n_groups and few.problems_per_task == p.problems_per_task:
        told.warnings.append(
            f"Only {len(groups):,} groups: lower n_groups, raise max_uses or problems_per_task, or group by embedding."
        )
    if p.teacher != "none":
        teacher = Teacher(local_teacher(p))
        teacher.endpoint.ledger.keep(recorded(p)[1])
        bill = teacher.estimate(groups)
        here = f"{bill.requests:,} requests to a model on this machine, which step 03 times before it asks"
        told.found.append(f"Teacher: {here if p.teacher == 'local' else agree(bill, p.max_cost_usd)}")
    joined = [group for group in groups if p.teacher == "none" or all(row.solution for row in group.rows)]
    if joined and p.paragraphs != "teacher":
        told.found.append(_rehearsed(joined, tests, p))


def _rehearsed(groups: list[Group], tests: list[str], p: PassageParams) -> str:
    """How many groups of worked solutions pass without a teacher; TraitError for fewer than half."""
    around = _AROUND * (p.teacher != "none")
    drafts = Teacher(p.model_copy(update={"teacher": "none"})).write(groups)
    # a hub model's counter would fetch all of it
    count = np.vectorize(about_tokens, [int]) if _at_hub(p.base_model) else token_counter(p.base_model)
    rows = writing.judged(groups, drafts, Beside(tests), count, p.max_passage_tokens - around)
    rejected = [row for row in rows if row["reason"] and not (around and row["n_tokens"] < writing.MIN_TOKENS)]
    if told := writing.shortfall(len(groups), len(groups) - len(rejected), rejected):
        raise TraitError(told)
    return (
        f"Of {len(groups):,} groups of worked solutions {len(groups) - len(rejected):,} pass the checks so far."
    )
