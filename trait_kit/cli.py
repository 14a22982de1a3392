"""The command line. What each command does and takes is said in cli.yaml."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import webbrowser
from fractions import Fraction
from pathlib import Path
from textwrap import fill
from typing import Annotated, Literal

import typer

from trait_kit import params
from trait_kit.engine.files import TraitError, read_yaml
from trait_kit.engine.machine import quiet_libraries
from trait_kit.engine.shards import Place
from trait_kit.params import Experiment

TEXTS = read_yaml(Path(__file__).with_name("cli.yaml"))  # of every command
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=TEXTS["all"]["about"],
    context_settings={"max_content_width": 100},
)


def _refuse_unquoted(names: list[str] | None) -> None:
    """What a shell makes of a glob."""
    if names:
        raise TraitError(
            f"{len(names)} names belong to no option, as {names[0]}. A glob must be quoted: 'docs/*.md'."
        )


Asked, Folder = Annotated[str, typer.Option()], Annotated[Path, typer.Option()]  # without a default
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE")]
AsJson = Annotated[bool, typer.Option("--json")]
Number = Annotated[float | None, typer.Option(parser=lambda it: float(Fraction(it)), metavar="NUMBER")]
Executor = Literal["local", "ray", "slurm"]
Unquoted = Annotated[list[str] | None, typer.Argument(hidden=True, callback=_refuse_unquoted)]
Slurm = Annotated[
    dict, typer.Option(parser=lambda text: dict(pair.split("=", 1) for pair in text.split(",") if pair))
]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake and Ctrl-C end in one message, a bug in a traceback."""
    quiet_libraries()
    try:
        COMMANDS(arguments)
    except TraitError as error:
        print(f"\ntrait-kit: {error}", file=sys.stderr)
        return 1
    except SystemExit as end:  # how typer ends, after a wrong option or Ctrl-C too
        if end.code == 130:
            print("\ntrait-kit: interrupted. Run the same command again to go on.", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(130)  # without waiting for threads
        return int(end.code or 0)
    return 0


def _asked(experiment: Path, run_dir: Path | None, overrides: list[str] | None) -> tuple[Experiment, Path]:
    return params.load(experiment, params.read_overrides(overrides)), params.run_folder(experiment, run_dir)


@app.callback(invoke_without_command=True)
def _kit(version: Annotated[bool, typer.Option("--version", help="print it")] = False) -> None:
    if version:
        print(importlib.metadata.version("trait-kit"))
        raise typer.Exit


@app.command()
def run(
    experiment: Path,
    run_dir: Path | None = None,
    start_from: Annotated[str, typer.Option("--from")] = "",
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False,
) -> None:
    from trait_kit import pipeline

    pipeline.run(*_asked(experiment, run_dir, overrides), start_from, dry_run)


@app.command()
def status(
    experiment: Path, run_dir: Path | None = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    from trait_kit import runs

    found, folder = _asked(experiment, run_dir, overrides)
    states = runs.status(folder, found)
    told = (fill(f"{name:22} {state}", 100, subsequent_indent=" " * 23) for name, state in states.items())
    print(json.dumps(states, indent=2) if as_json else "\n".join(told))


@app.command()
def new(
    name: str,
    documents: Asked,
    tasks: Annotated[list[str], typer.Option()],
    web: str = "",
    base_model: str = "demo:smollm2-135m",
    teacher: Literal["local", "openai", "none"] = "local",
    folder: Path = Path("params"),
    unquoted: Unquoted = None,
) -> None:
    from trait_kit.own_domain import checking, scaffold

    print(*scaffold.new(name, documents, tasks, folder, web, base_model, teacher), sep="\n", flush=True)
    file = folder / f"{name}.yaml"
    told = checking.check(file)
    print(told, f"Next: read {file}, then trait-kit {'check' if told.errors else 'run'} {file}", sep="\n")


@app.command()
def check(files: list[Path], as_json: AsJson = False) -> None:
    from trait_kit.own_domain import checking

    found = list(map(checking.check, files))
    lines = [json.dumps(list(map(vars, found)), indent=2, ensure_ascii=False)] if as_json else found
    print(*lines, sep="\n")
    if any(told.errors for told in found):
        raise typer.Exit(1)


@app.command()
def sweep(plan: Path, parallel: int = 1) -> None:
    from trait_kit import pipeline

    pipeline.sweep(plan, parallel=parallel)


@app.command()
def score(
    model: Asked,
    corpus: Annotated[str, typer.Option("--input")],
    output: Folder,
    label: str = "in_domain",
    educational: str = "",
    dsir: str = "",
    max_quarantined: Number = 0.01,
    executor: Executor = "local",
    workers: int = 1,
    slurm: Slurm = "",
    unquoted: Unquoted = None,
) -> None:
    from trait_kit.selection import scoring

    scored = scoring.score_corpus(
        corpus,
        scoring.ModelFiles(model, educational, dsir, label),
        output,
        max_quarantined=max_quarantined,
        place=Place(executor, workers, slurm),
    )
    print(
        f"{scored.documents:,} documents scored, {scored.held_out:,} held out for evaluation "
        "({held_out=0} holds none), "
        f"{scored.losses().sum():,} records unusable -> {output}"
    )


@app.command()
def select(
    scores: Folder,
    output: Folder,
    methods: str = "fasttext",
    tokens: int = 0,
    share: Number = 0.0,
    threshold: Number = None,
    base_model: str = "",
    min_tokens: int = 1,
    max_tokens: int = 2**31 - 1,
    min_educational: Number = 1.0,
    in_domain: str = "",
    tasks: str = "",
    test_items: int = 5_000,
    near_duplicate: Number = 0.8,
    seed: int = 0,
    executor: Executor = "local",
    workers: int = 1,
    slurm: Slurm = "",
    unquoted: Unquoted = None,
) -> None:
    from trait_kit.selection import budget, choosing, disjoint, scoring
    from trait_kit.selection.documents import list_shards, load_documents, refuse_inside
    from trait_kit.tasks import texts_of_tests

    scored = scoring.Scoring.open(scores.absolute())
    refuse_inside(output, list_shards(in_domain) if in_domain else [])
    selected = choosing.select(
        scored,
        output,
        re.split(r"[,\s]+", methods),
        budget.Limits(
            tokens, round(share * scored.documents), threshold, min_tokens, max_tokens, min_educational
        ),
        base_model=base_model,
        seed=seed,
        tested=texts_of_tests(re.split(r"[,\s]+", tasks), test_items, seed) if tasks else None,
        in_domain=load_documents(in_domain, seed)["text"] if in_domain else [],
        held_out=disjoint.held_out_texts([scored.job["corpus"], *([in_domain] * bool(in_domain))], seed, least=0),
        near_duplicate=near_duplicate,
        place=Place(executor, workers, slurm),
    )
    print(choosing.funnel(selected).set_index("method").astype(object).T.to_string())


@app.command()
def train(experiment: Path, run_dir: Path | None = None, overrides: Overrides = None) -> None:
    from trait_kit.training import stages

    found, folder = _asked(experiment, run_dir, overrides)
    stages.train_run(found.training, folder)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, what: str) -> None:
    from trait_kit import runs

    script = runs.project_root() / "tests" / "benchmarks" / f"{what}.py"
    if not script.exists():
        known = ", ".join(sorted(path.stem for path in script.parent.glob("*.py")))
        raise TraitError(f"bench {what}: there is no such benchmark; known: {known}.")
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args]).returncode)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN[:ARM]...")],
    reference: Annotated[str | None, typer.Option(metavar="ARM")] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs")] = False,
    output: Path | None = None,
    form: Annotated[Literal["txt", "md", "csv", "json"], typer.Option("--format")] = "txt",
) -> None:
    from trait_kit import pipeline
    from trait_kit.figures.cells import csv_text

    table, tests = pipeline.compare(runs, reference, output, all_pairs)
    if form == "csv":
        safe = tests.map(lambda value: csv_text(value) if isinstance(value, str) else value)
        print(safe.to_csv(index=False), end="")
    else:
        print(
            tests.to_json(orient="records", indent=2, force_ascii=False)
            if form == "json"
            else table.written(form)
        )
    if output:
        print(f"Written: {output}/comparison.md, .tex, .html, .csv (all digits), and items/", file=sys.stderr)


@app.command()
def report(run_dirs: list[Path]) -> None:
    from trait_kit.figures import report as reports

    print(reports.write_report(*run_dirs))


@app.command("open")
def open_report(run_dir: Path) -> None:
    page = run_dir.absolute() / "report.html"
    if not page.exists():
        raise TraitError(
            f"{page} does not exist. Write it with `trait-kit report {run_dir}`, after `trait-kit run`."
        )
    print(page, flush=True)
    webbrowser.open(page.as_uri())


COMMANDS = typer.main.get_command(app)
for name, command in COMMANDS.commands.items():
    command.help, command.epilog = TEXTS[name]["about"], f"Example: trait-kit {TEXTS[name]['example']}"
    for parameter in command.params:
        parameter.help = (TEXTS["all"] | TEXTS[name]).get(parameter.name, parameter.help)

if __name__ == "__main__":
    sys.exit(main())
