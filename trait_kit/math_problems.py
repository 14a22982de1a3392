"""The math demo's problems: reasoning-gym questions with worked solutions that are short, clear and recomputed.

Five tasks share five techniques (the `topic`), so that passages can join problems of different tasks that need the same
idea (knowledge-centred domains, paper section 3.2). Worked solutions follow the kit's own rules (Euclid's steps, prime
factors, undoing operations, halving a fraction); word problems keep the generator's solution, put into one form. Every
solution ends in 'The answer is X.', and none is used before all its printed arithmetic and its answer were recomputed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from random import Random

from trait_kit.generated_arithmetic import as_number, check_arithmetic
from trait_kit.task_drafts import (
    EUCLID,
    GROUPS,
    INVERSE,
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    PARTS,
    PRIMES,
    SPLITS,
    Draft,
    make_draft,
    split_of,
)
from trait_kit.word_problems import word_problems

GENERATORS = ("gsm_symbolic", "simple_equations", "gcd", "lcm", "fraction_simplification")


def draw(generator: str, split: str, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
    """Endless problems of one generator and split, in an order that depends only on (generator, split, seed).

    The split of a problem follows from its content alone, so that splits stay disjoint across seeds as well. What is not
    good enough to teach is skipped and counted by reason in `skipped`. Needs the package reasoning-gym.
    """
    makers = {
        "gsm_symbolic": word_problems,
        "simple_equations": _from_gym("simple_equations", {"max_value": 30}, _linear_equation),
        "gcd": _from_gym("gcd", {"min_value": 12, "max_value": 500}, _greatest_common_divisor),
        "lcm": _from_gym("lcm", {"min_value": 6, "max_value": 120}, _least_common_multiple),
        "fraction_simplification": _from_gym(
            "fraction_simplification", {"max_value": 60, "min_factor": 2, "max_factor": 30, "styles": ("plain",)}, _fraction
        ),
    }
    for draft in makers[generator](split, seed, skipped):
        if draft.split == split and (reason := _fault(draft)):
            skipped[reason] += 1
        elif draft.split == split:
            yield draft


def _fault(draft: Draft) -> str | None:
    """Why a problem must not be taught, or None: recomputes every equation and compares the answers."""
    letter = re.search(r"\b([a-z])(?==|\*| =)|\*([a-z])\b|Let ([A-Z]) be", draft.solution)
    value = as_number(draft.answer)
    if value is None:
        return "answer is not a number"
    unknowns = {next(name for name in letter.groups() if name): value} if letter else {}
    report = check_arithmetic(draft.solution, unknowns)
    if report.wrong:
        return "printed arithmetic is wrong or rounded"
    if report.unread or not report.right:
        return "printed arithmetic cannot be read"
    if not draft.solution.endswith(f" The answer is {draft.answer}."):
        return "solution does not end in its answer"
    if not MIN_CHARACTERS <= len(draft.solution) <= MAX_CHARACTERS:
        return "solution is too short or too long"
    if re.search(r"\d\.\d{4,}", draft.question):
        return "question prints an unrounded decimal"
    if len(set(draft.choices)) != 4 or draft.answer not in draft.choices:
        return "fewer than four different choices"
    return None


def _from_gym(name: str, config: dict, write: Callable[[dict], Draft | None]) -> Callable[..., Iterator[Draft]]:
    def generate(split: str, seed: int, skipped: Counter[str]) -> Iterator[Draft]:
        import reasoning_gym

        dataset = reasoning_gym.create_dataset(name, seed=seed * 1_000_003 + SPLITS.index(split), size=10_000_000, **config)
        index = 0
        while True:
            draft = write(dataset[index])
            index += 1
            if draft is not None:
                yield draft

    return generate


def _euclid(a: int, b: int) -> tuple[str, int] | None:
    """The divisions of Euclid's algorithm in words, and the greatest common divisor; None when they are too many."""
    steps = []
    a, b = max(a, b), min(a, b)
    while b:
        quotient, rest = divmod(a, b)
        steps.append(f"{a} - {quotient} * {b} = {rest}")
        a, b = b, rest
    if len(steps) > 5:
        return None
    return "Divide and keep the remainder: " + ", then ".join(steps) + ".", a


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


def _factored(number: int) -> str:
    return f"{number} = " + " * ".join(map(str, _prime_factors(number)))


def _smooth(*numbers: int) -> bool:
    """Small primes only, and at least two of them: factoring is then quicker than Euclid's algorithm."""
    return all(len(factors := _prime_factors(number)) > 1 and factors[-1] <= 13 for number in numbers)


def _other_integers(answer: int, near: list[int], key: str) -> list[str]:
    """Plausible wrong integers: the given near misses first, then neighbours; never the answer, never below 1."""
    rng = Random(f"wrong {key}")
    extra = [answer + 1, answer + 2, answer * 2, answer * 3, max(1, answer - 1), answer + rng.randint(3, 9)]
    unique = list(dict.fromkeys(value for value in near if value >= 1 and value != answer))
    rng.shuffle(unique)
    return [str(value) for value in [*unique, *extra] if value != answer]


def _greatest_common_divisor(item: dict) -> Draft | None:
    a, b = item["metadata"]["numbers"]
    divisor = math.gcd(a, b)
    if divisor <= 2 or a == b or min(a, b) == divisor:
        return None  # nothing to work out; and of random pairs most would have the answer 1 or 2
    key = "gcd {} {}".format(*sorted((a, b)))
    if _smooth(a, b):
        shared = " * ".join(map(str, _prime_factors(divisor)))
        steps = f"Write both numbers as products of primes: {_factored(a)} and {_factored(b)}. "
        if "*" in shared:
            steps += f"Both products contain {shared.replace(' * ', ', ')}. Multiply these: {shared} = {divisor}."
        else:
            steps += f"The only prime in both products is {shared}, so the GCD is {divisor}."
        topic = PRIMES
    else:
        walked = _euclid(a, b)
        if walked is None or walked[1] != divisor:
            return None
        steps = f"{walked[0]} The last divisor that leaves remainder 0 is {divisor}."
        topic = EUCLID
    near = [divisor * 2, divisor * 3, abs(a - b), *(d for d in range(2, min(a, b)) if a % d == 0 and d != divisor)][:6]
    question = f"Find the greatest common divisor (GCD) of {a} and {b}."
    return make_draft(key, question, str(divisor), steps, _other_integers(divisor, near, key), topic)


def _least_common_multiple(item: dict) -> Draft | None:
    a, b = item["metadata"]["numbers"]
    divisor, multiple = math.gcd(a, b), math.lcm(a, b)
    if divisor == 1 or a == b or multiple == max(a, b):
        return None
    key = "lcm {} {}".format(*sorted((a, b)))
    if _smooth(a, b):
        rest = _prime_factors(multiple // a)
        steps = (
            f"Write both numbers as products of primes: {_factored(a)} and {_factored(b)}. "
            f"{a} lacks the {'factor' if len(rest) == 1 else 'factors'} {', '.join(map(str, rest))} of {b}. "
            f"Multiply {a} by what it lacks: {a} * {' * '.join(map(str, rest))} = {multiple}."
        )
        topic = PRIMES
    else:
        walked = _euclid(a, b)
        if walked is None or walked[1] != divisor:
            return None
        steps = (
            f"First find the greatest common divisor. {walked[0]} So the GCD is {divisor}. "
            f"The LCM is the first number times the second, divided by the GCD: {b} / {divisor} = {b // divisor}, "
            f"and {a} * {b // divisor} = {multiple}."
        )
        topic = EUCLID
    near = [a * b, multiple // 2, multiple * 2, multiple + a, multiple - b]
    question = f"Find the least common multiple (LCM) of {a} and {b}."
    return make_draft(key, question, str(multiple), steps, _other_integers(multiple, near, key), topic)


def _fraction(item: dict) -> Draft | None:
    top, bottom = item["metadata"]["numerator"], item["metadata"]["denominator"]
    divisor = math.gcd(top, bottom)
    if divisor == 1 or top >= bottom or top == divisor:
        return None
    small, large = top // divisor, bottom // divisor
    answer = f"{small}/{large}"
    key = f"fraction {top} {bottom}"
    shared = _prime_factors(divisor)
    if len(shared) <= 3 and shared[-1] <= 5:
        steps, now = [], (top, bottom)
        for prime in shared:
            after = (now[0] // prime, now[1] // prime)
            steps.append(f"by {prime}: {now[0]} / {prime} = {after[0]} and {now[1]} / {prime} = {after[1]}")
            now = after
        text = "A fraction keeps its value when both parts are divided by the same number. Divide " + ", then ".join(steps)
        text, topic = f"{text}. {small} and {large} share no other factor.", PARTS
    elif _smooth(top, bottom):
        listed = ", ".join(map(str, shared))
        text = (
            f"Write both parts as products of primes: {_factored(top)} and {_factored(bottom)}. Cancel what they share, "
            f"{listed}: {top} / {divisor} = {small} and {bottom} / {divisor} = {large}."
        )
        topic = PRIMES
    else:
        walked = _euclid(top, bottom)
        if walked is None or walked[1] != divisor:
            return None
        text = (
            f"Find the greatest common divisor of both parts. {walked[0]} So the GCD is {divisor}. "
            f"Divide both parts by it: {top} / {divisor} = {small} and {bottom} / {divisor} = {large}."
        )
        topic = EUCLID
    near = [(small + 1, large), (small, large + 1), (large, small), (small, large - 1), (small + 1, large + 1)]
    wrong = [f"{up}/{down}" for up, down in near if Fraction(up, down) != Fraction(small, large)]
    question = f"Simplify the fraction {top}/{bottom} to its lowest terms."
    return make_draft(key, question, answer, text, wrong, topic)


def _linear_equation(item: dict) -> Draft | None:
    """Forms: a*x = c, a*x + b = c, a*x - b = c, b - a*x = c."""
    name = item["metadata"]["variable"]
    left, right = item["metadata"]["equation"].split(" = ")
    value, total = int(item["answer"]), int(right)
    one_step = re.fullmatch(rf"(\d+)\*{name}", left)
    two_step = re.fullmatch(rf"(-?\d+)\*{name} ([+-]) (\d+)", left)
    reverse = re.fullmatch(rf"(\d+) - (\d+)\*{name}", left)
    question = f"{item['question'].split(':')[0].strip()}: {left} = {right}"
    key = f"linear {left.replace(name, 'x')} = {right}"
    if one_step and 1 < int(one_step[1]) <= 999 and value > 1:
        factor = int(one_step[1])
        steps = (
            f"The equation says that {factor} equal groups of {name} make {total}. Undo the multiplication by dividing both "
            f"sides by {factor}: {name} = {total} / {factor} = {value}. Check: {factor} * {value} = {total}."
        )
        topic, near = GROUPS, [value + 1, value - 1, value + 10, total - factor, value * 2]
    elif one_step is None and split_of(f"thin {key}", {"keep": 1, "drop": 1}) == "drop":
        return None  # two-step equations are nine of ten; halved, so that both techniques occur
    elif two_step and int(two_step[1]) > 1:
        factor, sign, constant = int(two_step[1]), two_step[2], int(two_step[3])
        undo, back = ("Subtract", "-") if sign == "+" else ("Add", "+")
        rest = factor * value
        steps = (
            f"Undo the operations in reverse order. {undo} {constant} {'from' if back == '-' else 'to'} both sides: "
            f"{factor}*{name} = {total} {back} {constant} = {rest}. Then divide both sides by {factor}: "
            f"{name} = {rest} / {factor} = {value}. Check: {factor} * {value} {sign} {constant} = {total}."
        )
        topic, near = INVERSE, [value + 1, value - 1, rest, abs(total + constant) // factor, value + constant]
    elif reverse and int(reverse[2]) > 1 and total >= 0:
        constant, factor = int(reverse[1]), int(reverse[2])
        rest = constant - total
        steps = (
            f"Undo the subtraction first. What is taken away from {constant} is "
            f"{factor}*{name} = {constant} - {total} = {rest}. "
            f"Then divide both sides by {factor}: {name} = {rest} / {factor} = {value}. "
            f"Check: {constant} - {factor} * {value} = {total}."
        )
        topic, near = INVERSE, [value + 1, value - 1, rest, (constant + total) // factor, value + factor]
    else:
        return None
    return make_draft(key, question, str(value), steps, _other_integers(value, near, key), topic)
