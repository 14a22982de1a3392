"""Printed sums: what is right or cannot be read is left alone, what is wrong is found, whatever the notation."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from trait_kit.judging.numbers import arithmetic_slips, evaluate


@pytest.mark.parametrize(
    "text",
    [
        "48/2 = 24 clips",
        "$1,200 + $300 = $1,500.",
        "7832 = 1 * 7072 + 760",
        "x + 5 = 20, so 2x = 30",
        "f(2) = 5 and 2^3 = 8",
        "160 mod 48 = 16",
        "30% of 160 = 48",
        "22/7 = 3 remainder 1",
        "53 / 7 = 7 R 5, which nobody reads",
        "10/3 = 3.33",
        "1. 35 × 3 = 105",
        "one third of 60 + 3 = 23",
        "e = 1274/98 = 13",
        "3 * 10^2 = 300",
        "10 - 3 = 7 - which is odd",
        "\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}",
        "13 boxes × 24 pens/box = 312 pens",
        "2 hours + 30 minutes = 150 minutes, and 50 cents * 4 = $2",
        "193 ÷ 17 = 11.353 (rounded)",
        "6 / 1/2 = 12 halves",
        "f\\left( \\frac12 \\right) = 16 and \\log_{27} 3=\\frac13",
        "0 - 37 \\cdot 72 = -3 (m-1)",
        "so $40 \\times 25 \\times 20 = 20{,}000$",
        "$53 \\div 7 = 7 \\text{ R } 4$",
        "the 8 singers + their 1 teacher + 1 driver = 10 people",
        "What is left is 9 - 2 - 1/4 = 6 3/4 metres.",
        "The tax is $120 000 * 3/100 = $3 600.",
        "650 000/2 = 325 000 cars",
        "3 feet * 12 inches/foot = 40 inches",
        "the ages are 33 (11 + 55) = 33 * 66",
        "(2, 7 * 3) = 1 and (1/2) (3 + 3) = 3",
        "here (1/2) a + (3/4) = (1/2), and 2 dollars + 3 dollars = $5",
        "5 + 5 = 10\n- 3 of them\n7/2 = 3.5",
        "1.200 + 300 = 1.500 und 1.000 / 8 = 125",
        "1.200 + 300 = 1500",
        "1 200 300 + 300 = 1 200 600",
    ],
)
def test_right_or_unreadable_arithmetic_is_left_alone(text):
    assert arithmetic_slips(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "48/2 = 25 clips",
        "$1,200 + $300 = $1,600.",
        "7832 = 1 * 7072 + 761",
        "30% of 160 = 49",
        "10/3 = 3.34",
        "98 * 58 / 2 = 5684 / 2 = 2843",
        "So 856 - 4 × 174 = 150, then",
        "\\frac{1}{2} + \\frac{1}{4} = \\frac{2}{4}",
        "So \\(48 \\div 2 = 25\\) clips.",
        "We get **48 ÷ 2 = 25**.",
        "13 boxes × 24 pens/box = 322 pens",
        "192 pages - 144 pages = 480",
        "2 hours + 3 hours = 6 hours",
        "193 ÷ 17 = 11.453 (rounded)",
        "That's\n180/60 = 6 hours",
        "(so 5 + 5 = 11)",
        "480 / 5 = 86 messages/day",
        "Since $1+2+3=5$ is no multiple of $4$",
        "there are 50 * 20/100 = 15 multiple-choice questions",
        "for a total of \\$30+\\$20=\\$51",
        "s = \\frac{1}{20} + 2005 = \\frac{4011}{2}",
        "1.200 + 300 = 1.600",
        "0.125 + 0.5 = 0.725",
        "1.125 + 1.5 = 2.725",
    ],
)
def test_wrong_arithmetic_is_found(text):
    assert len(arithmetic_slips(text)) == 1


def test_printed_expressions_have_exact_values():
    values = {"1/3 + 1/6": "1/2", "(0.1 + 0.2) * 10": 3, "1,200 - 50%": "2399/2", "2 1/2 * 4": 10, "-3 + 5": 2}
    for text, value in values.items():
        assert evaluate(text) == Fraction(value), text
    for text in ("2 ** 3", "7 // 2", "x + 1", "1/0", "3(4)", "", "(" * 300, "__import__('os')"):
        assert evaluate(text) is None, text


@pytest.mark.parametrize(
    "hostile", ["9**9**9", "10" * 5_000_000, "(" * 20_000, "1+" * 9_000, "1,1," * 5_000, "=1" * 9_000]
)
def test_hostile_sums_end_quickly(hostile):
    started = time.monotonic()
    arithmetic_slips(f"1 + 1 = {hostile} = 3")
    assert time.monotonic() - started < 20
