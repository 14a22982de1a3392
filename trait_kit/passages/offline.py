"""The offline teacher's enlightenment paragraph: what the problems of a group share, and what is particular to each.

It is composed, not written by a language model: the sentences are kept in offline.yaml, everything particular (numbers,
facts, the step where the technique bites, the answer) is read from the problem and its worked solution. Wording is drawn by
seed, so that a thousand paragraphs are not one sentence with blanks.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from trait_kit.passages.answers import arithmetic_slips, conclusion, is_mathematical
from trait_kit.passages.material import Problem, content, content_words, numbers

_NUMBER = r"\$?\d+(?:[.,]\d+)*%?"
_EQUATION = re.compile(rf"{_NUMBER}(?: ?[-+*/×] ?{_NUMBER})+ ?= ?{_NUMBER}|{_NUMBER} = {_NUMBER}(?: ?[-+*/×] ?{_NUMBER})+")
# the texts of 'Query: cheap hotels. Ad title: Visit Rome'
_FIELD = re.compile(r"(?:^|(?<=\s))[\w ]{2,40}: +(.+?)(?=[.?!] +[A-Z][a-z ]{2,24}: |\n|$)")
_MATH = re.compile(r"\$[^$]+\$")
_COUNTED = re.compile(r"(?:\d|\b(?:many|of|the|some|his|her|their|several|these))\s+([a-z]{3,}s)\b(?<!ss)(?<!ous)")
_QUOTED = re.compile(r"[\"“]([^\"”\n]{4,90})[\"”]")
_COUNT = {2: "Both", 3: "All three", 4: "All four", 5: "All five", 6: "All six", 7: "All seven", 8: "All eight"}
_ORDINAL = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_SIGNS = {"addition": r"\d ?\+ ?\$?\d", "subtraction": r"\d - \$?\d", "multiplication": r"\d ?[*×] ?\$?\d"}
_SIGNS["division"] = r"\d ?[/÷] ?\$?\d"


def compose(rows: Sequence[Problem], grouping: str, shared: str, seed: int | str) -> str:
    """The paragraph for `rows` (in the passage's order, with worked solutions) that share `shared`."""
    rng = random.Random(f"{seed}/" + "/".join(row.id for row in rows))
    names, particular = _names(rows), _distinctive_words(rows, shared)
    roles = _task_roles(rows, shared if grouping == "knowledge" else "", rng)
    opening = _opening(rows, grouping, shared, rng)
    order = rng.sample(range(4), 4)
    parts = [
        _particular(row, name, words, role, order[place % 4], rng)
        for place, (row, name, words, role) in enumerate(zip(rows, names, particular, roles, strict=True))
    ]
    return " ".join([opening, *parts, _closing(rows, names, grouping, shared, rng)])


def _opening(rows: Sequence[Problem], grouping: str, shared: str, rng: random.Random) -> str:
    everyone = _COUNT.get(len(rows), "All of them")
    fields = {"everyone": everyone, "every": everyone.lower(), "shared": shared, "idea": _the(shared)}
    wording = content("offline")["openings"]
    if grouping == "knowledge":
        fields["why"] = _why(rows, shared, rng)
        fields["words"] = _listed([f"'{word}'" for word in shared.split(", ")])
        return rng.choice(wording["words" if _is_wording(rows, shared) else "topic"]).format(**fields)
    topics = {row.topic for row in rows}
    intent = next(iter(topics)) if len(topics) == 1 else None
    if isinstance(intent, str) and intent.strip():
        return rng.choice(wording["intent"]).format(**fields, intent=intent)
    common = _common_words(rows, shared)
    told = f" They also have {_listed(common)} in common." if common else ""
    return rng.choice(wording["entity"]).format(**fields) + told


def _closing(rows: Sequence[Problem], names: list[str], grouping: str, shared: str, rng: random.Random) -> str:
    fields = {"shared": shared, "first": names[0], "last": names[-1]}
    fields["idea"] = "the common idea" if _is_wording(rows, shared) else _the(shared)
    fields["different"] = f"{rows[0].answer} in the {names[0]} and {rows[-1].answer} in the {names[-1]}"
    return rng.choice(content("offline")["closings"][grouping]).format(**fields)


def _is_wording(rows: Sequence[Problem], shared: str) -> bool:
    """Whether what is shared is words that the problems have in common, and not the name of a topic."""
    return shared not in {row.topic for row in rows} and all(word.islower() for word in shared.split(", "))


def _why(rows: Sequence[Problem], shared: str, rng: random.Random) -> str:
    if shared in content("concepts"):
        return rng.choice(content("concepts")[shared]["why"])
    for technique in content("offline")["techniques"]:
        if all(word in shared.lower() for word in technique["words"]):
            return rng.choice(technique["why"])
    operations = Counter(name for row in rows for name in _operations(row.solution))
    always = [name for name in _SIGNS if operations[name] == len(rows)]
    if always:
        return f"each solution comes down to {_listed(always)}"
    common = _common_words(rows, shared)
    return f"each solution speaks of {_listed(common)}" if common else f"each solution is an application of {shared}"


def _task_roles(rows: Sequence[Problem], topic: str, rng: random.Random) -> list[str]:
    """What the technique does in each problem's task; a task that occurs twice gets two wordings. '' where unknown."""
    known: dict[str, list[str]] = {}
    for role in content("offline")["roles"]:
        if role["topic"] in topic.lower() and role["task"] not in known:
            known[role["task"]] = rng.sample(role["does"], len(role["does"]))
    roles: list[str] = []
    for row in rows:
        operations = _operations(row.solution) if is_mathematical(row.answer) else ()
        default = f"it takes {_listed(list(operations))}" if operations else ""
        texts = known.get(row.task, [])
        roles.append(texts[len([role for role in roles if role in texts]) % len(texts)] if texts else default)
    return roles


def _particular(row: Problem, name: str, words: list[str], role: str, form: int, rng: random.Random) -> str:
    mathematical = is_mathematical(row.answer)
    fields = {"name": name, "facts": _facts(row, words, mathematical), "role": role, "asked": _asked(row)}
    fields["result"] = row.answer if mathematical else f'"{_short(row.answer, 60)}"'
    if not mathematical and len(row.answer.split()) == 1:
        fields["result"] += _because(row)  # a verdict says nothing without its reason
    wording = content("offline")["particulars"]
    step = _step(row, rng) if mathematical else ""
    if step:
        fields |= {"role": role or "its own numbers", "role_here": role or "here the idea is at work", "step": step}
        fields["role_first"] = f"{role}, as in {step}" if role else f"the step to see is {step}"
        return wording["step"][form].format(**fields)
    cues = _cues(row)
    if mathematical and not cues:
        return wording["asked"][form].format(**fields, because=f", where {role}" if role else "")
    told = f", and {_listed(cues)} {'tells' if len(cues) == 1 else 'tell'} what is wanted" if cues else ""
    return wording["role"][form].format(**{**fields, "role": (role or "its own facts decide") + told})


def _names(rows: Sequence[Problem]) -> list[str]:
    """'word problem', or 'first word problem' and 'second word problem' where a task occurs twice."""
    counts, seen, names = Counter(row.task for row in rows), Counter(), []
    for row in rows:
        words = re.sub(r"[_\-\s]+", " ", row.task.rsplit("/", 1)[-1].rsplit(".", 1)[0]).strip().removesuffix("s")
        name = words if words.endswith("problem") else f"{words} {'problem' if is_mathematical(row.answer) else 'task'}"
        names.append(f"{_ORDINAL[seen[row.task]]} {name}" if counts[row.task] > 1 else name)
        seen[row.task] += 1
    return names


def _facts(row: Problem, words: list[str], mathematical: bool) -> str:
    if not mathematical:
        fields = _FIELD.findall(row.question) or _QUOTED.findall(row.question)
        if fields:
            own = content_words(" ".join(words))
            best = max(fields, key=lambda field: len(content_words(field[:80]) & own))
            return f'on "{_short(best, 80).rstrip(".") if len(best) <= 80 else _short(best, 80)}"'
        return f"on {_listed(words[:3])}" if words else "here"
    formulas = [_trimmed(text) for text in _MATH.findall(row.question)] if _is_latex(row) else []
    longest = max((text for text in formulas if 12 <= len(text) <= 50), key=len, default="")
    if longest:
        return f"with {longest}"
    found = list(dict.fromkeys(re.findall(r"\d+(?:[.,]\d+)*(?:/\d+)?", row.question)))[:3]
    if not any(len(number) > 1 for number in found):
        return f'on "{_short(_asked(row), 90).rstrip(".?")}"'
    about = f"about {_listed(words[:2])} " if len(row.question.split()) > 20 and words else ""
    return f"{about}with {_listed(found)}"


def _is_latex(row: Problem) -> bool:
    """Whether a dollar begins a formula and not a price."""
    return "\\" in row.question or "\\" in row.solution


def _trimmed(formula: str) -> str:
    """Without the punctuation that LaTeX sets inside the dollars."""
    return re.sub(r"[\s.,;:]+\$$", "$", formula)


def _distinctive_words(rows: Sequence[Problem], shared: str) -> list[list[str]]:
    """For each problem, words of its question that no other question of the group has: a name, what is counted, the rest."""
    bags = [content_words(row.question) for row in rows]
    found = []
    for place, row in enumerate(rows):
        others = set().union(*(bag for index, bag in enumerate(bags) if index != place)) | content_words(shared)
        own = [word for word in re.findall(r"[A-Za-z][A-Za-z'-]+", row.question) if content_words(word) - others]
        own = list(dict.fromkeys(own))
        people = [word.removesuffix("'s") for word in own if word[0].isupper() and word.lower() not in row.question][:1]
        counted = set(_COUNTED.findall(row.question))
        things = [word for word in own if word in counted]
        found.append([*people, *things, *(word for word in own if word[0].islower() and word not in things)])
    return found


def _common_words(rows: Sequence[Problem], shared: str) -> list[str]:
    """Up to three content words that every problem (question or solution) contains, beyond what is shared by name."""
    bags = [content_words(f"{row.question} {row.solution}") for row in rows]
    common = set.intersection(*bags) - content_words(shared)
    return [word for word in dict.fromkeys(re.findall(r"[a-z]+", rows[0].question.lower())) if word in common][:3]


def _step(row: Problem, rng: random.Random) -> str:
    """An equation of the solution, if possible one with a number from the question; never the cut-off end of one."""
    if _is_latex(row):
        found = [_trimmed(text) for text in _MATH.findall(row.solution)]
        whole = [text for text in found if 7 <= len(text) <= 60 and re.search(r"\d.*=|=.*\d", text)]
    else:
        found = [match.group().rstrip(".,") for match in _EQUATION.finditer(row.solution)]
        whole = [equation for equation in found if len(equation) <= 60]
    whole = [equation for equation in whole if not arithmetic_slips(equation)]
    near = [equation for equation in whole if numbers(equation) & numbers(row.question)]
    return rng.choice(near or whole or [""])


def _asked(row: Problem) -> str:
    """The question's last sentence, or the end of it."""
    last = re.split(r"(?<=[.?!])\s+(?=[A-Z$])", " ".join(row.question.split()))[-1]
    words = last.split()
    return last if len(words) <= 24 else "... " + " ".join(words[-24:])


def _cues(row: Problem) -> list[str]:
    """Words of the question that its solution quotes as telling."""
    quoted = re.findall(r"(?<!\w)'([^'\n]{3,24})'(?!\w)", row.solution)
    return [f"'{cue}'" for cue in dict.fromkeys(quoted) if cue.lower() in row.question.lower()][:2]


def _because(row: Problem) -> str:
    """The last sentence of the solution before its conclusion, as a reason; '' where it would be too long."""
    ending, _ = conclusion(row.solution)
    before = re.sub(r"(?:The )?answer is\W*$", "", row.solution[: row.solution.rfind(ending)].strip(), flags=re.I).strip()
    last = re.split(r"(?<=[.!?])\s+", before)[-1].rstrip(".")
    return f" because {last[0].lower()}{last[1:]}" if 20 < len(last) <= 160 else ""


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " ..."


def _operations(solution: str) -> tuple[str, ...]:
    return tuple(name for name, sign in _SIGNS.items() if re.search(sign, solution))


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" and {items[-1]}" if items else ""


def _the(topic: str) -> str:
    return f"the {topic}" if re.search(r"(?i)\b(algorithm|method|theorem|rule|formula|law)$", topic) else topic
