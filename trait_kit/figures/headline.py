"""The first screen of the report: gain, proof, forgetting, cost, and what is synthetic, read from a run's own tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from trait_kit import tables
from trait_kit.engine.files import TraitError
from trait_kit.evaluation.comparison import MACRO, arm_table, compare, forgetting_of
from trait_kit.figures.paper_tables import chain_of, contamination_table
from trait_kit.figures.style import FINE_TUNED, label
from trait_kit.figures.tables import ablation_table, main_table

ALPHA = 0.01  # what the kit calls significant, after Holm's correction
_METRIC = "bits_per_byte"
_ORDER = ("base", "raw", "random", "dsir", "selected", "trait")
_GENERATED = {
    "demo:math": "Problems that programs generated, with computed answers",
    "demo:ads": "Synthetic travel advertising, written by the kit about real places (no company or offer in it exists)",
}


def overview(run_dir: Path, steps: list[dict[str, Any]], parameters: dict[str, Any]) -> dict[str, Any]:
    """Cards, tables and notes; what cannot be told yet is left out, and `missing` says why."""
    found: dict[str, Any] = {"cards": [], "main": None, "tables": [], "missing": "", "facts": _facts(parameters)}
    try:
        found |= _results(run_dir, parameters)
    except TraitError as error:
        found["missing"] = str(error)
    found["cards"] = [*found["cards"], _cost_card(run_dir, steps)]
    found["synthetic"] = _synthetic(run_dir, steps, parameters)
    return found


def duration(seconds: Any) -> str:
    """90 -> 1 min 30 s."""
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _results(run_dir: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    path = run_dir / "05_evaluate" / "outcomes.parquet"
    if not path.exists():
        return {"missing": "No arm has been evaluated yet: run notebook 05 to see the main table here."}
    outcomes = tables.read(path, "outcomes").to_pandas()
    confidence = float(parameters.get("confidence", 0.95))
    reference = str(parameters.get("reference_arm", "trait"))
    arms = arm_table(outcomes, confidence)
    present = set(arms["arm"])
    if reference not in present or _METRIC not in set(arms["metric"]):
        raise TraitError(
            f"{path} has no {_METRIC} outcomes of the reference arm '{reference}'; its arms: {', '.join(sorted(present))}."
        )
    comparison = compare(outcomes, reference, _METRIC, confidence) if len(present) > 1 else None
    forgetting = forgetting_of(outcomes, confidence)
    extra = []
    chain = chain_of(arms)
    if len(chain) > 1:
        pairs = compare(outcomes[outcomes["arm"].isin(chain)], None, _METRIC, confidence)
        extra.append(("Ablation: what does each part add?", Markup(ablation_table(arms, chain, pairs).to_html())))
    extra.append(("What the test sets shared with the training texts", Markup(contamination_table(run_dir).to_html())))
    extra.append(("Every task, by bits per byte", Markup(main_table(arms, None, None, reference=reference).to_html())))
    for metric in dict.fromkeys(arms["metric"]):
        if metric != _METRIC and ((arms["metric"] == metric) & (arms["task"] == MACRO)).any():
            pairs = compare(outcomes, reference, metric, confidence) if len(present) > 1 else None
            extra.append(
                (
                    f"The same arms by {label(metric)}",
                    Markup(main_table(arms, pairs, forgetting, metric=metric, reference=reference).to_html()),
                )
            )
    main = main_table(arms, comparison, forgetting, reference=reference, per_task=False)
    cards = _cards(arms, comparison, forgetting, reference, confidence)
    return {"cards": cards, "main": Markup(main.to_html()), "tables": extra}


def _cards(
    arms: pd.DataFrame, comparison: pd.DataFrame | None, forgetting: pd.DataFrame | None, reference: str, confidence: float
) -> list[dict[str, Any]]:
    average = arms[(arms["metric"] == _METRIC) & (arms["task"] == MACRO)].set_index("arm")
    mean, name = average["mean"], label(reference)
    cards = []
    if "base" in mean.index and reference != "base":
        change = 100 * (mean[reference] / mean["base"] - 1)
        text = f"{name} needs {mean[reference]:.3f} bits per byte for unseen solutions, the base model {mean['base']:.3f}."
        cards.append(_card("Gain on the tasks", f"{change:+.1f}%", f"{text} Lower is better.", change < 0))
    if comparison is not None and len(comparison):
        best, count = mean.drop(reference).idxmin(), len(comparison)
        row = comparison.set_index("arm").loc[best]
        clear = comparison["reference_better"] & (comparison["p_holm"] < ALPHA)
        verdict = f"Better than all {count} other arms at p < {ALPHA}."
        if not clear.all():
            verdict = f"Not better at p < {ALPHA} than: {', '.join(label(arm) for arm in comparison.loc[~clear, 'arm'])}."
        p = "p < 0.0001" if row["p_holm"] < 1e-4 else f"p = {row['p_holm']:.2g}"
        text = (
            f"Against the best other arm, {label(best)} ({mean[best]:.3f}): "
            f"{_interval(row['difference'], row['low'], row['high'])}, {100 * confidence:g}% interval, "
            f"paired over {int(row['n'])} items; p corrected for {count} arms. {verdict}"
        )
        cards.append(_card("Is it real?", p, text, bool(clear.all())))
    if forgetting is not None and reference in set(forgetting["arm"]):
        row = forgetting.set_index("arm").loc[reference]
        change, low, high = -row["difference"], -row["high"], -row["low"]
        verdict = "Some of it was forgotten."
        if low <= 0:
            verdict = "No forgetting can be told from chance." if high >= 0 else "Nothing was forgotten."
        text = (
            f"Held-out general text: {_interval(change, low, high)} bits per byte against the base model, "
            f"paired over {int(row['n'])} documents. {verdict}"
        )
        cards.append(_card("Forgetting", f"{100 * change / row['reference_mean']:+.1f}%", text, bool(low <= 0)))
    return cards


def _card(name: str, figure: str, text: str, good: bool | None) -> dict[str, Any]:
    return {"name": name, "figure": figure, "text": text, "good": good}


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _cost_card(run_dir: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of every finished step, tokens trained, tokens and money of the teacher (rejected passages cost too)."""
    seconds = [step["seconds"] for step in steps if isinstance(step["seconds"], int | float)]
    memory = [step["memory"] for step in steps if isinstance(step["memory"], int | float)]
    parts = []
    if len(seconds) < len(steps):
        parts.append(f"{len(seconds)} of {len(steps)} steps done")
    log = _read(run_dir / "04_train_two_stages" / "log.parquet", "log", ["arm", "tokens"])
    if log is not None and len(log):
        longest = log[~log["arm"].str.endswith(FINE_TUNED)].groupby("arm")["tokens"].max()
        parts.append(f"{int(longest.max()):,} tokens trained in each of {len(longest)} arms")
    written = [
        _read(run_dir / "03_write_passages" / f"{kind}.parquet", kind, ["tokens_in", "tokens_out", "cost_usd"])
        for kind in ("passages", "rejected")
    ]
    if written[0] is not None:
        bill = pd.concat([part for part in written if part is not None]).sum()
        tokens = f"{int(bill['tokens_in']):,} tokens in, {int(bill['tokens_out']):,} out"
        parts.append(f"{len(written[0]):,} passages kept; teacher: {tokens}, ${bill['cost_usd']:,.2f}")
    if memory:
        parts.append(f"at most {max(memory):.1f} GB of memory")
    text = "; ".join(parts)
    text = text[:1].upper() + text[1:] + "." if text else "Nothing has been run."
    return _card("Cost", duration(sum(seconds)) if seconds else "–", text, None)


def _facts(parameters: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "base_model": "Base model",
        "in_domain": "In-domain documents",
        "web": "Web to mine",
        "tasks": "Tasks",
        "seed": "Seed",
    }
    facts = []
    for key, name in names.items():
        if key in parameters:
            value = parameters[key]
            facts.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    arms = parameters.get("arms")
    if isinstance(arms, dict):
        order = sorted(arms, key=lambda arm: (_ORDER.index(arm) if arm in _ORDER else len(_ORDER), str(arm)))
        facts += [
            (f"Arm {label(str(arm))}", ", then ".join(map(str, arms[arm]))) for arm in order if isinstance(arms[arm], list)
        ]
    return facts


def _synthetic(run_dir: Path, steps: list[dict[str, Any]], parameters: dict[str, Any]) -> list[str]:
    """What a reader must not take for found text or for an LLM's work."""
    notes = []
    passages = _read(run_dir / "03_write_passages" / "passages.parquet", "passages", ["teacher"])
    for teacher in sorted(set(passages["teacher"].dropna())) if passages is not None else []:
        if str(teacher).startswith("offline"):
            notes.append(
                "Passages: composed by the kit's offline teacher from gold worked solutions. No language model wrote them."
            )
        else:
            notes.append(f"Passages: written by the language model {teacher}, then checked.")
    sources = {str(task): _source(str(task)) for task in parameters.get("tasks", [])}
    for source, what in _GENERATED.items():
        names = [task for task, its_source in sources.items() if its_source == source]
        if names:
            notes.append(f"{what}: the tasks {', '.join(names)}.")
    return notes + [text for step in steps for text in step["synthetic"] if text]


def _source(task: str) -> str:
    """The kind of source in the task's file, before its colon."""
    from trait_kit.tasks import load_task

    try:
        return load_task(task).source.partition("/")[0]
    except TraitError:  # the user's task file may have been moved since the run
        return ""


def _read(path: Path, kind: str, columns: list[str]) -> pd.DataFrame | None:
    try:
        return tables.read(path, kind).select(columns).to_pandas() if path.exists() else None
    except TraitError:  # the step's own section says so
        return None
