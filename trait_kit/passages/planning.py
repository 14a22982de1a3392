"""From problems to groups: relate the problems as the parameters say, then group them."""

from __future__ import annotations

import pandas as pd

from trait_kit.engine.files import TraitError
from trait_kit.engine.ledger import Ledger
from trait_kit.models import embed
from trait_kit.params import PassageParams
from trait_kit.passages.grouping import Group, make_groups
from trait_kit.passages.related import link_entities, make_related_groups, tag_concepts
from trait_kit.passages.topics import ask_topics


def plan_groups(problems: pd.DataFrame, params: PassageParams, ledger: Ledger) -> tuple[pd.DataFrame, list[Group]]:
    """(problems with what relates them, groups). Only `shared_from: teacher` asks anybody, on the bill of `ledger`."""
    if params.shared_from == "text":
        problems = link_entities(problems, _names(params.entity_names))
    elif params.shared_from == "concepts":
        problems = tag_concepts(problems)
    elif params.shared_from == "teacher":
        problems = ask_topics(problems, params, ledger)
    shape = {
        "n_groups": params.n_groups,
        "problems_per_group": params.problems_per_group,
        "max_uses": params.max_uses,
        "seed": params.seed,
        "one_task": params.variant == "single_task",
    }
    if params.shared_from != "embedding":
        return problems, make_groups(problems, params.grouping, **shape)
    vectors = embed(problems["question"].tolist(), params.embedding_model)
    return problems, make_related_groups(problems, vectors, max_similarity=params.max_similarity, **shape)


def _names(path: str) -> list[str]:
    if not path:
        return []
    try:
        with open(path, encoding="utf-8") as lines:
            return [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TraitError(f"entity_names: {path} cannot be read ({error}). Give a UTF-8 file with one name a line.") from None
