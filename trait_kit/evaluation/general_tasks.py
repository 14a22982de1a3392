"""lm-eval's own tasks by name, whose scores say what a model has forgotten."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from trait_kit.engine.files import TraitError, digest
from trait_kit.evaluation import harness
from trait_kit.evaluation.units import HELD_OUT, Unit
from trait_kit.params import EvaluationParams


def general_units(params: EvaluationParams) -> Iterator[Unit]:
    """lm-eval's own tasks: the first documents, as with its `--limit`."""
    for name, task in _general_tasks(tuple(params.general_tasks)).items():
        docs = [_told(doc) for doc in islice(task.eval_docs, params.general_items)]
        items = [{"id": f"{place:05d}-{doc[:8]}", "doc": doc} for place, doc in enumerate(docs)]
        yield Unit(f"{HELD_OUT}{name}", "general", items, {"config": _told(task.dump_config())}, str(task.VERSION), task)


def _told(value: Any) -> str:
    """Digest of what may hold functions, without their addresses."""
    return digest(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, default=str, sort_keys=True)))


@functools.lru_cache(maxsize=4)
def _general_tasks(names: tuple[str, ...]) -> dict[str, Any]:
    """lm-eval's tasks (of a group: its members) by name."""
    if not names:
        return {}
    from lm_eval.tasks import TaskManager

    with harness.quiet():  # the index of all shipped tasks takes ten seconds
        manager = TaskManager(include_defaults=not all(name.endswith((".yaml", ".yml")) for name in names))
    found: dict[str, Any] = {}
    for name in names:
        try:
            with harness.quiet():
                loaded = manager.load([name])["tasks"]
        except Exception as error:  # of the task's file, of its own code, of the data set's host: many kinds
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise TraitError(
                f"general_tasks: {name} cannot be loaded ({said}). Name a task that lm-eval lists, or a task file. "
                "Its data come from the Hugging Face hub once: they must be reachable, or in its cache."
            ) from None
        if unsafe := [task for task, loaded_task in loaded.items() if getattr(loaded_task, "UNSAFE_CODE", False)]:
            raise TraitError(f"general_tasks: {unsafe[0]} runs code that the model writes. Leave it out.")
        found |= loaded
    return found
