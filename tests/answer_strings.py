r"""Answers as language models write them, by hand, with the verdict that a careful teacher would give.

A group is (what it tries, the gold answer, lines), for choices (what, (gold, option, option ...), lines). A line begins with
its verdict: `++` right, in the sentence 'The answer is X.' that prompts ask for; `+-` right, in another form; `--` wrong.
`⏎` is a line break. Conventions: a unit is not compared, nor asked for; the last announced answer counts; a hedge is
wrong; a percentage may be given as its fraction; what a text makes up after another 'Question:' is not part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class AnswerString(NamedTuple):
    kind: str
    group: str
    gold: str
    choices: tuple[str, ...]
    prediction: str
    flexible: bool
    strict: bool


def answer_strings(kind: str) -> Iterator[AnswerString]:
    for group, gold, lines in {"number": NUMBER, "expression": EXPRESSION, "choice": CHOICE, "text": TEXT}[kind]:
        answer, *choices = gold if isinstance(gold, tuple) else (gold,)
        for line in filter(None, map(str.strip, lines.splitlines())):
            marks, _, prediction = line.partition(" ")
            text = prediction.replace("⏎", "\n")
            yield AnswerString(kind, group, answer, tuple(choices), text, marks[0] == "+", marks[1] == "+")


NUMBER = [
    (
        "the asked-for sentence",
        "42",
        r"""
        ++ The answer is 42.
        ++ 6 * 7 = 42. The answer is 42.
        ++ She picks 6 apples on each of 7 days, so 6 * 7 = 42 apples. The answer is 42.
        ++ First 12 + 30 = 42.⏎The answer is 42.
        ++ So the answer is 42.
        ++ Therefore, the answer is 42.⏎
        ++ Thus the answer is 42.⏎⏎
        ++ The answer is 42.⏎⏎Question: Tom has 3 apples. How many has he?⏎Answer: 3 apples. The answer is 3.
        ++ The answer is 42.⏎Question: What is 5 + 5?⏎Answer: The answer is 10.
        ++ the answer is 42.
        ++ THE ANSWER IS 42.
        ++ The answer is $42$.
        ++ The answer is **42**.
        ++ The answer is 42.0.
        ++ The answer is 42.00.
        ++ The answer is \(42\).
        ++ The answer is 41. No, that is one too few. The answer is 42.
        -- The answer is 41.
        -- The answer is 43.
        -- The answer is 420.
        -- The answer is 4.2.
        -- The answer is -42.
        -- The answer is 24.
        -- The answer is 142.
        -- The answer is 42.5.
        -- The answer is 4.
        -- The answer is 42. No, wait: 7 * 7 = 49. The answer is 49.
        -- The answer is 42,000.
        """,
    ),
    (
        "other announcements",
        "18",
        r"""
        +- Answer: 18
        +- Final answer: 18
        +- **Final Answer:** 18
        +- **Answer**: 18
        +- The answer: 18
        +- The final answer is 18
        +- the answer is: 18
        +- The answer is:⏎18
        +- The answer is⏎⏎18
        +- The correct answer is 18
        +- The answer to the question is 18
        +- The answer to this problem is therefore 18
        +- The answer would be 18.
        +- The answer must be 18.
        +- The answer should be 18 eggs.
        +- The answer = 18
        +- answer = 18
        +- Ans: 18
        +- ans = 18
        +- #### 18
        +- ####18
        +- 16 - 3 - 4 = 9 eggs.⏎9 * 2 = 18.⏎#### 18
        +- 9 * 2 = 18, so \boxed{18}.
        +- $\boxed{18}$
        +- \boxed{18}
        +- Therefore the result is $$\boxed{18}$$
        +- \[ \boxed{18} \]
        +- The answer is \boxed{18}
        +- The answer is: \[ 18 \]
        +- The answer is⏎\[⏎18⏎\]
        +- ANSWER: 18
        +- Answer: $18
        +- Answer: 18.
        +- The answer is 18
        -- Answer: 19
        -- Final answer: 81
        -- #### 16
        -- \boxed{9}
        -- The final answer is 1.8
        -- Answer: -18
        -- #### 18000
        -- The answer = 8
        -- Answer:
        -- The answer is
        -- ####
        -- \boxed{}
        """,
    ),
    (
        "thousands separators",
        "1200",
        r"""
        ++ The answer is 1,200.
        ++ The answer is 1200.
        ++ The answer is 1,200.00.
        ++ The answer is $1,200$.
        ++ The answer is 1{,}200.
        ++ The answer is $1,\!200$.
        ++ The answer is 1 200.
        +- So it takes 1,200 bricks.
        +- #### 1,200
        +- \boxed{1,200}
        +- \boxed{1{,}200}
        +- Answer: 1,200 bricks
        +- 30 * 40 = 1,200
        +- Each wall has 1,000 bricks and 200 more are spare, 1,200 in all
        +- The answer is 1.2 thousand.
        +- The answer is 12 hundred.
        -- The answer is 1,20.
        -- The answer is 12,00.
        -- The answer is 120.
        -- The answer is 12,000.
        -- The answer is 1,2000.
        -- The answer is 1,300.
        -- The answer is 1.200.
        -- #### 12,000
        -- It takes 1,201 bricks
        """,
    ),
    (
        "large numbers",
        "2500000",
        r"""
        ++ The answer is 2,500,000.
        ++ The answer is 2500000.
        ++ The answer is $2,500,000.
        +- The answer is 2.5 million.
        +- The answer is $2.5 million.
        +- The answer is 2,500 thousand.
        +- The answer is 2.5 million dollars.
        +- The answer is $2.5 \times 10^6$.
        +- The company earns 2,500,000 dollars
        +- #### 2500000
        -- The answer is 2.5 billion.
        -- The answer is 25 million.
        -- The answer is 2,500.
        -- The answer is 250,000.
        -- The answer is 2,500,00.
        -- The answer is 25,000,000.
        -- The answer is 2.5 thousand.
        -- The answer is $2.5 \times 10^5$.
        """,
    ),
    (
        "units",
        "15",
        r"""
        +- The answer is 15 apples.
        +- The answer is 15 km.
        +- The answer is 15km.
        +- The answer is 15 km/h.
        +- The answer is 15 square feet.
        +- The answer is 15 cm^2.
        +- The answer is 15 cm².
        +- The answer is 15 m².
        +- The answer is 15 cubic meters.
        +- The answer is 15 miles per hour.
        +- The answer is $15\text{ cm}$.
        +- The answer is $15 \text{ apples}$.
        +- The answer is $15\ \mathrm{kg}$.
        +- The answer is 15 years old.
        +- The answer is 15 minutes.
        ++ The answer is 15°.
        ++ The answer is $15^\circ$.
        +- The answer is 15 degrees.
        +- The answer is 15 (apples).
        +- The answer is 15 m.
        +- The answer is 15g.
        +- #### 15 apples
        +- \boxed{15 \text{ km}}
        +- Answer: 15 boxes of pencils
        +- So he walks 3 * 5 = 15 km.
        +- So he walks 15 km
        -- The answer is 16 km.
        -- The answer is 1.5 km.
        -- The answer is 150 m.
        -- The answer is 15x.
        -- The answer is 15n.
        -- The answer is $15\sqrt{2}$.
        -- The answer is $15\pi$.
        -- The answer is 15π.
        -- The answer is 15^2.
        -- The answer is 15:30.
        -- The answer is 15/2 km.
        """,
    ),
    (
        "currency",
        "64",
        r"""
        ++ The answer is $64.
        ++ The answer is $64.00.
        ++ The answer is €64.
        ++ The answer is £64.
        ++ The answer is \$64.
        ++ The answer is $\$64$.
        +- The answer is 64 dollars.
        +- The answer is $64 per week.
        +- The answer is 64 USD
        +- The answer is Rs. 64
        +- The answer is 64 euros.
        +- So she earns $64.
        +- #### $64
        +- She earns 8 * $8 = $64
        +- She earns $8 * 8 = $64 a week.
        +- \boxed{\$64}
        +- Answer: $64
        -- The answer is $6.40.
        -- The answer is $640.
        -- The answer is $64.50.
        -- The answer is -$64.
        -- The answer is $-64.
        -- The answer is 64 cents short of $100, that is $99.36, so the answer is $99.36.
        -- She earns $8 * 8 = $56
        """,
    ),
    (
        "cents and decimals",
        "3.5",
        r"""
        ++ The answer is 3.5.
        ++ The answer is 3.50.
        ++ The answer is $3.50.
        ++ The answer is 7/2.
        ++ The answer is 3 1/2.
        ++ The answer is 3½.
        ++ The answer is $\frac{7}{2}$.
        ++ The answer is $3\frac{1}{2}$.
        ++ The answer is 3.5000.
        +- The answer is 3.50 dollars.
        +- The answer is 3.5 hours.
        +- It takes 3.5 hours.
        +- #### 3.5
        +- #### 3.50
        +- 14 / 4 = 3.5
        +- \boxed{\frac{7}{2}}
        +- \boxed{3.5}
        +- The answer is 3 1/2 hours.
        -- The answer is 35.
        -- The answer is 3.
        -- The answer is 4.
        -- The answer is 0.35.
        -- The answer is 3.05.
        -- The answer is 3.55.
        -- The answer is 2/7.
        -- The answer is 3/2.
        -- The answer is 31/2.
        -- The answer is 3:50.
        -- The answer is 3,5.
        -- The answer is $\frac{2}{7}$.
        """,
    ),
    (
        "below one",
        "0.25",
        r"""
        ++ The answer is 0.25.
        ++ The answer is .25.
        ++ The answer is 1/4.
        ++ The answer is 2/8.
        ++ The answer is $\frac{1}{4}$.
        ++ The answer is $\dfrac14$.
        ++ The answer is ¼.
        ++ The answer is 25%.
        ++ The answer is $25\%$.
        +- The answer is 25 percent of the cake.
        +- The answer is 1/4 of the cake.
        +- So the share is 1/4
        +- So the share is 25 / 100 = 1/4.
        +- #### 0.25
        -- The answer is 25.
        -- The answer is 0.025.
        -- The answer is 2.5%.
        -- The answer is 4.
        -- The answer is 1/2.
        -- The answer is 4/1.
        -- The answer is -0.25.
        -- The answer is 3/4.
        """,
    ),
    (
        "percentages",
        "40",
        r"""
        ++ The answer is 40%.
        ++ The answer is 40 %.
        ++ The answer is $40\%$.
        ++ The answer is 40.
        +- The answer is 40 percent.
        +- 2 / 5 = 0.4, which is 40%.
        +- So 40% of them are boys
        +- Answer: 40%
        +- #### 40%
        -- The answer is 0.4.
        -- The answer is 4%.
        -- The answer is 60%.
        -- The answer is 400%.
        -- The answer is 2/5.
        """,
    ),
    (
        "negative numbers",
        "-7",
        r"""
        ++ The answer is -7.
        ++ The answer is −7.
        ++ The answer is $-7$.
        ++ The answer is -7.0.
        ++ The answer is - 7.
        +- The answer is minus 7.
        +- The answer is negative 7.
        +- The answer is -7 degrees.
        +- The answer is -$7 million, hence -7.
        +- 3 - 10 = -7
        +- 3 - 10 = −7 degrees
        +- #### -7
        +- \boxed{-7}
        +- x = -7
        +- The temperature is -7
        -- The answer is 7.
        -- The answer is +7.
        -- The answer is -17.
        -- The answer is -0.7.
        -- The answer is - 70.
        -- 10 - 3 = 7
        -- 10-7
        -- \boxed{7}
        """,
    ),
    (
        "signs that are none",
        "7",
        r"""
        ++ The answer is +7.
        +- from 10-3 we get 7
        +- 10-3=7
        +- 10 - 3 = 7
        +- - Sam has 7
        -- The answer is -7.
        -- 3 - 10 = -7
        """,
    ),
    (
        "several numbers",
        "12",
        r"""
        ++ 3 boxes hold 4 pens each. 3 * 4 = 12 pens in 3 boxes. The answer is 12.
        +- The answer is 12 because 3 * 4 = 12 and not 7.
        +- The answer is 12, since 36 / 3 = 12.
        +- The answer is 12 pens in 3 boxes.
        +- The answer is 3 * 4 = 12.
        +- The answer is 3 * 4 = 12 pens.
        +- The answer is 36 / 3 = 12 of the 36 pens.
        +- The answer is 12 = 3 * 4.
        +- The answer is x = 12.
        ++ The answer is 12. This is 3 more than 9.
        +- The answer is 12 out of 20.
        +- The answer is 12 (3 for each of 4 children).
        +- Answer: 12 (since 3 x 4 = 12)
        +- 3 + 4 = 7, 7 + 5 = 12
        +- He had 3, then 7, then 12
        +- He has 3 * 4 = 12 pens in 3 boxes.
        +- There are 4 pens in each of 3 boxes, so 4 + 4 + 4 = 12 pens altogether.
        +- #### 12 pens, 3 boxes
        -- The answer is 11 or 12.
        -- The answer is 12 or 13.
        -- The answer is between 12 and 15.
        -- The answer is 12 to 15.
        -- The answer is 12-15.
        -- The answer is 10 because 12 - 2 = 10.
        -- The answer is 12, 13.
        -- The answer is 12 and 13.
        -- 12 at first, but 13 in the end
        -- 12 + 3 = 15
        -- The answer is 12 + 3 = 15.
        -- The answer is 12 + 3.
        -- The answer is 3 more than 12, so 15. The answer is 15.
        -- Out of 12 he eats 3, so 9 are left
        """,
    ),
    (
        "more text after the answer",
        "30",
        r"""
        ++ The answer is 30. I hope this helps!
        ++ The answer is 30. Let me know if you need anything else.
        ++ The answer is 30.⏎⏎Explanation: 5 boxes of 6 make 30; 2 are open.
        ++ The answer is 30. (We used 5 * 6.)
        ++ The answer is 30.⏎⏎Note that 31 would be too many.
        ++ The answer is 30.<|endoftext|> 99
        +- #### 30⏎⏎Tom has 99 apples
        +- \boxed{30} is what we wanted; 5 * 6 is 30 and 7 is not used.
        +- Answer: 30⏎⏎Explanation: there are 5 boxes with 6 pens.
        +- 30⏎⏎Explanation: there are 5 boxes with 6 pens.
        +- 30
        +-  30
        +- 30.
        +- $30
        +- **30**
        +- 30⏎Question: What is 2 + 2?⏎Answer: 4
        +- 5 * 6 = 30⏎Question: What is 2 + 2?⏎Answer: The answer is 4.
        -- The answer is 31. I hope this helps! There are 30 of them.
        -- 31⏎⏎Explanation: 5 * 6 = 30, plus one.
        -- #### 31⏎30
        -- 5 * 6 = 31⏎Question: What is 30 + 0?⏎Answer: The answer is 30.
        """,
    ),
    (
        "no answer",
        "9",
        r"""
        -- No idea.
        -- I don't know.
        -- The answer is unknown.
        -- The answer is not 9.
        -- The answer isn't 9.
        -- The answer cannot be determined.
        -- Question
        -- .
        -- ...
        -- $
        -- $$
        -- The answer is N/A.
        -- nan
        -- inf
        -- The answer is x.
        -- The answer is ninety.
        -- How many does she have?
        -- The answer is correct.
        -- None
        -- ?
        """,
    ),
    (
        "announcements that name nothing",
        "9",
        r"""
        ++ The answer is 9. The answer is correct.
        +- 3 * 3 = 9. So the answer is clear.
        +- We check the answer: it fits. 3 * 3 = 9
        +- #### 9⏎The answer is shown above.
        +- \boxed{9}. This answer is unique.
        -- 3 * 3 = 8. So the answer is clear.
        -- \boxed{8}. This answer is unique.
        """,
    ),
    (
        "fractions",
        "3/4",
        r"""
        ++ The answer is 3/4.
        ++ The answer is 6/8.
        ++ The answer is 0.75.
        ++ The answer is 75%.
        ++ The answer is $\frac{3}{4}$.
        ++ The answer is $\frac34$.
        ++ The answer is $\tfrac{3}{4}$.
        ++ The answer is ¾.
        ++ The answer is 3 / 4.
        ++ The answer is 3⁄4.
        +- The answer is 3/4 of a mile.
        +- The answer is 3/4 cup
        +- \boxed{\dfrac{3}{4}}
        +- 9/12 = 3/4
        +- we get 3/4
        -- The answer is 4/3.
        -- The answer is 3/5.
        -- The answer is 3.
        -- The answer is 34.
        -- The answer is 0.34.
        -- The answer is -3/4.
        -- The answer is 1 3/4.
        -- The answer is $1\frac{3}{4}$.
        -- The answer is 3/0.
        -- The answer is 3/.
        """,
    ),
    (
        "rounded decimals",
        "0.8333333333",
        r"""
        ++ The answer is 0.8333333333.
        ++ The answer is 5/6.
        ++ The answer is 0.8333.
        ++ The answer is 0.83333.
        ++ The answer is $\frac{5}{6}$.
        +- The answer is 10/12 of a pound.
        -- The answer is 0.8.
        -- The answer is 0.8334.
        -- The answer is 0.9.
        -- The answer is 1.
        -- The answer is 6/5.
        -- The answer is 0.7333.
        """,
    ),
    (
        "still to be computed, or in another notation",
        "8",
        r"""
        +- The answer is $2^3$.
        +- The answer is 2^3 = 8.
        +- The answer is $\sqrt{64}$.
        +- The answer is $2 \cdot 4 = 8$.
        +- The answer is 2 \times 4 = 8.
        +- 2 \cdot 4 = 8
        +- The answer is $x = 8$.
        +- The answer is $16 \div 2 = 8$.
        +- The answer is about 8.
        +- The answer is approximately 8.
        +- The answer is only 8.
        +- The answer is exactly 8 pens.
        +- The answer is equal to 8.
        ++ The answer is "8".
        -- The answer is $3^2$.
        -- The answer is $\sqrt{8}$.
        -- The answer is $8^2$.
        -- The answer is $8!$.
        -- The answer is 2 + 4.
        -- The answer is 8i.
        """,
    ),
]

EXPRESSION = [
    (
        "whole numbers",
        "17",
        r"""
        ++ The answer is 17.
        ++ The answer is $17$.
        ++ We find $x = 17$. The answer is $17$.
        ++ The answer is $x = 17$.
        ++ So $\boxed{17}$. The answer is 17.
        +- Therefore the value is $\boxed{17}$.
        +- $\boxed{17}$
        +- \[\boxed{17}\]
        +- $$x = \boxed{17}$$
        +- \boxed{x = 17}
        +- Answer: 17
        +- #### 17
        +- 17
        +- $17$
        +- The answer is 17 because $20 - 3 = 17$.
        +- so $20 - 3 = 17$
        +- so we get $17$
        +- so we get $x = 17$.
        +- so we get \(17\)
        -- The answer is 71.
        -- The answer is $-17$.
        -- The answer is $17x$.
        -- The answer is $\sqrt{17}$.
        -- $\boxed{18}$
        -- \boxed{}
        -- $\boxed{1.7}$
        -- The answer is $17i$.
        -- No solution.
        """,
    ),
    (
        "fractions",
        r"\frac{7}{4}",
        r"""
        ++ The answer is \frac{7}{4}.
        ++ The answer is $\frac{7}{4}$.
        ++ The answer is $\dfrac{7}{4}$.
        ++ The answer is $\tfrac{7}{4}$.
        ++ The answer is $\frac74$.
        ++ The answer is $\frac 7 4$.
        ++ The answer is $\frac 74$.
        ++ The answer is $7/4$.
        ++ The answer is 7/4.
        ++ The answer is 1.75.
        ++ The answer is $1\frac{3}{4}$.
        ++ The answer is $1 \frac34$.
        ++ The answer is 1 3/4.
        ++ The answer is 1¾.
        ++ The answer is $\frac{14}{8}$.
        ++ The answer is $x=\frac{7}{4}$.
        +- \boxed{\frac{7}{4}}
        +- $\boxed{\frac{7}{4}}$.
        +- $x = \boxed{\dfrac{7}{4}}$
        +- \boxed{7/4}
        +- so $x = \frac{7}{4}$
        +- so $x = \frac{14}{8} = \frac{7}{4}$.
        +- Answer: $\frac{7}{4}$
        +- The answer is $\frac{7}{4}$ of the area.
        -- The answer is $\frac{4}{7}$.
        -- The answer is $-\frac{7}{4}$.
        -- The answer is $\frac{7}{5}$.
        -- The answer is 1.7.
        -- The answer is $\frac{7}{4}\pi$.
        -- The answer is $\frac{\sqrt{7}}{4}$.
        -- The answer is $7\frac{1}{4}$.
        -- \boxed{\frac{7}{4}x}
        -- The answer is $\frac{7}{0}$.
        -- \boxed{\frac{7}{}}
        -- The answer is 74.
        """,
    ),
    (
        "negative fractions",
        r"-\frac{1}{2}",
        r"""
        ++ The answer is $-\frac{1}{2}$.
        ++ The answer is $\frac{-1}{2}$.
        ++ The answer is $\frac{1}{-2}$.
        ++ The answer is -1/2.
        ++ The answer is $-0.5$.
        ++ The answer is −1/2.
        ++ The answer is $- \frac12$.
        ++ The answer is $-\dfrac{1}{2}$.
        +- \boxed{-\frac{1}{2}}
        +- \boxed{-\frac12}
        +- $x = -\frac{1}{2}$
        -- The answer is $\frac{1}{2}$.
        -- The answer is $-2$.
        -- The answer is $-\frac{1}{3}$.
        -- The answer is $0.5$.
        -- \boxed{-1}
        """,
    ),
    (
        "roots",
        r"16\sqrt{3}",
        r"""
        ++ The answer is $16\sqrt{3}$.
        ++ The answer is $16 \sqrt{3}$.
        ++ The answer is $16\sqrt3$.
        ++ The answer is $16 \cdot \sqrt{3}$.
        ++ The answer is $\sqrt{768}$.
        ++ The answer is $8\sqrt{12}$.
        ++ The answer is $\frac{48}{\sqrt{3}}$.
        ++ The answer is \(16\sqrt{3}\).
        ++ The answer is $\sqrt{3} \cdot 16$.
        +- \boxed{16\sqrt{3}}
        +- $\boxed{16\,\sqrt{3}}$
        +- The area is $\boxed{16\sqrt{3}}$ square units.
        +- so the area is $16\sqrt{3}$.
        +- The answer is $16\sqrt{3}$ square inches.
        +- The answer is $16\sqrt{3}\text{ cm}^2$.
        -- The answer is $16\sqrt{2}$.
        -- The answer is $\sqrt{3}$.
        -- The answer is 16.
        -- The answer is 163.
        -- The answer is $16+\sqrt{3}$.
        -- The answer is $-16\sqrt{3}$.
        -- The answer is $48$.
        -- The answer is 27.
        -- The answer is $\sqrt{16} \cdot 3$.
        -- \boxed{16\sqrt{}}
        """,
    ),
    (
        "multiples of pi",
        r"9\pi",
        r"""
        ++ The answer is $9\pi$.
        ++ The answer is $9 \pi$.
        ++ The answer is $\pi \cdot 9$.
        ++ The answer is $3^2\pi$.
        ++ The answer is $\frac{18\pi}{2}$.
        ++ The answer is 9π.
        +- \boxed{9\pi}
        +- The area is $\pi r^2 = 9\pi$.
        +- The answer is $9\pi$ square units.
        -- The answer is $9$.
        -- The answer is $\pi$.
        -- The answer is $9\pi^2$.
        -- The answer is $3\pi$.
        -- The answer is $18\pi$.
        -- The answer is 28.27.
        """,
    ),
    (
        "polynomials",
        "5x^2-3x+1",
        r"""
        ++ The answer is $5x^2-3x+1$.
        ++ The answer is $5x^2 - 3x + 1$.
        ++ The answer is $1 - 3x + 5x^2$.
        ++ The answer is $5x^{2}-3x+1$.
        ++ The answer is 5x^2 - 3x + 1.
        ++ The answer is $5 x^2 + 1 - 3 x$.
        ++ The answer is $x(5x-3)+1$.
        ++ The answer is $5x² − 3x + 1$.
        ++ The answer is $f(x) = 5x^2 - 3x + 1$.
        ++ The answer is 5x**2 - 3x + 1.
        +- \boxed{5x^2 - 3x + 1}
        +- so $f(x) = 5x^2 - 3x + 1$.
        -- The answer is $5x^2 + 3x + 1$.
        -- The answer is $5x^2 - 3x - 1$.
        -- The answer is $5x^2 - 3x$.
        -- The answer is $5x^3 - 3x + 1$.
        -- The answer is $5y^2 - 3y + 1$.
        -- The answer is $x^2 - 3x + 1$.
        -- The answer is $52x - 3x + 1$.
        -- The answer is 5.
        -- The answer is $5x^2$.
        -- \boxed{-5x^2 + 3x - 1}
        """,
    ),
    (
        "factored",
        "7x(x-1)(x-2)",
        r"""
        ++ The answer is $7x(x-1)(x-2)$.
        ++ The answer is $7x(x-2)(x-1)$.
        ++ The answer is $7(x-1)(x-2)x$.
        ++ The answer is $7x^3-21x^2+14x$.
        +- \boxed{7x(x - 1)(x - 2)}
        -- The answer is $7x(x+1)(x-2)$.
        -- The answer is $x(x-1)(x-2)$.
        -- The answer is $7(x-1)(x-2)$.
        -- The answer is $7x(x-1)$.
        """,
    ),
    (
        "complex numbers",
        "3-4i",
        r"""
        ++ The answer is $3-4i$.
        ++ The answer is $3 - 4i$.
        ++ The answer is $-4i+3$.
        ++ The answer is 3 - 4i.
        +- \boxed{3-4i}
        +- so $z = 3-4i$.
        -- The answer is $3+4i$.
        -- The answer is $-3+4i$.
        -- The answer is $4-3i$.
        -- The answer is $-1$.
        -- The answer is $3-4$.
        -- The answer is 5.
        """,
    ),
    (
        "pairs",
        r"(3,\frac{\pi}{2})",
        r"""
        ++ The answer is $(3,\frac{\pi}{2})$.
        ++ The answer is $\left(3, \frac{\pi}{2}\right)$.
        ++ The answer is $(3, \pi/2)$.
        ++ The answer is $\left( 3, \dfrac{\pi}{2} \right)$.
        ++ The answer is $(r,\theta) = (3,\frac{\pi}{2})$.
        +- \boxed{\left(3,\frac{\pi}{2}\right)}
        +- $\boxed{\left( 3, \frac{\pi}{2} \right)}$
        -- The answer is $(\frac{\pi}{2},3)$.
        -- The answer is $(3,\pi)$.
        -- The answer is $(3,-\frac{\pi}{2})$.
        -- The answer is $(-3,\frac{\pi}{2})$.
        -- The answer is $3$.
        -- The answer is $\frac{\pi}{2}$.
        """,
    ),
    (
        "points",
        "(1,-2)",
        r"""
        ++ The answer is $(1,-2)$.
        ++ The answer is (1, -2).
        ++ The answer is $(1, -2)$.
        ++ The answer is $(x,y) = (1,-2)$.
        ++ The answer is (1,−2).
        +- \boxed{(1,-2)}
        +- \boxed{(1, -2)}
        +- They meet at $(1,-2)$.
        -- The answer is $(-2,1)$.
        -- The answer is $(1,2)$.
        -- The answer is $(-1,2)$.
        -- The answer is $(1,-2,0)$.
        -- The answer is $1$.
        -- The answer is $-2$.
        -- The answer is $-1$.
        -- \boxed{(1,-3)}
        """,
    ),
    (
        "intervals",
        "[-2,7)",
        r"""
        ++ The answer is $[-2,7)$.
        ++ The answer is [-2, 7).
        ++ The answer is $\left[-2,7\right)$.
        ++ The answer is $x \in [-2,7)$.
        +- \boxed{[-2,7)}
        +- $x \in \boxed{[-2, 7)}$
        -- The answer is $(-2,7)$.
        -- The answer is $[-2,7]$.
        -- The answer is $(-2,7]$.
        -- The answer is $[2,7)$.
        -- The answer is $[-7,2)$.
        -- The answer is 7.
        """,
    ),
    (
        "unions",
        r"(-\infty,2)\cup(3,\infty)",
        r"""
        ++ The answer is $(-\infty,2)\cup(3,\infty)$.
        ++ The answer is $(-\infty, 2) \cup (3, \infty)$.
        ++ The answer is $(3,\infty)\cup(-\infty,2)$.
        ++ The answer is $\left(-\infty,2\right)\cup\left(3,\infty\right)$.
        ++ The answer is $x \in (-\infty,2)\cup(3,\infty)$.
        +- \boxed{(-\infty,2)\cup(3,\infty)}
        -- The answer is $(-\infty,2]\cup[3,\infty)$.
        -- The answer is $(2,3)$.
        -- The answer is $(-\infty,2)$.
        -- The answer is $(3,\infty)$.
        -- The answer is $(-\infty,\infty)$.
        """,
    ),
    (
        "several solutions",
        "1,-2",
        r"""
        ++ The answer is $1,-2$.
        ++ The answer is $-2,1$.
        ++ The answer is 1, -2.
        ++ The answer is $\{1,-2\}$.
        ++ The answer is $x = 1, -2$.
        +- \boxed{1, -2}
        +- \boxed{-2,1}
        +- The solutions are $\boxed{1,-2}$.
        -- The answer is $1$.
        -- The answer is $-2$.
        -- The answer is $1,2$.
        -- The answer is $-1,2$.
        -- The answer is $1,-2,3$.
        -- The answer is $-1$.
        -- The answer is $-12$.
        """,
    ),
    (
        "plus or minus",
        r"3\pm\sqrt{2}",
        r"""
        ++ The answer is $3\pm\sqrt{2}$.
        ++ The answer is $3 \pm \sqrt{2}$.
        ++ The answer is $3\pm\sqrt2$.
        ++ The answer is $3+\sqrt{2},3-\sqrt{2}$.
        +- \boxed{3\pm\sqrt{2}}
        -- The answer is $3+\sqrt{2}$.
        -- The answer is $3-\sqrt{2}$.
        -- The answer is $2\pm\sqrt{3}$.
        -- The answer is $\pm\sqrt{2}$.
        """,
    ),
    (
        "matrices",
        r"\begin{pmatrix} 1 & 2 \\ 6 & -1 \end{pmatrix}",
        r"""
        ++ The answer is $\begin{pmatrix} 1 & 2 \\ 6 & -1 \end{pmatrix}$.
        ++ The answer is $\begin{pmatrix}1&2\\6&-1\end{pmatrix}$.
        ++ The answer is $\begin{bmatrix} 1 & 2 \\ 6 & -1 \end{bmatrix}$.
        +- \boxed{\begin{pmatrix} 1 & 2 \\ 6 & -1 \end{pmatrix}}
        +- $\mathbf{A} = \boxed{\begin{pmatrix} 1 & 2 \\ 6 & -1 \end{pmatrix}}$
        -- The answer is $\begin{pmatrix} 1 & 2 \\ 6 & 1 \end{pmatrix}$.
        -- The answer is $\begin{pmatrix} 1 & 6 \\ 2 & -1 \end{pmatrix}$.
        -- The answer is $\begin{pmatrix} 1 & 2 \end{pmatrix}$.
        -- The answer is $\begin{pmatrix} 6 & -1 \\ 1 & 2 \end{pmatrix}$.
        -- The answer is -13.
        -- \boxed{\begin{pmatrix} 1 & 2 \\ 6 & -1}
        """,
    ),
    (
        "angles",
        r"20^\circ",
        r"""
        ++ The answer is $20^\circ$.
        ++ The answer is $20^{\circ}$.
        ++ The answer is 20°.
        ++ The answer is 20.
        +- The answer is 20 degrees.
        +- \boxed{20^\circ}
        +- \boxed{20}
        +- $\angle ABC = 20^\circ$
        +- $\angle ABC = \boxed{20}$ degrees
        -- The answer is $200^\circ$.
        -- The answer is $2^\circ$.
        -- The answer is $70^\circ$.
        -- The answer is $\frac{\pi}{20}$.
        -- The answer is $-20^\circ$.
        -- The answer is $20^2$.
        """,
    ),
    (
        "money",
        r"\$15,\!000",
        r"""
        ++ The answer is \$15,\!000.
        ++ The answer is $15,000.
        ++ The answer is $\$15{,}000$.
        ++ The answer is 15000.
        +- The answer is 15,000 dollars.
        +- \boxed{\$15,\!000}
        +- \boxed{15000}
        +- \boxed{15,000}
        +- \boxed{\$15,000.00}
        -- The answer is \$15.
        -- The answer is \$1,500.
        -- The answer is \$150,000.
        -- The answer is \$15,001.
        """,
    ),
    (
        "large numbers",
        r"987,\!436",
        r"""
        ++ The answer is $987,\!436$.
        ++ The answer is 987436.
        ++ The answer is 987,436.
        ++ The answer is $987{,}436$.
        +- \boxed{987,\!436}
        +- \boxed{987436}
        -- The answer is 987.
        -- The answer is 436.
        -- The answer is 987,463.
        -- The answer is 9874.36.
        """,
    ),
    (
        "percentages",
        r"12\%",
        r"""
        ++ The answer is $12\%$.
        ++ The answer is 12%.
        ++ The answer is 12.
        ++ The answer is 0.12.
        +- \boxed{12\%}
        +- \boxed{12}
        -- The answer is $1.2\%$.
        -- The answer is $120\%$.
        -- The answer is 1.2.
        -- The answer is $88\%$.
        """,
    ),
    (
        "with a unit in the gold answer",
        r"9 \text{ multiples}",
        r"""
        ++ The answer is $9 \text{ multiples}$.
        ++ The answer is 9.
        ++ The answer is 9 multiples.
        ++ The answer is $9$.
        +- \boxed{9}
        +- \boxed{9 \text{ multiples}}
        -- The answer is 8.
        -- The answer is 90 multiples.
        -- The answer is $\frac{1}{9}$.
        """,
    ),
    (
        "words",
        r"\text{Monday}",
        r"""
        ++ The answer is Monday.
        ++ The answer is $\text{Monday}$.
        ++ The answer is \text{Monday}.
        ++ The answer is **Monday**.
        +- \boxed{\text{Monday}}
        +- \boxed{Monday}
        +- $\boxed{\text{Monday}}$.
        +- Answer: Monday
        +- Monday
        -- The answer is Sunday.
        -- The answer is $\text{Tuesday}$.
        -- \boxed{\text{Mon}}
        -- The answer is 1.
        -- The answer is not Monday.
        """,
    ),
    (
        "names",
        "Evelyn",
        r"""
        ++ The answer is Evelyn.
        ++ The answer is \text{Evelyn}.
        +- \boxed{\text{Evelyn}}
        +- \boxed{Evelyn}
        -- The answer is Evan.
        -- The answer is Briana.
        -- \boxed{\text{Evelyns}}
        """,
    ),
    (
        "letters as answers",
        r"\text{(C)}",
        r"""
        ++ The answer is (C).
        ++ The answer is $\text{(C)}$.
        ++ The answer is C.
        +- \boxed{\text{(C)}}
        +- \boxed{C}
        -- The answer is (B).
        -- The answer is D.
        -- \boxed{\text{(A)}}
        """,
    ),
    (
        "bases",
        "2516_8",
        r"""
        ++ The answer is $2516_8$.
        ++ The answer is $2516_{8}$.
        ++ The answer is 2516.
        +- \boxed{2516_8}
        +- \boxed{2516}
        -- The answer is $2516_7$.
        -- The answer is $2516_{10}$.
        -- The answer is $2561_8$.
        -- The answer is $25168$.
        """,
    ),
    (
        "equations",
        "y = 2x+3",
        r"""
        ++ The answer is $y = 2x+3$.
        ++ The answer is $y=2x+3$.
        ++ The answer is $y = 3 + 2x$.
        ++ The answer is $2x+3$.
        +- \boxed{y = 2x + 3}
        -- The answer is $y = 2x-3$.
        -- The answer is $y = 3x+2$.
        -- The answer is $y = 2x$.
        -- The answer is $y = -2x-3$.
        """,
    ),
    (
        "inequalities",
        r"x \le 5",
        r"""
        ++ The answer is $x \le 5$.
        ++ The answer is $x \leq 5$.
        ++ The answer is $x≤5$.
        ++ The answer is $x <= 5$.
        +- \boxed{x \le 5}
        -- The answer is $x < 5$.
        -- The answer is $x \ge 5$.
        -- The answer is $x \le -5$.
        -- The answer is $x = 5$.
        -- The answer is 5.
        """,
    ),
    (
        "ratios",
        "3:2",
        r"""
        ++ The answer is 3:2.
        ++ The answer is $3:2$.
        ++ The answer is 3 : 2.
        ++ The answer is 6:4.
        ++ The answer is 3/2.
        +- \boxed{3:2}
        +- #### 3:2
        -- The answer is 2:3.
        -- The answer is 3.
        -- The answer is 2.
        -- The answer is 32.
        -- The answer is 3:4.
        """,
    ),
    (
        "logarithms and powers",
        r"2^{10}",
        r"""
        ++ The answer is $2^{10}$.
        ++ The answer is 1024.
        ++ The answer is $1,024$.
        ++ The answer is $4^5$.
        ++ The answer is 2^10.
        +- \boxed{2^{10}}
        +- \boxed{1024}
        -- The answer is $2^{11}$.
        -- The answer is $10^2$.
        -- The answer is 210.
        -- The answer is 20.
        -- The answer is $2^1 0$.
        """,
    ),
    (
        "variables",
        r"\frac{x+y}{2}",
        r"""
        ++ The answer is $\frac{x+y}{2}$.
        ++ The answer is $\frac{y+x}{2}$.
        ++ The answer is $(x+y)/2$.
        ++ The answer is $\frac{1}{2}(x+y)$.
        ++ The answer is $\frac{x}{2}+\frac{y}{2}$.
        +- \boxed{\frac{x+y}{2}}
        -- The answer is $\frac{x-y}{2}$.
        -- The answer is $\frac{2}{x+y}$.
        -- The answer is $x+\frac{y}{2}$.
        -- The answer is $\frac{x+y}{3}$.
        -- The answer is $\frac{1}{2}$.
        -- The answer is $\frac{a+b}{2}$.
        """,
    ),
    (
        "dates and times of day",
        "3:58",
        r"""
        ++ The answer is 3:58.
        +- \boxed{3:58}
        +- Answer: 3:58
        -- The answer is 3:59.
        -- The answer is 358.
        -- The answer is 3.58.
        -- The answer is 58:3.
        """,
    ),
    (
        "announced twice, or followed by more",
        r"\frac{3}{8}",
        r"""
        ++ $\boxed{\frac{3}{8}}$. The answer is $\frac{3}{8}$.
        ++ The answer is $\frac{3}{8}$.⏎⏎Question: What is $\frac{1}{2}+1$?⏎Answer: The answer is $\frac{3}{2}$.
        ++ The answer is $\frac{1}{8}$. I was wrong. The answer is $\frac{3}{8}$.
        +- \boxed{\frac{1}{8}} is wrong; it is \boxed{\frac{3}{8}}.
        +- The answer is $\frac{3}{8}$, since there are 8 outcomes.
        +- The answer is $\frac{3}{8}$ because 3 of 8 fit.
        +- Final Answer: The final answer is $\frac{3}{8}$. I hope it is correct.
        +- so $P = 3 \cdot \frac{1}{8} = \frac{3}{8}$.⏎The answer is clear.
        -- \boxed{\frac{3}{8}} is wrong; it is \boxed{\frac{1}{8}}.
        -- The answer is $\frac{3}{8}$ or $\frac{5}{8}$.
        -- Final Answer: The final answer is $\frac{5}{8}$. I hope it is correct.
        -- $\frac{3}{8}$ is too small.⏎The answer is $\frac{1}{2}$.
        """,
    ),
    (
        "no answer",
        r"\frac{3}{8}",
        r"""
        -- I cannot solve this.
        -- The answer is
        -- \boxed{?}
        -- \boxed{\text{none}}
        -- The answer is undefined.
        -- $
        -- \frac{3}{
        -- The answer is $\frac{3}{.
        -- The answer is not $\frac{3}{8}$.
        -- ...
        """,
    ),
]

CHOICE = [
    (
        "letters",
        ("48", "24", "48", "36", "64"),
        r"""
        ++ The answer is (B).
        ++ The answer is B.
        ++ 6 * 8 = 48. The answer is (B).
        ++ The answer is **(B)**.
        ++ The answer is $\text{(B)}$.
        ++ So the answer is (B).
        ++ The answer is (b).
        ++ The answer is option (B).
        ++ The answer is [B].
        +- The answer is (B)
        +- The answer is: (B)
        +- Answer: B
        +- Answer: (B)
        +- Answer: B.
        +- Answer: B)
        +- **Answer: B**
        +- **Answer:** (B)
        +- Final answer: (B)
        +- The correct answer is B
        +- The correct answer is option B.
        +- The correct option is (B).
        +- The correct choice is (B)
        +- The answer is clearly (B).
        +- #### B
        +- #### (B)
        +- \boxed{B}
        +- \boxed{(B)}
        +- $\boxed{\text{B}}$
        +- \boxed{\text{(B)}}
        +- \boxed{\textbf{(B)}}
        +- B
        +- (B)
        +- b)
        +- B)
        +- B.
        +- b
        +- (b)
        +- [B]
        +- **B**
        +- **(B)**
        +- Option B
        +- option (B)
        +- Choice B
        +-  B
        +- B⏎
        +- B⏎⏎Explanation: 6 * 8 = 48, and A is too small.
        +- (B)⏎Question: What is 1 + 1?⏎(A) 2⏎(B) 3⏎Answer: (A)
        +- It must be (B).
        +- We choose (B).
        +- Hence (B) is correct.
        +- Hence (B).
        +- Therefore B is the answer: (B)
        +- Therefore, option B is correct.
        +- It is (B), not (A).
        +- Not (A), so (B).
        +- The answer is (B) because 6 * 8 = 48.
        +- The answer is B because 6 * 8 = 48.
        +- The answer is B, since 6 * 8 = 48.
        ++ The answer is (B). The others are too small or too large: (A), (C), (D).
        -- The answer is (A).
        -- The answer is C.
        -- The answer is (D) because 8 * 8 = 64.
        -- A
        -- (C)
        -- d)
        -- D.
        -- Answer: A
        -- \boxed{C}
        -- #### D
        -- The answer is (E).
        -- The answer is (F).
        -- E
        -- It must be (A).
        -- It is (A), not (B).
        +- (A) is wrong and (C) is wrong, so it must be (B).
        +- The correct choice is b).
        -- The correct option is c).
        -- (B) is wrong, so it must be (A).
        -- The answer is not (B).
        -- (A) or (B)
        -- Both (B) and (C).
        -- The answer is (A) or (B).
        -- The answer is (B). No: 6 * 4 = 24. The answer is (A).
        -- (A)⏎Question: What is 1 + 1?⏎(A) 3⏎(B) 2⏎Answer: (B)
        """,
    ),
    (
        "the option's text",
        ("48", "24", "48", "36", "64"),
        r"""
        ++ The answer is 48.
        ++ The answer is $48$.
        ++ The answer is 48.0.
        ++ 6 * 8 = 48. The answer is 48.
        +- The answer is 48
        +- 48
        +- 6 * 8 = 48
        +- The answer is 48 pens.
        +- The answer is 6 * 8 = 48.
        +- Answer: 48
        +- \boxed{48}
        +- #### 48
        +- **48**
        -- The answer is 24.
        -- The answer is 36.
        -- The answer is 84.
        -- The answer is 480.
        -- The answer is 4.8.
        -- The answer is -48.
        -- 36
        -- \boxed{64}
        -- 6 * 8 = 64
        """,
    ),
    (
        "letter and text",
        ("48", "24", "48", "36", "64"),
        r"""
        ++ The answer is (B) 48.
        ++ The answer is B) 48.
        ++ The answer is (B): 48.
        +- (B) 48
        +- B) 48
        +- B. 48
        +- B: 48
        +- (B) 48.
        +- b ) 48
        +- Answer: (B) 48
        +- Answer: B) 48
        +- The answer is (B) 48 pens
        +- \boxed{(B) 48}
        +- \boxed{\text{(B) }48}
        +- The answer is 48, which is (B).
        +- 48 (B)
        -- (A) 24
        -- A) 24
        -- The answer is (C) 36.
        """,
    ),
    (
        "contradictions",
        ("48", "24", "48", "36", "64"),
        r"""
        -- The answer is (A) 48.
        -- The answer is (B) 24.
        -- (C) 48
        -- C) 48
        -- B) 36
        -- (B) 64
        -- Answer: D) 48
        -- The answer is B: 24.
        -- \boxed{(D) 48}
        -- (E) 48
        -- A. 48
        -- B. 24
        """,
    ),
    (
        "no answer",
        ("48", "24", "48", "36", "64"),
        r"""
        -- I do not know.
        -- None of these.
        -- The answer is unknown.
        -- The answer is none of the above.
        -- The answer is
        -- ()
        -- ?
        -- Answer:
        -- (A), (B), (C), (D)
        -- A B C D
        -- All of the above.
        -- The answer is between (B) and (C).
        """,
    ),
    (
        "words",
        ("a dye laser", "a dye laser", "a helium-neon laser", "an excimer laser", "a ruby laser"),
        r"""
        ++ The answer is (A).
        ++ The answer is A.
        ++ The answer is a dye laser.
        ++ The answer is A dye laser.
        ++ The answer is (A) a dye laser.
        ++ The answer is "a dye laser".
        ++ The answer is a Dye Laser.
        +- (A) a dye laser
        +- A) a dye laser
        +- a dye laser
        +- A dye laser
        +- A dye laser.
        +- It is tunable, hence a dye laser.
        +- The answer is a dye laser because it is tunable.
        +- The answer is a dye laser, which is tunable.
        +- Answer: a dye laser
        ++ Not a ruby laser; the answer is (A).
        +- A
        +- A.
        -- a ruby laser
        -- The answer is a ruby laser.
        -- The answer is (D) a ruby laser.
        -- The answer is (B) a dye laser.
        -- A helium-neon laser
        -- A ruby laser
        -- An excimer laser
        -- The answer is a laser.
        -- A laser
        -- a dye
        -- The answer is not a dye laser.
        -- It is not a dye laser.
        -- a dye laser or a ruby laser
        -- (B)
        -- D
        """,
    ),
    (
        "options within options",
        ("increase", "increase", "not increase", "increase and then decrease", "decrease"),
        r"""
        ++ The answer is increase.
        ++ The answer is (A) increase.
        ++ The answer is (A).
        +- increase
        +- Increase.
        +- It will increase
        +- (A) increase
        +- A) increase
        -- increase and then decrease
        -- The answer is increase and then decrease.
        -- It will increase and then decrease.
        -- not increase
        -- It will not increase.
        -- decrease
        -- (C) increase and then decrease
        -- The answer is (B) not increase.
        -- It will decrease
        """,
    ),
    (
        "labels",
        ("relevant", "relevant", "irrelevant"),
        r"""
        ++ The answer is relevant.
        ++ The answer is (A).
        ++ The answer is Relevant.
        ++ The query and the ad are about the same trip. The answer is relevant.
        +- relevant
        +- Relevant
        +- Relevant.
        +- **relevant**
        +- (A) relevant
        +- The ad is relevant.
        +- Label: relevant
        +- The answer is: relevant
        -- irrelevant
        -- Irrelevant.
        -- The answer is irrelevant.
        -- The ad is irrelevant.
        -- The ad is not relevant.
        -- (B)
        -- (B) irrelevant
        -- (A) irrelevant
        -- The answer is not relevant.
        -- relevant or irrelevant
        -- yes
        """,
    ),
    (
        "formulas as options",
        (r"$\frac{5}{3}$", r"$\frac{3}{5}$", r"$-\frac{5}{3}$", r"$\frac{5}{3}$", r"$\sqrt{5}$"),
        r"""
        ++ The answer is (C).
        ++ The answer is $\frac{5}{3}$.
        ++ The answer is 5/3.
        ++ The answer is $\dfrac{5}{3}$.
        ++ The answer is (C) $\frac{5}{3}$.
        +- \boxed{\frac{5}{3}}
        +- \boxed{C}
        +- (C) $\frac{5}{3}$
        +- C
        +- x = 5/3
        +- so $x = \frac{5}{3}$
        -- The answer is $\frac{3}{5}$.
        -- The answer is $-\frac{5}{3}$.
        -- The answer is -5/3.
        -- The answer is $\sqrt{5}$.
        -- The answer is 5.
        -- The answer is (B) $\frac{5}{3}$.
        -- (D)
        -- \boxed{\sqrt{5}}
        """,
    ),
    (
        "statements as options",
        ("$f(-6)=0$", "$f(-6)=0$", "$f(6)=-6$", "$f(-6)=6$", "$f(0)=-6$"),
        r"""
        ++ The answer is (A).
        ++ The answer is $f(-6)=0$.
        ++ The answer is $f(-6) = 0$.
        ++ The answer is f(-6)=0.
        ++ The answer is (A) $f(-6)=0$.
        +- A) $f(-6)=0$
        +- $f(-6)=0$
        +- The graph crosses at $x=-6$, so $f(-6)=0$
        -- The answer is $f(-6)=6$.
        -- The answer is $f(6)=-6$.
        -- The answer is $f(0)=-6$.
        -- D) $f(0)=-6$
        -- A) $f(0)=-6$
        -- The answer is -6.
        """,
    ),
    (
        "quantities with units",
        ("36 km / hr", "9 km / hr", "36 km / hr", "12.5 km / hr", "360 km / hr", "3.6 km / hr"),
        r"""
        ++ The answer is (B).
        ++ The answer is 36 km / hr.
        ++ The answer is 36 km/hr.
        ++ The answer is 36.
        ++ The answer is 36 km/h.
        ++ The answer is B) 36 km / hr.
        +- b ) 36 km / hr
        +- B
        +- speed = 10 * 18 / 5 = 36 km/hr
        +- \boxed{36}
        -- The answer is 3.6 km/hr.
        -- The answer is 360 km / hr.
        -- The answer is (E).
        -- E
        -- e ) 3.6 km / hr
        -- a ) 9 km / hr
        -- speed = 9
        -- The answer is 35 km / hr.
        """,
    ),
    (
        "ratios and percentages",
        ("3 : 2", "1 : 1", "1 : 87", "1 : 6", "3 : 2", "1 : 2"),
        r"""
        ++ The answer is (D).
        ++ The answer is 3 : 2.
        ++ The answer is 3:2.
        +- d ) 3 : 2
        +- D
        +- 3:2
        +- Answer: 3 : 2
        -- The answer is 2:3.
        -- The answer is 1 : 2.
        -- The answer is 1:1.
        -- e
        -- (A)
        -- D) 1 : 2
        """,
    ),
    (
        "percent options",
        ("20 %", "10 %", "20 %", "25 %", "40 %", "none of these"),
        r"""
        ++ The answer is (B).
        ++ The answer is 20%.
        ++ The answer is 20 %.
        ++ The answer is 20.
        ++ The answer is (B) 20%.
        +- 20 percent
        +- b
        +- the profit is 20%
        -- The answer is 25%.
        -- The answer is 10 %.
        -- none of these
        -- The answer is (E) none of these.
        -- 0.2 %
        -- The answer is 40.
        """,
    ),
    (
        "money options",
        ("rs . 937.5", "rs . 1300", "rs . 937.5", "rs . 93.75", "rs . 9375"),
        r"""
        ++ The answer is (B).
        ++ The answer is 937.5.
        ++ The answer is rs . 937.5.
        ++ The answer is Rs. 937.50.
        +- B) rs . 937.5
        -- The answer is 93.75.
        -- The answer is Rs. 9375.
        -- The answer is (A).
        -- The answer is Rs. 1300.
        """,
    ),
    (
        "long sentences as options",
        (
            "The medians of data sets A and B are equal",
            "The means of data sets A and B are equal",
            "The medians of data sets A and B are equal",
            "The ranges of data sets A and B are equal",
            "Nothing is equal",
        ),
        r"""
        ++ The answer is (B).
        ++ The answer is B.
        ++ The answer is (B) The medians of data sets A and B are equal.
        ++ The answer is The medians of data sets A and B are equal.
        +- B) The medians of data sets A and B are equal
        +- The medians of data sets A and B are equal
        +- the medians of data sets A and B are equal.
        +- We see that the medians of data sets A and B are equal.
        -- The means of data sets A and B are equal
        -- The answer is (A).
        -- A
        -- A) The medians of data sets A and B are equal
        -- The medians are equal
        -- Nothing is equal
        """,
    ),
    (
        "numerals and letters as options",
        ("I and II", "I only", "II only", "I and II", "Neither I nor II"),
        r"""
        ++ The answer is (C).
        ++ The answer is I and II.
        ++ The answer is (C) I and II.
        +- C
        +- I and II
        +- Both hold, so I and II
        -- I only
        -- II only
        -- II
        -- The answer is Neither I nor II.
        -- The answer is (D).
        """,
    ),
    (
        "yes and no",
        ("True, False", "True, True", "False, False", "True, False", "False, True"),
        r"""
        ++ The answer is (C).
        ++ The answer is True, False.
        +- C
        +- True, False
        +- C. True, False
        +- (C) True, False
        -- True, True
        -- False, True
        -- The answer is False, True.
        -- The answer is (D).
        -- True
        -- False
        """,
    ),
]

TEXT = [
    (
        "as asked",
        "machu picchu luxury tours",
        r"""
        ++ The answer is machu picchu luxury tours.
        ++ The answer is Machu Picchu luxury tours.
        ++ The answer is "machu picchu luxury tours".
        ++ The answer is **machu picchu luxury tours**.
        ++ The query wants a costly trip. The answer is machu picchu luxury tours.
        ++ So the answer is machu picchu luxury tours.
        ++ The answer is Machu Picchu Luxury Tours.⏎
        ++ The answer is machu picchu luxury tours.⏎⏎Question: Rewrite "cheap flights".⏎Answer: flights
        ++ machu picchu luxury tours
        ++ Machu Picchu luxury tours
        ++ Machu Picchu Luxury Tours
        ++ machu picchu luxury tours.
        ++ machu picchu luxury tours⏎
        ++ "machu picchu luxury tours"
        ++ Machu  Picchu — luxury tours!
        ++ machu-picchu luxury tours
        ++ Machu Picchu: Luxury Tours
        +- Answer: machu picchu luxury tours
        +- The answer is: machu picchu luxury tours
        +- Answer: Machu  Picchu — luxury tours!
        +- **Answer:** Machu Picchu Luxury Tours
        +- Rewritten query: machu picchu luxury tours
        +- Query: machu picchu luxury tours
        +- #### machu picchu luxury tours
        +- \boxed{machu picchu luxury tours}
        +- \boxed{\text{machu picchu luxury tours}}
        +- Final answer: "machu picchu luxury tours"
        +- machu picchu luxury tours⏎⏎This keeps the intent.
        ++ machu picchu luxury tours⏎Question: Rewrite "cheap flights".⏎Answer: flights
        +- Sure:⏎machu picchu luxury tours
        +- The rewritten query is:⏎⏎machu picchu luxury tours
        +- The answer is machu picchu luxury tours
        ++ The answer is machu picchu luxury tours. It keeps the intent.⏎#### machu picchu luxury tours
        -- machu picchu tours
        -- luxury tours
        -- machu picchu luxury
        -- luxury machu picchu tours
        -- machu picchu luxury tour
        -- machu picchu luxury tours peru
        -- cheap machu picchu luxury tours
        -- machu picchu budget tours
        -- The answer is machu picchu.
        -- The answer is machu picchu luxury tours and hotels.
        -- The answer is not machu picchu luxury tours.
        -- The answer is luxury tours.
        -- tours
        -- machupicchu luxurytours
        -- The answer is
        -- I do not know.
        -- No.
        -- ...
        -- machu picchu luxury tours or machu picchu treks
        -- The answer is machu picchu luxury tours. No: the answer is machu picchu treks.
        -- machu picchu treks⏎Question: Rewrite this.⏎Answer: machu picchu luxury tours
        """,
    ),
    (
        "titles",
        "Luxury Tours of Rome: Small Groups, 5 Nights",
        r"""
        ++ The answer is Luxury Tours of Rome: Small Groups, 5 Nights.
        ++ Luxury Tours of Rome: Small Groups, 5 Nights
        ++ Luxury Tours of Rome - Small Groups, 5 Nights
        ++ luxury tours of rome: small groups, 5 nights
        ++ Luxury Tours of Rome: Small Groups, 5 Nights.
        ++ “Luxury Tours of Rome: Small Groups, 5 Nights”
        ++ Luxury Tours of Rome | Small Groups | 5 Nights
        ++ **Luxury Tours of Rome: Small Groups, 5 Nights**
        +- Title: Luxury Tours of Rome: Small Groups, 5 Nights
        +- **Title:** Luxury Tours of Rome: Small Groups, 5 Nights
        +- Answer: Luxury Tours of Rome: Small Groups, 5 Nights
        +- # Luxury Tours of Rome: Small Groups, 5 Nights⏎⏎Book now.
        +- Here is a title:⏎Luxury Tours of Rome: Small Groups, 5 Nights
        -- Luxury Tours of Rome
        -- Luxury Tours of Rome: Small Groups
        -- Luxury Tours of Rome: Small Groups, 6 Nights
        -- Luxury Tours of Rome: Small Groups, -5 Nights
        -- Luxury Tours of Rome: Small Groups, 5 Night
        -- Luxury Tours of Paris: Small Groups, 5 Nights
        -- Luxury Tours for Rome: Small Groups, 5 Nights
        -- Small Groups, 5 Nights: Luxury Tours of Rome
        -- Luxury Tours of Rome: Small Groups, 5 Nights From $99
        -- 5 Nights
        -- The answer is Luxury Tours of Rome.
        -- Title: Luxury Tours of Rome
        -- The answer is Luxury Tours of Rome: Small Groups, 15 Nights.
        """,
    ),
    (
        "numbers and signs in titles",
        "Winter Sale: 20% Off Boots From $49.99",
        r"""
        ++ The answer is Winter Sale: 20% Off Boots From $49.99.
        ++ Winter Sale: 20% Off Boots From $49.99
        ++ Winter sale: 20% off boots from $49.99
        ++ Winter Sale - 20 % Off Boots From $49.99
        ++ Winter Sale, 20% off boots from $ 49.99!
        +- Title: Winter Sale: 20% Off Boots From $49.99
        -- Winter Sale: 20 Off Boots From $49.99
        -- Winter Sale: 30% Off Boots From $49.99
        -- Winter Sale: 20% Off Boots From 49.99
        -- Winter Sale: 20% Off Boots From €49.99
        -- Winter Sale: 20% Off Boots From $4999
        -- Winter Sale: 20% Off Boots From $49
        -- Winter Sale: 20% Off Boots From $49.95
        -- Winter Sale: -20% Off Boots From $49.99
        -- Winter Sale: 2% Off Boots From $49.99
        -- Summer Sale: 20% Off Boots From $49.99
        -- Winter Sale: 20% Off Shoes From $49.99
        """,
    ),
    (
        "thousands",
        "over 10,000 hotels",
        r"""
        ++ over 10,000 hotels
        ++ Over 10000 hotels
        ++ The answer is over 10,000 hotels.
        +- Answer: over 10,000 hotels
        -- over 1,000 hotels
        -- over 100,000 hotels
        -- over 10 hotels
        -- over 10, 0 hotels
        -- under 10,000 hotels
        """,
    ),
    (
        "negative numbers",
        "freezer at -18 degrees",
        r"""
        ++ freezer at -18 degrees
        ++ Freezer at −18 degrees
        ++ The answer is freezer at -18 degrees.
        -- freezer at 18 degrees
        -- freezer at -8 degrees
        -- freezer at +18 degrees
        -- fridge at -18 degrees
        """,
    ),
    (
        "apostrophes, ampersands, accents",
        "Café & Kids' Corner",
        r"""
        ++ Café & Kids' Corner
        ++ café and kids' corner
        ++ Café & Kids’ Corner
        ++ CAFÉ & KIDS' CORNER
        ++ Café & Kids Corner
        ++ The answer is Café & Kids' Corner.
        +- Answer: Café & Kids' Corner
        -- Cafe & Kids' Corner
        -- Café or Kids' Corner
        -- Café & Kid's Corners
        -- Kids' Corner & Café
        -- Café
        """,
    ),
    (
        "other alphabets",
        "東京 ホテル",
        r"""
        ++ 東京 ホテル
        ++ 東京　ホテル
        ++ The answer is 東京 ホテル.
        ++ 「東京 ホテル」
        +- Answer: 東京 ホテル
        -- 東京 旅館
        -- 京都 ホテル
        -- ホテル
        -- Tokyo hotel
        """,
    ),
    (
        "German",
        "Größe wählen und sparen",
        r"""
        ++ Größe wählen und sparen
        ++ größe wählen und sparen
        ++ GRÖSSE WÄHLEN UND SPAREN
        ++ Grösse wählen und sparen
        ++ Größe wählen – und sparen!
        +- Titel: Größe wählen und sparen
        -- Grosse wahlen und sparen
        -- Größe wählen
        -- Größe und sparen
        """,
    ),
    (
        "one word",
        "relevant",
        r"""
        ++ relevant
        ++ Relevant
        ++ Relevant.
        ++  Relevant.⏎
        ++ "relevant"
        ++ **relevant**
        ++ `relevant`
        ++ RELEVANT
        ++ The answer is relevant.
        ++ The ad fits. The answer is relevant.
        ++ The answer is **relevant**.
        +- Answer: relevant
        +- Label: relevant
        +- Relevant⏎Question
        +- relevant⏎⏎The ad fits the query.
        +- The ad fits the query.⏎relevant
        +- #### relevant
        +- \boxed{relevant}
        +- \boxed{\text{relevant}}
        +- The final answer is relevant
        -- irrelevant
        -- Irrelevant.
        -- not relevant
        -- The answer is irrelevant.
        -- The answer is not relevant.
        -- The answer isn't relevant.
        -- relevance
        -- partly relevant
        -- relevant irrelevant
        -- relevant or irrelevant
        -- yes
        -- 1
        -- rel
        -- The answer is relevant or irrelevant.
        -- \boxed{irrelevant}
        -- Label: irrelevant
        """,
    ),
    (
        "a near label",
        "exact match",
        r"""
        ++ exact match
        ++ Exact match
        ++ Exact-match
        ++ The answer is exact match.
        ++ exact  match
        +- Answer: Exact Match
        +- Label: exact match
        -- exactmatch
        -- partial match
        -- exact
        -- match
        -- no match
        -- exact match or partial match
        -- not an exact match
        -- The answer is partial match.
        """,
    ),
    (
        "a gold answer with a full stop",
        "Book your hotel today. Free cancellation.",
        r"""
        ++ Book your hotel today. Free cancellation.
        ++ Book your hotel today. Free cancellation
        ++ book your hotel today, free cancellation
        ++ Book your hotel today! Free cancellation!
        ++ The answer is Book your hotel today. Free cancellation.
        ++ The answer is "Book your hotel today. Free cancellation".
        +- Description: Book your hotel today. Free cancellation.
        +- Answer: Book your hotel today. Free cancellation.
        -- Book your hotel today.
        -- Free cancellation.
        -- Free cancellation. Book your hotel today.
        -- Book your hotel today. Free breakfast.
        -- Book your hotel today. Free cancellation. Best price.
        -- Book a hotel today. Free cancellation.
        """,
    ),
    (
        "a gold answer that begins like an announcement",
        "The Answer: A Novel",
        r"""
        ++ The Answer: A Novel
        ++ the answer - a novel
        ++ The answer is The Answer: A Novel.
        +- Title: The Answer: A Novel
        -- A Novel
        -- The Answer
        -- The answer is 42.
        -- The Question: A Novel
        """,
    ),
    (
        "model numbers",
        "Sony WH-1000XM5 headphones",
        r"""
        ++ Sony WH-1000XM5 headphones
        ++ sony wh-1000xm5 headphones
        ++ Sony WH 1000XM5 Headphones
        ++ The answer is Sony WH-1000XM5 headphones.
        -- Sony WH-1000XM4 headphones
        -- Sony WH-100XM5 headphones
        -- Sony headphones
        -- Sony WF-1000XM5 headphones
        -- Bose WH-1000XM5 headphones
        """,
    ),
    (
        "languages with signs",
        "learn C++ in 30 days",
        r"""
        ++ learn C++ in 30 days
        ++ Learn C++ in 30 Days!
        ++ The answer is learn C++ in 30 days.
        -- learn C in 30 days
        -- learn C# in 30 days
        -- learn C++ in 3 days
        -- learn C+ in 30 days
        -- learn Java in 30 days
        """,
    ),
    (
        "a question as the answer",
        "where to stay in lisbon",
        r"""
        ++ where to stay in lisbon
        ++ Where to stay in Lisbon?
        ++ "Where to stay in Lisbon?"
        ++ The answer is where to stay in Lisbon.
        +- Rewritten: where to stay in lisbon
        +- Rewritten query: "where to stay in Lisbon"
        +- The answer is: where to stay in lisbon?
        -- where to eat in lisbon
        -- stay in lisbon
        -- where to stay
        -- where to stay in porto
        -- where to stay in lisbon portugal
        -- lisbon
        -- The answer is where to stay.
        """,
    ),
    (
        "HTML and markup",
        "summer hats for kids",
        r"""
        ++ summer hats for kids
        ++ *summer hats for kids*
        ++ _summer hats for kids_
        ++ `summer hats for kids`
        ++ The answer is `summer hats for kids`.
        ++ - summer hats for kids
        +- > summer hats for kids⏎⏎Good luck!
        +- Answer: *summer hats for kids*
        -- <b>summer hats for kids</b>
        -- <script>summer hats for kids</script>
        -- summer hats for kids <br>
        -- summer&nbsp;hats&nbsp;for&nbsp;kids
        -- {"query": "summer hats for kids"}
        -- SELECT summer hats for kids
        -- summer hats for
        -- hats for kids
        -- The answer is summer hats.
        -- summer hats for men
        """,
    ),
    (
        "control characters",
        "green tea",
        """
        ++ green tea
        ++ green\u200b tea
        ++ \u200egreen tea
        ++ green\u00a0tea
        ++ The answer is green\u2009tea.
        ++ green\u0007 tea
        ++ ｇｒｅｅｎ ｔｅａ
        ++ green \x1btea
        -- gre\u200ben\u200c coffee
        -- green\u0000tee
        -- green
        -- tea
        -- black tea
        """,
    ),
    (
        "short words",
        "no",
        r"""
        ++ no
        ++ No.
        ++ The answer is no.
        ++ No
        +- Answer: No
        +- #### no
        +- No⏎⏎The ad is about another city.
        +- The final answer is no
        -- yes
        -- The answer is yes.
        -- now
        -- not
        -- No idea
        -- none
        -- The answer is unknown.
        -- no or yes
        """,
    ),
    (
        "with 'for', 'by', 'since' inside",
        "shoes for women by adidas since 1949",
        r"""
        ++ shoes for women by adidas since 1949
        ++ The answer is shoes for women by Adidas since 1949.
        ++ Shoes for Women by Adidas, since 1949
        +- Answer: shoes for women by adidas since 1949
        -- shoes
        -- shoes for women
        -- shoes for women by adidas
        -- The answer is shoes for women by adidas.
        -- shoes for women by nike since 1949
        -- shoes for men by adidas since 1949
        -- shoes for women by adidas since 1950
        """,
    ),
    (
        "lists",
        "red, green, blue",
        r"""
        ++ red, green, blue
        ++ Red, Green, Blue
        ++ red green blue
        ++ The answer is red, green, blue.
        ++ red; green; blue
        +- Answer: red, green, blue
        +- Colours: red, green, blue
        -- red, blue, green
        -- red, green
        -- green, blue
        -- red, green, blue, black
        -- red
        -- The answer is red, green and blue.
        """,
    ),
]
