"""`trait-kit check`: opens what an experiment names, before a run spends time on it.

It calls what the steps call (documents, tasks, groups, the checks of passages), so it can only say what they will say. An error
would stop the run, a warning makes its result worth less. Of a large web the beginning is opened, of the hub only names are
asked for, and no teacher is asked anything.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from trait_kit import params, pipeline
from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Ledger, agree
from trait_kit.figures.verdict import MIN_ITEMS
from trait_kit.models import load_tokenizer, token_counter
from trait_kit.params import WRITTEN, Experiment, PassageParams
from trait_kit.passages import local, writing
from trait_kit.passages.novelty import Beside
from trait_kit.passages.relating import plan_groups
from trait_kit.passages.teachers import JoiningTeacher, make_teacher
from trait_kit.selection.disjoint import in_domain_documents
from trait_kit.selection.documents import list_shards, read_shard
from trait_kit.tasks import load_problems, load_tasks

_MOST, _FEW = 10_000, 60  # problems of a task that are counted; that are related by embedding
_AROUND = 100  # tokens that a teacher's last paragraph takes, at least


@dataclass
class Checked:
    """What was found in one file, what makes its result worth less, and what would stop it."""

    file: str
    found: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """A fault in one part does not keep the others from being looked at."""
        try:
            yield
        except TraitError as error:
            self.errors.append(str(error))

    def __str__(self) -> str:
        state = f"{len(self.errors)} to mend" if self.errors else "valid"
        kinds = {"": self.found, "Warning: ": self.warnings, "To mend: ": self.errors}
        return "\n  ".join([f"{self.file}: {state}", *(f"{kind}{text}" for kind, texts in kinds.items() for text in texts)])


def check(path: Path) -> Checked:
    """An experiment file; or a sweep: every point's values, and what the first point names."""
    told = Checked(str(path))
    with told.part():
        points = _points(path)
        if len(points) > 1:
            told.found.append(f"A sweep of {len(points)} runs; opened is what the first one names.")
        at_hub = _names(points[0], told)
        if not told.errors:
            _documents(points[0], told, at_hub)
        if not told.errors and not at_hub:
            _tasks(points[0], told)
        if not told.errors and not at_hub and points[0].training.sources & set(WRITTEN):
            _passages(points[0].passages, told)
    return told


def _points(path: Path) -> list[Experiment]:
    with contextlib.suppress(OSError, ValueError, TypeError, yaml.YAMLError):
        if {"grid", "points"}.intersection(yaml.safe_load(path.read_text(encoding="utf-8"))):
            return [experiment for _, experiment in pipeline.read_sweep(path)]
    return [params.load(path)]


def _names(experiment: Experiment, told: Checked) -> bool:
    """Models and tasks by their names; whether data sets of the hub are out of reach."""
    p = experiment.selection
    at_hub = [("dataset", spec[3:]) for spec in (p.in_domain, p.web) if spec.startswith("hf:")]
    for where, name in {"base_model": p.base_model, "embedding_model": p.embedding_model}.items():
        with told.part():
            if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).is_dir():
                at_hub.append(("model", name))
            else:
                load_tokenizer(name, where)
    with told.part():
        at_hub += [("dataset", task.source[3:]) for task in load_tasks(p.tasks).values() if task.source.startswith("hf:")]
    lacking = [
        f"{kind} {name}" for kind, name in dict.fromkeys(at_hub) if not _at_hub(kind, re.split("[@#]", name)[0], told)
    ]
    if lacking:
        told.warnings.append(f"The hub is out of reach, so not opened: {', '.join(lacking)}.")
    return any(kind.startswith("dataset") for kind in lacking)


def _at_hub(kind: str, name: str, told: Checked) -> bool:
    """Whether the hub could be asked; a name that it does not have is an error."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=5)
    except RepositoryNotFoundError:
        told.errors.append(f"The hub has no {kind} '{name}' that you may read.")
    except (HfHubHTTPError, OSError, ValueError):
        return False
    return True


def _documents(experiment: Experiment, told: Checked, at_hub: bool) -> None:
    p = experiment.selection
    with told.part():
        if p.in_domain.startswith("hf:") or at_hub:
            told.found.append(f"In-domain documents: {p.in_domain}; read by the run.")
        else:
            told.found.append(in_domain_documents(p).said)
    with told.part():
        if not p.web.startswith("hf:"):
            shards = list_shards(p.web, p.seed)
            part = next(read_shard(shards[0], p.seed))
            if not len(part.documents):
                raise TraitError(f"{p.web}: its beginning has no usable document. {part.rejected[0].reason}")
            if lost := sum(reject.records for reject in part.rejected):
                first = part.rejected[0]
                told.warnings.append(
                    f"{first.source}, row {first.row}: {first.reason}; {lost:,} such at the web's beginning."
                )
            told.found.append(f"Web: {len(shards):,} shards; {len(part.documents):,} documents read at its beginning.")


def _tasks(experiment: Experiment, told: Checked) -> None:
    p, counts = experiment.selection, {}
    for split in ("train", "validation", "test"):
        with told.part():
            loaded = load_problems(p.tasks, split, _MOST, p.seed)
            for task, report in loaded.attrs["report"].items():
                counts.setdefault(task, []).append(f"{report['taken']:,} {split}")
                if split == "train" and report["skipped"]:
                    told.warnings.append(
                        f"{task}: skipped are {', '.join(f'{n:,} ({why})' for why, n in report['skipped'].items())}."
                    )
    told.found += [f"{task}: {', '.join(count)} problems" for task, count in counts.items()]
    if told.errors:
        return
    items = {task: min(report["taken"], p.test_items_per_task) for task, report in loaded.attrs["report"].items()}
    fewer = [f"{task} {n}" for task, n in items.items() if n < p.test_items_per_task]
    if fewer:
        told.warnings.append(f"test_items_per_task is {p.test_items_per_task:,}, but there are fewer: {', '.join(fewer)}.")
    if sum(items.values()) < MIN_ITEMS:
        told.warnings.append(f"{sum(items.values())} test items: no verdict comes from fewer than {MIN_ITEMS}.")


def _passages(p: PassageParams, told: Checked) -> None:
    """Groups as step 03 makes them, and what the checks say of them before a teacher has written a word."""
    with told.part():
        asks = p.grouping == "teacher"
        some = {"problems_per_task": min(p.problems_per_task, _FEW)} if p.grouping in ("teacher", "embedding") else {}
        small = p.model_copy(update=some | ({"grouping": "embedding"} if asks else {}))
        material, _, tests = writing.load_material(small)
        problems, groups = plan_groups(material, small)
        told.found.append(
            f"Passages: {len(groups):,} groups of the {p.n_groups:,} asked for, of {len(problems):,} problems."
        )
        if len(groups) < p.n_groups and p.problems_per_task == small.problems_per_task and not asks:
            told.warnings.append(f"Only {len(groups):,} groups: lower n_groups, or raise max_uses or problems_per_task.")
        orders = writing.orders_of(groups, problems)
        if p.teacher != "none":
            p = local.as_endpoint(p) if p.teacher == "local" else p
            teacher = make_teacher(p, ledger=Ledger(None))
            told.found.append(f"Teacher: {agree(teacher.estimate(orders), p.max_cost_usd)}")
        joined = [order for order in orders if p.teacher == "none" or all(row.solution for row in order.rows)]
        if p.paragraphs != "teacher" and joined:
            told.found.append(_rehearsed(joined, tests, p))


def _rehearsed(orders: list[writing.Order], tests: list[str], p: PassageParams) -> str:
    """How many groups of worked solutions pass, as far as that goes without a teacher; TraitError for fewer than half."""
    around, drafts = _AROUND * (p.teacher != "none"), JoiningTeacher().write(orders)
    skipped = writing.WITHOUT_ENLIGHTENMENT
    rows = writing.judged(orders, drafts, Beside(tests), token_counter(p.base_model), p.max_passage_tokens - around, skipped)
    rejected = [row for row in rows if row["reason"] and not (around and row["n_tokens"] < writing.MIN_TOKENS)]
    if told := writing.shortfall(len(orders), len(orders) - len(rejected), rejected):
        raise TraitError(told)
    return f"Of {len(orders):,} groups of worked solutions {len(orders) - len(rejected):,} pass the checks so far."
