"""the sections of a config -> docs/config.md, a table of the keys of each; `make docs` runs it, and a test compares."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from mistral.config import Cluster, Experiment
from mistral.section import Section

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Config

Each key of an experiment and of a cluster file. This page is generated: change the text below the fields in `mistral/`,
then run `make docs`.

## A first experiment

An experiment of your own needs little more than a text and a size. Save these lines as `first.yaml` beside a folder
`text` with some `.txt` files (a megabyte or more), then `mistral-pipeline run first.yaml`:

```yaml
name: first
seeds: {one: 1, two: 2}
data:
  name: my-text
  source: {files: ["text/*.txt"]}
  tokenizer: {train: {vocab_size: 512}}
  validation_fraction: 0.1
model: {n_layer: 4, n_head: 4, n_embd: 128, n_positions: 128}
training: {max_steps: 200, global_batch_size: 16, micro_batch_size: 8, learning_rate: 3.0e-3, precision: fp32}
checkpoints: {schedule: [[50, 200]]}
```

It runs on this machine unless `--cluster` names another place. A cluster file is as short; this is
`conf/clusters/local-two-ranks.yaml`, which divides the batch of each step between two processes here:

```yaml
name: local-two-ranks
executor: local
stages:
  train: {ranks_per_node: 2, threads_per_rank: 1}
```

Scalars are read by the rules of YAML 1.2. `--set KEY=VALUE` overrides one key of the experiment, with dots between the
levels: `--set training.max_steps=100`. A file may have 256 KB, and names (`&`, `*`) only where they repeat little.

All keys follow. A number's unit stands beside its type.
"""
COLUMNS = "| key | type | unit | default | meaning |\n|-|-|-|-|-|"
UNIT = re.compile(r" \[([^\[\]]+)\]$")
LONGEST_DEFAULT = 60  # of a default that is shown; those of sections are in their own tables

Schema = dict[str, Any]


def subclasses(model: type[Section]) -> Iterator[type[Section]]:
    """Every section, also those that are made from another one."""
    for inner in model.__subclasses__():
        yield inner
        yield from subclasses(inner)


MODELS = {model.__name__: model for model in subclasses(Section)}


def reference() -> str:
    """The whole page as markdown."""
    return "\n".join([HEAD, *sections("Experiment", Experiment.model_json_schema()), *cluster_sections()])


def cluster_sections() -> Iterator[str]:
    """The sections of a cluster file."""
    yield from sections("Cluster file", Cluster.model_json_schema())


def sections(title: str, schema: Schema) -> Iterator[str]:
    """A table for a file and for each section in it, in the order in which they are met."""
    headings = dict(headings_of(schema, schema, ""))
    yield table(title, schema, headings)
    for name, heading in headings.items():
        yield table(heading, schema["$defs"][name], headings)


def headings_of(schema: Schema, section: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Name and heading of each section below one, `Training` and `training`; the first place of each."""
    found: dict[str, str] = {}
    for key, field in section["properties"].items():
        inner = list(dict.fromkeys(references(field)))
        for name in inner:
            kind = "" if len(inner) == 1 else f": {schema['$defs'][name]['required'][0]}"
            found.setdefault(name, f"{path}{key}{kind}")
            for deeper, heading in headings_of(schema, schema["$defs"][name], f"{path}{key}."):
                found.setdefault(deeper, heading)
    yield from found.items()


def references(field: Any) -> Iterator[str]:
    """Names of the sections that a field may hold."""
    if isinstance(field, dict):
        if "$ref" in field:
            yield field["$ref"].rpartition("/")[2]
        for name, value in field.items():
            if name in ("anyOf", "oneOf", "items", "additionalProperties"):
                yield from references(value)
            elif name == "patternProperties":
                yield from references(list(value.values()))
    elif isinstance(field, list):
        for one in field:
            yield from references(one)


def table(heading: str, section: Schema, headings: dict[str, str]) -> str:
    """The keys of one section."""
    model, required = MODELS[section["title"]], section.get("required", [])
    rows = [row(model, key, field, required, headings) for key, field in section["properties"].items()]
    text = section["description"].partition("\n\n")[0].replace("\n", " ")
    return f"## {heading}\n\n{text}\n\n{COLUMNS}\n" + "\n".join(rows) + "\n"


def row(model: type[Section], key: str, field: Schema, required: list[str], headings: dict[str, str]) -> str:
    """One key: its type, unit, default and meaning."""
    text = field["description"].replace("\n", " ")
    unit = UNIT.search(text)
    kind = kind_of(field, headings) + limits(model, key)
    cells = [f"`{key}`", kind, unit[1] if unit else "", default_of(key, field, required)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, UNIT.sub("", text)]) + " |"


def default_of(key: str, field: Schema, required: list[str]) -> str:
    """`required`, or the value that an absent key has."""
    if key in required:
        return "required"
    value = field.get("default")
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "as its section tells"


def kind_of(field: Schema, headings: dict[str, str]) -> str:
    """What may stand there, for people."""
    if "$ref" in field:
        heading = headings[field["$ref"].rpartition("/")[2]]
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        return f"[{heading}](#{anchor})"
    if choices := field.get("anyOf") or field.get("oneOf"):
        *kinds, last = dict.fromkeys(kind_of(one, headings) for one in choices if one.get("type") != "null")
        return ", or ".join([*kinds, last if last != f"list of {', or '.join(kinds)}" else "a list of these"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] in ("array", "object"):
        return several(field, headings)
    return {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}[
        field["type"]
    ]


def several(field: Schema, headings: dict[str, str]) -> str:
    """A list or a mapping, for people."""
    if field["type"] == "object":
        values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
        return f"mapping of names to {kind_of(values, headings)}"
    if "prefixItems" in field:
        return f"pairs of {kind_of(field['prefixItems'][0], headings)}s"
    return f"list of {kind_of(field['items'], headings)}"


def limits(model: type[Section], key: str) -> str:
    """`, above 0`, `, from 0, to 3`: what a number may be."""
    field = model.model_fields[key]
    words = {Gt: "above", Ge: "from", Lt: "below", Le: "to"}
    found = [*field.metadata, *metadata_in(field.annotation)]
    return "".join(
        f", {words[type(one)]} {getattr(one, type(one).__name__.lower()):,}" for one in found if type(one) in words
    )


def metadata_in(annotation: Any) -> Iterator[Any]:
    """What stands inside `Annotated` in `A | None`; not in a tuple, whose entries have limits of their own."""
    if get_origin(annotation) in (Union, UnionType):
        for inner in get_args(annotation):
            for one in getattr(inner, "__metadata__", ()):
                yield from getattr(one, "metadata", ())


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
