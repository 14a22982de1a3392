"""Contamination: what counts as the same question, what does not, and that the cost stays linear."""

from __future__ import annotations

import random
import unicodedata

import pandas as pd
import pyarrow as pa
import pytest
import unspaced

from trait_kit.engine.files import TraitError
from trait_kit.engine.questions import COLUMNS, QuestionIndex, words_of


def find_contaminated(texts, questions: list[str], **options) -> pd.DataFrame:
    return QuestionIndex(questions, **options).find(texts)


QUESTION = (
    "A farmer has 12 rows of 8 apple trees. Each tree gives 25 apples in a season, and he sells the apples at $0.50 each. "
    "How much money does he make in one season?"
)
FILLER = "Orchards have been planted along the river since the middle ages, mostly with apples and pears."


def pairs(frame) -> list[tuple[int, int, str]]:
    return list(zip(frame["text_index"], frame["test_index"], frame["kind"], strict=True))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve  3x+2\n= 5.", "solve 3X + 2 = 5"),
        ("1,250 people", "1250 people"),
        ("6 × 7 − 1", "6 * 7 - 1"),
        ("a well-known fact", "A well known fact!"),
        ("ﬁve ½", "five 1/2"),
    ],
)
def test_spellings_of_the_same_question_are_equal(one: str, other: str) -> None:
    assert words_of(one) == words_of(other)


@pytest.mark.parametrize(
    ("one", "other"), [("3x + 2", "3x - 2"), ("2.5 m", "2 5 m"), ("a = b", "a < b"), ("x - 5", "x 5")]
)
def test_different_questions_stay_different(one: str, other: str) -> None:
    assert words_of(one) != words_of(other)


def test_a_whole_question_is_found_whatever_its_case_and_line_breaks() -> None:
    texts = [FILLER, f"{FILLER} {QUESTION.upper()} {FILLER}".replace(" ", "\n"), FILLER]
    found = find_contaminated(texts, ["Who planted the first tree?", QUESTION])
    assert pairs(found) == [(1, 1, "exact")]
    assert found["overlap"].tolist() == [1.0]
    assert found["excerpt"][0].startswith("a farmer has 12 rows")


def test_a_question_with_an_altered_opening_is_an_ngram_match_with_its_share() -> None:
    altered = QUESTION.replace("A farmer has 12", "The farmer owns 14")
    found = find_contaminated([f"{FILLER} {altered}"], [QUESTION])
    words, n, changed = len(words_of(QUESTION)), 13, 4
    assert pairs(found) == [(0, 0, "ngram")]
    assert found["overlap"][0] == pytest.approx((words - n + 1 - changed) / (words - n + 1))


def test_a_short_question_is_found_with_a_sentence_put_in_but_not_with_another_number() -> None:
    question = "Ann has 12 red pens and 5 blue pens. How many pens does she have?"
    parted = "Ann has 12 red pens and 5 blue pens. Take your time with this one. How many pens does she have?"
    other = "Ann has 12 red pens and 6 blue pens. Take your time with this one. How many pens does she have? 5 blue pens"
    assert pairs(find_contaminated([parted, other], [question])) == [(0, 0, "ngram")]


def test_half_of_the_ngrams_decides() -> None:  # 11 of 22
    words = QUESTION.split()
    texts = [" ".join(words[:length]) for length in (22, 23)]
    assert pairs(find_contaminated(texts, [QUESTION])) == [(1, 0, "ngram")]


def test_other_numbers_make_another_problem_of_the_same_template() -> None:
    template = (
        "What is the greatest common divisor of {} and {}? Give only the number as your answer, nothing else."
    )
    found = find_contaminated([template.format(48, 18)], [template.format(84, 30), template.format(48, 18)])
    assert pairs(found) == [(0, 1, "exact")]


def test_short_questions_match_whole_and_at_word_boundaries_only() -> None:
    questions = ["What is 2+2?", "Is pi", "rational"]
    texts = [
        "Tell me: what is 2 + 2?",
        "what is 2+22",
        "This is pie",
        "irrational numbers",
        "A rational one: is pi?",
    ]
    assert pairs(find_contaminated(texts, questions)) == [(0, 0, "exact"), (4, 1, "exact"), (4, 2, "exact")]


def test_a_question_asked_twice_in_the_test_set_is_reported_twice() -> None:
    assert pairs(find_contaminated([QUESTION], [QUESTION, "Unrelated?", QUESTION.lower()])) == [
        (0, 0, "exact"),
        (0, 2, "exact"),
    ]


def test_exactly_n_words_is_an_ngram_question_and_is_found_whole() -> None:
    question = " ".join(f"w{chr(97 + i)}" for i in range(13))
    assert pairs(find_contaminated(["x " + question + " y"], [question])) == [(0, 0, "exact")]


@pytest.mark.parametrize(
    ("texts", "questions"), [([], [QUESTION]), ([FILLER], []), ([FILLER, ""], [QUESTION, "", "?!"]), ([""], [""])]
)
def test_nothing_to_find_is_an_empty_table_with_its_columns(texts: list[str], questions: list[str]) -> None:
    found = find_contaminated(texts, questions)
    assert found.empty
    assert tuple(found.columns) == tuple(COLUMNS)


def test_findings_agree_with_a_quadratic_search() -> None:
    generator = random.Random(3)
    words = list("abcdef")
    texts = [" ".join(generator.choices(words, k=40)) for _ in range(60)]
    questions = [" ".join(generator.choices(words, k=generator.randint(1, 9))) for _ in range(60)]
    n, share = 4, 0.5
    expected = []
    for i, text in enumerate(texts):
        t = text.split()
        grams = {tuple(t[k : k + n]) for k in range(len(t) - n + 1)}
        for j, question in enumerate(questions):
            q = question.split()
            own = {tuple(q[k : k + n]) for k in range(len(q) - n + 1)}
            if f" {question} " in f" {text} ":
                expected.append((i, j, "exact"))
            elif own and len(own & grams) / len(own) >= share:
                expected.append((i, j, "ngram"))
    assert {kind for _, _, kind in expected} == {"exact", "ngram"}
    assert pairs(find_contaminated(texts, questions, n=n)) == expected


SPELLINGS = [
    *(
        "1,234",
        "1 234",
        "12,34",
        "1,2345",
        "３，５",
        "x−1",
        "x-1",
        "-1",
        "a–b",
        "a—b",
        "3×4",
        "½",
        "x²",
        "10⁻³",
        "٣٤",
        "①",
    ),
    *(
        "ﬁve",
        "naïve",
        "nai\u0308ve",
        "Straße",
        "STRASSE",
        "İstanbul",
        "ıstanbul",
        "ΟΔΟΣ",
        "οδος",
        "don't",
        "don’t",
        "'quoted'",
    ),
    *(
        "a≠b",
        "a=\u0338b",
        "a<b",
        "x\u0304y",
        "e\u0301t",
        "가각",
        "\u1100\u1161\u11a8",
        "数学",
        "、",
        "か\u3099",
        "が",
        "हिन्दी",
    ),
    *(
        "বাংলা",
        "عَرَبِيّ",
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\u00ad",
        "_",
        "x_1",
        "K",
        "ſo",
        "ǆ",
        "㎏",
        "…",
        "™",
        "𝟙𝐱",
        "\U00020000a",
        "\U0002f800",
    ),
    *(
        "🙂",
        "👩\u200d🔬",
        "☃\ufe0f",
        "\x00",
        "\n",
        ".",
        "3.14",
        "3.",
        "+",
        "=",
        "the",
        "sum",
        "of",
        "The",
        "ⅷ",
        "a·b",
        "1⁄2",
        "ŉ",
        "ǰ",
        "ΐ",
    ),
]


def slow(index: QuestionIndex, texts: list[str]) -> pd.DataFrame:
    """The findings without a look at how n-grams begin: every n-gram of every text is looked up."""
    lengths = {len(gram) for gram in index.grams}
    index._places = lambda words: ((at, length) for at in range(len(words)) for length in lengths)
    return index.find(texts)


@pytest.mark.parametrize("n", [2, 5, 13])
def test_looking_at_first_pairs_loses_nothing_in_texts_made_of_hard_cases(n: int) -> None:
    generator = random.Random(n)

    def text(most: int) -> str:
        pieces = generator.choices(SPELLINGS, k=generator.randint(1, most))
        return "".join(piece + generator.choice(["", " ", " ", " "]) for piece in pieces)

    respell = ("NFC", "NFD", "NFKC", "NFKD")
    texts = [text(60) for _ in range(1500)]
    questions = []
    for _ in range(400):
        words = words_of(generator.choice(texts))
        start = generator.randrange(max(1, len(words)))
        cut = words[start : start + generator.randint(1, 2 * n + 5)]
        if cut:
            question = " ".join([*cut, *generator.choice([[], ["zebra", "zebra"]])])
            questions.append(unicodedata.normalize(generator.choice(respell), question))
    texts = [
        unicodedata.normalize(generator.choice(respell), text) if generator.random() < 0.5 else text
        for text in texts
    ]
    index = QuestionIndex(questions, n)
    fast = index.find(texts)
    assert len(fast) > 200 and set(fast["kind"]) == {"exact", "ngram"}
    pd.testing.assert_frame_equal(fast, slow(index, texts))


def test_batches_of_arrow_strings_against_one_index() -> None:
    index = QuestionIndex([QUESTION])
    batches = [
        pa.array([FILLER, QUESTION]),
        pa.chunked_array([[FILLER], [QUESTION]]),
        pa.array(["", FILLER, QUESTION]).slice(1),
    ]
    for batch in (*batches, batches[0].cast(pa.large_string()), [FILLER, QUESTION]):
        assert pairs(index.find(batch)) == [(1, 0, "exact")]
    assert index.find(pa.array([], pa.string())).empty


def test_the_prompt_alone_counts_and_so_does_a_question_inside_a_template() -> None:
    asked = f"### Instruction:\nAnswer the question.\n\nQuestion: {QUESTION}\n\n### Response:\n"
    texts = [asked, f"{asked}(A) $1,200 (B) $900\nAnswer: A", f"Q:{QUESTION}A:", f"<p>{QUESTION}</p>"]
    assert pairs(find_contaminated(texts, [QUESTION])) == [(row, 0, "exact") for row in range(4)]


@pytest.mark.parametrize("question", ["-", "- -", "\U00020000"])
def test_questions_made_of_rare_characters_are_found_all_the_same(question: str) -> None:
    assert pairs(find_contaminated([FILLER, f"so: {question} {question}"], [question])) == [(1, 0, "exact")]


def test_hostile_sizes() -> None:
    texts = ["apple " * 1_000_000, "7" * 5_000_000, "x" * 50_000_000, f"{FILLER * 50_000} {QUESTION}"]
    index = QuestionIndex([QUESTION])
    assert pairs(index.find(texts)) == [(3, 0, "exact")]
    assert pairs(find_contaminated([QUESTION] * 1000, [QUESTION])) == [(row, 0, "exact") for row in range(1000)]


def test_unusable_texts_are_refused_by_name() -> None:
    broken = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    with pytest.raises(UnicodeDecodeError):
        find_contaminated(broken, [QUESTION])
    with pytest.raises(TraitError, match="Text 1 is null"):
        find_contaminated(pa.array([FILLER, None]), [QUESTION])


ORCHARD = "Nadia plants 8 rows of 15 pear trees. A storm fells a third of them. How many trees are left standing?"
DISGUISES = {  # how a copy of it may stand in a document
    "upper case": ORCHARD.upper(),
    "wrapped": ORCHARD.replace("trees. ", "trees.\n").replace("many ", "many\n"),
    "quoted": f"> {ORCHARD}".replace("trees. ", "trees.\n> ").replace("are ", "are\n> "),
    "bold": ORCHARD.replace("storm", "**storm**"),
    "underlined": ORCHARD.replace("pear", "__pear__"),
    "a tag": ORCHARD.replace("storm", '<span class="x">storm</span>'),
    "line breaks of HTML": ORCHARD.replace(". ", ".<br/>"),
    "a list": "".join(f"\n- {part}" for part in ORCHARD.split(". ")),
    "a numbered list": "".join(f"\n{n}. {part}" for n, part in enumerate(ORCHARD.split(". "), 1)),
    "a heading": f"### {ORCHARD}",
    "soft hyphens": ORCHARD.replace("standing", "stan\u00adding").replace("plants", "plan\u00adts"),
    "zero-width blanks": ORCHARD.replace("rows", "ro\u200bws"),
    "broken words": ORCHARD.replace("standing", "stan-\nding"),
    "broken words of Windows": ORCHARD.replace("standing", "stan-\r\nding"),
    "typographic hyphens": ORCHARD.replace("standing", "stan\u2010\nding"),
    "soft hyphens at a line's end": ORCHARD.replace("standing", "stan\xad\nding"),
    "places to break": ORCHARD.replace("standing", "stan<wbr>ding").replace("plants", "plan<wbr/>ts"),
    "half a word in bold": ORCHARD.replace("standing", "<b>stan</b>ding"),
    "entities of entities": ORCHARD.replace(" ", "&amp;nbsp;", 4),
    "comments of HTML": ORCHARD.replace(". ", ". <!-- x --> "),
    "line breaks of LaTeX": ORCHARD.replace(". ", ".\\par "),
    "items of LaTeX": "".join(f"\n\\item {part}" for part in ORCHARD.split(". ")),
    **{
        f"numbered {marks}": "".join(
            f"\n{mark} {part}" for mark, part in zip(marks.split(), ORCHARD.split(". "), strict=True)
        )
        for marks in (
            "a) b) c)",
            "(a) (b) (c)",
            "i. ii. iii.",
            "1.1. 1.2. 1.3.",
            "100. 101. 102.",
            "① ② ③",
            "#1 #2 #3",
            "// // //",
            "% % %",
            "-- -- --",
            "1: 2: 3:",
            "A. B. C.",
        )
    },
    "steps": "".join(f"\nStep {n}: {part}" for n, part in enumerate(ORCHARD.split(". "), 1)),
    "entities": ORCHARD.replace(" ", "&nbsp;", 4),
    "LaTeX": ORCHARD.replace("storm", r"\textbf{storm}"),
    "full width": "".join(chr(ord(mark) + 0xFEE0) if "!" <= mark <= "~" else mark for mark in ORCHARD),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_disguise_hides_a_copy(disguise):
    text = f"Some 12 words come before it, about weather.\n\n{DISGUISES[disguise]}\n\nAnd others come after."
    assert QuestionIndex([ORCHARD]).find([text])["kind"].tolist() == ["exact"]


def test_scripts_without_blanks_are_compared_by_character():
    question = "果园里有8行梨树，每行15棵，暴风雨吹倒了三分之一，还剩多少棵？"
    index = QuestionIndex([question])
    for text in (
        question,
        question.replace("了", " 了 ").replace("树", " 树"),
        question[:9] + "\n" + question[9:],
        f"老师说{question}大家想一想",
    ):
        assert index.find([text])["overlap"].tolist() == [1.0]
    assert index.find(["果园里有许多梨树，每年都开花，我们在那里度过了整个夏天。"]).empty


@pytest.mark.parametrize("script", unspaced.TEXTS)
def test_a_copy_within_a_text_of_a_script_without_blanks_is_found_and_an_unlike_text_is_not(script):
    question, other = unspaced.TEXTS[script]
    index, half = QuestionIndex([question]), len(question) // 2
    copies = (
        question,
        f"{question[:half]} {question[half:]}",
        "\u200b".join(question),
        question.replace("。", "!\n"),
    )
    for copy in copies:
        assert index.find([f"{other}{copy}{other}"])["kind"].tolist() == ["exact"]
    assert index.find([f"{other}{question[3:]}{other}"])["kind"].tolist() == ["ngram"]
    assert index.find([other, other + question[:half]]).empty


def test_markup_is_not_arithmetic_but_arithmetic_stays():
    index = QuestionIndex(["Simplify 3x + 2 and 4 * 5 > 6 for all x that are large enough to matter here."])
    changed = index.find(["Simplify 3x - 2 and 4 / 5 < 6 for all x that are large enough to matter here."])
    assert changed["kind"].tolist() != ["exact"]
    assert words_of("2 * 3 > 5 - x") == ("2", "*", "3", ">", "5", "-", "x")
