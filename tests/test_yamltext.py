"""What is written is read back as the same value, also by other readers; overrides change one value and no other."""

import copy
import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mistral.errors import ConfigError
from mistral.yamltext import override, parse_yaml, read_yaml, write_yaml

WORDS = st.sampled_from(
    ["no", "on", "6e-4", "010", "0x10", "1_0", "1:30", "2024-01-01", "null", "~", "=", "<<", "", "é", "#"]
)
TEXT = st.text(max_size=8) | WORDS
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=8)


@example({"x": [1e-8, 6e-4, 1e300, float("inf"), -0.0, 10**30]})
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_any_value_survives_writing_and_reading(value):
    text = write_yaml(value)
    for read in (parse_yaml(text, "text"), yaml.safe_load(text)):
        assert repr(read) == repr(value)  # the same types as well: 1, 1.0 and True are equal to Python


def test_keys_keep_their_order(tmp_path):
    (tmp_path / "a.yaml").write_text(write_yaml({"z": 1, "a": {"y": 2, "b": 3}}))
    value = read_yaml(tmp_path / "a.yaml")
    assert list(value) == ["z", "a"]
    assert list(value["a"]) == ["y", "b"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0), ("-.5", -0.5), ("5.", 5.0), ("+7", 7), ("-010", -10), (".inf", float("inf")), ("0o10", "0o10"),
        ("-.INF", float("-inf")), ("1e", "1e"), (".", "."), ("1.2.3", "1.2.3"), ("yes", "yes"), ("TRUE", True),
        ("tRUE", "tRUE"), ("Null", None), ("nULL", "nULL"), ("", None), ("'1'", "1"), ("!!str 1", "1"),
        ("[1, a]", [1, "a"]),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert repr(parse_yaml(text, "text")) == repr(value)


def test_one_value_is_overridden_and_sections_arise_where_they_are_missing():
    raw = {"training": {"max_steps": 1, "seq_len": 2}, "export": None}
    before = copy.deepcopy(raw)
    override(raw, "training.max_steps=5")
    assert raw == before | {"training": {"max_steps": 5, "seq_len": 2}}
    override(raw, "export.organization=a=b")
    assert raw["export"] == {"organization": "a=b"}
    override(raw, "x.y.z=[1, 2]")
    assert raw["x"] == {"y": {"z": [1, 2]}}
    override(raw, "training=")
    assert raw["training"] is None


@pytest.mark.parametrize("assignment", ["training.max_steps.x=1", "training.list.x=1"])
def test_an_override_below_a_single_value_is_refused_and_changes_nothing(assignment):
    raw = {"training": {"max_steps": 1, "list": [1]}}
    with pytest.raises(ConfigError, match="is a single value, expected a section; set"):
        override(raw, assignment)
    assert raw == {"training": {"max_steps": 1, "list": [1]}}


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read .*expected a YAML file; check its permissions"):
        read_yaml(tmp_path)


def bomb(levels: int) -> str:
    """Each level repeats the one before it nine times."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(40), "found more than 100,000 values, expected fewer"),
        ("a: &a [*a]\n", "found more than 50 levels of lists and mappings, expected fewer"),
        ("a: " + "[" * 60 + "]" * 60, "found more than 50 levels"),
        ("a: " + "[" * 90_000, "found more than 50 levels"),
        ("".join(f"{' ' * n}a:\n" for n in range(600)), "found more than 50 levels"),
        ("a: 1\n" * 60_000, "found a file of more than 256 KB, expected a config of a few KB; check the path"),
        ("\n".join(f"a{n}: 1" for n in range(20_000)) + "\na7: 1\n", "found the key a7 twice"),
    ],
    ids=["bomb", "cycle", "deep", "deeper", "block", "large", "twice"],
)
def test_reading_a_config_is_bounded_in_time_and_size(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "a.yaml")
    assert time.process_time() - start < 5


def test_a_name_that_repeats_little_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: [1, 2]}\nc: *x\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


def test_an_override_of_endless_depth_is_refused():
    with pytest.raises(ConfigError, match="found no KEY=VALUE"):
        override({}, ".".join(["a"] * 5000) + "=1")
    with pytest.raises(ConfigError, match="found more than 50 levels"):
        override({}, "a=" + "[" * 100 + "]" * 100)
