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


RUN = {"run": "alias-gpt2-small-x21", "state": "running", "step": "120000/400000", "loss": 3.1234567, "reason": None}
WIDE = ("run", "state", "step", "loss", "tokens_per_second", "eta_seconds", "weights", "exported", "owner", "reason")
ROW = RUN | {"tokens_per_second": 8123.4, "eta_seconds": 72.7899, "weights": "300/609", "exported": "0/609"}


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of some columns."""

    def of(columns: int) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)

    return of


@pytest.mark.parametrize("columns", [40, 80, 100, 160, 400])
def test_a_table_fits_into_its_terminal_and_loses_nothing(terminal, monkeypatch, columns):
    rows = [
        ROW | {"owner": "process 4711 on node7"},
        ROW | {"run": "b", "state": "failed", "reason": "CheckpointError: x"},
    ]
    rows[1]["owner"] = None
    terminal(columns)
    monkeypatch.setenv("NO_COLOR", "1")
    table = as_table(rows, WIDE)
    assert max(map(len, table.splitlines())) <= columns
    told = " ".join(table.split())
    for part in ("120000/400000", "3.1235", "8123", "73", "300/609", "process 4711 on node7", "CheckpointError: x"):
        assert part in told, part


def test_below_a_row_stands_what_found_no_place_beside_it(terminal, monkeypatch):
    terminal(80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert as_table([ROW | {"owner": "process 4711 on node7"}], WIDE).splitlines() == [
        "run                   state    step           loss    tokens_per_second",
        "alias-gpt2-small-x21  running  120000/400000  3.1235  8123",
        "    eta_seconds 73, weights 300/609, exported 0/609, owner process 4711 on node7",
    ]


def test_states_have_colours_on_a_terminal_alone_and_none_with_no_color(terminal, monkeypatch):
    plain = as_table([ROW | {"owner": None}], WIDE)
    assert "\x1b" not in plain
    terminal(400)
    assert "\x1b[36mrunning\x1b[0m" in as_table([ROW | {"owner": None}], WIDE)
    monkeypatch.setenv("NO_COLOR", "1")
    assert as_table([ROW | {"owner": None}], WIDE) == plain
