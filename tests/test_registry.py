"""models.json lists what is published, and its README.md follows from it alone."""

import json
import re

from published import ALIAS

from mistral.registry import registry_page, write_registry

REGISTRY = {
    "experiment": "tiny",
    "organization": "crfm",
    "collection": "https://huggingface.co/collections/crfm/tiny-models-0",
    "models": [
        {
            "run": "alias-tiny-x21", "seed": {"name": "alias", "init": 21, "data": 21, "dropout": 21},
            "url": "https://huggingface.co/crfm/alias-tiny-x21", "main": "checkpoint-10", "tag": "v1.0",
            "revisions": {"checkpoint-0": "a" * 40, "checkpoint-9": "b" * 40, "checkpoint-10": "c" * 40},
        },
        {
            "run": "mix-tiny-x1-2-3", "seed": {"name": "mix", "init": 1, "data": 2, "dropout": 3},
            "url": "https://huggingface.co/crfm/mix-tiny-x1-2-3", "main": "checkpoint-0", "tag": None,
            "revisions": {"checkpoint-0": "d" * 40},
        },
    ],
}  # fmt: skip


def rows(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


def test_the_page_has_a_row_for_each_run_and_says_how_to_load_it():
    page = registry_page(REGISTRY)
    head, _, alias, mix = rows(page)
    assert dict(zip(head, alias, strict=True)) == {
        "run": "alias-tiny-x21",
        "seed": "alias (21)",
        "repository": "[crfm/alias-tiny-x21](https://huggingface.co/crfm/alias-tiny-x21)",
        "revisions": "3",
        "main is": "checkpoint-10",
        "tag": "v1.0",
        "how to load it": '`AutoModelForCausalLM.from_pretrained("crfm/alias-tiny-x21", revision="checkpoint-10")`',
    }
    assert mix[1:4] == [
        "mix (init 1, data 2, dropout 3)",
        f"[crfm/{mix[0]}](https://huggingface.co/crfm/{mix[0]})",
        "1",
    ]
    assert mix[5] == ""
    assert page.startswith("# tiny\n\n2 runs with 4 revisions, published by `crfm`.")
    assert REGISTRY["collection"] in page
    assert "- alias-tiny-x21: 0, 9, 10\n" in page


def test_a_cohort_without_collection_has_a_page_too():
    page = registry_page(REGISTRY | {"collection": None, "models": []})
    assert page.startswith("# tiny\n\n0 runs with 0 revisions")
    assert "collected" not in page


def test_the_page_is_written_beside_models_json_and_stays_while_that_does(tmp_path):
    path = tmp_path / "published" / "tiny" / "models.json"
    write_registry(path, REGISTRY)
    page = path.with_name("README.md")
    assert page.read_text() == registry_page(json.loads(path.read_text()))
    before = {file: file.stat().st_ino for file in path.parent.iterdir()}
    write_registry(path, REGISTRY)
    assert {file: file.stat().st_ino for file in path.parent.iterdir()} == before
    page.unlink()  # as by a kill between the two
    write_registry(path, REGISTRY)
    assert page.exists()
    write_registry(path, REGISTRY | {"models": []})
    assert page.read_text() == registry_page(json.loads(path.read_text()))


def test_publishing_writes_the_page_and_the_tag_and_collection_into_models_json(exported):
    exported.export("alias", 0, 9)
    exported.choose(tag="v1.0", collection="Tiny models")
    exported.push(steps=[0])
    path = exported.workspace.registry("tiny")
    assert json.loads(path.read_text())["models"][0]["tag"] is None, "main is not yet the last exported step"
    exported.push()
    registry = json.loads(path.read_text())
    assert re.search(r"/collections/crfm/tiny-models-\w+$", registry["collection"])
    assert registry["models"][0]["tag"] == "v1.0"
    assert path.with_name("README.md").read_text() == registry_page(registry)
    assert f'from_pretrained("{ALIAS}", revision="checkpoint-9")' in registry_page(registry)
