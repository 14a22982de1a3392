"""Six unlike inputs as people have them, small and made by rule: what `trait-kit new` has to understand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

_THINGS = [
    "lease",
    "warranty",
    "deposit",
    "permit",
    "licence",
    "tender",
    "mortgage",
    "easement",
    "pledge",
    "audit",
]


def _lines(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def markdown(folder: Path) -> tuple[str, str]:
    """A manual in Markdown, in folders; questions with letters for answers and options in columns."""
    for number in range(60):
        thing = _THINGS[number % 10]
        page = folder / "docs" / thing / f"page_{number}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        filed = f"The {thing} of form {number} is filed within {number + 3} days, and the office of district {number * 7}"
        page.write_text(
            f"# {thing.title()} {number}\n\n{filed} keeps it for {number + 20} years.\n\n- copy {number}\n"
        )
    with (folder / "quiz.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["Question", "A", "B", "C", "Correct answer", "Why", "Chapter"])
        for number in range(100):
            thing, options = _THINGS[number % 10], [f"{number + place} days" for place in (3, 9, 30)]
            why = (
                f"Form {number} asks for the {thing} after its own number of days, which are {number} and 3 more."
            )
            table.writerow([f"Within how long is the {thing} of form {number} filed?", *options, "A", why, thing])
    return str(folder / "docs/**/*.md"), str(folder / "quiz.csv")


def laws(folder: Path) -> tuple[str, str]:
    """Laws as JSON lines whose text is called otherwise; questions with short answers in words, and no worked solution."""
    rows, asked = [], []
    for n in range(120):
        who = f"Whoever breaks the {_THINGS[n % 10]} of class {n}"
        owes = f"owes {n * 11} units to the party that relied on it, unless article {n + 2} excuses the breach."
        rows.append({"section": f"§ {n}", "body": f"§ {n} {who} {owes}"})
        question = f"Which article may excuse w{who[1:]}?"
        asked.append({"question": question, "answer": f"article {n + 2} of the act", "topic": _THINGS[n % 10]})
    return _lines(folder / "laws.jsonl", rows), _lines(folder / "questions.jsonl", asked)


def odd_table(folder: Path) -> tuple[str, str]:
    """German tables in cp1252 with ';', names of columns with blanks, brackets and umlauts, and rows that are broken."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, asked = ["Artikel-Nr.;Körper / Volltext;Preis (€)"], ["Frage (dt.);Lösung;Begründung;Thema"]
    for n in range(100):
        texts.append(
            f"N{n};Das Gerät {n} der Größe {n + 4} wird mit Schrauben befestigt und ist für Räume gedacht.;{n},50"
        )
        why = f"Das Gerät {n} hat {n} Ösen mit je 3 Schrauben, also {n} * 3 = {n * 3} Schrauben."
        asked.append(f"Wie viele Schrauben braucht das Gerät {n} der Größe {n + 4}?;{n * 3};{why};Gerät {n % 5}")
    asked[7:7] = ["Eine Frage ohne Lösung?;;;Gerät 1", "Wie viele Ösen?;unbekannt;Man weiß es nicht.;Gerät 2"]
    (folder / "handbuch.csv").write_bytes("\n".join(texts).encode("cp1252"))
    (folder / "fragen.csv").write_bytes("\n".join(asked).encode("cp1252"))
    return str(folder / "handbuch.csv"), str(folder / "fragen.csv")


def catalogue(folder: Path) -> tuple[str, str]:
    """A shop's products, which are the documents as well."""
    rows = []
    for n in range(150):
        kind, colour = (
            ["guitar", "drum", "flute", "piano", "violin", "cello"][n % 6],
            ["Red", "Oak", "Blue", "Old"][n % 4],
        )
        text = (
            f"This {kind} number {n} is made for {n + 10} seats, {n % 7 + 2} parts of the {_THINGS[n % 10]} kind."
        )
        title = f"{colour} {kind} number {_THINGS[n // 6 % 10]} {n}"
        rows.append({"sku": f"S{n}", "product_title": title, "description": text, "category": f"{kind}s"})
    path = _lines(folder / "shop.jsonl", rows)
    return path, path


def chinese(folder: Path) -> tuple[str, str]:
    """Chinese questions with worked solutions, and short texts."""
    texts, asked = [], []
    for n in range(1, 101):
        duty = f"第{n}条规定,当事人应当在{n + 5}天内履行第{n}号合同约定的义务"
        texts.append({"正文": f"{duty},逾期的应当支付{n * 12}元违约金,并承担相应的责任。"})
        question = f"第{n}号合同的本金为{n * 100}元,年利率为百分之五,一年的利息是多少元?"
        solution = f"利息等于本金乘以年利率,所以是{n * 100} * 0.05 = {n * 5}元。"
        asked.append({"问题": question, "答案": str(n * 5), "解析": solution, "章节": f"第{n % 5}章"})
    return _lines(folder / "法律.jsonl", texts), _lines(folder / "题目.jsonl", asked)


def code(folder: Path) -> tuple[str, str]:
    """Exercises about programs, with the printed value, an explanation and line breaks that count."""
    texts, asked = [], []
    for n in range(100):
        body = f"def step_{n}(x):\n    if x > {n}:\n        return x - {n}\n    return x * {n + 1}\n"
        texts.append(
            {
                "content": f"{body}\n# step_{n} is used by the {_THINGS[n % 10]} loop, which calls it {n + 2} times.\n"
            }
        )
        program = f"x = {n}\nfor i in range(3):\n    x = x + {n + 1}\nprint(x)"
        why = f"x begins as {n} and grows by {n + 1} in each of 3 turns, "
        why += f"so it is {n} + 3 * {n + 1} = {4 * n + 3} at the end."
        question = f"What does this program print?\n\n```python\n{program}\n```"
        asked.append(
            {"prompt": question, "output": str(4 * n + 3), "explanation": why, "skill": f"loops {n % 4}"}
        )
    return _lines(folder / "code.jsonl", texts), _lines(folder / "exercises.jsonl", asked)


DOMAINS = {made.__name__: made for made in (markdown, laws, odd_table, catalogue, chinese, code)}
