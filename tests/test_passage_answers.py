"""Gold answers and arithmetic in text that nobody can trust."""

from __future__ import annotations

import threading
import time

import pytest

from trait_kit.passages.answers import arithmetic_slips, is_mathematical, math_equal, reaches

# --- answers


@pytest.mark.parametrize(
    ("gold", "paragraph", "right"),
    [
        ("42", "6 * 7 = 42. The answer is 42.", True),
        ("42", "6 * 7 = 42. The answer is 43.", False),
        ("1,218", "The answer is 1218 apples.", True),
        ("42", "The answer is 42 thousand.", False),
        ("138/583", "So \\boxed{\\dfrac{138}{583}}", True),
        ("138/583", "The answer is 276/1166.", False),  # equal, but not in lowest terms
        ("0.5", "#### \\frac{1}{2}", True),
        ("2\\sqrt{3}", "The answer is $\\sqrt{12}$.", True),
        ("x+1", "The answer is 1+x.", True),
        ("relevant", "So the ad is relevant.", True),
        ("relevant", "So the ad is not relevant.", False),
        ("relevant", "So the ad is irrelevant.", False),
        ("Luxury Tours to Cusco", 'The answer is "Luxury tours to Cusco".', True),
        ("Luxury Tours to Cusco", "The answer is Cheap Tours to Cusco.", False),
        ("42", "", False),
        # layouts of language models
        ("42", "**Answer:** 42", True),
        ("42", "**Answer: 42.**", True),
        ("42", "Therefore, the answer is **$42.00**. This makes sense, since 6 * 7 = 42.", True),
        ("42", "The answer is 42, which is what was asked for.", True),
        ("42", "The answer is **43**. Had we added 1 less, it would be 42.", False),
        ("42", "The answer is 42 km/h.", True),
        ("42", "The answer is $42\\text{ cm}^2$.", True),
        ("42", "The answer is 42 and a half.", False),
        ("42", "The answer is 42 or 43.", False),
        ("42", "The answer is 42 percent.", True),
        ("90^\\circ", "The answer is 90 degrees.", True),
        ("10{,}000", "The answer is 10,000.", True),
        ("3/4", "Hence we get $\\frac{3}{4}$.", True),
        ("3/4", "Hence we get $-\\frac{3}{4}$.", False),
        ("3/4", "The answer is $\\frac34$.", True),
        ("3/4", "The answer is $\\frac68$.", False),
        ("3/4", "The answer is **$\\frac{6}{8}$**.", False),
        ("-i", "The answer is $-i$. This can be checked.", True),
        ("-i", "The answer is $i$.", False),
        ("-2 \\text{ or } -12", "The answer is $-2 \\text{ or } -12$.", True),
        ("-2 \\text{ or } -12", "The answer is $-2 \\text{ or } 12$.", False),
        ("relevant", "The answer is relevant. The page sells what is sought.", True),
        ("relevant", "The answer is irrelevant. A relevant page would sell tents.", False),
        ("Sun in Rome. Book now.", '**Answer:** "Sun in Rome. Book now." It has 22 characters.', True),
        ("Sun in Rome. Book now.", "The answer is Sun in Rome. Book today.", False),
    ],
)
def test_gold_answers(gold, paragraph, right):
    assert reaches(gold, paragraph, ["relevant", "irrelevant"])[0] is right


def test_math_verify_works_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(math_equal("2\\sqrt{3}", "\\sqrt{12}")))
    thread.start()
    thread.join(30)
    assert found == [True]


@pytest.mark.parametrize(
    "hostile",
    [
        "9**9**9",
        "9^{9^{9}}",
        "((((2^20)^20)^20)^20)",
        "10" * 5_000_000,
        "9!!!!!!!",
        "\\frac{" * 4_000,
        "x^" * 9_000,
        "(" * 20_000,
    ],
)
def test_hostile_answers_are_refused_quickly(hostile):
    started = time.monotonic()
    assert not reaches("7", f"The answer is {hostile}.")[0]
    assert not is_mathematical(hostile)
    arithmetic_slips(f"1 + 1 = {hostile} = 3")
    assert time.monotonic() - started < 20


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
        "22/7 = 3 remainder 2",
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
        "for a total of \\$30+\\$20=\\$51",
        "s = \\frac{1}{20} + 2005 = \\frac{4011}{2}",
    ],
)
def test_wrong_arithmetic_is_found(text):
    assert len(arithmetic_slips(text)) == 1
