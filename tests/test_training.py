"""Training: packing without leaks, the schedule, the tree of stages, and what an undisturbed run leaves behind.

The runs are real: a tiny random Llama in real child processes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_llama import (
    BATCH,
    CONTEXT,
    HELD_OUT,
    ROOT,
    STAGE_STEPS,
    packed,
    planned,
    same,
    text_files,
    tiny_params,
    tiny_sources,
    trained,
)

from trait_kit import params
from trait_kit.engine import machine
from trait_kit.engine.files import TraitError, read_json, write_json
from trait_kit.engine.packing import plan_rows
from trait_kit.training import prepare, stages
from trait_kit.training.held_out import token_losses
from trait_kit.training.learning_rate import wsd_factor
from trait_kit.training.plan import Job, Stage
from trait_kit.training.prepare import shares

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(model_dir: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa").eval()


def _documents(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, length).astype(np.int32) for length in lengths]


# Packing


@pytest.mark.parametrize("whole", [False, True])
def test_packing_loses_no_token_and_cuts_only_what_must_be_cut(whole: bool) -> None:
    lengths = np.array([5, 9, 16, 3, 40, 7, 1, 12, 8, 2])
    lengths = np.minimum(lengths, 16) if whole else lengths
    plan = plan_rows(lengths, 16, whole=whole)
    rows = np.repeat(np.arange(len(plan.row_ends)), np.diff(plan.row_ends, prepend=0))
    slots = np.bincount(rows, weights=plan.length)
    assert slots.max() <= 16
    assert whole or len(slots) == -(-lengths.sum() // 16)
    for document, length in enumerate(lengths):
        pieces = np.flatnonzero(plan.document == document)
        covered = sorted(zip(plan.start[pieces].tolist(), plan.length[pieces].tolist(), strict=True))
        assert [start for start, _ in covered] == [0, *np.cumsum([taken for _, taken in covered])[:-1]]
        assert sum(taken for _, taken in covered) == length
    cut = np.unique(plan.document[plan.length < lengths[plan.document]])
    assert len(cut) <= (0 if whole else 2)  # the one of 40, and at most one more to fill the gaps


def test_packing_fills_rows_completely_when_the_tokens_allow_it() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 500)
    lengths[-1] += -lengths.sum() % 64
    plan = plan_rows(lengths, 64)
    one_after_the_other = np.cumsum(lengths) // 64 != (np.cumsum(lengths) - lengths) // 64
    assert plan.length.sum() == 64 * len(plan.row_ends)
    assert len(np.unique(plan.document[plan.length < lengths[plan.document]])) < one_after_the_other.sum() / 4
    assert len(plan_rows(np.zeros(0), 64).row_ends) == 0
    whole = plan_rows(np.minimum(lengths, 64), 64, whole=True)
    assert len(whole.row_ends) <= 1.05 * -(-np.minimum(lengths, 64).sum() // 64) + 1


def test_in_given_rows_what_may_not_be_cut_is_in_one_of_them_or_in_none() -> None:
    generator = np.random.default_rng(2)
    lengths, whole = generator.integers(1, 90, 400), generator.random(400) < 0.5
    plan = plan_rows(lengths, 64, n_rows=40, whole=whole)
    assert len(plan.row_ends) == 40
    assert not whole[plan.document[plan.length < lengths[plan.document]]].any()
    assert plan.length.sum() == 40 * 64  # what may be cut fills every gap
    gaps = 64 - np.bincount(np.repeat(range(40), np.diff(plan.row_ends, prepend=0)), plan.length, 40)
    assert not gaps.any()
    alone = plan_rows(lengths, 64, n_rows=40, whole=True)
    gaps = 64 - np.bincount(np.repeat(range(40), np.diff(alone.row_ends, prepend=0)), alone.length, 40)
    assert (
        lengths[np.setdiff1d(np.arange(400), alone.document)].min() > gaps.max()
    )  # nothing that was left out fits


def test_rows_mix_lengths_and_a_text_that_is_read_again_comes_again_much_later() -> None:
    """Batches of alike texts would make steps that pull one way; the same text twice in a batch is one text fewer."""
    generator = np.random.default_rng(0)
    stream = np.concatenate([generator.permutation(60) for _ in range(4)])
    lengths = generator.integers(60, 400, 60)[stream]
    plan = plan_rows(lengths, 1_536, n_rows=int(lengths.sum() * 0.95) // 1_536, whole=True)
    row = np.repeat(np.arange(len(plan.row_ends)), np.diff(plan.row_ends, prepend=0))
    neighbours = row[1:] == row[:-1]
    placed = lengths[plan.document]
    assert abs(np.corrcoef(placed[1:][neighbours], placed[:-1][neighbours])[0, 1]) < 0.2
    by_length = plan_rows(np.sort(lengths), 1_536, n_rows=len(plan.row_ends), whole=True)  # what sorting would do
    placed = np.sort(lengths)[by_length.document]
    assert np.corrcoef(placed[1:], placed[:-1])[0, 1] > 0.9
    twice = [len(set(names)) < len(names) for names in np.split(stream[plan.document], plan.row_ends[:-1])]
    shuffled = np.split(generator.permutation(stream[plan.document]), plan.row_ends[:-1])
    assert (
        sum(twice) <= 3 < sum(len(set(names)) < len(names) for names in shuffled)
    )  # where one reading meets the next


def test_packed_loss_equals_the_loss_of_the_documents_one_by_one(model: torch.nn.Module, tmp_path: Path) -> None:
    documents = _documents([20, 11, 9, 13, 30, 5, 2, 5])
    rows = packed(documents, tmp_path)
    with torch.no_grad():
        together = token_losses(model, *rows.values())
        library = model(**rows, use_cache=False).loss
        alone = [torch.from_numpy(document.astype(np.int64))[None] for document in documents if len(document) > 1]
        expected = sum(model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1) for ids in alone)
    assert together.numel() == sum(len(document) - 1 for document in documents)
    assert together.sum().item() == pytest.approx(expected, rel=1e-5)
    assert together.mean().item() == pytest.approx(library.item(), rel=1e-5)


def test_a_changed_document_changes_no_other_documents_logits(model: torch.nn.Module, tmp_path: Path) -> None:
    rows = packed(_documents([12, 10, 10]), tmp_path)
    ids, positions = rows["input_ids"], rows["position_ids"]
    second = int((positions[0, 1:] == 0).nonzero()[0]) + 1
    other = ids.clone()
    other[0, :second] = 7

    def logits(ids: torch.Tensor, **more: object) -> torch.Tensor:
        with torch.no_grad():
            return model(**{"input_ids": ids, "position_ids": positions, "use_cache": False, **more}).logits[0]

    before, after = logits(ids), logits(other)
    assert not torch.equal(before[:second], after[:second])
    assert torch.equal(before[second:], after[second:])
    for leak in (
        {"attention_mask": torch.ones_like(positions)},
        {"use_cache": True},
    ):  # each undoes the isolation
        assert not torch.allclose(logits(ids, **leak)[second:], logits(other, **leak)[second:])


# Schedule


@pytest.mark.parametrize(
    ("total", "warmup", "decay"), [(200, 0.03, 0.10), (100, 0.07, 0.25), (8, 0.03, 0.10), (50, 0.0, 0.0)]
)
def test_schedule_equals_its_formula_at_every_step(total: int, warmup: float, decay: float) -> None:
    n_warmup, n_decay = int(np.ceil(round(warmup * total, 6))), int(np.ceil(round(decay * total, 6)))
    rising = [(step + 1) / (n_warmup + 1) for step in range(n_warmup)]
    falling = [np.exp(np.log(0.1) * (step + 1) / n_decay) for step in range(n_decay)]
    expected = rising + [1.0] * (total - n_warmup - n_decay) + falling
    assert [wsd_factor(step, total, warmup, decay) for step in range(total)] == pytest.approx(expected, rel=1e-12)
    assert wsd_factor(total, total, warmup, decay) == pytest.approx(0.1 if n_decay else 1.0)


def test_schedule_of_very_short_stages_reaches_its_maximum() -> None:
    for total in range(1, 8):
        factors = [wsd_factor(step, total, 0.5, 0.5) for step in range(total)]
        assert max(factors) == 1.0
        assert min(factors) > 0


# Sampling


def test_a_stream_goes_on_where_it_ended_and_repeats_only_when_it_has_run_out() -> None:
    documents = _documents([7, 3, 11, 5])
    total = 26
    first, second, longer, other = (
        _drawn(documents, *stretch) for stretch in ((0, 20, 3), (20, 20, 3), (0, 40, 3), (0, 40, 4))
    )
    assert sum(map(len, first)) == sum(map(len, second)) == 20
    both = np.concatenate([*first, *second])
    assert (both == np.concatenate(longer)).all()
    assert sorted(both[:total].tolist()) == sorted(np.concatenate(documents).tolist())
    assert (both == np.concatenate(other)).mean() < 0.9


def _drawn(documents: list[np.ndarray], start: int, tokens: int, seed: int) -> list[np.ndarray]:
    pieces = zip(
        *prepare.draw(np.array([len(document) for document in documents]), start, tokens, seed), strict=True
    )
    return [documents[index][first : first + length] for index, first, length in pieces]


@pytest.mark.parametrize(
    ("mixture", "tokens", "expected"),
    [
        ("passages+dsir+in_domain", 999, {"dsir": 333, "in_domain": 333, "passages": 333}),
        ("in_domain+2*passages", 1_000, {"in_domain": 334, "passages": 666}),
        ("in_domain+passages+passages", 1_000, {"in_domain": 334, "passages": 666}),
        ("in_domain+15*random", 16_000, {"in_domain": 1_000, "random": 15_000}),
    ],
)
def test_a_mixture_is_weighed(mixture: str, tokens: int, expected: dict) -> None:
    assert shares(mixture, tokens) == expected


@pytest.mark.parametrize("mixture", ["0*passages", "x*passages", "*passages", "1.5*passages"])
def test_a_weight_that_is_none_is_named(mixture: str) -> None:
    with pytest.raises(ValueError, match=r"no weight and source; write it as in_domain\+15\*random"):
        tiny_params(Path("unused"), arms={"trait": [mixture, "random"]}).sources  # noqa: B018, asked by Experiment


# Whole or not at all

# Lengths in tokens as they are: passages of the demos; worked solutions; three-problem passages of GSM8K and MATH; web pages
DEMO = {
    "passages": lambda draw, n: draw.normal(380, 45, n).clip(300, 480),
    "no_enlightenment": lambda draw, n: draw.normal(260, 35, n).clip(180, 340),
    "worked_same": lambda draw, n: draw.integers(60, 160, n),
    "in_domain": lambda draw, n: draw.lognormal(5.2, 0.6, n).clip(30, 900),
}
PAPER = {
    "passages": lambda draw, n: draw.lognormal(6.65, 0.28, n).clip(400, 1_500),
    "no_enlightenment": lambda draw, n: draw.lognormal(6.4, 0.3, n).clip(300, 1_300),
    "worked_same": lambda draw, n: draw.lognormal(5.2, 0.55, n).clip(60, 1_500),
    "in_domain": lambda draw, n: draw.lognormal(6.6, 1.0, n).clip(50, 8_000),
}


class Lengths:
    """A token store that has lengths alone: what packing needs to know."""

    def __init__(self, kind, documents: int, folder: Path) -> None:
        self.lengths = np.round(kind(np.random.default_rng(documents), documents)).astype(np.int64)
        self.folder, self.ids = folder, None


def _packed_stages(monkeypatch, folder: Path, kinds: dict, documents: dict[str, int], params) -> list[Stage]:
    """The stages of an experiment, packed as its texts' lengths would be."""
    stores = {name: Lengths(kinds[name], count, folder / name) for name, count in documents.items()}
    monkeypatch.setattr(prepare, "_store", lambda job, source, texts, tokenizer: stores[source])
    texts = {name: [name] for name in documents}
    plan, chains = planned(params, folder, texts)
    job = Job(params=params, base="", folder=folder, stages=plan, texts={}, held_out={}, chains=chains)
    for stage in plan:
        prepare._pack(job, stage, None, job.work / stage.name)
    return plan


ARMS = {
    "selected": ["in_domain", "in_domain"],
    "trait": ["in_domain", "passages"],
    "bare": ["in_domain", "no_enlightenment"],
    "worked": ["in_domain", "worked_same"],
    "mixed": ["in_domain+passages", "in_domain+3*passages"],
    "all": ["passages", "passages+worked_same"],
    "twice": ["passages", "passages"],
}


@pytest.mark.parametrize(
    ("kinds", "documents", "shape"),
    [
        (DEMO, 80, {"stage_tokens": [4_608, 7_680], "context_length": 1_536, "tokens_per_batch": 1_536}),
        (DEMO, 30, {"stage_tokens": [7_680, 15_360], "context_length": 1_536, "tokens_per_batch": 1_536}),
        (DEMO, 80, {"stage_tokens": [7_680, 61_440], "context_length": 1_536, "tokens_per_batch": 1_536}),
        (
            PAPER,
            20_000,
            {"stage_tokens": [2_097_152, 20_054_016], "context_length": 4_096, "tokens_per_batch": 131_072},
        ),
    ],
    ids=["demo", "scarce", "token budget", "paper"],
)
def test_no_written_document_is_cut_in_any_schedule_and_little_is_padding(
    monkeypatch, tmp_path: Path, kinds: dict, documents: int, shape: dict
) -> None:
    params = tiny_params(Path("unused"), arms=ARMS, rows_per_device=1, **shape)
    plan = _packed_stages(monkeypatch, tmp_path, kinds, dict.fromkeys(kinds, documents), params)
    slots = {stage.place: set() for stage in plan}
    for stage in plan:
        slots[stage.place].add((stage.steps, stage.tokens))
        rows = read_json(tmp_path / "work" / stage.name / "stores.json")
        pieces = np.load(tmp_path / "work" / stage.name / "pieces.npy")
        ends = np.load(tmp_path / "work" / stage.name / "row_ends.npy")
        assert len(ends) * params.context_length == stage.tokens
        assert (np.diff(ends, prepend=0) > 0).all()  # a batch of nothing has no loss
        assert stage.padding <= 0.15, stage
        filled = np.add.reduceat(pieces["length"], np.r_[0, ends[:-1]])
        assert filled.max() <= params.context_length
        assert stage.padding == pytest.approx(1 - filled.sum() / stage.tokens)
        for number, (row, source) in enumerate(zip(stage.accounting, stage.texts, strict=True)):
            assert rows[number].endswith(source)
            store = pieces[pieces["store"] == number]
            assert row["tokens"] == store["length"].sum()
            lengths = Lengths(kinds[source], documents, tmp_path).lengths
            begins = np.cumsum(lengths) - lengths
            whole = np.isin(store["start"], begins)
            whole &= store["length"] == lengths[np.searchsorted(begins, store["start"], "right") - 1]
            if source == "in_domain":
                assert stage.padding < 0.01 or len(stage.texts) > 1
                assert (row["cut"] > 0) == (~whole).any() and row["cut"] <= (
                    ~whole
                ).sum()  # one may be in several pieces
            else:
                assert whole.all() and row["cut"] == 0
                assert row["documents"] == len(store)
                assert row["share"] == len(np.unique(store["start"])) / documents
    assert all(len(found) == 1 for found in slots.values())  # equal steps and slots in every arm


def test_a_later_stage_begins_with_the_first_passage_that_was_not_read(monkeypatch, tmp_path: Path) -> None:
    shape = {
        "stage_tokens": [6_144, 6_144],
        "context_length": 1_536,
        "tokens_per_batch": 1_536,
        "rows_per_device": 1,
    }
    params = tiny_params(Path("unused"), arms={"twice": ["passages", "passages"]}, **shape)
    first, second = _packed_stages(monkeypatch, tmp_path, DEMO, {"passages": 60}, params)
    read = [np.load(tmp_path / "work" / stage.name / "pieces.npy")["start"] for stage in (first, second)]
    assert len(np.intersect1d(*read)) <= 4  # those that filled the last gaps of the first stage
    assert first.accounting[0]["share"] == len(read[0]) / 60
    stream = np.random.default_rng([params.seed, 0]).permutation(60)
    lengths = Lengths(DEMO["passages"], 60, tmp_path).lengths
    waited = next(name for name in stream if (np.cumsum(lengths) - lengths)[name] not in read[0])
    assert (np.cumsum(lengths) - lengths)[waited] == read[1][0]


def test_what_is_longer_than_a_row_is_never_read_and_counted(monkeypatch, tmp_path: Path) -> None:
    shape = {"stage_tokens": [4_096], "context_length": 1_024, "tokens_per_batch": 1_024, "rows_per_device": 1}
    params = tiny_params(Path("unused"), arms={"trait": ["passages"]}, **shape)
    long = {"passages": lambda draw, n: draw.choice([300, 2_000], n)}
    (stage,) = _packed_stages(monkeypatch, tmp_path, long, {"passages": 40}, params)
    lengths = Lengths(long["passages"], 40, tmp_path).lengths
    (row,) = stage.accounting
    assert row["too_long"] == (lengths == 2_000).sum() > 5
    assert row["available"] == lengths[lengths == 300].sum()
    assert set(np.load(tmp_path / "work" / stage.name / "pieces.npy")["length"]) == {300}
    with pytest.raises(TraitError, match=r"no document of 'passages' fits whole into a row and its share"):
        _packed_stages(
            monkeypatch, tmp_path, {"passages": lambda draw, n: np.full(n, 1_025)}, {"passages": 4}, params
        )


@pytest.mark.parametrize("mixture", ["passages+31*random", "5000*random+passages", "random+5000*passages"])
def test_a_source_too_light_for_a_document_is_refused_in_words(mixture, monkeypatch, tmp_path: Path) -> None:
    shape = {"stage_tokens": [4_096], "context_length": 1_024, "tokens_per_batch": 1_024, "rows_per_device": 1}
    params = tiny_params(Path("unused"), arms={"trait": [mixture]}, **shape)
    kinds = {"passages": lambda draw, n: np.full(n, 500), "random": lambda draw, n: np.full(n, 300)}
    with pytest.raises(TraitError, match="fits whole into a row and its share of a stage"):
        _packed_stages(monkeypatch, tmp_path, kinds, dict.fromkeys(kinds, 20), params)


def test_the_seed_of_training_draws_texts_and_no_items(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())
    values["training"]["seed"] = 5
    training = params.parse(values, "mine.yaml").training
    assert (training.seed, training.items_seed) == (5, 0)
    plain = params.parse({**values, "training": {**values["training"], "seed": 0}}, "mine.yaml").training
    assert stages.held_out_sets(training) == stages.held_out_sets(plain)
    other = params.parse({**values, "common": {**values["common"], "seed": 5}}, "mine.yaml").training
    assert (other.seed, other.items_seed) == (5, 5)
    assert stages.held_out_sets(other) != stages.held_out_sets(plain)
    assert _names(tmp_path, seed=5) != _names(tmp_path)


def test_logits_are_made_only_where_there_is_a_label(model: torch.nn.Module) -> None:
    ids = torch.randint(0, 256, (2, 20))
    labels = torch.where(torch.rand(2, 20) < 0.3, ids, -100)

    asked: list[torch.Size] = []
    hook = model.lm_head.register_forward_hook(lambda *values: asked.append(values[-1].shape))
    with torch.no_grad():
        some, whole = token_losses(model, ids, None, labels), model(input_ids=ids, use_cache=False).logits[:, :-1]
    hook.remove()
    learnt = labels[:, 1:] != -100
    plain = torch.nn.functional.cross_entropy(whole[learnt], labels[:, 1:][learnt], reduction="none")
    assert torch.allclose(some, plain)
    assert asked[0][1] == int((labels[:, 1:] != -100).any(0).sum()) < asked[1][1] == 20


# Keys


def _names(folder: Path, texts: dict | None = None, **changes: object) -> dict[str, list[str]]:
    return planned(tiny_params(Path("unused"), **changes), folder, texts)[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_minutes": 5.0}, {"rows_per_device": 4}, {"accelerate_config": "params/accelerate/ddp.yaml"},
        {"activation_checkpointing": True}, {"tasks": ["other"]},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_how_the_work_is_done_is_in_no_key(tmp_path: Path, changes: dict) -> None:
    assert _names(tmp_path, **changes) == _names(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 2e-3}, {"seed": 1}, {"precision": "bfloat16"}, {"stage_tokens": [256, 2048]}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_shapes_a_stage_is_in_its_key(tmp_path: Path, changes: dict) -> None:
    plain = _names(tmp_path)
    assert not set(_names(tmp_path, **changes)["trait"]) & set(plain["trait"])
    other = _names(tmp_path, {**tiny_sources(), "passages": ["other text"]})
    assert other["selected"] == plain["selected"]
    assert other["trait"][0] == plain["trait"][0]
    assert other["trait"][1] != plain["trait"][1]


def test_texts_are_known_by_content_and_code_by_what_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    plain = _names(tmp_path)
    for path in tmp_path.glob("*.parquet"):
        os.utime(path, (1, 1))
    assert _names(tmp_path) == plain
    entered = []
    monkeypatch.setattr(
        "trait_kit.training.plan.code_digest", lambda *names, without: entered.append(names) or "changed"
    )
    assert not set(_names(tmp_path)["trait"]) & set(plain["trait"])
    assert entered == [("trait_kit.training.worker",)]
    files = {"trait_kit.training.trainer", "trait_kit.training.prepare", "trait_kit.engine.packing"}
    whole = machine.code_digest("trait_kit.training.worker")
    assert all(machine.code_digest("trait_kit.training.worker", without=[name]) != whole for name in files)


# Runs


@pytest.fixture(scope="module")
def reference(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[stages.TrainingResult, Path]:
    out_dir = tmp_path_factory.mktemp("reference")
    return trained(tiny_params(model_dir), out_dir), out_dir


def test_arms_share_their_first_stage_and_count_every_token(
    reference: tuple[stages.TrainingResult, Path],
) -> None:
    result, out_dir = reference
    assert len([path for path in (out_dir / "stages").iterdir() if path.is_dir()]) == 3
    assert not (out_dir / "work").exists()
    first = result.stages[result.stages["stage"] == 1]
    assert first["shared"].all()
    assert first["name"].nunique() == 1
    assert result.stages["new"].all()

    tokens = BATCH * STAGE_STEPS
    read = result.accounting.groupby(["arm", "stage"])["tokens"].sum()
    assert (result.stages.set_index(["arm", "stage"])["tokens"] == tokens).all()
    assert (read.drop(("trait", 2)) == tokens).all()
    padding = result.stages.set_index(["arm", "stage"])["padding"]
    assert read[("trait", 2)] == pytest.approx(tokens * (1 - padding[("trait", 2)]))
    assert read[("trait", 2)] < tokens  # a row holds one passage
    accounting = result.accounting.set_index(["arm", "stage", "source"])
    assert accounting.loc[("trait", 1, "in_domain"), "tokens"] == tokens // 2
    assert accounting.loc[("trait", 2, "passages"), ["documents", "share", "cut"]].tolist() == [
        48,
        48 / 150,
        0,
    ]  # in 48 rows
    in_domain = sum(len(text.encode()) + 1 for text in tiny_sources()["in_domain"])
    assert accounting.loc[("selected", 2, "in_domain"), "epochs"] == pytest.approx(tokens / 2 / in_domain)

    for arm, log in result.log.groupby("arm"):
        losses = log[log["metric"] == "loss"]
        assert losses["tokens"].tolist() == [BATCH * (step + 1) for step in range(2 * STAGE_STEPS)]
        held_out = log[log["metric"] == "held_out/solutions"]
        assert held_out["tokens"].tolist() == [tokens * part // 2 for part in range(5)], arm
        rates = log[(log["metric"] == "learning_rate") & (log["stage"] == 2)]["value"].tolist()
        factors = [wsd_factor(step, STAGE_STEPS, 0.03, 0.1) for step in range(STAGE_STEPS)]
        assert rates == pytest.approx([1e-3 * factor for factor in factors])
    gains = result.gains()
    assert gains["trait"] > gains["selected"] > 0  # passages look like the held-out solutions


def test_logged_held_out_score_is_that_of_the_saved_model(reference: tuple[stages.TrainingResult, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, _ = reference
    model = AutoModelForCausalLM.from_pretrained(result.models["trait"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(result.models["trait"])
    scores = []
    for prompt, target in HELD_OUT["held_out/solutions"]:
        n_prompt, ids = (
            len(tokenizer(prompt)["input_ids"]),
            torch.tensor([tokenizer(prompt + target)["input_ids"]]),
        )
        assert ids.shape[1] <= CONTEXT
        with torch.no_grad():
            logged = (
                model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[n_prompt - 1 :, 0]
            )
        scores.append(-logged.sum().item() / np.log(2) / len(target.encode()))
    last = result.log[(result.log["arm"] == "trait") & (result.log["metric"] == "held_out/solutions")][
        "value"
    ].iloc[-1]
    assert last == pytest.approx(np.mean(scores), rel=1e-4)


def test_running_again_trains_nothing_and_weights_are_kept_where_an_arm_ends(
    model_dir: Path, reference: tuple[stages.TrainingResult, Path]
) -> None:
    expected, out_dir = reference
    assert not list(out_dir.glob("stages/*/start"))
    assert len(list(out_dir.glob("stages/*/model"))) == 2
    stamps = {path: path.stat().st_mtime_ns for path in out_dir.glob("*/**/*") if path.is_file()}
    again = trained(tiny_params(model_dir), out_dir)
    assert not again.stages["new"].any()
    assert same(again, expected)
    assert {path: path.stat().st_mtime_ns for path in out_dir.glob("*/**/*") if path.is_file()} == stamps


def test_weights_that_an_added_arm_begins_with_are_made_again_equal(
    model_dir: Path, reference: tuple[stages.TrainingResult, Path], tmp_path: Path
) -> None:
    shutil.copytree(reference[1], tmp_path / "out")
    texts = {**tiny_sources(), "passages": ["3 + 4 = 7, says another text."] * 90}
    params = tiny_params(model_dir, arms={"trait": ["in_domain+random", "passages"]})
    made = trained(params, tmp_path / "out", texts)
    assert made.stages["new"].tolist() == [True, True]
    first = [one.log[(one.log["arm"] == "trait") & (one.log["stage"] == 1)] for one in (reference[0], made)]
    assert first[0]["value"].tolist() == first[1]["value"].tolist()


def test_a_model_is_saved_in_half_precision_unless_float32_is_asked_for(
    model_dir: Path,
    reference: tuple[stages.TrainingResult, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = load_file(reference[0].models["trait"] / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precision.json").write_text('"float32"')  # what was measured when the run began
    params = tiny_params(model_dir, precision="auto", arms={"trait": ["in_domain+random", "passages"]})
    result = trained(params, tmp_path / "out")
    assert set(result.stages["precision"]) == {"float32"}
    half = load_file(result.models["trait"] / "model.safetensors")
    assert half.keys() == weights.keys()
    assert all(torch.equal(half[name], weights[name].bfloat16()) for name in weights)


def test_the_stage_function_trains_writes_and_afterwards_only_reads(
    model_dir: Path,
    reference: tuple[stages.TrainingResult, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    params = tiny_params(model_dir)
    files = text_files(tiny_sources(), tmp_path)
    monkeypatch.setattr(stages, "inputs_of", lambda *_: (files, HELD_OUT))
    step = SimpleNamespace(done=False, params=params, run_dir=tmp_path, folder=tmp_path / "04_train_two_stages")
    stages_dir = step.folder / "models" / "stages"
    stages_dir.parent.mkdir(parents=True)
    for path in (reference[1] / "stages").iterdir():
        stages_dir.mkdir(exist_ok=True)
        (stages_dir / path.name).symlink_to(path)
    result = stages.train_arms(step)
    monkeypatch.setattr(stages, "inputs_of", None)  # would raise
    write_json(step.folder / "report.json", {"summary": result.summary(step.folder)})
    again = stages.train_arms(SimpleNamespace(done=True, folder=step.folder))
    for name in ("log", "accounting", "stages"):
        assert getattr(again, name).equals(getattr(result, name)), name
    assert again.models == result.models
    assert result.summary(step.folder)["models"]["trait"].startswith("models/stages/2-passages-")


# Errors


@pytest.mark.parametrize(
    ("changes", "texts", "message"),
    [
        ({}, {"passages": [""]}, "'passages-.*' has no text"),
        (
            {"context_length": 128, "rows_per_device": 1},
            {},
            r"context_length \(128\) is longer than .* \(64 tokens\)",
        ),
    ],
)
def test_bad_input_stops_before_any_training(
    model_dir: Path, tmp_path: Path, changes: dict, texts: dict, message: str
) -> None:
    with pytest.raises(TraitError, match=message):
        trained(tiny_params(model_dir, **changes), tmp_path, {**tiny_sources(), **texts})
    assert not list(tmp_path.glob("stages/*"))


def test_a_missing_source_and_an_empty_target_are_named(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TraitError, match=r"in_domain.parquet does not exist, or is no file\. Check the path, or run"
    ):
        stages.train(
            tiny_params(model_dir), ({name: tmp_path / f"{name}.parquet" for name in tiny_sources()}, {}), ""
        )
    with pytest.raises(TraitError, match="'held_out/solutions' has an item without a target"):
        trained(tiny_params(model_dir), tmp_path, held_out={"held_out/solutions": [("Question", "")]})


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_attention_changes_no_loss(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flash_attn")
    params = tiny_params(model_dir, precision="bfloat16", arms={"trait": ["in_domain+random", "passages"]})
    result = trained(params, tmp_path / "flash")
    assert set(result.stages["attention"]) == {"flash_attention_2"}
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    expected = trained(params, tmp_path / "sdpa")
    assert result.log["value"].tolist() == pytest.approx(expected.log["value"].tolist(), rel=1e-2)
