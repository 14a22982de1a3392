"""Minimal pairs: a worked solution beside itself with one slip of *reasoning*, whose arithmetic is right.

A model that was trained on worked solutions knows how they sound, so bits per byte can fall while reasoning does not.
Which of two texts that differ in one step is likelier is a question that form cannot answer. A slip of arithmetic
(7 * 8 = 54) would be too easy: an untrained model tells 95% of them apart. Here a step takes a wrong operand, operation or
order, its result is computed anew, and so is all that follows from it. What would give a slip away is avoided: answers of
another size, rows of numbers (a step repeats what stands before it), and late steps, whose numbers the right reasoning
before them announces. With two worked examples SmolLM2-135M, untrained, told 16 of 20 such slips of the demo's word
problems (of slips in the second half of a solution 42 of 47): what counts is the difference of two arms, not of 50%.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction

from trait_kit.engine.arithmetic import arithmetic_slips, evaluate

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_STEP = re.compile(
    rf"(?<![\d/.])({_NUMBER})(\D{{0,30}}?) ([-+*/]) (\D{{0,3}})({_NUMBER})"
    rf"([^\d=+*/-]{{0,30}}) = (\D{{0,2}})({_NUMBER})(?![\d/])"
)


WORDS_A_NUMBER = 1.5  # a solution of fewer is a row of numbers: an untrained model tells all its slips
EARLY = 0.55  # of the solution's characters: where a step may begin


def slip(solution: str, question: str, seed: int = 0) -> str | None:
    """The solution with one step's operand, operation or order changed; None where none can be changed to a fair one.

    Fair: the new result is a number of the same kind (whole where the old one was, not negative), all equations that
    are printed hold, and the last number, the answer, is another, at most a digit longer or shorter.
    """
    if len(re.findall(r"[A-Za-z]{2,}", solution)) < WORDS_A_NUMBER * len(re.findall(_NUMBER, solution)):
        return None
    return next(iter(slips(solution, question, seed)), None)


def slips(solution: str, question: str, seed: int = 0) -> list[str]:
    """All fair ones, those of the first step that has any first."""
    draw, right_answer = random.Random(f"{seed}/{question}"), _answer(solution)
    found = []
    for step in _STEP.finditer(solution, 0, round(EARLY * len(solution))):
        others = re.findall(_NUMBER, question) + re.findall(_NUMBER, solution[: step.start()])
        texts = [_carried_out(solution, step, *change) for change in _changes(step, others)]
        fair = [text for text in texts if text and _is_fair(_answer(text), right_answer) and not arithmetic_slips(text)]
        draw.shuffle(fair)
        found += fair
    return found


def _is_fair(answer: str, right: str) -> bool:
    return answer != right and abs(len(answer) - len(right)) <= 1


def _changes(step: re.Match[str], others: list[str]) -> list[tuple[str, str, str]]:
    """(left, sign, right) of one wrong operand (a number of the question or of an earlier step), operation or order."""
    left, sign, right = step[1], step[3], step[5]
    others = list(dict.fromkeys(other for other in others if other not in (left, right, step[8])))
    found = [(left, sign, other) for other in others if len(other) == len(right)]
    found += [(other, sign, right) for other in others if len(other) == len(left)]
    found += [(left, other, right) for other in "+-*/" if other != sign]
    return [*found, (right, sign, left)] if sign in "-/" and left != right else found


def _carried_out(solution: str, step: re.Match[str], left: str, sign: str, right: str) -> str | None:
    """The text with the step changed, and every later number that came from its result."""
    result = _result(f"{left} {sign} {right}", step[8])
    if result is None or result == step[8]:
        return None
    written = f"{left}{step[2]} {sign} {step[4]}{right}{step[6]} = {step[7]}{result}"
    done, rest, renamed = solution[: step.start()] + written, solution[step.end() :], {step[8]: result}
    while rest:
        nearest = _STEP.search(rest)
        if nearest is None:
            return done + _renamed(rest, renamed)
        done += _renamed(rest[: nearest.start()], renamed)
        own = _renamed(rest[nearest.start() : nearest.start(8)], renamed)
        new = _result(own.rpartition(" = ")[0], nearest[8])
        if new is None:
            return None
        if new != nearest[8]:
            renamed[nearest[8]] = new
        done, rest = done + own + new, rest[nearest.end() :]
    return done


def _renamed(text: str, renamed: dict[str, str]) -> str:
    return re.sub(_NUMBER, lambda match: renamed.get(match[0], match[0]), text)


def _result(expression: str, like: str) -> str | None:
    """The value of the printed operation, in the manner of `like`; None where it is no fair result."""
    value = evaluate(re.sub(r"[^\d.,+*/ -]", "", expression).strip())
    if value is None or value < 0:
        return None
    whole = "." not in like
    if whole:
        return str(value) if value.denominator == 1 else None
    exact = Fraction(round(value * 100), 100)
    return f"{float(value):.2f}" if exact == value else None


def _answer(text: str) -> str:
    return (re.findall(_NUMBER, text) or [""])[-1]
