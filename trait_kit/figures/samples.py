"""The texts on the map of Figure 3: as many of each kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from trait_kit import tables
from trait_kit.params import FigureParams
from trait_kit.selection.documents import load_documents, sample
from trait_kit.tasks import load_problems


def map_texts(params: FigureParams, selection: Path, passages: Path) -> pd.DataFrame:
    """Columns kind (general, in_domain, downstream, trait), part, text: up to `map_documents` texts of each kind.

    TRAIT's data are half documents of its selection, half passages; downstream are test problems with their solutions.
    """
    n = params.map_documents
    problems = load_problems(params.tasks, "test", params.test_items_per_task, params.seed)
    solved = [f"{row.question} {row.solution or row.answer}" for row in problems.itertuples()]
    groups = [
        ("general", "web", sample(params.web, n, params.seed)["text"].to_pylist(), n),
        ("in_domain", "in-domain documents", load_documents(params.in_domain, params.seed)["text"].to_pylist(), n),
        ("downstream", "test problems", solved, n),
        ("trait", "selected documents", tables.read(selection, "selection")["text"].to_pylist(), n - n // 2),
        ("trait", "passages", tables.read(passages, "passages")["text"].to_pylist(), n // 2),
    ]
    random = np.random.default_rng(params.seed)
    frames = []
    for kind, part, texts, most in groups:
        chosen = sorted(random.permutation(len(texts))[:most])
        frames.append(pd.DataFrame({"kind": kind, "part": part, "text": [texts[i] for i in chosen]}))
    return pd.concat(frames, ignore_index=True)
