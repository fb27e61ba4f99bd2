"""Recorded checkpoints become folders that transformers loads; what is not as it was recorded is refused."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import STEPS, flip_a_bit
from safetensors.torch import load_file

from mistral.cohort import begin_facts
from mistral.config import load_experiment
from mistral.drift import record_drift
from mistral.errors import ConfigError, Findings, ManifestError
from mistral.manifest import Manifest, make_record
from mistral.modelcard import CardFacts, model_card
from mistral.progress import Silent
from mistral.setaside import look
from pipeline.export import export


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(folder.rglob("*"))}


def test_an_exported_model_equals_the_checkpoint_bit_for_bit(trained, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = trained.train("alias")
    assert trained.export(seeds=["alias"]).exported == tuple(f"{run}/checkpoint-{step}" for step in STEPS)
    source, folder = trained.workspace.weights(run, 4), trained.workspace.export(run, 4)
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(source))
    model.load_state_dict(load_file(source / "model.safetensors"), strict=False)
    model.tie_weights()
    input_ids = torch.arange(32).reshape(2, 16)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids).logits, loaded.eval()(input_ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("To be, or not to be")["input_ids"]) == "To be, or not to be"


def test_a_folder_holds_what_transformers_saves_and_the_weights_are_linked(trained):
    run = trained.train("alias")
    trained.export(steps=[4])
    folder = trained.workspace.export(run, 4)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "README.md",
    }  # fmt: skip
    assert (folder / "model.safetensors").samefile(trained.workspace.weights(run, 4) / "model.safetensors")
    record = trained.manifest.get("export", (run, "checkpoint-4"), "")
    assert trained.manifest.damage(record) == []
    weights = trained.manifest.get("train", (run, "weights", "step-00000004"), "")
    assert record.inputs == {"weights": weights.content, "dataset": trained.dataset.content}


@pytest.mark.parametrize(("umask", "modes"), [(0o022, {"0o755", "0o644"}), (0o027, {"0o750", "0o640"})])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_checkpoints_and_exports_are_as_readable_as_the_umask_says(trained, umask, modes, dtype):
    written = [trained.workspace.root / name for name in ("runs", "exports", "manifest/train", "manifest/export")]
    former = os.umask(umask)
    try:
        trained.train("alias", [4])
        trained.choose(dtype=dtype)
        trained.export(seeds=["alias"], steps=[4])
    finally:
        os.umask(former)
    paths = [path for folder in written for path in folder.rglob("*")]
    assert {path.suffix for path in paths} >= {".safetensors", ".json", ".md"}
    assert {oct(path.stat().st_mode & 0o777) for path in paths} == modes


def test_where_files_cannot_be_linked_they_are_copied(trained, monkeypatch):
    run = trained.train("alias", [0])

    link = os.link

    def refuse(source, target):
        if Path(target).name == "model.safetensors":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr("mistral.tensorfiles.os.link", refuse)
    assert len(trained.export().exported) == 1
    path = trained.workspace.export(run, 0) / "model.safetensors"
    source = trained.workspace.weights(run, 0) / "model.safetensors"
    assert path.read_bytes() == source.read_bytes()
    assert not path.samefile(source)
    record = trained.manifest.get("export", (run, "checkpoint-0"), "")
    assert trained.manifest.damage(record) == []


def test_a_second_run_changes_no_file_and_imports_no_torch(trained, tmp_path):
    trained.train("alias")
    trained.train("battlestar")
    trained.export()
    before = snapshot(trained.workspace.root)
    code = (
        "import sys; from pathlib import Path; from mistral.config import load_experiment;"
        "from mistral.progress import Silent; from mistral.workspace import Workspace;"
        "from pipeline.export import export; import pipeline.verify, pipeline.status;"
        f"workspace = Workspace(Path({str(trained.workspace.root)!r}));"
        f"s = export(load_experiment({str(tmp_path / 'tiny.yaml')!r}), workspace, Silent()); "
        "sys.exit(f'{len(s.exported)} {s.already} {\"torch\" in sys.modules}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0 6 False"
    assert snapshot(trained.workspace.root) == before


def test_equal_input_gives_an_equal_model_card(trained):
    run = trained.train("alias")
    trained.export()
    card = trained.workspace.export(run, 4) / "README.md"
    first = card.read_bytes()
    trained.manifest.remove("export", (run, "checkpoint-4"))
    trained.export()
    assert card.read_bytes() == first
    text = first.decode()
    weights = trained.manifest.get("train", (run, "weights", "step-00000004"), "")
    parts = ["No licence is stated", "5.6", "244.69", "learning_rate", "0.2", "| dropout | 21 |", weights.content]
    for part in [*parts, trained.dataset.content, weights.inputs["parent"]]:
        assert part in text


def test_a_wrong_probe_is_refused_while_the_others_are_exported(trained):
    run = trained.train("alias", probe_error={2: 1e-3})
    with pytest.raises(Findings, match=f"{run}/checkpoint-2: found probe loss"):
        trained.export()  # by the beginning of its probe, as the whole one of step 0 is right
    assert trained.manifest.names("export", (run,)) == ["checkpoint-0", "checkpoint-4"]
    assert sorted(p.name for p in trained.workspace.export(run, 2).parent.iterdir()) == ["checkpoint-0", "checkpoint-4"]


@pytest.mark.parametrize("what", ["weights", "record"])
def test_a_damaged_checkpoint_is_refused_while_the_others_are_exported(trained, what):
    run = trained.train("alias")
    paths = {
        "weights": trained.workspace.weights(run, 2) / "model.safetensors",
        "record": trained.manifest.path("train", (run, "weights", "step-00000002")),
    }
    flip_a_bit(paths[what])
    with pytest.raises(Findings, match="checkpoint-2"):
        trained.export()
    assert trained.manifest.names("export", (run,)) == ["checkpoint-0", "checkpoint-4"]


@pytest.mark.parametrize("kind", ["weights", "export"])
def test_a_broken_record_of_what_is_exported_already_is_no_export_without_work(trained, kind):
    run = trained.train("alias")
    trained.export()
    keys = {"weights": ("train", (run, "weights", "step-00000002")), "export": ("export", (run, "checkpoint-2"))}
    path = trained.manifest.path(*keys[kind])
    path.write_text("[" * 100_000)
    with pytest.raises(
        Findings, match=rf"found 1 checkpoint that cannot be exported, 0 were:\n  {run}/checkpoint-2: .*JSON"
    ):
        trained.export()
    trained.manifest.remove("export", (run, "checkpoint-4"))
    with pytest.raises(Findings, match="found 1 checkpoint that cannot be exported, 1 were"):
        trained.export()
    assert trained.export(steps=[0]).already == 1


def test_a_damaged_line_of_metrics_is_named_and_holds_back_only_what_it_belongs_to(trained):
    run = trained.train("alias")
    path = trained.workspace.metrics(run)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{broken\n", *lines[3:]]))
    with pytest.raises(Findings, match=f"{run}/checkpoint-4: .*metrics.jsonl, line 3: found something else"):
        trained.export()
    path.write_text("".join([*lines[:4], "{broken\n"]))
    trained.manifest.remove("export", (run, "checkpoint-2"))
    trained.export(steps=[2])


def test_a_card_claims_no_more_than_the_run_can_keep(trained):
    run = trained.train("alias", [0, 2])
    begun = trained.manifest.get("train", (run, "begin"), "")
    facts = begin_facts(trained.experiment, "alias", trained.dataset.content, {"threads": 4})
    drift = record_drift(trained.manifest, begun, facts, 2, None)
    trained.train("alias", drift=drift.content)
    trained.export()
    before, after = ((trained.workspace.export(run, step) / "README.md").read_text() for step in (2, 4))
    assert "can claim **same bits**" in before
    assert "From step" not in before, "the run changed after this checkpoint"
    assert "can claim **same batches**" in after
    assert "From step 2 on:\n\n- numerics.threads: was 1, is 4" in after


@pytest.mark.parametrize("changes", [["numerics.device: was 'A100', is 'H100'"], ["software.torch: was '1', is '2'"]])
def test_a_card_tells_other_hardware_software_and_siblings(trained, changes):
    run = trained.train("alias")
    [begun, weights] = (
        trained.manifest.get("train", (run, *key), "") for key in (["begin"], ["weights", "step-00000004"])
    )
    sibling = {"battlestar-tiny-x49": ["numerics.world_size: was 2, is 1"]}
    begun = replace(begun, facts=begun.facts | {"drift": sibling})
    drift = replace(begun, facts={"step": 3, "changes": changes})
    text = model_card(CardFacts(trained.experiment, "alias", begun, weights, trained.dataset, [], [drift]))
    assert "can claim **close numbers**" in text
    assert f"From step 3 on:\n\n- {changes[0]}" in text
    assert "Compared with `battlestar-tiny-x49`, a run of the same experiment:\n\n- numerics.world_size: was 2" in text


def test_a_card_of_a_run_that_was_not_deterministic_says_so(trained):
    run = trained.train("alias")
    [begun, weights] = (
        trained.manifest.get("train", (run, *key), "") for key in (["begin"], ["weights", "step-00000004"])
    )
    frozen = begun.facts["frozen"]
    loose = frozen | {"training": frozen["training"] | {"deterministic": False}}
    begun = replace(begun, facts=begun.facts | {"frozen": loose})
    text = model_card(CardFacts(trained.experiment, "alias", begun, weights, trained.dataset, [], []))
    assert "can claim **same batches**" in text
    assert "its algorithms are not deterministic" in text


def test_weights_of_another_dataset_are_refused(trained):
    trained.train("alias", [0])
    name = trained.dataset.key[0]
    other = make_record(
        "preprocess/dataset", (name, "dataset"), config="c", inputs={"00000": "f" * 64}, files=trained.dataset.files,
        facts=trained.dataset.facts,
    )  # fmt: skip
    trained.manifest.remove("preprocess", (name, "dataset"))
    trained.manifest.publish(other)
    with pytest.raises(Findings, match="found weights of the dataset"):
        trained.export()


def test_a_kill_between_folder_and_record_is_repaired(trained, monkeypatch):
    run = trained.train("alias")
    folder = trained.workspace.export(run, 0)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            trained.export()
    assert folder.is_dir()
    assert trained.manifest.names("export", (run,)) == []
    (folder / "rubbish").write_text("half")
    (folder.parent / ".checkpoint-0.4711.abcd.tmp").mkdir()  # a process that was killed while it built
    assert len(trained.export().exported) == 3
    assert not (folder / "rubbish").exists()
    [aside] = look(trained.workspace, run)
    assert (aside.origin, (trained.workspace.root / aside.path / "rubbish").read_text()) == (
        f"exports/{run}/checkpoint-0",
        "half",
    )
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_tasks_cut_the_planned_checkpoints_whatever_is_trained_by_then(trained):
    alias = trained.train("alias")
    first = trained.export(tasks=4, task=1).exported
    battlestar = trained.train("battlestar")  # meanwhile training goes on
    exported = [first, *(trained.export(tasks=4, task=task).exported for task in (0, 2, 3))]
    names = [f"{run}/checkpoint-{step}" for run in (alias, battlestar) for step in STEPS]
    assert sorted(name for group in exported for name in group) == sorted(names)
    with pytest.raises(ConfigError, match="expected 0 to 3"):
        trained.export(tasks=4, task=4)


def test_what_is_not_trained_is_named(trained):
    advised = trained.experiment.command("train", trained.workspace.root)
    with pytest.raises(ManifestError, match=rf"found no weights of (.|\n)*run: {re.escape(advised)}$"):
        trained.export()
    run, dead = trained.train("alias", [0, 2]), trained.experiment.run_name("battlestar")
    summary = trained.export(steps=[2])  # a seed without any weights holds nobody back
    assert summary.exported == (f"{run}/checkpoint-2",)
    assert summary.missing == (f"{dead}/checkpoint-2",)
    summary = trained.export()
    assert summary.missing == (f"{run}/checkpoint-4", *(f"{dead}/checkpoint-{step}" for step in STEPS))
    assert json.loads(json.dumps(summary.to_json()))["already"] == 1
    assert f"{run}/checkpoint-4" in summary.as_text()
    with pytest.raises(ManifestError, match=f"found no weights of {run}/checkpoint-3"):
        trained.export(steps=[3])
    with pytest.raises(ConfigError, match="found nobody, expected seeds of tiny: alias, battlestar"):
        trained.export(seeds=["nobody"])


def test_a_config_that_is_not_the_one_that_was_trained_is_refused(trained, tmp_path):
    trained.train("alias")
    changed = load_experiment(str(tmp_path / "tiny.yaml"), ("training.learning_rate=0.5",))
    with pytest.raises(ConfigError, match=r"training.learning_rate: was 0.01, is 0.5"):
        export(changed, trained.workspace, Silent())


def test_a_damaged_tokenizer_is_refused(trained):
    trained.train("alias")
    flip_a_bit(trained.workspace.tokenizer(trained.dataset.key[0]) / "tokenizer.json")
    with pytest.raises(ManifestError, match=r"tokenizer\.json"):
        trained.export()
