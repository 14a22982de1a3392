"""What a teacher hands back for a group of problems: a draft of a passage, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from trait_kit.teaching.exchange import clean, read_object


@dataclass(frozen=True)
class Draft:
    """Paragraphs (one a problem, in their order) and enlightenment, not yet checked; with what they cost."""

    paragraphs: tuple[str, ...]
    enlightenment: str
    teacher: str
    prompt_version: str
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class Rejection:
    """No draft: `reason` is 'kind: details' (kinds are counted), `answer` what came instead, if anything."""

    reason: str
    teacher: str
    prompt_version: str
    answer: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


def parse_answer(content: str, count: int) -> tuple[tuple[str, ...], str]:
    """The paragraphs and the enlightenment of a model's reply: `count` non-empty strings, and one.

    ValueError says what is wrong with the reply, in words that the model can be told.
    """
    value = read_object(content, ("paragraphs", "enlightenment"))
    paragraphs, enlightenment = value["paragraphs"], value["enlightenment"]
    if not isinstance(paragraphs, list) or not all(isinstance(item, str) for item in paragraphs):
        raise ValueError("paragraphs must be a list of strings")
    if len(paragraphs) != count:
        raise ValueError(f"paragraphs has {len(paragraphs)} items, there are {count} problems")
    if not isinstance(enlightenment, str):
        raise ValueError("enlightenment must be a string")
    cleaned, enlightenment = tuple(clean(item) for item in paragraphs), clean(enlightenment)
    if not enlightenment or not all(cleaned):
        raise ValueError("a paragraph or the enlightenment is empty")
    return cleaned, enlightenment
