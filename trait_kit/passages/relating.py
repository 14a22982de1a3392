"""What relates problems, as a column of their table, and the groups that come of it.

Where the task files name no topic: mathematical concepts recognised in the questions
(concepts.yaml), topics that a language model is asked for, or neighbours in an embedding, for any
domain.
"""

import re
from collections import Counter

import numpy as np
import pandas as pd

from trait_kit.engine.ledger import agree
from trait_kit.engine.llm import Endpoint, Request, ask
from trait_kit.models import embed
from trait_kit.passages import prompts
from trait_kit.passages.grouping import make_groups
from trait_kit.passages.material import Group, content, content_words

_NEIGHBORHOOD = 12  # problems that are near each other, about
_MOST_ALIKE = 0.9  # cosine of two problems: beyond it they are copies
_MAX_TOPIC_WORDS, _TYPICAL_TOPIC = 6, 10  # words; tokens


def plan_groups(problems: pd.DataFrame, params, endpoint: Endpoint | None = None) -> tuple[pd.DataFrame, list[Group]]:
    """(problems with what relates them, groups). Only `grouping: teacher` asks anybody."""
    if params.grouping == "concepts":
        problems = tag_concepts(problems)
    elif params.grouping == "teacher":
        problems = ask_topics(problems, endpoint or Endpoint.of(params), params.max_attempts)
    elif params.grouping == "embedding":
        vectors = embed(problems["question"].tolist(), params.embedding_model)
        problems = tag_neighborhoods(problems, vectors, params.seed)
    groups = make_groups(
        problems,
        params.kind,
        n_groups=params.n_groups,
        problems_per_group=params.problems_per_group,
        max_uses=params.max_uses,
        seed=params.seed,
    )
    return problems, groups


def tag_concepts(problems: pd.DataFrame) -> pd.DataFrame:
    """The problems with the mathematical concept of their question as `topic`: of several, the rarest among all problems.

    A problem in which none is recognised keeps no topic, so that no passage is made of it; the
    topic that it had becomes its `subject`.
    """
    concepts = {name: re.compile(pattern) for name, pattern in content("concepts.yaml").items()}
    questions = problems["question"].str.lower()
    found = [[name for name, pattern in concepts.items() if pattern.search(text)] for text in questions]
    counts = Counter(name for names in found for name in names)
    topics = [min(names, key=counts.__getitem__, default=None) for names in found]
    return problems.assign(subject=problems["topic"], topic=topics)


def ask_topics(problems: pd.DataFrame, endpoint: Endpoint, attempts: int = 2) -> pd.DataFrame:
    """The problems with the teacher's `topic`, in one spelling; the topic that they had becomes their `subject`.

    A problem whose topic could not be had keeps none, so that no passage is made of it.
    """
    requests = [Request(prompts.topic(question), read_topic) for question in problems["question"]]
    print(f"Topics: {agree(endpoint.estimate(requests, _TYPICAL_TOPIC), endpoint.ledger.cap_usd)}")
    replies = ask(requests, endpoint, attempts=max(2, attempts))
    return problems.assign(subject=problems["topic"], topic=[reply.value for reply in replies])


def read_topic(answer: str) -> str:
    """The topic of a model's reply in lower case and one spelling; ValueError says what is wrong with it."""
    words = re.findall(r"[\w'-]+", answer.strip().partition("\n")[0].casefold().removeprefix("topic:"))
    if not 1 <= len(words) <= _MAX_TOPIC_WORDS:
        raise ValueError(f"a topic is a name of two to four words, and this has {len(words)}")
    return " ".join(words)


def tag_neighborhoods(problems: pd.DataFrame, vectors: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """The problems with the neighbourhood of their embedding as `topic`, named by its rare words.

    `vectors` are unit vectors, float32 [n_problems, d], in the order of the rows. Neighbourhoods
    are clusters of about a dozen problems (k-means); of two that are more alike than a copy would
    be, the later one gets no topic.
    """
    from sklearn.cluster import KMeans

    order = np.argsort(problems["id"].to_numpy(), kind="stable")  # the result does not depend on the order of the rows
    n_clusters = max(1, round(len(order) / _NEIGHBORHOOD))
    clusters = KMeans(n_clusters, n_init=4, random_state=seed).fit_predict(vectors[order])
    bags = [content_words(question) for question in problems["question"]]
    documents = Counter(word for bag in bags for word in bag)
    topics: list[str | None] = [None] * len(order)
    for cluster in range(n_clusters):
        kept: list[int] = []
        for place in order[clusters == cluster].tolist():
            if not kept or float((vectors[kept] @ vectors[place]).max()) <= _MOST_ALIKE:
                kept.append(place)
        counts = Counter(word for place in kept for word in bags[place])
        rare = sorted(counts, key=lambda word: (-counts[word] * np.log(len(bags) / documents[word]), word))
        for place in kept:
            topics[place] = ", ".join(rare[:3]) or f"neighbourhood {cluster}"
    return problems.assign(subject=problems["topic"], topic=topics)
