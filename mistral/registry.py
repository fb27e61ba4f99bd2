"""published runs -> models.json, for programs; and README.md beside it, for people, made of models.json alone."""

import json
from pathlib import Path
from typing import Any

from mistral.files import read_json, write_bytes

PAGE = "README.md"


def write_registry(path: Path, registry: dict[str, Any]) -> None:
    """Write models.json and its page; what is there with the same bytes stays as it is.

    Args:
        path: of models.json.
        registry: `experiment`, `organization`, `collection` (its address, or null), `collection_public` (or null) and
            `models`: of each run its `run`, `seed`, `url`, `public`, `main` (the step that it holds), `tag` (or null)
            and `revisions` (the commit of each).
    """
    page = registry_page(registry)
    for target, text in ((path, json.dumps(registry, indent=2) + "\n"), (path.with_name(PAGE), page)):
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_bytes(target, text.encode())


def published_visibility(path: Path) -> dict[str, bool]:
    """Whether everyone could read each run, by its name, and the collection, by the empty name, when it was published.

    What models.json does not tell is left out.
    """
    try:
        told = read_json(path)
        seen = {model["run"]: model["public"] for model in told["models"]} | {"": told["collection_public"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {name: public for name, public in seen.items() if isinstance(public, bool)}


def registry_page(registry: dict[str, Any]) -> str:
    """The page of a cohort as markdown: which runs there are, where, and how a revision of one is loaded."""
    models = registry["models"]
    revisions = sum(len(model["revisions"]) for model in models)
    collection = f" The runs are collected at <{registry['collection']}>." if registry["collection"] else ""
    head = ["run", "seed", "repository", "revisions", "main is", "tag", "how to load it"]
    rows = [head, ["-", "-", "-", "-:", "-", "-", "-"], *map(_row, models)]
    return (
        f"# {registry['experiment']}\n\n{_count(len(models), 'run')} with {_count(revisions, 'revision')}, published "
        f"by `{registry['organization']}`. `mistral-pipeline` made this page of `models.json`, which has the commit of "
        f"each revision.{collection}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n\n"
        "`checkpoint-N` is the model after N steps, for these N:\n\n" + "\n".join(map(_steps, models)) + "\n"
    )


def _row(model: dict[str, Any]) -> list[str]:
    seed, name = model["seed"], _repository(model)
    numbers = {number for stream, number in seed.items() if stream != "name"}
    streams = ", ".join(f"{stream} {number}" for stream, number in seed.items() if stream != "name")
    told = f"{seed['name']} ({numbers.pop() if len(numbers) == 1 else streams})"
    code = f'`AutoModelForCausalLM.from_pretrained("{name}", revision="{model["main"]}")`'
    count = str(len(model["revisions"]))
    return [model["run"], told, f"[{name}]({model['url']})", count, model["main"], model["tag"] or "", code]


def _steps(model: dict[str, Any]) -> str:
    return f"- {model['run']}: {', '.join(name.rpartition('-')[2] for name in model['revisions'])}"


def _repository(model: dict[str, Any]) -> str:
    """`ORG/<run>`, the end of its address."""
    return "/".join(model["url"].split("/")[-2:])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
