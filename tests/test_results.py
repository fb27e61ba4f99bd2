"""The final table of run and train: one row for each seed, the same values as text and as JSON."""

import json

import pytest
from click.testing import CliRunner

from mistral.config import load_cluster
from mistral.manifest import make_record
from mistral.progress import Silent
from pipeline.cli import cli
from pipeline.context import Context
from pipeline.results import COLUMNS, as_table, results

FACTS = {
    "steps": 4, "train_loss": 5.61234567, "validation_loss": 5.5, "perplexity": 244.6919, "tokens_per_second": 1234.56,
    "promise": "same bits",
}  # fmt: skip


@pytest.fixture
def context(trained) -> Context:
    """An experiment of which one seed is complete and exported, and the other not begun."""
    run = trained.train("alias")
    trained.export(seeds=["alias"], steps=[2])
    earlier = trained.manifest.get("train", (run, "complete"), "")
    trained.manifest.remove("train", (run, "complete"))
    record = make_record(
        "train/complete", earlier.key, config=earlier.config, inputs=earlier.inputs, files=[], facts=FACTS
    )
    trained.manifest.publish(record)
    return Context(trained.experiment, load_cluster("local"), trained.workspace, Silent())


def test_a_row_for_each_seed_in_the_order_asked_for(trained, context):
    alias, battlestar = results(context, ["alias", "battlestar"])
    assert tuple(alias) == tuple(battlestar) == COLUMNS
    wanted = {name: value for name, value in FACTS.items() if name != "promise"}
    assert alias == {"seed": "alias", **wanted, "exported": None}  # an earlier step is not the result
    assert battlestar == dict.fromkeys(COLUMNS) | {"seed": "battlestar"}
    assert [row["seed"] for row in results(context, ["battlestar", "alias"])] == ["battlestar", "alias"]
    trained.export(seeds=["alias"])
    folder = trained.workspace.export(trained.experiment.run_name("alias"), 4)
    assert results(context, ["alias"])[0]["exported"] == str(folder)


def test_a_table_is_aligned_and_rounded_and_shows_what_is_missing(context):
    assert as_table(results(context, ["battlestar", "alias"])).splitlines() == [
        "seed        steps  train_loss  validation_loss  perplexity  tokens_per_second  exported",
        "battlestar  -      -           -                -           -                  -",
        "alias       4      5.6123      5.5000           244.69      1235               -",
    ]
    assert as_table([]) == "  ".join(COLUMNS)


def test_json_holds_the_same_rows_and_nothing_else_goes_to_stdout(trained, context, tmp_path):
    line = ["train", str(tmp_path / "tiny.yaml"), "--workspace", str(trained.workspace.root), "--seed", "alias"]
    done = CliRunner().invoke(cli, [*line, "--json"])
    assert json.loads(done.stdout) == results(context, ["alias"])
    assert "complete, nothing to train" in done.stderr
    done = CliRunner().invoke(cli, line)
    assert done.stdout == as_table(results(context, ["alias"])) + "\n"
