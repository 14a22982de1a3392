"""The command line: `trait-kit run params/demo.yaml` and its few companions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trait_kit.engine.files import TraitError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake ends in one message and exit code 1, a bug in a traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except TraitError as error:
        print(f"\ntrait-kit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntrait-kit: interrupted. Run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trait-kit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the six notebooks of an experiment; what is done is not repeated")
    run.add_argument("experiment", type=Path, help="an experiment file, for instance params/demo.yaml")
    run.add_argument("--run-dir", help="write there instead of the file's common.run_dir")
    run.add_argument("--from", dest="start_from", metavar="STEP", help="execute this step (01..06) and the later ones anew")
    run.add_argument("--set", dest="overrides", action="append", metavar="SECTION.FIELD=VALUE", help="override a parameter")
    run.set_defaults(command=_run)

    sweep = commands.add_parser("sweep", help="run an experiment at each point of a grid")
    sweep.add_argument("sweep", type=Path, help="a sweep file, for instance params/sweeps/ablation.yaml")
    sweep.set_defaults(command=_sweep)

    check = commands.add_parser("check", help="validate experiment files without running anything")
    check.add_argument("experiments", type=Path, nargs="+")
    check.set_defaults(command=_check)

    assets = commands.add_parser("assets", help="fetch the demo's data and models into the cache")
    assets.set_defaults(command=_assets)

    score = commands.add_parser("score", help="score every document of a corpus; finished shards are not repeated")
    score.add_argument("--model", required=True, help="the domain classifier: .npz of the kit, or a fastText .bin")
    score.add_argument(
        "--input", required=True, help="path, URL or glob (quoted) of Parquet, JSONL, WARC or WET files, or hf:..."
    )
    score.add_argument("--output", required=True, type=Path, help="folder for the scores")
    score.add_argument("--label", default="in_domain", help="the model's label whose probability is the score")
    score.add_argument("--educational", default="", help="a model with labels such as High, Mid and Low")
    score.add_argument("--dsir", default="", help="a DSIR model (.npz)")
    score.add_argument("--normalisation", default="none", choices=["none", "words-1"], help="what texts need for a .bin")
    score.add_argument("--base-model", default="", help="count tokens with its tokenizer; else estimated at 4 bytes a token")
    score.add_argument(
        "--keep-above", type=float, help="also write the documents with at least this score, in the same pass"
    )
    score.add_argument("--documents-per-shard", type=int, default=50_000)
    score.add_argument("--max-quarantined", type=float, default=0.01, help="share of documents that may be unreadable")
    score.set_defaults(command=_score)

    select = commands.add_parser("select", help="choose from scored documents, without scoring again")
    select.add_argument("--scores", required=True, type=Path, help="folder that `trait-kit score` wrote")
    select.add_argument("--output", required=True, type=Path, help="folder for one Parquet file a method")
    select.add_argument("--methods", nargs="+", default=["fasttext"], help="random, dsir, fasttext, fasttext+educational")
    limit = select.add_mutually_exclusive_group(required=True)
    limit.add_argument("--tokens", type=int, default=0, help="token budget of each method")
    limit.add_argument("--share", type=float, default=0.0, help="share of the documents")
    limit.add_argument("--threshold", type=float, help="smallest score")
    select.add_argument("--base-model", default="", help="its tokenizer counts the tokens that scoring only estimated")
    select.add_argument("--min-tokens", type=int, default=1)
    select.add_argument("--max-tokens", type=int, default=2**31 - 1)
    select.add_argument("--min-educational", type=float, default=1.0)
    select.add_argument("--in-domain", default="", help="the in-domain documents, which the selection may not repeat")
    select.add_argument("--tasks", nargs="*", default=[], help="tasks whose test questions the selection may not hold")
    select.add_argument("--test-items", type=int, default=5_000, help="test problems of each task, as test_items_per_task")
    select.add_argument(
        "--near-duplicate", type=float, default=0.8, help="similarity from which texts are kept once; 0: all"
    )
    select.add_argument("--seed", type=int, default=0)
    select.set_defaults(command=_select)

    for command in (score, select):
        command.add_argument("--executor", default="local", choices=["local", "ray", "slurm"])
        command.add_argument("--workers", type=int, default=1)
        command.add_argument("--slurm-partition", default="")
        command.add_argument("--slurm-time", default="20:00:00")

    train = commands.add_parser(
        "train", help="train the arms of an experiment whose selections and passages are there; also under accelerate launch"
    )
    train.add_argument("experiment", type=Path, help="an experiment file, for instance params/math_mistral7b.yaml")
    train.add_argument("--run-dir", help="the run, instead of the file's common.run_dir")
    train.add_argument("--set", dest="overrides", action="append", metavar="SECTION.FIELD=VALUE", help="as for run")
    train.set_defaults(command=_train)

    bench = commands.add_parser("bench", help="measure the speed of selection on this machine")
    bench.add_argument("what", choices=["selection"])
    bench.add_argument("--model", required=True, help="a fastText .bin")
    bench.add_argument("--input", required=True, help="a corpus, as for score")
    bench.add_argument("--megabytes", type=int, default=60, help="of text")
    bench.set_defaults(command=_bench)

    compare = commands.add_parser(
        "compare", help="paired tests of arms across finished runs, over the items that they share"
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN[:ARM]",
        help="a run folder, or one arm of it; runs that differ in seed only are joined",
    )
    against = compare.add_mutually_exclusive_group()
    against.add_argument("--reference", metavar="ARM", help="the arm that others are compared with; else the first run's")
    against.add_argument("--all-pairs", action="store_true", help="every arm with every other")
    compare.add_argument("--metric", help="one metric; else all that the runs share")
    compare.add_argument("--confidence", type=float, help="of every interval; else the first run's")
    compare.add_argument(
        "--output", type=Path, metavar="FOLDER", help="also write the table, and the items behind its numbers"
    )
    compare.set_defaults(command=_compare)

    report = commands.add_parser("report", help="write a run's report.html afresh")
    report.add_argument("run_dir", type=Path)
    report.set_defaults(command=_report)
    return parser


def _run(options: argparse.Namespace) -> None:
    from trait_kit import params, pipeline

    pipeline.run(params.load(options.experiment, options.overrides, options.run_dir), options.start_from)


def _sweep(options: argparse.Namespace) -> None:
    from trait_kit import pipeline

    pipeline.sweep(options.sweep)


def _check(options: argparse.Namespace) -> None:
    from trait_kit import params

    for path in options.experiments:
        params.load(path)
        print(f"{path}: valid")


def _assets(_: argparse.Namespace) -> None:
    from trait_kit import demo

    demo.wikipedia()
    for name in ("demo:smollm2-135m", "demo:all-minilm-l6-v2"):
        print(f"{name}: {demo.resolve_model(name)}")


def _score(options: argparse.Namespace) -> None:
    from trait_kit.selection import scoring

    files = scoring.ModelFiles(
        options.model,
        options.educational,
        options.dsir,
        options.label,
        options.base_model,
        normalisation=options.normalisation,
    )
    scored = scoring.score_corpus(
        options.input,
        files,
        options.output,
        documents_per_shard=options.documents_per_shard,
        max_quarantined=options.max_quarantined,
        keep_above=options.keep_above,
        place=_place(options),
    )
    print(f"{scored.documents:,} documents scored, {scored.lost:,} records unusable -> {options.output}")


def _select(options: argparse.Namespace) -> None:
    from trait_kit.selection import scoring, selecting, side_by_side
    from trait_kit.selection.budget import Filters, Limit
    from trait_kit.selection.documents import load_documents
    from trait_kit.tasks import load_problems

    scored = scoring.open_scoring(options.scores.absolute())
    tests = (
        load_problems(options.tasks, "test", options.test_items, options.seed)["question"].tolist() if options.tasks else []
    )
    selected = selecting.select(
        scored,
        options.output,
        options.methods,
        Limit(options.tokens, options.share, options.threshold),
        base_model=options.base_model,
        seed=options.seed,
        filters=Filters(options.min_tokens, options.max_tokens, options.min_educational),
        test_questions=tests,
        in_domain=load_documents(options.in_domain, options.seed)["text"] if options.in_domain else [],
        near_duplicate=options.near_duplicate,
        place=_place(options),
    )
    print(side_by_side.funnel(selected).set_index("method").astype(object).T.to_string())


def _train(options: argparse.Namespace) -> None:
    from trait_kit import params
    from trait_kit.training import command

    experiment = params.load(options.experiment, options.overrides, options.run_dir)
    command.train(experiment.training, Path(experiment.training.run_dir).absolute())


def _place(options: argparse.Namespace):
    from trait_kit.engine.shards import Place

    return Place(options.executor, options.workers, options.slurm_partition, options.slurm_time)


def _bench(options: argparse.Namespace) -> None:
    from trait_kit.selection import bench

    bench.main(options.model, options.input, options.megabytes)


def _compare(options: argparse.Namespace) -> None:
    from trait_kit.evaluation import across_runs, comparison
    from trait_kit.figures.paper_tables import save_comparison

    if options.confidence is not None and not 0.5 < options.confidence < 1:
        raise TraitError(f"--confidence {options.confidence:g}: it must be above 0.5 and below 1, for instance 0.95.")
    together = across_runs.gather(options.runs)
    outcomes = together.outcomes
    if options.metric:
        known = list(dict.fromkeys(outcomes["metric"]))
        if options.metric not in known:
            raise TraitError(
                f"--metric {options.metric}: the runs have no items of it in common, but of {', '.join(known)}."
            )
        outcomes = outcomes[outcomes["metric"] == options.metric]
    reference = together.arm(options.reference) if options.reference else together.reference
    reference = None if options.all_pairs else reference
    tests = comparison.compare_all(outcomes, reference, options.confidence or together.confidence)
    print(save_comparison(tests, outcomes, together.notes, options.output).to_text())
    if options.output:
        print(f"Written: {options.output}/comparison.md, .tex, .html, .csv (all digits), and items/")


def _report(options: argparse.Namespace) -> None:
    from trait_kit.figures.report import write_report

    print(write_report(options.run_dir))


if __name__ == "__main__":
    sys.exit(main())
