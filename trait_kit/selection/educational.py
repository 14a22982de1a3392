"""Educational value, 0 to 2 (2 P(High) + P(Mid)): a fastText model that repeats a language model's ratings.

The paper does not describe its model of educational value. Here a language model rates a sample of the web 0-5, and
fastText learns Low (0, 1), Mid (2, 3) and High (4, 5).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pyarrow as pa

from trait_kit import demo
from trait_kit.engine.files import TraitError, listed
from trait_kit.engine.scorer import LABEL_PREFIX
from trait_kit.params import ClassifierParams

LABELS = ("Low", "Mid", "High")
MAX_CHARACTERS = 3_000  # of a document that are sent: they fit in any script
_PROMPT = jinja2.Template(
    (Path(__file__).parent / "prompts/educational.jinja").read_text("utf-8"), trim_blocks=True
)
_MAX_FAILED = 0.2  # of the ratings asked for


def label_points(labels: Sequence[str]) -> np.ndarray:
    """float32 [n_labels], 0..2: probabilities @ points is a text's educational value.

    Case and fastText's prefix do not matter. TraitError for other labels: their meaning would be a guess.
    """
    names = [label.removeprefix(LABEL_PREFIX).title() for label in labels]
    if sorted(names) != sorted(LABELS):
        raise TraitError(
            f"A model of educational value needs the labels {', '.join(LABELS)}; it has {listed(labels)}."
        )
    return np.array([LABELS.index(name) for name in names], np.float32)


def demo_labels() -> dict[str, str]:
    """id -> label of each article of the demo, frozen.

    A rule about English function words gave them, which called 78% of textbook algebra Low.
    """
    letters = "".join((demo.DATA / "educational.txt").read_text(encoding="utf-8").split())
    labels = map({label[0]: label for label in LABELS}.get, letters)
    return dict(zip(demo.wikipedia()["id"].to_pylist(), labels, strict=True))


def read_rating(answer: str) -> int:
    """The last 'Rating: N' of an answer; ValueError says to the model what is wrong."""
    found = re.findall(r"\brating\b\W{0,6}(\d+(?:\.\d+)?)", answer, re.IGNORECASE)
    if not found or found[-1] not in [*"012345"]:
        raise ValueError("it must end with a line of its own, Rating: and a whole number from 0 to 5")
    return int(found[-1])


def conversation(text: str) -> list[dict[str, str]]:
    """The criteria, and a document's beginning as a line of JSON, in which no marker can occur."""
    text = text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
    line = json.dumps({"text": text}, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return [
        {
            "role": "system",
            "content": _PROMPT.render(cut=len(text) == MAX_CHARACTERS, limit=f"{MAX_CHARACTERS:,}"),
        },
        {"role": "user", "content": f"<<<DOCUMENT\n{line}\nDOCUMENT>>>"},
    ]


def labelled(p: ClassifierParams, documents: pa.Table, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(label, text and, where somebody is asked, rating 0..5; numbers for the record). Paid answers stay in `folder`."""
    from trait_kit.engine import ledger, llama, llm

    if p.teacher == "none":
        frame = documents.select(["id", "text"]).to_pandas()
        return frame.assign(label=frame.pop("id").map(demo_labels())), {}
    texts, here = list(dict.fromkeys(documents["text"].to_pylist())), p.teacher == "local"
    p = (
        llama.as_endpoint(p, teacher_max_tokens=200, teacher_extra={"temperature": 0, **p.teacher_extra})
        if here
        else p
    )
    with llm.served(p, folder) as endpoint:
        requests = [llm.Request(conversation(text), read_rating) for text in texts]
        print(
            f"Ratings: {ledger.agree(endpoint.estimate(requests, answer_tokens=100), p.max_cost_usd)}", flush=True
        )
        replies = llm.ask(requests, endpoint, attempts=2)
        bill = endpoint.ledger.bill()
    rated = (
        pd.DataFrame({"rating": [reply.value for reply in replies], "text": texts})
        .dropna()
        .astype({"rating": int})
    )
    failed = len(texts) - len(rated)
    if failed > _MAX_FAILED * len(texts) and not bill["stopped_by_cap"]:
        raise TraitError(
            f"{failed} of {len(texts)} documents got no rating, more than {_MAX_FAILED:.0%}. See to the endpoint, or take "
            "another teacher_model, and run again."
        )
    rated.insert(0, "label", [LABELS[rating // 2] for rating in rated["rating"]])
    return rated, {"bill": bill, "educational_unrated": failed}
