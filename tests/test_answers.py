"""Answers: read as a careful teacher would, the same by both rooms, and from hostile text in bounded time."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pytest

from trait_kit.judging.answers import conclusion, is_mathematical, judge, language_of, reaches, readable
from trait_kit.judging.numbers import in_figures, numbers, quantity

# Answers as language models write them, by hand, with the verdict that a careful teacher would give: `flexible` + is right,
# `strict` + is right in the sentence 'The answer is X.' that prompts ask for. A line break is written as a sign, control
# characters as <001b>, choices with ' | ' between them.
TABLE = Path(__file__).with_name("answer_strings.tsv")


MORE = Path(__file__).with_name(
    "answer_strings_more.tsv"
)  # English, German, Chinese: numbers in words, signs, lists, code


def read_strings(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    text = table["prediction"].str.replace("⏎", "\n")
    table["prediction"] = text.str.replace(r"<([0-9a-f]{4})>", lambda found: chr(int(found[1], 16)), regex=True)
    table["choices"] = table["choices"].map(lambda choices: choices.split(" | ") if choices else [])
    return table


@pytest.fixture(scope="module")
def strings() -> pd.DataFrame:
    return read_strings(TABLE)


def test_answers_are_judged_in_three_languages():
    rows = read_strings(MORE)
    rows["gold"] = rows["gold"].str.replace("⏎", "\n")
    found = [judge(row.prediction, row.gold, row.kind, row.choices)[0] for row in rows.itertuples()]
    wrong = rows[pd.Series(found) != (rows["right"] == "+")]
    assert len(wrong) == 0, wrong.to_string()


@pytest.mark.parametrize("kind", ["number", "expression", "choice", "text"])
def test_answers_are_judged_as_a_teacher_would(strings, kind):
    rows = strings[strings["kind"] == kind]
    wrong, seconds = [], []
    judge("The answer is $3 + 2x$.", "2x + 3", "expression")  # starts the process that compares
    for row in rows.itertuples():
        started = time.monotonic()
        found = judge(row.prediction, row.gold, kind, row.choices)
        seconds.append(time.monotonic() - started)
        if found != (row.flexible == "+", row.strict == "+"):
            wrong.append(f"{row.group}: {row.prediction!r} for {row.gold!r} gives {found}")
    assert len(rows) >= 300
    assert len(wrong) <= 0.01 * len(rows), wrong
    assert statistics.median(seconds) < 0.05


@pytest.mark.parametrize(
    ("prediction", "gold", "question"),
    [
        ("The answer is 12/8.", "3/2", "Simplify 12/8."),
        ("Simplified, 12/8 = 12/8. The answer is 12/8.", "3/2", ""),
        ("The answer is $\\frac{12}{8}$.", "\\frac{3}{2}", ""),
        ("The answer is 6/4.", "3/2", "Simplify 12/8."),
        ("12/8", "3/2", "Simplify 12/8."),
        ("The answer is 12/8.", "1.5", "Write 12/8 as a decimal."),
        ("The answer is 2x + 2.", "2(x+1)", "Factor 2x + 2."),
        ("The answer is $\\sqrt{12}$.", "2\\sqrt{3}", "Simplify $\\sqrt{12}$."),
        ("The answer is 17 + 25.", "42", "What is 17 + 25?"),
    ],
)
def test_the_question_repeated_is_no_answer(prediction, gold, question):
    for kind in ("number", "expression"):
        assert judge(prediction, gold, kind, (), question) == (False, False)
    assert not reaches(gold, prediction, (), question)[0]


def test_what_stands_in_the_question_may_still_be_its_answer():
    assert judge("The answer is 3/4.", "\\frac{3}{4}", "expression", (), "Which is larger, 3/4 or 2/3?") == (
        True,
        True,
    )
    assert judge("The answer is -5.", "-5", "number", (), "Is it 3 or -5?") == (True, True)
    assert judge("The answer is $2x+3$.", "2x + 3", "expression", (), "Is it 2x+3 or 3x+2?") == (True, True)


def test_without_a_kind_it_is_read_off_the_gold_answer():
    assert judge("So 3 + 4 = 7.", "7") == (True, False)
    assert judge("The answer is $3 + 2x$.", "2x + 3") == (True, True)
    assert judge(" Relevant.\nQuestion: x", "relevant") == (True, True)
    assert judge("The mean is 0.35.", "7/20", "choice") == (True, False)  # a row of a choice task without choices


TEN = [
    f"reply {name}" for name in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
]


@pytest.mark.parametrize(
    ("prediction", "gold", "kind", "choices", "right"),
    [
        ("It is 21°C outside.", "21", "number", (), True),
        ("The answer is 70°F.", "21", "number", (), False),
        ("The change is –8.", "-8", "number", (), True),
        ("The change is –8.", "8", "number", (), False),
        ("There are 19 birds on the roof.", "19", "expression", (), True),
        ("$2.25 + $1.10 = $3.35.", "3.35", "expression", (), True),
        ("The answer is 0.1428571428571429.", "0.14285714285714285", "number", (), True),
        ("The answer is 0.15.", "0.14285714285714285", "number", (), False),
        ("The answer is 9.", "9 (marbles)", "number", (), True),
        ("The answer is 2e5.", "200000", "number", (), True),
        ("The answer is 3 x 10^4.", "30000", "number", (), True),
        ("The answer is US$80.", "80", "number", (), True),
        ("The answer is 42 thousand.", "42", "number", (), False),
        ('{"answer": 18, "unit": "cm"}', "18", "number", (), True),
        ("<answer>18</answer>\n<sure>95</sure>", "18", "number", (), True),
        ("<answer>B</answer>", "reply two", "choice", TEN, True),
        ("The answer is (J).", "reply ten", "choice", TEN, True),
        ("I", "reply nine", "choice", TEN, True),
        ("The answer is (I).", "reply one", "choice", TEN, False),
        ("5 * 6 = 30. The answer is 31.", "30", "choice", ("24", "30"), False),
        ("<think>Is the answer 7? No.</think>\n9", "9", "number", (), True),
        ("<think>The answer is 9.</think> It is 7.", "9", "number", (), False),
        ("The answer is 9.<|eot_id|>The answer is 7.", "9", "number", (), True),
        ("The answer is 9.\n\nHuman: And 3 + 4? The answer is 7.", "9", "number", (), True),
        ("#### 9\n\n### Instruction:\nAdd.\n#### 7", "9", "number", (), True),
        ("#### 9\n**Question 2:** Add.\n#### 7", "9", "number", (), True),
        ("The floor has 54 m².", "54", "number", (), True),
        ("The floor has 54 m².", "2", "number", (), False),
        ("It holds $54 \\text{ cm}^{3}$.", "54", "expression", (), True),
        ("The answer is 3:10.", "9:30", "expression", (), False),  # a time, no ratio
        ("The answer is 9:30.", "9:30", "expression", (), True),
        ("Die Antwort ist 9:30 Uhr.", "9:30", "expression", (), True),
        ("The answer is 2:5.", "2:5", "expression", (), True),
        ("The answer is √2.", "\\sqrt{2}", "expression", (), True),
        ("The answer is 2√3.", "2\\sqrt{3}", "expression", (), True),
        ("The answer is 2 sqrt(3).", "2\\sqrt{3}", "expression", (), True),
        ("The answer is (-∞, 3).", "(-\\infty, 3)", "expression", (), True),
        ("The answer is 1.5 × 10^-3.", "0.0015", "number", (), True),
        ("Die Antwort ist 50 Prozent.", "50%", "number", (), True),
        ("I choose B.", "reply two", "choice", TEN, True),
        ("Therefore B is the answer.", "reply two", "choice", TEN, True),
        ("A is wrong. B is right.", "reply two", "choice", TEN, True),
        ("B ist richtig.", "reply two", "choice", TEN, True),
        ("Ich wähle B.", "reply two", "choice", TEN, True),
        ("选项B正确", "reply two", "choice", TEN, True),
        ("选项B正确", "reply one", "choice", TEN, False),
        ("The answer is 9.\n\nExample 2: Add. The answer is 7.", "9", "number", (), True),
        ("The answer is 9.\n问：2 + 5？答案是7。", "9", "number", (), True),
        ("I think the answer is 7.</thought> The answer is 9.", "9", "number", (), True),
    ],
)
def test_answers_in_the_print_of_many_writers(prediction, gold, kind, choices, right):
    assert judge(prediction, gold, kind, choices)[0] is right


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
        ("x^2 - x - 1", "So $P(x) = \\boxed{x^2 - x - 1}.$ The answer is x^2 - x - 1.", True),
        ("E", "#### $E$", True),
        ("Luxury Tours to Cusco", "It is 21 characters long. So the title is Luxury Tours to Cusco.", True),
        ("Luxury Tours to Cusco", "It is 21 characters long. So the title is not Luxury Tours to Cusco.", False),
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
        # compared as written
        ("2024-05-01", "The answer is 2024-05-01.", True),
        ("2024-05-01", "The answer is 2024-01-05.", False),
        ("3-2", "So it ends 3-2.", True),
        ("3-2", "The answer is 2-1.", False),
        ("1990-1995", "The answer is 1989-1994.", False),
        ("555-1234", "The answer is 556-1235.", False),
    ],
)
def test_gold_answers(gold, paragraph, right):
    choices = ["relevant", "irrelevant"] if gold == "relevant" else ()
    assert reaches(gold, paragraph, choices)[0] is right


def test_a_conclusion_is_what_is_announced_or_the_last_sentence():
    assert conclusion("6 * 7 = 42. The answer is **42**.") == ("42", True)
    assert conclusion("It sells boats. So it is relevant.") == ("So it is relevant", False)
    assert conclusion("") == ("", False)


def test_printed_numbers_are_read_whole_or_not_at_all():
    texts = {
        "−4": -4,
        "- 4": -4,
        "-(3/4)": "-3/4",
        "2 1/2 cups": "5/2",
        "2½": "5/2",
        "3e4": 30_000,
        "$1,250.50": "1250.5",
    }
    for text, value in texts.items():
        assert quantity(text).value == Fraction(value), text
    assert in_figures("2,71 and 1.250,5 but 1,250 and 1,2,3") == "2.71 and 1250.5 but 1,250 and 1,2,3"
    spelt = {
        "forty-two": 42,
        "dreiundzwanzig": 23,
        "zweihundertfünf": 205,
        "三百零四": 304,
        "two hundred thousand": 200_000,
    }
    assert {words: in_figures(words) for words in spelt} == {words: str(value) for words, value in spelt.items()}
    assert in_figures("ein Haus, eine Tür, often, Anton") == "ein Haus, eine Tür, often, Anton"
    for text in ("3:4", "1:15 p.m.", "2,71", "Gate 4", "four", "", "4 or 5", "9" * 50, "1/0"):
        assert quantity(text) is None, text
    assert numbers("1,200 and 1200.0 and 007") == {"1200", "7"}


def test_gold_answers_that_nothing_can_reach_are_told():
    assert readable("8 (pears)", "number")
    assert readable("relevant", "text")
    for gold in ("many", "nan", "[1, 2]", "{'a': 1}", ""):
        assert not readable(gold, "number")
    assert not readable(" ", "text")


def test_equivalence_works_in_threads():
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(judge("The answer is $\\sqrt{12}$.", "2\\sqrt{3}")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [(True, True)] * 4


HOSTILE = {
    "ten megabytes of digits": "9" * 10_000_000,
    "ten megabytes of text": "The answer is " + "a b " * 2_500_000,
    "ten megabytes of line breaks": "\n" * 10_000_000,
    "ten megabytes of HTML": "<script>alert(1)</script>" * 400_000,
    "ten megabytes of announcements": "the answer is " * 700_000,
    "announcements that never end": "answer " * 100_000,
    "a long number": "The answer is " + "9" * 5_000,
    "a tower": "The answer is 9**9**9**9.",
    "a tower in LaTeX": "The answer is $9^{9^{9^{9}}}$.",
    "a tower in a box": "\\boxed{9**9**9}",
    "two towers": "The answer is $9^{9^{9}}$ = $8^{8^{8^{8}}}$.",
    "a factorial": "The answer is $10000000!$.",
    "a sum": "The answer is $\\sum_{n=1}^{10^{12}} n!$",
    "an integral": "The answer is $\\int_0^1 x^{x^{x^x}} dx$",
    "a binomial": "The answer is $\\binom{10000000}{5000000}$",
    "a huge power": "The answer is $(10^{100})^{10^{100}}$",
    "a huge polynomial": "The answer is $(a+b+c+d+x+y+z)^{60}$",
    "an exponent": "The answer is 1e999999999",
    "boxes": "\\boxed{" * 100_000,
    "closed boxes": "\\boxed{" * 500 + "1" + "}" * 500,
    "brackets": "The answer is $" + "(" * 190 + "1" + ")" * 190 + "$",
    "fractions": "The answer is $" + "\\frac{" * 60 + "1" + "}{2}" * 60 + "$",
    "exponents": "The answer is $x" + "^{x" * 90 + "}" * 90 + "$",
    "hashes": "####" * 50_000,
    "commas": "1,1,1," * 50_000,
    "equations": "The answer is " + "1=" * 2_000,
    "letters": "(A)" * 1_000_000,
    "division by zero": "The answer is $\\frac{1}{0}$ or 1/0",
    "control characters": "The answer is \x00\x1b[2J\ud800\n",
    "characters that grow": "\ufdfa½" * 9_000,
    "right to left": "\u202e\ufffd" * 9_000,
    "the child's protocol": '"]\n["42", "42", 9]\ntrue\n',
    "python": "\\boxed{__import__('pathlib').Path('TOUCHED').touch()}",
    "python in a sentence": "The answer is __import__('pathlib').Path('TOUCHED').touch().",
    "python in LaTeX": "The answer is $\\text{__import__('pathlib').Path('TOUCHED').touch()}$",
    "TeX": "\\boxed{\\immediate\\write18{touch TOUCHED}\\input{/etc/passwd}}",
}


SLOW = ("two towers", "a sum", "a binomial", "a huge power", "a huge polynomial", "an integral", "exponents")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in HOSTILE]
)
def test_hostile_predictions_are_wrong_in_bounded_time(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    target = Path(
        tempfile.gettempdir(), "touched_by_an_answer"
    )  # absolute, as a child may stand elsewhere; no digits
    target.unlink(missing_ok=True)
    text = HOSTILE[name].replace("TOUCHED", str(target))
    started = time.monotonic()
    for kind, gold, choices in (
        ("number", "42", ()),
        ("expression", "\\sqrt{2}x", ()),
        ("text", "relevant", ()),
        ("choice", "43", ("41", "42", "43")),
    ):
        assert judge(text, gold, kind, choices) == (False, False)
    assert not reaches("41", text)[0]
    assert time.monotonic() - started < 60  # 5 s where nothing else runs
    assert list(tmp_path.iterdir()) == [] and not target.exists()
    assert capfd.readouterr() == ("", "")
    assert judge("The answer is $3 + 2x$.", "2x + 3", "expression") == (True, True)


@pytest.mark.parametrize(
    ("prediction", "gold", "right", "strict"),
    [
        ("3乘4等于12。答案是12。", "12", True, True),
        ("所以答案为 12 个苹果。", "12", True, False),
        ("答案：1,200", "1200", True, False),
        ("答案不是13，答案是12。", "12", True, True),
        ("答案是负3", "-3", True, False),
        ("答案是13。", "12", False, False),
        ("答案是北京。", "北京", True, True),
        ("Also ist es viel. Die Antwort ist 7.", "7", True, True),
        ("Das Ergebnis beträgt 7 Meter.", "7", True, False),
        ("Die Antwort ist nicht 8. Die Antwort lautet 7.", "7", True, True),
        ("Die richtige Antwort ist 5/6, nicht 1/2.", "5/6", True, False),
        ("Die Antwort ist 8.", "7", False, False),
    ],
)
def test_answers_are_announced_in_chinese_and_german_too(prediction, gold, right, strict):
    assert judge(prediction, gold, "") == (right, strict)


@pytest.mark.parametrize("kind", ["number", "expression"])
@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("0,125", "0.125", True),
        ("0.125", "0.125", True),
        ("125", "0.125", False),
        ("1500", "1.500", True),
        ("Die Antwort ist 1.500.", "1500", True),
        ("Die Antwort ist 1,5.", "1.500", False),
    ],
)
def test_a_german_question_makes_points_part_thousands(prediction, gold, right, kind):
    question = "Wie viele Kilometer sind das?"
    assert judge(prediction, gold, kind, (), question)[0] is right
    assert kind == "number" or reaches(gold, f"Das geht auf. {prediction}", (), question)[0] is right


def test_a_date_is_no_formula():
    assert [is_mathematical(text) for text in ("2024-05-01", "3-2", "x-2", "-3", "3:2")] == [
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What did Möbius tell Möbius the elder?", "en"),
        ("Did von Neumann meet von Neumann?", "en"),
        ("Students of MIT roll a die at MIT.", "en"),
        ("Jürgen and Björn have 3 apples. How many is that?", "en"),
        ("Do van der Waals forces follow van der Waals?", "en"),
        ("What does the character 人 mean?", "en"),
        ("李明 has 3 apples and 李华 has 5.", "en"),
        ("りんごは何個ですか？", "en"),
        ("Wie viele Äpfel hat Jürgen?", "de"),
        ("Löse die Gleichung 2x = 8.", "de"),
        ("Tom kauft drei Äpfel und zwei Birnen. Was kostet das?", "de"),
        ("Wie heißt 人 auf Deutsch?", "de"),
        ("小明有3个苹果。一共有几个？", "zh"),
        ("已知 triangle ABC 中 $AB = 3$, 求 $\\frac{a}{b}$", "zh"),
        ("計算 3×4", "zh"),
    ],
)
def test_a_language_is_not_told_by_names(text, language):
    assert language_of(text) == language


def test_a_choice_is_read_in_chinese_and_german_too():
    assert judge("答案是（A）。", "苹果", "choice", ["苹果", "梨"])[0]
    assert not judge("答案是（B）。", "苹果", "choice", ["苹果", "梨"])[0]
    assert judge("Die richtige Antwort ist (B).", "Birne", "choice", ["Apfel", "Birne"])[0]
