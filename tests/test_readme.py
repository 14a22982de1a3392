"""What the pages promise: commands parse, files, links and anchors are there, quoted numbers and messages are real."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from conftest import ROOT, trait_kit
from typer.main import get_command

from trait_kit import cli
from trait_kit.tasks import Task

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "trait_kit").rglob("*.md")]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OURS = ("params/", "notebooks/", "tests/", "docs/", "trait_kit/", "./")
PROGRAMS = (
    "make",
    "source",
    "trait-kit",
    "papermill",
    "accelerate",
    "python",
    "pip",
    "git",
    "pre-commit",
    "cp",
    "export",
)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCED.findall(page.read_text(encoding="utf-8")) if found == language]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell block, and of every command with arguments that stands in a sentence."""
    found = []
    for page in PAGES:
        lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
        prose = re.sub(
            r"^\| `[^`]+`", "", FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE
        )  # messages
        lines += re.findall(r"`((?:trait-kit|make) [^`<\[]*)`", prose)
        found += [(page.name, line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return found


COMMANDS = commands()


def words_of(line: str) -> list[str]:
    return shlex.split(line.replace("...", ""), comments=True)


def parse(arguments: list[str]) -> None:
    """trait-kit's own parser reads the arguments; nothing runs."""
    group = get_command(cli.app)
    if arguments[0].startswith("-"):
        assert any(arguments[0] in option.opts for option in group.params) or arguments[0] == "--help", arguments
        return
    command = group.commands[arguments[0]]
    if len(arguments) == 1:  # a command by its name alone, in a sentence
        return
    given = command.make_context(arguments[0], arguments[1:], resilient_parsing=False).params
    if given.get("overrides") and given["experiment"].exists():
        cli._asked(given["experiment"], None, given["overrides"])
    if arguments[0] == "bench":
        script = (ROOT / "tests" / "benchmarks" / f"{arguments[1]}.py").read_text(encoding="utf-8")
        assert all(f'"{word}"' in script for word in arguments[2:] if re.fullmatch(r"--[a-z-]+|throughput", word))


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:50]}" for page, line in COMMANDS])
def test_a_printed_command_runs(page, line, monkeypatch):
    """Programs, targets, commands, options, parameters and files exist; what a reader's own files are called is free."""
    monkeypatch.chdir(ROOT)
    program, *arguments = words_of(line)
    assert program in PROGRAMS, f"{page}: no program of this project: {program}"
    made = {
        f"params/{words_of(other)[2]}.yaml"
        for where, other in COMMANDS
        if where == page and "trait-kit new " in other
    }
    for word in arguments:
        path = word.rpartition("=")[2]
        if path.startswith(OURS) and path not in made and not re.search(r"[*?{]", path):
            assert Path(path).exists(), f"{page}: {path} does not exist"
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        dry = subprocess.run(["make", "-n", *arguments], capture_output=True, text=True)
        assert targets and dry.returncode == 0, dry.stderr
    elif program == "trait-kit":
        parse(arguments)
    elif program == "accelerate":
        parse(arguments[arguments.index("trait_kit.cli") + 1 :])
    elif program == "papermill":
        book = nbformat.read(arguments[0], as_version=4)
        (cell,) = [cell.source for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
        for name in [arguments[at + 1] for at, word in enumerate(arguments) if word == "-p"]:
            assert re.search(rf"^{name} = ", cell, re.MULTILINE), f"{arguments[0]} has no parameter {name}"


def test_a_reader_meets_the_commands_that_matter():
    in_readme = {tuple(words_of(line)[:2]) for page, line in COMMANDS if page == "README.md"}
    needed = [("make", "demo"), ("make", "test"), ("source", ".venv/bin/activate"), ("trait-kit", "new")]
    assert in_readme.issuperset([*needed, ("trait-kit", "check"), ("trait-kit", "run")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_says_what_it_is_and_is_read_as_that(page):
    languages = [language for language, _ in FENCED.findall(page.read_text(encoding="utf-8"))]
    assert set(languages) <= {"sh", "yaml", "text", "csv", "python"}, languages
    for block in blocks(page, "yaml"):
        found = yaml.safe_load(block)
        if isinstance(found, dict) and {"kind", "fields"} <= found.keys():
            Task(**{"name": "task", **found})


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_is_of_one_breath():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 130 and not line.startswith(("|", "!["))] == []


def test_every_page_is_listed():
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in listed} == set()


def test_the_demos_table_is_the_recorded_run():
    """The README's numbers are those of docs/results/demo.json, to the last digit."""
    found = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    means = {(row["arm"], row["metric"]): row["mean"] for row in found["arms"] if row["task"] == "macro average"}
    gains = {
        row["arm"]: f"{row['gain']:.3f} [{row['gain_low']:.3f}, {row['gain_high']:.3f}]"
        for row in found["paired_tests"]
        if (row["metric"], row["task"], row["reference"]) == ("bits_per_number_token", "macro average", "trait")
    }
    rows = {}
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        rows |= {cells[0].lower(): cells[2:]} if len(cells) == 6 else {}
    for arm in ("base", "raw", "random", "dsir", "selected", "worked", "trait"):
        number, gain, bits, zero_shot = rows[arm]
        shown = [f"{means[arm, metric]:.3f}" for metric in
                 ("bits_per_number_token", "bits_per_byte", "bits_per_byte_zero_shot")]  # fmt: skip
        assert [number, bits, zero_shot] == shown, arm
        assert gain == gains.get(arm, ""), arm


def messages() -> list[str]:
    """Every text of the package's code and data, with '…' where a value is filled in."""

    def text(node: ast.expr) -> str:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)

    found = []
    for path in (ROOT / "trait_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            ):
                found.append(text(node))
    for path in [*(ROOT / "trait_kit").rglob("*.jinja"), ROOT / "Makefile"]:
        found.append(re.sub(r"\{\{.*?\}\}|\$\(\w+\)", "…", path.read_text(encoding="utf-8")))
    return found


def test_messages_that_are_explained_are_the_programs_own():
    """A message of the troubleshooting page stands in the code, its values as '…'."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    known = messages()
    missing = [message for message in explained if not any(message.strip("… ") in text for text in known)]
    assert len(explained) >= 20 and missing == []


@pytest.mark.slow
def test_the_worked_example_is_ready_to_run(tmp_path):
    """`new` and `check` on the files of docs/example, as the page prints them."""
    example = ROOT / "docs" / "example"
    made = trait_kit("new", "cooking", "--documents", example / "recipes" / "*.md", "--tasks", example / "questions.csv",
                     "--folder", tmp_path)  # fmt: skip
    assert made.returncode == 0, made.stderr
    checked = trait_kit("check", tmp_path / "cooking.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_a_finished_run_becomes_web_pages(tiny_run, tmp_path):
    """`make docs`: six notebooks that link each other, and the report, made without a network."""
    given = [f"BIN={Path(sys.executable).parent}", f"RUN={tiny_run}", f"SITE={tmp_path}"]
    made = subprocess.run(
        ["make", "-o", ".venv/.ready", "docs", *given], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    assert sorted(pages) == [
        *(f"{path.stem}.html" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))),
        "report.html",
    ]
    assert 'href="02_filter_web.html"' in pages["01_domain_classifier.html"]
    scripts = {script for page in pages.values() for script in re.findall(r'<script src="([^"]*)"', page)}
    assert all("mathjax" in script for script in scripts if script)


def test_what_others_read_of_us_is_whole():
    """CI runs the README's test command on both Pythons; hooks are the lock file's programs; the paper is cited."""
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"][
        "test"
    ]
    assert flow["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert {"run": "make test"} in flow["steps"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    programs = {Path(hook["entry"].split()[0]).name for hook in hooks}
    assert programs == {"ruff", "nbstripout"} and all(f"\n{program}==" in locked for program in programs)
    stripped = next(hook["entry"] for hook in hooks if hook["id"] == "nbstripout").partition("nbstripout ")[2]
    assert stripped in (ROOT / "Makefile").read_text(encoding="utf-8")  # the filter of git does the same
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0"
    assert cited["references"][0]["doi"] == "10.18653/v1/2024.emnlp-main.1162"
