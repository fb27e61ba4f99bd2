"""export.dtype: bf16 gives the weights rounded bit for bit, is recorded as such, and can be checked again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded import flip_a_bit
from safetensors.torch import load_file, save_file
from test_lineage import files_in, forge, problems, record

from mistral import tensorfiles
from mistral.config import load_experiment
from mistral.errors import Findings
from mistral.files import sha256_of
from mistral.tensorfiles import link_or_copy


@pytest.fixture
def rounded(trained):
    """A run of three checkpoints that are exported in bf16."""
    trained.train("alias")
    trained.choose(dtype="bf16")
    trained.export(seeds=["alias"])
    return trained


def model_of(trained, step: int) -> Path:
    return trained.workspace.export("alias-tiny-x21", step) / "model.safetensors"


def nearest_bf16(tensor: torch.Tensor) -> np.ndarray:
    """The upper 16 bits of fp32, rounded to the nearest and ties to even, by whole numbers."""
    bits = tensor.numpy().view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_the_tensors_are_those_of_the_checkpoint_rounded_bit_for_bit(rounded):
    exact = load_file(rounded.workspace.weights("alias-tiny-x21", 4) / "model.safetensors")
    found = load_file(model_of(rounded, 4))
    assert found.keys() == exact.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert np.array_equal(tensor.view(torch.int16).numpy().view(np.uint16), nearest_bf16(exact[name])), name


def test_the_file_is_the_one_that_safetensors_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfiles, "BLOCK_BYTES", 1 << 17)
    tensors = {"b": torch.randn(300, 500), "a": torch.randn(()), "empty": torch.zeros(0, 3), "c": torch.randn(1 << 16)}
    save_file(tensors, tmp_path / "exact")
    sha256 = tensorfiles.write_rounded(tmp_path / "exact", tmp_path / "rounded")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "expected", {"format": "pt"})
    assert (tmp_path / "rounded").read_bytes() == (tmp_path / "expected").read_bytes()
    assert sha256 == sha256_of(tmp_path / "rounded")


def test_users_load_it_as_bf16_and_its_card_says_that_it_is_rounded(rounded):
    from transformers import AutoModelForCausalLM

    folder = model_of(rounded, 4).parent
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    card = (folder / "README.md").read_text()
    assert "## Rounded to bfloat16" in card
    assert sha256_of(rounded.workspace.weights("alias-tiny-x21", 4) / "model.safetensors") in card


def test_both_losses_are_recorded_and_one_that_rounding_cannot_explain_is_refused(trained):
    run = trained.train("alias", probe_error={2: 1e-2})
    trained.choose(dtype="bf16")
    with pytest.raises(Findings, match=rf"{run}/checkpoint-2: found probe loss .*, within 0\.004 of it"):
        trained.export()
    facts = record(trained, run, "checkpoint-4", stage="export").facts
    probe = facts["probe"]
    assert facts["dtype"] == "bf16"
    assert probe["recorded"] == record(trained, run, "weights", "step-00000004").facts["probe"]["prefix"]["loss"]
    assert 0 < abs(probe["exported"] - probe["recorded"]) < 0.1 * probe["tolerance"] * probe["recorded"]


def test_an_fp32_export_records_its_two_losses_as_well(trained):
    run = trained.train("alias", [0])
    trained.export()
    facts = record(trained, run, "checkpoint-0", stage="export").facts
    assert (facts["dtype"], facts["probe"]["tolerance"]) == ("fp32", 1e-5)
    assert facts["probe"]["exported"] == pytest.approx(facts["probe"]["recorded"], rel=1e-5)


def test_equal_input_gives_equal_bytes(rounded):
    before = {path: path.read_bytes() for path in model_of(rounded, 4).parent.iterdir()}
    content = record(rounded, "alias-tiny-x21", "checkpoint-4", stage="export").content
    rounded.manifest.remove("export", ("alias-tiny-x21", "checkpoint-4"))
    shutil.rmtree(model_of(rounded, 4).parent)
    assert rounded.export(steps=[4]).exported == ("alias-tiny-x21/checkpoint-4",)
    assert {path: path.read_bytes() for path in model_of(rounded, 4).parent.iterdir()} == before
    assert record(rounded, "alias-tiny-x21", "checkpoint-4", stage="export").content == content


def test_another_dtype_exports_again_what_is_chosen_and_nothing_twice(rounded):
    source = rounded.workspace.weights("alias-tiny-x21", 2) / "model.safetensors"
    rounded.choose(dtype="fp32")
    assert rounded.export(steps=[2]).exported == ("alias-tiny-x21/checkpoint-2",)
    assert model_of(rounded, 2).samefile(source)
    assert not (rounded.workspace.export("alias-tiny-x21", 2) / "README.md").read_text().count("Rounded")
    assert load_file(model_of(rounded, 4))["transformer.wte.weight"].dtype == torch.bfloat16
    assert len(rounded.export().exported) == 2
    assert rounded.export().exported == ()
    assert problems(rounded) == ""


def test_the_dtype_is_a_choice_of_two(tmp_path, trained):
    assert load_experiment(str(tmp_path / "tiny.yaml")).export.dtype == "fp32"
    with pytest.raises(Exception, match=r"export\.dtype: found 'fp16', expected"):
        load_experiment(str(tmp_path / "tiny.yaml"), ("export.dtype=fp16",))


# --- verify -----------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_and_a_flipped_bit(rounded):
    assert problems(rounded) == ""
    flip_a_bit(model_of(rounded, 2))
    assert problems(rounded).startswith("exports/alias-tiny-x21/checkpoint-2/model.safetensors: found sha256")


def replace_tensors(trained, step: int, path: Path) -> None:
    """Other tensors in an exported folder, under a record that fits them."""
    old = record(trained, "alias-tiny-x21", f"checkpoint-{step}", stage="export")
    model_of(trained, step).unlink()
    shutil.copyfile(path, model_of(trained, step))
    forge(trained, old, files=files_in(trained, model_of(trained, step).parent))


def test_rounded_tensors_of_another_step_are_found_under_a_record_that_fits(rounded):
    replace_tensors(rounded, 2, model_of(rounded, 4))
    assert "export/checkpoint alias-tiny-x21/checkpoint-2: found other tensors than those of" in problems(rounded)


def test_a_single_bit_that_rounding_does_not_give_is_found_under_a_record_that_fits(rounded, tmp_path):
    tensors = load_file(model_of(rounded, 2))
    tensors["transformer.h.1.mlp.c_fc.bias"].view(torch.int16)[3] ^= 1
    save_file(tensors, tmp_path / "other.safetensors", metadata={"format": "pt"})
    replace_tensors(rounded, 2, tmp_path / "other.safetensors")
    [problem] = problems(rounded).splitlines()
    assert "rounded to bf16 (transformer.h.1.mlp.c_fc.bias), expected the same" in problem


def test_fp32_tensors_that_claim_to_be_rounded_are_found(rounded):
    replace_tensors(rounded, 2, rounded.workspace.weights("alias-tiny-x21", 2) / "model.safetensors")
    assert "alias-tiny-x21/checkpoint-2: found other tensors" in problems(rounded)


# --- copies -----------------------------------------------------------------------------------------------------


def test_a_copy_has_the_bytes_and_the_hash_of_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr("mistral.tensorfiles.os.link", lambda *_: (_ for _ in ()).throw(OSError("cross-device")))
    monkeypatch.setattr("mistral.tensorfiles.BLOCK_BYTES", 1000)
    for size in (0, 1, 999, 1000, 1001, 12345):
        source, target = tmp_path / f"source-{size}", tmp_path / f"target-{size}"
        source.write_bytes(np.random.default_rng(size).bytes(size))
        assert link_or_copy(source, target) == sha256_of(source)
        assert target.read_bytes() == source.read_bytes()


def test_a_source_that_changes_while_it_is_copied_is_refused(trained, monkeypatch):
    run = trained.train("alias", [0])
    (trained.workspace.weights(run, 0) / "model.safetensors").chmod(0o644)

    def refuse(source, target):
        if Path(target).name == "model.safetensors":
            flip_a_bit(Path(source))
            raise OSError("cross-device")

    monkeypatch.setattr("mistral.tensorfiles.os.link", refuse)
    with pytest.raises(Findings, match="copied bytes with sha256"):
        trained.export()
    assert not trained.manifest.names("export", (run,))
