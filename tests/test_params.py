"""Experiment files: every shipped one is valid, and a wrong one says what is wrong and where."""

from pathlib import Path

import pytest
import yaml

from trait_kit import params, pipeline
from trait_kit.engine.files import TraitError, read_yaml
from trait_kit.evaluation.suites import n_examples
from trait_kit.tasks import load_task

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "params").glob("*.yaml"))
SWEEPS = sorted((ROOT / "params" / "sweeps").glob("*.yaml"))


def raw() -> dict:
    return yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())


def test_all_promised_experiments_are_shipped():
    names = {path.stem for path in EXPERIMENTS}
    assert names == {"demo", "demo_ads", "math_smollm2", "math_mistral7b", "ads_mistral7b"}
    assert {path.stem for path in SWEEPS} == {"ablation", "packaging", "token_budget"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiment_is_valid_and_complete(path):
    experiment = params.load(path)
    assert params.run_folder(path) == Path("runs", path.stem).absolute()
    assert {"passages", "worked_same"} <= experiment.training.sources
    assert experiment.passages.max_passage_tokens + params.SPECIAL_TOKENS <= experiment.training.context_length
    for tokens in experiment.training.stage_tokens:
        assert tokens % experiment.training.tokens_per_batch == 0


def test_what_costs_a_teacher_does_not_think_aloud_and_mixtures_follow_what_there_is():
    for name in ("math_smollm2", "math_mistral7b", "ads_mistral7b"):
        experiment = params.load(ROOT / "params" / f"{name}.yaml")
        assert experiment.passages.teacher_extra["chat_template_kwargs"] == {"enable_thinking": False}
        mixture = params.weights(experiment.training.arms["trait"][0])
        assert min(mixture.values()) == mixture["in_domain"] < max(mixture.values())
        assert ("fasttext_educational" in mixture) == (experiment.classifier.teacher == "openai")
    shown = params.load(ROOT / "params" / "math_mistral7b.yaml").evaluation
    assert [n_examples(shown, task) for task in ("gsm8k", "math", "another")] == [8, 4, 0]
    assert (
        n_examples(params.load(ROOT / "params" / "demo.yaml", {"evaluation.few_shot": 2}).evaluation, "any") == 2
    )


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweep_is_valid_at_every_point(path):
    assert len(pipeline.read_sweep(path)) >= 3


def test_the_packaging_sweep_trains_every_control_and_shares_all_before_training():
    points = [found for _, found in pipeline.read_sweep(ROOT / "params" / "sweeps" / "packaging.yaml")]
    assert set(params.WRITTEN) <= points[0].training.sources
    assert [point.training.seed for point in points] == [0, 1, 2]
    for name in ("classifier", "selection", "passages", "evaluation"):
        assert all(getattr(point, name) == getattr(points[0], name) for point in points)


@pytest.mark.parametrize(
    ("section", "field", "value", "expected"),
    [
        ("common", "sead", 1, "section common: unknown field 'sead'; did you mean 'seed'?"),
        (
            "training",
            "learning_rat",
            1e-4,
            "section training: unknown field 'learning_rat'; did you mean 'learning_rate'?",
        ),
        ("selection", "token_budget", -5, "token_budget: Input should be greater than 0 (got -5)"),
        ("selection", "methods", ["fastext"], "methods.0: Input should be 'random', 'dsir'"),
        ("selection", "min_tokens", 9_999, "min_tokens (9999) is larger than max_tokens (4096)"),
        (
            "training",
            "tokens_per_batch",
            1_000,
            "tokens_per_batch (1000) must be a multiple of context_length x rows_per_device",
        ),
        (
            "training",
            "arms",
            {"x": ["in_domain+web", "passages"]},
            "names the source 'web', but selection.methods does not",
        ),
        (
            "training",
            "arms",
            {"x": ["in_domain+0*random", "passages"]},
            "'0*random' is no weight and source; write it as",
        ),
        ("training", "arms", {"trait": ["in_domain", "rephrased"]}, "so passages.paragraphs must be both"),
        (
            "training",
            "context_length",
            640,
            "max_passage_tokens (1024) + 2 must fit uncut into context_length (640)",
        ),
        (
            "passages",
            "max_passage_tokens",
            1_279,
            "max_passage_tokens (1279) + 2 must fit uncut into context_length (1280)",
        ),
        ("training", "arms", {"x": ["in_domain"]}, "x has 1 stage(s), but stage_tokens has 2"),
        ("training", "stage_tokens", [512, 12_288], "stage_tokens (512) is less than one batch"),
        ("passages", "teacher", "openai", "set teacher_model and teacher_base_url"),
        ("evaluation", "reference_arm", "trate", "evaluation.reference_arm names the arm 'trate'"),
    ],
)
def test_a_wrong_value_is_named(section, field, value, expected):
    values = raw()
    values[section][field] = value
    with pytest.raises(TraitError) as error:
        params.parse(values, "mine.yaml")
    assert expected in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_an_arm_cannot_train_on_a_method_that_is_not_selected():
    values = raw()
    values["selection"]["methods"] = ["random", "fasttext_educational"]
    with pytest.raises(TraitError, match=r"names the source 'dsir', but selection\.methods does not produce it"):
        params.parse(values, "mine.yaml")


@pytest.mark.parametrize("change", [{"seed": 1}, {"test_items_per_task": 40}, {"web": "demo:ads/web"}])
def test_what_is_scored_is_what_was_kept_out_of_training(change):
    values = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text(encoding="utf-8"))
    values["evaluation"] |= change
    with pytest.raises(TraitError, match=f"{min(change)} is one for all sections, so set it in common"):
        params.parse(values, "mine.yaml")


def test_a_missing_field_and_an_unknown_section_are_named():
    values = raw()
    del values["common"]["web"]
    with pytest.raises(TraitError, match=r"the field 'web' is missing; .* to common: The general corpus"):
        params.parse(values, "mine.yaml")
    with pytest.raises(TraitError, match="unknown section 'trainning'; did you mean 'training'"):
        params.parse({**raw(), "trainning": {}}, "mine.yaml")


def test_scientific_notation_without_a_point_is_a_number(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / "params" / "demo.yaml").read_text().replace("1.0e-4", "1e-4"))
    assert yaml.safe_load(path.read_text())["training"]["learning_rate"] == "1e-4"  # the trap is there
    assert params.load(path).training.learning_rate == 1e-4
    assert (
        params.load(path, params.read_overrides(["training.learning_rate=3e-5"])).training.learning_rate == 3e-5
    )


@pytest.mark.parametrize(
    "text", ["common: [", "just words", "", "common: 3", "training: []", "figures: 0", "\x00"]
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(TraitError, match=r"bad\.yaml"):
        params.load(path)


def test_merged_keys_are_not_given_twice(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("x:\n  base: &b {k: 1}\n  d: &d {<<: *b, k: 2}\nlast: {<<: *d}\n1: a\n'1': b\n")
    assert read_yaml(path) == {"x": {"base": {"k": 1}, "d": {"k": 2}}, "last": {"k": 2}, 1: "a", "1": "b"}


@pytest.mark.parametrize(
    "twice", ["figures: {map_documents: 20}\n", "evaluation:\n  few_shot: 1\n  few_shot: 2\n"]
)
def test_what_is_given_twice_is_named_and_neither_is_taken(tmp_path, twice):
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / "params" / "demo.yaml").read_text().replace("evaluation:", "unused:") + twice)
    with pytest.raises(TraitError, match=r"'(figures|few_shot)' is given twice"):
        params.load(path)
    task = tmp_path / "sums.yaml"
    task.write_text("kind: number\nkind: text\nabout: x\n")
    with pytest.raises(TraitError, match="'kind' is given twice"):
        load_task(str(task))


def test_a_section_without_a_field_is_an_empty_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / "params" / "demo.yaml").read_text().replace("figures: {}", "figures:"))
    assert params.load(path) == params.load(ROOT / "params" / "demo.yaml")


def test_an_override_must_name_a_section_and_a_field():
    with pytest.raises(TraitError, match=r"section\.field=value"):
        params.read_overrides(["learning_rate=1"])
    with pytest.raises(TraitError, match="unknown section 'trainning'"):
        params.load(ROOT / "params" / "demo.yaml", {"trainning.seed": 1})


@pytest.mark.parametrize("field", params.REMOVED)
def test_a_field_of_an_earlier_version_is_named_with_what_to_do(field):
    for section in ("common", *params.SECTIONS):
        values = raw()
        values[section][field] = 1
        with pytest.raises(TraitError, match=f"unknown field '{field}'; it is gone, so take the line out: "):
            params.parse(values, "old.yaml")


def test_where_no_arm_reads_passages_their_length_does_not_matter():
    values = raw()
    values["training"] |= {"arms": {"raw": ["in_domain", "random"]}, "context_length": 640}
    values["evaluation"] = {"reference_arm": "raw"}
    assert params.parse(values, "mine.yaml").training.context_length == 640


@pytest.mark.parametrize("overrides", [{}, {"training.seed": 3}, {"common.seed": 2}], ids=str)
def test_a_dumped_experiment_is_the_same_experiment(tmp_path, overrides):
    experiment = params.load(ROOT / "params" / "demo.yaml", overrides)
    path = tmp_path / "params.yaml"
    path.write_text(params.dump(experiment))
    assert params.load(path) == experiment
    assert params.run_folder(path) == tmp_path


def test_a_result_is_shaped_by_what_a_step_uses():
    experiment = params.load(ROOT / "params" / "demo.yaml")
    assert {"tasks", "token_budget", "methods"} <= params.shape(experiment.selection).keys()
    assert not {"workers", "executor"} & params.shape(experiment.selection).keys()
    assert "web" not in params.shape(experiment.passages)
    assert params.shape(experiment.selection, "classifier").keys() >= {"methods"}


def test_every_knob_is_explained_once_and_all_that_does_not_fit_is_told_at_once():
    known = yaml.safe_load((ROOT / "trait_kit" / "knobs.yaml").read_text())
    for section, model in params.SECTIONS.items():
        assert {
            name: info.description for name, info in model.model_fields.items() if len(info.description) < 9
        } == {}, section
    assert {name for knobs in known.values() for name in knobs} == {
        name for model in params.SECTIONS.values() for name in model.model_fields
    }
    values = raw()
    values["selection"] |= {"min_tokens": 9_999}
    values["training"] |= {"arms": {"base": ["in_domain"]}}
    with pytest.raises(TraitError) as error:
        params.parse(values, "mine.yaml")
    told = (
        "is larger than max_tokens",
        "'base' is named like the untrained",
        "base has 1 stage(s), but stage_tokens has 2",
    )
    assert [text for text in told if text not in str(error.value)] == []
