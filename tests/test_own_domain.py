"""A domain of one's own: what `new` writes for unlike inputs, what `check` finds, and where step 03 stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from own_domains import DOMAINS, _lines, code

from trait_kit import params
from trait_kit.cli import main
from trait_kit.engine.files import TraitError
from trait_kit.own_domain import checking, scaffold
from trait_kit.passages.checks import own_fault, read_sentence
from trait_kit.passages.material import Draft, Group, Problem
from trait_kit.passages.writing import first_group, write_passages
from trait_kit.runs import Step
from trait_kit.tasks import load_problems, load_task

MODEL = ".cache/tiny_random"
KINDS = {"markdown": "choice", "laws": "text", "odd_table": "number", "chinese": "number", "code": "number"}


def written(folder: Path, documents: str, *tasks: str, teacher: str = "none", name: str = "mine") -> Path:
    """The experiment that `new` makes of these."""
    scaffold.new(name, documents, list(tasks), folder, "", MODEL, teacher)
    return folder / f"{name}.yaml"


def changed(path: Path, section: str, **values) -> Path:
    raw = yaml.safe_load(path.read_text())
    raw[section] |= values
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def exercises(tmp_path_factory) -> Path:
    """The experiment on the code exercises; not to be changed."""
    folder = tmp_path_factory.mktemp("code")
    return written(folder, *code(folder / "in"))


@pytest.fixture
def mine(tmp_path) -> Path:
    return written(tmp_path, *code(tmp_path / "in"))


@pytest.mark.parametrize("domain", DOMAINS)
def test_six_unlike_inputs_lead_to_a_valid_experiment_without_an_edit(domain, tmp_path, capsys):
    documents, questions = DOMAINS[domain](tmp_path / "in")
    teacher = "local" if domain == "laws" else "none"
    options = ["--folder", str(tmp_path), "--base-model", MODEL, "--teacher", teacher]
    assert main(["new", domain, "--documents", documents, "--tasks", questions, *options]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path / domain}.yaml: valid" in shown
    experiment = params.load(tmp_path / f"{domain}.yaml")
    (task,) = experiment.passages.tasks
    kinds = load_problems([task], "train", 60)["task"].nunique(), load_task(task).kind
    assert kinds == ((7, "text") if domain == "catalogue" else (1, KINDS[domain]))
    assert ("24 of 24 groups" if domain != "catalogue" else "24 of 24 groups, of 4") in shown
    assert domain == "laws" or "Of 24 groups of worked solutions 24 pass" in shown
    assert domain != "odd_table" or ("language de" in shown and "bad_rows: skip" in Path(task).read_text())
    if domain == "chinese":  # an enlightenment in Chinese takes some 500 of an English model's tokens
        assert experiment.passages.max_passage_tokens > 700


def test_hostile_names_stay_data(tmp_path):
    """Column names and file names with quotes, line breaks, YAML's and Jinja's signs."""
    ask, answer = "question: #1 {{ 7*7 }} 'x' \"y\"\n- a\u2028{% raw %}", "answer }} & *x: !!python/none\x1b[31m"
    rows = [{ask: f"How many are {n} and {n + 1} of '{{{{x}}}}'?", answer: str(2 * n + 1)} for n in range(60)]
    source = _lines(tmp_path / "in" / "a: '{{b}}' # \"c\".jsonl", rows)
    documents = code(tmp_path / "in")[0]
    raw = yaml.safe_load(written(tmp_path / "out", documents, source, teacher="local").read_text())
    assert raw["common"]["in_domain"].startswith(documents)
    task = yaml.safe_load(Path(raw["common"]["tasks"][0]).read_text())
    assert task["source"] == source
    problems = load_problems(raw["common"]["tasks"], "train", 100)
    assert set(problems["question"]) < {row[ask] for row in rows}
    assert problems["answer"].str.isdigit().all()


@pytest.mark.parametrize(
    ("row", "kind", "answer", "choices"),
    [
        ({"question": "Q {n}?", "answer": "{n} + 1 = <<1>>\n#### 5"}, "number", "5", None),
        ({"problem": "P {n}?", "solution": "So it is $\\boxed{{x^{n}}}$"}, "expression", "x^2", None),
        (
            {"q": "Q", "question": "Q {n}?", "A)": "one", "B)": "two {n}", "key answer": "B"},
            "choice",
            "two 2",
            ["one", "two 2"],
        ),
        ({"question": "Q {n}?", "options": ["a{n}", "b{n}"], "answer": 1}, "choice", "b2", ["a2", "b2"]),
        ({"question": "Q {n}?", "options": ["a{n}", "b{n}"], "answer": "a{n}"}, "choice", "a2", ["a2", "b2"]),
        ({"question": "Q {n}?", "options": "A) x{n} B) y{n}", "label": "B"}, "choice", "y2", ["x2", "y2"]),
        ({"text": "T {n}", "question": "Q {n}?", "Label": "spam"}, "text", "spam", None),
    ],
)
def test_the_form_that_reads_most_rows_is_taken(row, kind, answer, choices, tmp_path):
    def of(n: int):
        return {name: value.replace("{n}", str(n)).replace("{{", "{").replace("}}", "}") if isinstance(value, str)
                else [some.replace("{n}", str(n)) for some in value] if isinstance(value, list) else value
                for name, value in row.items()}  # fmt: skip

    path = _lines(tmp_path / "some.jsonl", [of(n) for n in range(40)])
    written(tmp_path, code(tmp_path)[0], path, teacher="local")
    (tmp_path / "mine_some.yaml").rename(tmp_path / "task.yaml")
    task = load_task(str(tmp_path / "task.yaml"))
    found = next(row for split in ("train", "validation", "test")
                 for row in load_problems([str(tmp_path / "task.yaml")], split, 99).to_dict("records")
                 if row["question"].endswith(" 2?"))  # fmt: skip
    assert (task.kind, found["answer"], found["choices"]) == (kind, answer, choices)


@pytest.mark.parametrize(
    ("head", "key"),
    [
        (["Frage", "Antwort A", "Antwort B", "Antwort C", "Antwort D", "Richtige Antwort"], "ABCD"),
        (["question", "answer_a", "answer_b", "answer_c", "answer_d", "correct_option"], "ABCD"),
        (["Question", "Answer 1", "Answer 2", "Answer 3", "Answer 4", "Answer key"], [1, 2, 3, 4]),
        (["question_id question", "A", "B", "C", "D", "answer"], "ABCD"),
    ],
)
def test_an_option_is_never_the_answer_and_a_letter_is_its_place(head, key, tmp_path):
    head = " ".join(head).split() if head[0].startswith("question_id") else head
    rows = []
    for n in range(40):
        options = [0, "", f"{n} days", f"{n + 9} days"] if n % 4 != 1 else [0, f"{n} h", None, f"{n + 9} days"]
        rows.append([*([n] if len(head) > 6 else []), f"How long is {n}?", *options, key[n % 4]])
    path = _lines(tmp_path / "some.jsonl", [dict(zip(head, row, strict=True)) for row in rows])
    _, values = scaffold.guess_task(path, path)
    found = list(scaffold._filled(values["fields"], scaffold._head(path)))
    assert [row["answer"] for row in found[:4]] == ["0", "1 h", "2 days", "12 days"]
    assert [len(row["choices"]) for row in found[:4]] == [3, 3, 3, 3]
    without = _lines(tmp_path / "w.jsonl", [dict(zip(head[:-1], row[:-1], strict=True)) for row in rows])
    with pytest.raises(TraitError, match="like an answer"):
        scaffold.guess_task(without, without)


def test_a_column_of_ids_is_no_text(tmp_path):
    rows = [
        {"question_id": n, "problem_statement": f"How long is {n}?", "answer_id": n, "answer_text": f"{n} days"}
        for n in range(40)
    ]
    _, values = scaffold.guess_task(_lines(tmp_path / "q.jsonl", rows), "q.jsonl")
    assert values["fields"] == {"question": "{problem_statement}", "answer": "{answer_text}"}
    for names in (("document_id", "paragraph"), ("article_id", "abstract"), ("Nr", "Inhalt")):
        texts = [f"The {n}th paragraph is about the {n + 7}th lease and its {n * 3} clauses." for n in range(60)]
        rows = [dict(zip(names, (f"d{n % 10}", text), strict=True)) for n, text in enumerate(texts)]
        spec, found = scaffold.look_at(_lines(tmp_path / "d.jsonl", rows))
        assert spec.endswith(f"{{text={names[1]}}}") and set(found) <= set(texts) and len(found) > 50
    products = [{"nr": n % 3, "title": f"t{n}", "description": f"d{n}"} for n in range(9)]
    _, values = scaffold.guess_task(_lines(tmp_path / "p.jsonl", products), "p.jsonl")
    assert values["fields"]["id"] == "{title}"


def test_the_foreign_task_is_none_of_the_tasks(tmp_path):
    documents, questions = DOMAINS["laws"](tmp_path / "in")
    path = written(tmp_path, documents, questions, "word_problems", teacher="local")
    assert params.load(path).evaluation.foreign_tasks == ["ad_generation"]
    changed(path, "evaluation", foreign_tasks=["word_problems"])
    assert "foreign_tasks names word_problems, which arms train on" in checking.check(path).errors[0]


def test_a_few_answers_that_repeat_are_labels(tmp_path):
    rows = [
        {"question": f"Is {n} in the list of {n * 7}?", "label": "yes" if n % 2 else "it's not"}
        for n in range(40)
    ]
    _, values = scaffold.guess_task(_lines(tmp_path / "l.jsonl", rows), "l.jsonl")
    assert values["kind"] == "choice"
    assert values["fields"]["choices"] == """{["it's not", 'yes']}"""


def test_nothing_is_overwritten_and_what_cannot_be_guessed_is_said(mine, tmp_path):
    before = mine.read_text()
    with pytest.raises(TraitError, match="exists and is left as it is"):
        written(tmp_path, *code(tmp_path / "in"))
    assert mine.read_text() == before
    rows = _lines(tmp_path / "in" / "odd.jsonl", [{"left": "a", "right": "b"}])
    with pytest.raises(TraitError, match=r"no column is called like a question \(columns: left, right"):
        written(tmp_path, code(tmp_path / "in")[0], rows, name="other")
    assert not list(tmp_path.glob("other*"))


def test_sizes_follow_what_there_is(exercises):
    experiment = params.load(exercises)
    tests = load_problems(experiment.passages.tasks, "test", 1_000)
    assert experiment.evaluation.test_items_per_task == len(tests)
    assert experiment.training.context_length == experiment.passages.max_passage_tokens + 2
    assert experiment.selection.token_budget < 16_000
    assert experiment.evaluation.main_metric == "bits_per_number_token"


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("common", {"in_domain": "nowhere/*.jsonl"}, "No file matches nowhere"),
        ("common", {"in_domain": "DOCUMENTS {text=no_such}"}, "no_such"),
        ("common", {"web": "nowhere/*.jsonl"}, "No file matches nowhere"),
        ("common", {"tasks": ["no_such.yaml"]}, "no_such.yaml"),
        ("common", {"tasks": ["gsm9k"]}, "Unknown task 'gsm9k'"),
        ("common", {"base_model": "demo:smollm3"}, "'demo:smollm3' is no model folder"),
        ("passages", {"grouping": "entity"}, "no entity is shared"),
        ("passages", {"max_passage_tokens": 100}, "length"),
        ("training", {"accelerate_config": "nowhere.yaml"}, "accelerate_config: there is no file nowhere.yaml"),
        ("evaluation", {"foreign_tasks": ["gsm9k"]}, "Unknown task 'gsm9k'"),
        (
            "passages",
            {"teacher": "local", "prompts": "typo.yaml"},
            "typo.yaml cannot be used as passages.prompts",
        ),
        (
            "passages",
            {"teacher": "openai", "teacher_model": "m", "teacher_base_url": "https://a.example/v1"},
            "a.example",
        ),
    ],
)
def test_check_finds_what_would_stop_a_run(section, values, message, mine):
    spec = params.load(mine).selection.in_domain
    changed(mine, section, **{key: value.replace("DOCUMENTS {text=no_such", f"{spec.partition(' {')[0]} {{text=no_such")
            if isinstance(value, str) else value for key, value in values.items()})  # fmt: skip
    told = checking.check(mine)
    assert len(told.errors) == 1
    assert message in told.errors[0]


def test_check_warns_of_what_makes_a_result_worth_less(mine):
    told = checking.check(changed(mine, "common", test_items_per_task=50))
    assert not told.errors
    assert told.warnings == [
        "11 test items, 11 clusters: a verdict needs 30 in 8. Bring more, of other patterns (test_items_per_task is 50), "
        "or train fewer arms."
    ]
    told = checking.check(changed(mine, "passages", n_groups=200))
    assert any(line.startswith("Only ") and "raise max_uses" in line for line in told.warnings)
    task = next(mine.parent.glob("*_*.yaml"))
    fields = yaml.safe_load(task.read_text())["fields"]
    written = task.read_text()
    task.write_text(written.replace(fields["answer"], "7"))  # its braces were forgotten
    assert any("all answers of test are the same" in line for line in checking.check(mine).warnings)
    task.write_text(written.replace(fields["answer"], "{no_such}"))
    told = checking.check(mine)
    assert len(told.errors) == len(set(told.errors))
    assert any("row 1: answer cannot be read" in line and "no_such" in line for line in told.errors)


@pytest.mark.parametrize(("first", "form"), [(1, "pick(correct|int - 1)"), (0, "pick(correct)")])
def test_choices_are_counted_from_one_unless_there_is_a_zero(tmp_path, first, form):
    rows = [
        {
            "stem": f"Question {n}?",
            "opt1": "red",
            "opt2": "blue",
            "opt3": "green",
            "opt4": "grey",
            "correct": first + n % 3,
        }
        for n in range(30)
    ]
    template, values = scaffold.guess_task(_lines(tmp_path / "l.jsonl", rows), "l.jsonl")
    assert values["fields"]["answer"].endswith(f"{form}}}") and values["kind"] == "choice"
    said = scaffold._rendered(template, values)
    assert f"counts the choices from {first}" in said
    assert yaml.safe_load(said)["fields"]["answer"] == values["fields"]["answer"]


def test_a_chinese_enlightenment_is_judged_by_what_it_says():
    rows = [
        Problem(
            f"q/{n}",
            "题目",
            f"{what}合同的本金为{n}00元,年利率为百分之五,利息是多少元?",
            str(5 * n),
            why,
            (),
            None,
            "利息",
            "train",
        )
        for n, what, why in ((3, "租赁", "利息等于本金乘以年利率"), (8, "抵押", "先求本金的百分之五"))
    ]
    group = Group("g", rows, "knowledge", "利息")
    paragraphs = tuple(f"{row.solution},所以是{row.answer}元。答案是{row.answer}。" for row in rows)
    good = "这些问题都与利息有关,租赁合同的利息等于三百元乘以百分之五,抵押合同先求八百元的百分之五,再得出利息。"
    empty = "这些问题都与利息有关,只要理解利息的含义并且认真计算,就可以很容易地得出每个问题的正确结果。"
    assert own_fault(group, Draft(paragraphs, good))[1] == ""
    assert "nothing that is particular" in own_fault(group, Draft(paragraphs, empty))[1]
    assert own_fault(group, Draft(("答案是15。", paragraphs[1]), good))[1].startswith("reasoning")
    assert read_sentence(
        group, paragraphs, "租赁合同的利息等于本金三百元乘以年利率,得出15元。还有别的。", place=0
    ).endswith("15元。")


def test_check_goes_on_after_a_bad_file_and_opens_sweeps(exercises, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({"experiment": str(exercises), "grid": {"training.seed": [1, 2]}}))
    bad = tmp_path / "bad.yaml"
    bad.write_text("common: {seed: -1}")
    assert main(["check", str(bad), str(sweep), "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first["file"] == str(bad) and first["errors"]
    assert second["errors"] == [] and any("A sweep of 2 runs" in line for line in second["found"])
    assert main(["check", str(sweep)]) == 0


def test_problems_without_a_topic_are_related_by_what_they_say(mine, tmp_path):
    step = Step(
        "03_write_passages", params.load(changed(mine, "passages", grouping="embedding")), tmp_path / "run"
    )
    assert len(first_group(step).rows) == 3
    assert not checking.check(mine).errors


def test_step_03_stops_with_reasons_and_examples_where_most_groups_fail(mine, tmp_path):
    changed(Path(params.load(mine).passages.tasks[0]), "fields", solution="{output}")
    assert "Only 0 of 24 groups became passages. Why not: 24 reasoning." in checking.check(mine).errors[0]
    with pytest.raises(TraitError, match="Only 0 of 24 groups became passages") as caught:
        write_passages(Step("03_write_passages", params.load(mine), tmp_path / "run"))
    message = str(caught.value)
    assert message.count("For instance p-") == 2
    assert "a solution that only repeats its answer teaches nothing" in message
    assert (tmp_path / "run/03_write_passages/rejected.parquet").exists()


def test_a_glob_that_the_shell_has_expanded_is_named(capsys):
    assert main(["new", "law", "--documents", "a.md", "b.md", "c.md", "--tasks", "q.csv"]) == 1
    assert "must be quoted" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["code", "chinese"])
def test_a_domain_runs_to_its_report(domain, tmp_path):
    experiment = written(tmp_path, *DOMAINS[domain](tmp_path / "in"))
    changed(experiment, "evaluation", general_documents=6, in_domain_documents=4)
    changed(experiment, "training", held_out_items=4)
    assert main(["run", str(experiment), "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/report.html").exists()


def test_a_sentence_may_name_what_is_shared_and_say_spelt_numbers_in_figures():
    ask = "合同{0}号的本金为{0}000元,年利率为百分之五,利息是多少?"
    rows = [Problem(f"q/{n}", "q", ask.format(n), str(50 * n), "", (), None, "第7章", "train") for n in (3, 8)]
    group = Group("g", rows, "knowledge", "第7章")
    told = [f"利息是{row.answer}元。" for row in rows]
    read_sentence(
        group, told, "第7章的两道题都讲合同,3号合同的本金3000元和8号合同的本金8000元,年利率都是5%,求利息。"
    )
    with pytest.raises(ValueError, match="'6' stands in no problem"):
        read_sentence(
            group, told, "第7章的两道题都讲合同,3号合同的本金3000元和8号合同的本金8000元,年利率都是6%,求利息。"
        )
