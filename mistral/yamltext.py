"""YAML text and `--set` overrides -> plain mappings, and back.

Scalars are read by YAML 1.2's rules, where `6e-4` is a number, `010` is ten, and `no` and `2024-01-01` are words
(PyYAML alone follows YAML 1.1). A key that stands twice is refused: PyYAML would silently keep the last. What is
written is quoted wherever either version of YAML would take a word for something else.
"""

import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from mistral.errors import ConfigError

LARGEST_BYTES = 256_000  # of a file; read in a second or two
MOST_VALUES = 100_000
DEEPEST = 50  # levels of lists and mappings
TOO_DEEP = f"found more than {DEEPEST} levels of lists and mappings, expected fewer; take some out"
SCALARS = {  # YAML 1.2, core schema: tag -> (form, first characters)
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?[0-9]+$", list("-+0123456789")),
    "float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = Counter(self.construct_object(key) for key, _ in node.value)
            [(twice, _)] = keys.most_common(1)
            problem = f"found the key {twice} twice, expected it once; remove one of the two"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    pass


_Loader.yaml_implicit_resolvers = {}  # not those of YAML 1.1
for _name, (_form, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_form), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_form), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # PyYAML's own reads 010 as eight


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text.

    Args:
        text: one YAML document.
        name: where it comes from, for messages.

    Raises:
        yaml.YAMLError: it is not YAML, or a key stands twice.
        ValueError: a number is too long to read, or there are too many values or levels.
    """
    loader = _Loader(text)
    loader.name = name
    try:
        value = loader.get_single_data()
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    finally:
        loader.dispose()
    _require_bounds(value)
    return value


def _require_bounds(value: Any) -> None:
    """Refuse a value that is small as text and endless as a value: `*name` repeats what it names, even itself."""
    left, seen = [(value, 0)], 0
    while left:
        one, depth = left.pop()
        inner = [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else []
        seen += 1 + len(inner)
        if depth > DEEPEST:
            raise ValueError(TOO_DEEP)
        if seen > MOST_VALUES:
            raise ValueError(f"found more than {MOST_VALUES:,} values, expected fewer; repeat less by `*`")
        left += [(part, depth + 1) for part in inner if isinstance(part, dict | list)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ConfigError(
                f"{path}: found a file of more than {LARGEST_BYTES // 1000} KB, expected a config of a few KB; check "
                "the path, or name many files by a glob"
            )
        raw = parse_yaml(data.decode("utf-8"), str(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: found a file that cannot be read ({error.strerror}), expected a YAML file; check its permissions"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: found text that cannot be read as YAML, expected a YAML mapping; mend it:\n  {error}"
        ) from None
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else f"a {type(raw).__name__}"
        raise ConfigError(f"{path}: found {found}, expected a YAML mapping (key: value); see conf/ for examples")
    return raw


def write_yaml(value: dict[str, Any]) -> str:
    """YAML text that `read_yaml`, or any other reader of YAML, takes for the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False)  # with escapes: PyYAML folds U+0085 if left as it is
    return text


def override(raw: dict[str, Any], assignment: str) -> None:
    """Set one value of a mapping, in place.

    Args:
        raw: what a file says.
        assignment: `training.max_steps=100`; the value is YAML.

    Raises:
        ConfigError: it is no KEY=VALUE, or its key passes through a single value.
    """
    key, separator, text = assignment.partition("=")
    *parents, last = key.split(".")
    if not separator or not all([*parents, last]) or len(parents) > DEEPEST:
        raise ConfigError(
            f"--set {assignment}: found no KEY=VALUE, expected e.g. training.max_steps=100; name a key and a value"
        )
    try:
        value = parse_yaml(text, "--set")
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"--set {assignment}: found a value that is not YAML, expected a number, a word or e.g. [1, 2]; quote it, "
            f"e.g. --set 'a.b=\"x\"'\n  {error}"
        ) from None
    place = raw
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise ConfigError(
                f"--set {assignment}: found that {parent} is a single value, expected a section; set {parent} itself"
            )
    place[last] = value
