"""The promises of mistral/config.py: one validated value per file, every problem told at once, nothing silently."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mistral.config import Checkpoints, Data, Experiment, Training, load_cluster, load_experiment, to_yaml
from mistral.errors import ConfigError

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "conf" / "experiments").glob("*.yaml"))
CLUSTERS = sorted((ROOT / "conf" / "clusters").glob("*.yaml"))

VALID: dict[str, Any] = {
    "name": "tiny",
    "seeds": {"alias": 21, "battlestar": {"init": 1, "data": 2, "dropout": 3}},
    "data": {"name": "plays", "source": {"files": ["*.txt"]}},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 64},
    "training": {"max_steps": 100, "global_batch_size": 8, "micro_batch_size": 2, "learning_rate": 0.001},
    "checkpoints": {"schedule": [[10, 100]]},
}


def changed(**values: Any) -> dict[str, Any]:
    """A valid experiment with some values changed: training__max_steps=3."""
    raw = copy.deepcopy(VALID)
    for name, value in values.items():
        *parents, last = name.split("__")
        place = raw
        for parent in parents:
            place = place[parent]
        place[last] = value
    return raw


@pytest.fixture
def load(tmp_path: Path):
    def load(value: Any, *overrides: str) -> Experiment:
        path = tmp_path / "tiny.yaml"
        path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
        return load_experiment(str(path), overrides)

    return load


def problems_of(load, value: Any, *overrides: str) -> list[str]:
    """The lines of the message, without the first."""
    with pytest.raises(ConfigError) as caught:
        load(value, *overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


# --- the files of this repository ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads(path):
    experiment = load_experiment(str(path))
    assert experiment.name == path.stem
    assert load_experiment(path.stem).model_dump() == experiment.model_dump()


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_cluster_loads(path):
    assert load_cluster(str(path)).name == path.stem


@pytest.mark.parametrize("name", ["gpt2-small", "gpt2-medium"])
def test_the_schedule_of_mistral_has_609_checkpoints(name):
    steps = load_experiment(name).scheduled_steps()
    assert len(steps) == 609
    assert steps[:12] == (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 150)
    assert steps[-1] == 400_000
    assert {2000, 2100, 20_000, 21_000} <= set(steps)
    assert not {2050, 20_100} & set(steps)


@pytest.mark.parametrize(
    ("name", "shape", "learning_rate", "seeds"),
    [
        ("gpt2-small", (12, 12, 768), 6e-4, ["alias", "battlestar", "caprica", "darkmatter", "expanse"]),
        ("gpt2-medium", (24, 16, 1024), 1.5e-4, ["arwen", "beren", "celebrimbor", "durin", "eowyn"]),
    ],
)
def test_the_hyperparameters_are_those_of_mistral(name, shape, learning_rate, seeds):
    """Source: stanford-crfm/mistral, conf/mistral-small.yaml and mistral-medium.yaml."""
    experiment = load_experiment(name)
    model, training = experiment.model, experiment.training
    assert (model.n_layer, model.n_head, model.n_embd) == shape
    assert model.n_positions == experiment.seq_len == 1024
    assert model.resid_pdrop == model.embd_pdrop == model.attn_pdrop == 0.1
    assert model.scale_attn_by_inverse_layer_idx and model.reorder_and_upcast_attn
    assert training.learning_rate == learning_rate
    assert (training.max_steps, training.global_batch_size, training.warmup_steps) == (400_000, 512, 4000)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (training.weight_decay, training.max_grad_norm, training.lr_scheduler_type) == (0.1, 1.0, "linear")
    assert list(experiment.seeds) == seeds
    assert [seed.init for seed in experiment.seeds.values()] == [21, 49, 81, 343, 777]


# --- messages -----------------------------------------------------------------------------------------------------


def test_an_unknown_key_names_the_valid_ones_and_the_near_miss(load):
    [problem] = problems_of(load, changed(training__learningrate=1))
    assert problem.startswith("training.learningrate: found an unknown key, expected one of adam_beta1, ")
    assert problem.endswith("; did you mean learning_rate?")
    [problem] = problems_of(load, changed(optimizer={}))
    assert "expected one of checkpoints, data, evaluation, export, folder, model, name, seeds, training" in problem
    assert problem.endswith("; remove it")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"name": "Tiny"}, "name: found 'Tiny', expected small letters"),
    ({"seeds__caprica": {"init": 1, "data": 2}}, "seeds.caprica.dropout: found nothing"),
    ({"seeds__hub": {"init": "x", "data": 2, "dropout": 3}}, "seeds.hub.init: found 'x', expected a whole number"),
    ({"seeds__late": -1}, "seeds.late: found -1, expected a whole number from 0"),
    ({"seeds__word": "x"}, "seeds.word: found 'x', expected a whole number from 0"),
    ({"seeds__true": True}, "seeds.true: found True, expected a whole number from 0"),
    ({"data__tokenizer": 3}, "data.tokenizer: found 3, expected text"),
    ({"data__source__validation_files": ["v.txt"]}, "data: found validation_fraction 0.0005 beside a source"),
    ({"model__n_layer": True}, "model.n_layer: found True, expected a number"),
    ({"model__n_embd": 9}, "model: found n_embd 9, which 2 heads do not divide"),
    ({"training__seq_len": 65}, "training.seq_len: found 65, expected at most model.n_positions = 64"),
    ({"training__learning_rate": "fast"}, "training.learning_rate: found 'fast', expected a number"),
    ({"training__weight_decay": float("inf")}, "training.weight_decay: found inf, expected a finite number"),
    ({"training__precision": "fp8"}, "training.precision: found 'fp8', expected 'fp32', 'bf16' or 'fp16'"),
    ({"training__lr": 1}, "training.lr: found an unknown key"),
    ({"training__micro_batch_size": 3}, "training.global_batch_size: found 8, expected a multiple of"),
    ({"checkpoints__schedule": [[10, 20], [5, 20]]}, "checkpoints: found a schedule that ends at [20, 20]"),
    ({"evaluation": 3}, "evaluation: found 3, expected a mapping"),
]
FOUND_EXPECTED_ADVICE = re.compile(r"^[\w.-]+: found .+, expected .+; .+$")


@pytest.mark.parametrize(("changes", "problem"), BROKEN, ids=lambda value: next(iter(value), "") if value else "")
def test_a_problem_is_told_with_found_expected_and_what_to_do(load, changes, problem):
    [told] = problems_of(load, changed(**changes))
    assert told.startswith(problem)
    assert FOUND_EXPECTED_ADVICE.match(told)


def test_all_problems_are_told_at_once(load):
    """Types, unknown keys, checks within a section and across sections, though some sections hold invalid values."""
    every = {name: value for changes, _ in BROKEN for name, value in changes.items()}
    told = problems_of(load, changed(**every))
    for _, problem in BROKEN:
        assert sum(line.startswith(problem) for line in told) == 1, problem
    assert len(told) == len(BROKEN)


@given(st.lists(st.sampled_from(BROKEN), min_size=1, unique_by=lambda broken: broken[1]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture_of_problems_is_told(load, mixture):
    told = problems_of(load, changed(**{name: value for changes, _ in mixture for name, value in changes.items()}))
    assert all(any(line.startswith(problem) for line in told) for _, problem in mixture)
    assert len(told) == len(mixture)


def test_a_check_that_reads_a_wrong_value_is_not_guessed_at(load):
    [problem] = problems_of(load, changed(model__n_embd="wide"))
    assert problem.startswith("model.n_embd: found 'wide', expected a whole number")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=4
)
PLACES = [(section,) for section in VALID] + [(s, key) for s, inner in VALID.items() if s != "name" for key in inner]


def test_a_key_with_control_characters_cannot_break_the_message(load):
    problems = problems_of(load, changed(seeds={"a\r\x1b[2J\n": 1}))
    assert len(problems) == 1
    assert problems[0].isprintable()


@given(st.sampled_from(PLACES), VALUES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_config_is_read_or_refused_with_advice(load, place, value):
    try:
        experiment = load(changed(**{"__".join(place): value}))
    except ConfigError as error:
        first, *problems = str(error).splitlines()
        assert problems
        assert "has " in first
        assert all(": found " in problem for problem in problems)
    else:
        experiment.frozen_sections("alias") if "alias" in experiment.seeds else experiment.shared_sections()
        experiment.data.dataset_name()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], "expected at least one entry"),
        ([[10]], "checkpoints.schedule.0.1: found nothing"),
        ([[10, 20, 30]], "expected fewer entries"),
        ([[0, 20]], "expected greater than 0"),
        ([[100, 10]], "expected [every, until] with every <= until; swap"),
        ([[1, 30], [1, 20]], "sort the [every, until] pairs"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(load, schedule, message):
    [problem] = problems_of(load, changed(checkpoints__schedule=schedule))
    assert message in problem
    assert FOUND_EXPECTED_ADVICE.match(problem)


def test_a_wrong_entry_of_a_list_is_named_by_its_number(load):
    [problem] = problems_of(load, changed(data__source={"files": ["a.txt", 3]}))
    assert problem.startswith("data.source.files.1: found 3, expected text")
    [problem] = problems_of(load, changed(data__source={"files": [3]}))
    assert problem.startswith("data.source.files.0: found 3, expected text")


@pytest.mark.parametrize("source", [{}, {"url": "x"}, "files", None, ["a"]])
def test_a_source_of_no_known_kind_is_told_the_kinds(load, source):
    [problem] = problems_of(load, changed(data__source=source))
    assert "expected a mapping with one of the keys files, package, hub" in problem


# --- YAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file, expected a YAML mapping"),
        ("# nothing\n", "found an empty file"),
        ("- a\n- b\n", "found a list, expected a YAML mapping"),
        ("tiny", "found a str, expected a YAML mapping"),
        ("name: a\n\tseeds: 1\n", "mend it:"),
        ("model:\n\tn_layer: 1\n", "line 2, column 1"),
        ("name: a\n---\nname: b\n", "expected a single document"),
        ("name: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("? [a]\n: b\n", "unhashable"),
        ("name: '\x00'\n", "special characters are not allowed"),
        ("name: " + "9" * 5000, "mend it:"),
        ("[" * 5000, "mend it:"),
        ("name: [", "mend it:"),
    ],
)
def test_text_that_is_no_mapping_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load(text)
    assert "tiny.yaml: found" in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_experiment(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    "text",
    ["name: a\nname: b\n", "training: {max_steps: 1, max_steps: 2}\n", "a:\n  - {b: 1, c: 2, b: 3}\n", "1: a\n1: b\n"],
)
def test_a_key_that_stands_twice_is_refused(load, text):
    with pytest.raises(
        ConfigError, match=r"found the key \w+ twice, expected it once; remove one of the two(.|\n)*line"
    ):
        load(text)


def test_words_and_numbers_are_read_by_yaml_1_2(load):
    text = yaml.safe_dump(VALID) + "export: {organization: no}\nevaluation: {every_steps: 010}\n"
    experiment = load(text.replace("learning_rate: 0.001", "learning_rate: 6e-4"))
    assert experiment.export.organization == "no"
    assert experiment.evaluation.every_steps == 10
    assert experiment.training.learning_rate == 6e-4
    for word in ("on", "2024-01-01", "12:30:00", "1_000", "0x10", "=", "<<"):
        assert load(VALID, f"export.organization={word}").export.organization == word


# --- --set --------------------------------------------------------------------------------------------------------


def test_one_value_can_be_set(load):
    experiment = load(
        VALID,
        "training.max_steps=50",
        "training.learning_rate=6e-4",
        "training.deterministic=false",
        "checkpoints.schedule=[[5, 50]]",
        "evaluation.every_steps=7",
        "export.organization=stanford",
        "seeds.alias=5",
        "training.max_steps=60",
    )
    assert experiment.training.max_steps == 60
    assert experiment.training.learning_rate == 6e-4
    assert experiment.training.deterministic is False
    assert experiment.checkpoints.schedule == ((5, 50),)
    assert experiment.evaluation.every_steps == 7
    assert experiment.export.organization == "stanford"
    assert experiment.seeds["alias"].init == 5
    assert load(VALID, "export.organization=null").export.organization is None


@pytest.mark.parametrize("number", ["6e-4", "6E-4", "6.0e-4", "0.0006", ".0006", "+6e-4"])
def test_a_number_in_any_notation_is_a_number(load, number):
    assert load(VALID, f"training.learning_rate={number}").training.learning_rate == 6e-4


@pytest.mark.parametrize("word", ["nan", "inf", "infinity", "6e-4-team"])
def test_a_word_that_looks_like_a_number_to_python_stays_a_word(load, word):
    assert load(VALID, f"export.organization={word}").export.organization == word


def test_what_is_set_goes_through_the_same_validation(load):
    assert problems_of(load, VALID, "training.max_steps=0", "model.n_heads=3", "model.n_embd=9") == [
        "model.n_heads: found an unknown key, expected one of attn_implementation, attn_pdrop, embd_pdrop, "
        "gradient_checkpointing, n_embd, n_head, n_layer, n_positions, reorder_and_upcast_attn, resid_pdrop, "
        "scale_attn_by_inverse_layer_idx; did you mean n_head?",
        "training.max_steps: found 0, expected greater than 0; change the value",
        "model: found n_embd 9, which 2 heads do not divide, expected a multiple of n_head; "
        "set n_embd to 10, or choose another n_head",
    ]


@pytest.mark.parametrize("text", ["max_steps", "=3", "training..max_steps=1", "training.=1", ".x=1", ""])
def test_a_setting_that_is_no_assignment_is_refused(load, text):
    with pytest.raises(ConfigError, match="found no KEY=VALUE"):
        load(VALID, text)


@pytest.mark.parametrize("text", ["model.n_layer=[", "model={a: 1, a: 2}", "model.n_layer=\t[}"])
def test_a_setting_whose_value_is_no_yaml_is_refused(load, text):
    with pytest.raises(ConfigError, match="found a value that is not YAML"):
        load(VALID, text)


def test_a_setting_below_a_single_value_is_refused(load):
    with pytest.raises(ConfigError, match="found that name is a single value"):
        load(VALID, "name.first=x")


# --- values -------------------------------------------------------------------------------------------------------


def test_a_batch_that_the_ranks_do_not_divide_is_refused():
    """Mistral trained 384 sequences where its config said 512: 12 ranks of 32 do not make 512."""
    training = Training(max_steps=1, global_batch_size=512, micro_batch_size=32, learning_rate=1e-3)
    assert [training.accumulation_steps(ranks) for ranks in (1, 2, 4, 8, 16)] == [16, 8, 4, 2, 1]
    with pytest.raises(
        ConfigError, match=r"found 512, expected a multiple of .* = 32 x 12 = 384; use a multiple of 384"
    ):
        training.accumulation_steps(12)
    with pytest.raises(ConfigError, match="expected a multiple"):
        training.accumulation_steps(32)


def test_a_seed_is_one_number_or_three(load):
    experiment = load(changed(seeds={"one": 21, "three": {"init": 1, "data": 2, "dropout": 3}}))
    one, three = experiment.seeds["one"], experiment.seeds["three"]
    assert (one.init, one.data, one.dropout) == (21, 21, 21)
    assert (three.init, three.data, three.dropout) == (1, 2, 3)
    assert experiment.run_name("one") == "one-tiny-x21"
    assert experiment.run_name("three") == "three-tiny-x1-2-3"


def test_chosen_seeds_keep_the_order_of_the_config(load):
    experiment = load(VALID)
    assert experiment.choose_seeds() == ["alias", "battlestar"]
    assert experiment.choose_seeds(["battlestar", "alias", "battlestar"]) == ["alias", "battlestar"]
    assert experiment.choose_seeds(["battlestar"]) == ["battlestar"]
    with pytest.raises(ConfigError, match="found nobody, expected seeds of tiny: alias, battlestar; name one"):
        experiment.choose_seeds(["alias", "nobody"])


def test_an_experiment_needs_a_seed(load):
    [problem] = problems_of(load, changed(seeds={}))
    assert problem.startswith("seeds: found {}, expected at least one entry")


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "", "A", "a\n", "a b", "é", "x" * 65])
def test_a_name_that_could_not_be_a_folder_is_refused(load, name):
    assert problems_of(load, changed(name=name))
    assert problems_of(load, changed(seeds={name: 1}))
    assert problems_of(load, changed(data__name=name))


def test_an_experiment_cannot_be_changed(load):
    experiment = load(VALID)
    for section, field in (
        (experiment, "name"),
        (experiment.training, "max_steps"),
        (experiment.seeds["alias"], "init"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, 1)
    assert isinstance(experiment.checkpoints.schedule, tuple)


def test_relative_paths_are_relative_to_the_file_of_the_experiment(load, tmp_path, monkeypatch):
    experiment = load(VALID)
    monkeypatch.chdir("/")
    assert experiment.path("corpus/a.txt") == tmp_path / "corpus" / "a.txt"
    assert experiment.path("/data/a.txt") == Path("/data/a.txt")


def test_a_relative_name_of_the_file_is_no_different(load, tmp_path, monkeypatch):
    load(VALID)
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment("tiny.yaml")
    monkeypatch.chdir("/")
    assert experiment.path("a.txt") == tmp_path / "a.txt"


def test_the_kept_config_names_the_same_files_and_the_same_dataset_from_where_it_lies(load, tmp_path):
    experiment = load(changed(data__tokenizer="tokenizer"))
    kept = tmp_path / "elsewhere" / "config.yaml"
    kept.parent.mkdir()
    kept.write_text(to_yaml(experiment))
    again = load_experiment(str(kept))
    assert again.path("*.txt") == experiment.path("*.txt") == tmp_path / "*.txt"
    assert again.data.dataset_name() == experiment.data.dataset_name()
    assert again.frozen_sections("alias") == experiment.frozen_sections("alias")
    assert to_yaml(again) == kept.read_text()


def test_the_folder_of_relative_paths_can_be_given(load, tmp_path):
    assert load(changed(folder="corpora/plays")).path("a.txt") == tmp_path / "corpora" / "plays" / "a.txt"
    assert load(changed(folder="/data")).path("a.txt") == Path("/data/a.txt")
    assert load(VALID, "folder=/data").frozen_sections("alias") == load(VALID).frozen_sections("alias")


# --- finding files ------------------------------------------------------------------------------------------------


def test_a_misspelt_experiment_names_the_valid_ones_and_the_near_miss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word, close in (("gpt2-smal", "did you mean gpt2-small?"), ("zzz", "")):
        with pytest.raises(ConfigError) as caught:
            load_experiment(word)
        assert "gpt2-medium, gpt2-micro, gpt2-small, quickstart" in str(caught.value)
        assert close in str(caught.value)
    with pytest.raises(ConfigError, match=r"cluster slurm-a10: found no such name .*did you mean slurm"):
        load_cluster("slurm-a10")


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="found no such file"):
        load_experiment(str(tmp_path / "none.yaml"))


def test_a_name_is_looked_up_here_before_the_installed_ones(tmp_path, monkeypatch):
    folder = tmp_path / "conf" / "experiments"
    folder.mkdir(parents=True)
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(changed(name="mine")))
    monkeypatch.chdir(tmp_path)
    assert load_experiment("quickstart").name == "mine"
    assert load_experiment("gpt2-small").name == "gpt2-small"


# --- what decides a result ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", ["training.logging_steps=7", "export.organization=x", "evaluation.every_steps=7", "seeds.new=1"]
)
def test_what_does_not_decide_the_weights_is_free(load, setting):
    assert load(VALID, setting).frozen_sections("alias") == load(VALID).frozen_sections("alias")


@pytest.mark.parametrize(
    "setting",
    [
        "training.max_steps=99",
        "training.learning_rate=1",
        "training.deterministic=false",
        "model.n_layer=3",
        "model.attn_pdrop=0",
        "data.text_field=x",
        "seeds.alias=22",
        "seeds.alias={init: 21, data: 21, dropout: 1}",
    ],
)
def test_what_decides_the_weights_is_frozen(load, setting):
    assert load(VALID, setting).frozen_sections("alias") != load(VALID).frozen_sections("alias")


def test_runs_of_a_cohort_share_everything_but_the_seed(load):
    experiment = load(VALID)
    one, other = experiment.frozen_sections("alias"), experiment.frozen_sections("battlestar")
    assert one.pop("seed") != other.pop("seed")
    assert one == other == experiment.shared_sections()


DATA = st.fixed_dictionaries(
    {"name": st.just("owt"), "source": st.sampled_from([{"files": ["a"]}, {"files": ["b"]}, {"hub": "a"}])},
    optional={
        "text_field": st.sampled_from(["text", "body"]),
        "tokenizer": st.sampled_from(["gpt2", "mine"]),
        "validation_fraction": st.sampled_from([0, 0.0005, 0.1]),
        "detokenizer": st.sampled_from(["none", "wikitext"]),
        "on_bad_document": st.sampled_from(["stop", "skip"]),
        "unit_megabytes": st.sampled_from([256, 1]),
    },
)


@given(DATA, DATA)
def test_two_data_sections_share_a_dataset_only_if_they_are_equal(one, other):
    one, other = Data(**one), Data(**other)
    assert (one.dataset_name() == other.dataset_name()) == (one == other)


# --- schedule -----------------------------------------------------------------------------------------------------

PAIRS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 5000)), min_size=1, max_size=5).map(
    lambda pairs: [
        (min(every, until), until)
        for every, until in sorted({until: (e, until) for e, until in pairs}.values(), key=lambda p: p[1])
    ]
)


@given(PAIRS, st.integers(1, 6000))
def test_a_schedule_ascends_from_0_to_the_last_step(pairs, max_steps):
    steps = Checkpoints(schedule=tuple(pairs)).steps(max_steps)
    assert list(steps) == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == max_steps


@given(PAIRS, st.integers(1, 6000))
def test_a_schedule_holds_the_multiples_of_each_part(pairs, max_steps):
    expected, start = {0, max_steps}, 0
    for every, until in pairs:
        expected |= {step for step in range(start + 1, until + 1) if step % every == 0 and step < max_steps}
        start = until
    assert set(Checkpoints(schedule=tuple(pairs)).steps(max_steps)) == expected


def test_a_schedule_far_beyond_the_last_step_costs_nothing():
    assert Checkpoints(schedule=((1, 10), (2, 10**15))).steps(13) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13)


# --- the resolved config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_resolved_config_reads_back_as_the_same_experiment(load, path):
    experiment = load_experiment(str(path), ("training.max_steps=4242", "training.warmup_steps=0"))
    folder = str(path.parent)
    assert load(to_yaml(experiment)).model_dump() == experiment.model_dump() | {"folder": folder}


@example("\x85")  # PyYAML folds it into a space unless it is escaped
@given(
    st.text(max_size=8) | st.sampled_from(["6e-4", "no", "010", "08", "null", "~", "2024-01-01", "1:30", "<<", "1_0"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_the_resolved_config(load, text):
    experiment = Experiment.model_validate(changed(export={"organization": text}))
    written = to_yaml(experiment)
    assert load(written).export.organization == text
    assert yaml.safe_load(written)["export"]["organization"] == text


def test_a_run_is_a_chain_of_jobs_only_where_requeue_is_forbidden(tmp_path):
    path = tmp_path / "site.yaml"
    text = "name: site\nexecutor: slurm\nstages: {train: {chain_jobs: 6}}\n"
    path.write_text(text)
    assert load_cluster(str(path)).jobs_in_chain("train") == 1
    path.write_text(f"{text}requeue: false\n")
    assert [load_cluster(str(path)).jobs_in_chain(stage) for stage in ("preprocess", "train", "export")] == [1, 6, 1]


def test_all_problems_of_a_cluster_file_are_told_before_anything_is_submitted(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "name: wrong\nexecutor: slurm\nextra: {reservation: x, array: 0-3, cpus_per_task: 2}\npartitions: gpu\n"
        "requeue: sometimes\n"
        "stages: {train: {minutes: 2, signal_lead_seconds: 120, chain_jobs: 0}, export: {array_width: 0}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_cluster(str(path))
    told = str(caught.value)
    assert "extra: found array, cpus_per_task, expected options that nothing else in this file decides" in told
    assert "found signal_lead_seconds 120, expected less than the 2 minutes of a task" in told
    assert "partitions" in told
    assert "stages.export.array_width" in told
    assert "stages.train.chain_jobs" in told
    assert "requeue: " in told
    assert "reservation" not in told


def test_a_file_with_thousands_of_problems_is_told_in_a_hundred_lines(load):
    problems = problems_of(load, VALID | {f"key{number}": 1 for number in range(5000)})
    assert len(problems) == 101
    assert problems[-1] == "and 4900 more; mend these first"


@pytest.mark.parametrize(
    ("seeds", "dropout", "equal"),
    [
        ({"one": 7, "two": 7}, 0.1, True),
        ({"one": 7, "two": {"init": 7, "data": 7, "dropout": 7}}, 0.1, True),
        ({"one": 1, "two": 2, "three": 1}, 0.1, True),
        ({"one": 7, "two": {"init": 7, "data": 7, "dropout": 8}}, 0.1, False),
        ({"one": 7, "two": {"init": 7, "data": 7, "dropout": 8}}, 0.0, True),
        ({"one": 7, "two": {"init": 7, "data": 8, "dropout": 7}}, 0.0, False),
        ({"one": 7, "two": {"init": 8, "data": 7, "dropout": 7}}, 0.1, False),
    ],
)
def test_two_seeds_that_would_train_the_same_run_twice_are_refused(load, seeds, dropout, equal):
    model = VALID["model"] | {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    value = changed(seeds=seeds, model=model)
    if not equal:
        assert len(load(value).seeds) == len(seeds)
        return
    [problem] = problems_of(load, value)
    assert re.match(
        r"seeds\.(two|three): found init \d, data \d.*, as seeds\.one has, which would train the same", problem
    )
    assert FOUND_EXPECTED_ADVICE.match(problem)


def test_a_missing_key_is_told_with_its_meaning_and_unit(load):
    value = copy.deepcopy(VALID)
    del value["training"]["max_steps"], value["data"]["source"]["files"], value["model"]["n_layer"], value["name"]
    told = problems_of(load, value | {"seeds": {"a": {"init": 1, "data": 2}}})
    assert "training.max_steps: found nothing, expected a value: Length of a run; it may grow" in "\n".join(told)
    assert "model.n_layer: found nothing, expected a value: Number of transformer blocks. [layers]; add it" in told
    assert "name: found nothing, expected a value: What the experiment is called" in "\n".join(told)
    assert "seeds.a.dropout: found nothing, expected a value: Seed of dropout. [no unit]; add it" in told


@pytest.mark.parametrize(
    "key", ["ranks_per_node", "threads_per_rank", "cpus_per_rank", "gpus_per_node", "nodes", "minutes"]
)
def test_a_cluster_of_an_absurd_size_is_refused(tmp_path, key):
    path = tmp_path / "site.yaml"
    path.write_text(f"name: site\nexecutor: local\nstages: {{train: {{{key}: {10**30}}}}}\n")
    with pytest.raises(ConfigError, match=rf"stages\.train\.{key}: found 10+, expected less than or equal to 1\d+"):
        load_cluster(str(path))
