"""Minimal pairs: a step of a worked solution beside itself with a slip of *reasoning*, whose arithmetic is right.

Form cannot say which of the two is likelier. A slip of arithmetic (7 * 8 = 54) is too easy: an untrained model tells 95% of
them. So a step takes a wrong operand, operation or order, and its result is computed anew. Both texts end there, since
what follows would give the slip away.
"""

import random
import re

from trait_kit.judging.numbers import evaluate

_NUMBER = r"\d+(?:\.\d+)?"
_STEP = re.compile(
    rf"(?<![\d/.,])({_NUMBER})(\D{{0,30}}?) ([-+*/]) (\D{{0,3}})({_NUMBER})"
    rf"([^\d=+*/-]{{0,30}}) = (\D{{0,2}})(\d+)(?![\d/,]|\.\d)"
)
WORDS_A_NUMBER = 1.5  # one of fewer is a row of numbers: an untrained model tells its slips


def pair(solution: str, question: str, seed: int = 0) -> tuple[str, str] | None:
    """The solution to the end of the first step that can be changed fairly, and the same with the change; None for none.

    The new result is another whole number of as many digits.
    """
    if len(re.findall(r"[A-Za-z]{2,}", solution)) < WORDS_A_NUMBER * len(re.findall(_NUMBER, solution)):
        return None
    for step in _STEP.finditer(solution):
        if str(evaluate(f"{step[1]} {step[3]} {step[5]}")) != step[8]:  # a part of something longer
            continue
        known = re.findall(_NUMBER, question) + re.findall(_NUMBER, solution[: step.start()])
        for changes in _changes(step, known):
            if fair := [text for change in changes if (text := _changed(step, *change))]:
                before = solution[: step.start()]
                return before + step[0], before + random.Random(f"{seed}/{question}").choice(fair)
    return None


def _changes(step: re.Match[str], known: list[str]) -> tuple[list[tuple[str, str, str]], ...]:
    """(left, sign, right) of a wrong operation or order; then of a wrong operand, a number that is known by then.

    In this order, as untrained SmolLM2-135M told 66% of the former and 89% of the latter (103 pairs, two examples).
    """
    left, sign, right = step[1], step[3], step[5]
    others = [other for other in dict.fromkeys(known) if other not in (left, right, step[8])]
    signs = [(left, other, right) for other in "+-*/" if other != sign] + [(right, sign, left)]
    return signs, [(left, sign, other) for other in others] + [(other, sign, right) for other in others]


def _changed(step: re.Match[str], left: str, sign: str, right: str) -> str | None:
    result = evaluate(f"{left} {sign} {right}")
    if result is None or result < 0 or result.denominator > 1:
        return None
    fair = str(result) != step[8] and len(str(result)) == len(step[8])
    return f"{left}{step[2]} {sign} {step[4]}{right}{step[6]} = {step[7]}{result}" if fair else None
