"""The command line publishes and compares; the token is in no file, line or record."""

import json
import os
import subprocess
import sys

import pytest
from corpora import ROOT
from hub_server import serving
from hub_uploads import Fault, Handler, Hub
from published import ALIAS, TOKEN

from mistral.config import load_experiment
from mistral.errors import ConfigError, EnvironmentProblem, ManifestError
from mistral.progress import Silent
from pipeline.export import export
from pipeline.push import require_destination

ORGANIZATION = ("--set", "export.organization=crfm")


@pytest.fixture
def call(trained, tmp_path):
    """The command line as a user calls it, with a run of three checkpoints and a Hub."""
    trained.train("alias")
    trained.export()  # as `run` does, before anybody thinks of publishing
    hub = Hub(TOKEN)
    with serving(hub, Handler) as endpoint:

        def call(*arguments: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
            own = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            environment = {**os.environ, **own, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
            command, *options = arguments
            line = [sys.executable, "-m", "pipeline.cli", command, str(tmp_path / "tiny.yaml"), *options]
            line += ["--workspace", str(trained.workspace.root), "--debug"]
            return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

        yield call, hub


def test_a_run_is_exported_published_and_compared_and_the_token_is_told_nowhere(call, tmp_path):
    call, hub = call
    wrong = call("export", "--push", *ORGANIZATION, token="hf_wrong")
    assert wrong.returncode == 1
    assert "cannot create crfm/alias-tiny-x21: the Hub answered 401" in wrong.stderr
    hub.faults = [Fault("/commit/", "503"), Fault("/commit/", "drop-after"), Fault("/refs", "429"), Fault("PUT", "503")]
    pushed = call("export", "--push", "--json", *ORGANIZATION)
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout) == {
        "pushed": [f"{ALIAS}@{name}" for name in ("checkpoint-0", "checkpoint-2", "checkpoint-4", "main")],
        "already": 0,
        "registry": "published/tiny/models.json",
    }
    assert "503 Service Unavailable; attempt 2 of 8 in 1 s" in pushed.stderr
    assert "alias-tiny-x21: exporting 3 checkpoints again" in wrong.stderr
    card = hub.files(ALIAS)["checkpoint-2"]["README.md"].decode()
    assert 'from_pretrained("crfm/alias-tiny-x21", revision="checkpoint-2")' in card
    compared = call("verify", "--remote", "--quick", *ORGANIZATION)
    assert compared.returncode == 0, compared.stdout
    branches = hub.branches[f"models/{ALIAS}"]
    branches["checkpoint-2"] = branches["checkpoint-4"]
    swapped = call("verify", "--remote", "--quick", *ORGANIZATION)
    assert swapped.returncode == 3
    assert f"{ALIAS}@checkpoint-2: holds the model of alias-tiny-x21/checkpoint-4, expected" in swapped.stdout
    for done in (wrong, pushed, compared, swapped):
        assert TOKEN not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 30
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("export", "--push"), 1, r"ConfigError: export.organization: found none, expected"),
        (("export", "--push", "--set", "export.organization=a/b"), 1, "ConfigError: export.organization: found the"),
        (("export", "--push", "--task", "0", *ORGANIZATION), 2, "--push goes without --task"),
        (("export", "--push", "--cluster", "slurm-dev", *ORGANIZATION), 1, "EnvironmentProblem: HF_TOKEN: found none"),
        (("export", "--public"), 2, "--public with --push only"),
        (("verify", "--remote"), 1, "ConfigError: export.organization: found none, expected"),
    ],
)
def test_what_cannot_be_published_is_refused_before_any_work(tmp_path, trained, arguments, code, told):
    command, *options = arguments
    line = [sys.executable, "-m", "pipeline.cli", command, str(tmp_path / "tiny.yaml"), *options]
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert told in done.stderr
    assert not (trained.workspace.root / "exports").exists()


def test_a_published_revision_loads_as_its_users_load_it(exported, trained, tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    run, config = trained.train("alias"), load_experiment(str(tmp_path / "tiny.yaml"), ORGANIZATION[1:])
    export(config, trained.workspace, Silent())
    exported.experiment = config
    exported.push()
    for revision, step in (("checkpoint-2", 2), ("main", 4)):
        loaded = AutoModelForCausalLM.from_pretrained(
            ALIAS, revision=revision, token=TOKEN, cache_dir=tmp_path / "cache"
        )
        trained_tensors = load_file(trained.workspace.weights(run, step) / "model.safetensors")
        tensors = loaded.state_dict()
        assert len(trained_tensors) == len(tensors) - 1, "the head is tied to the embedding"
        assert all(torch.equal(tensors[name], tensor) for name, tensor in trained_tensors.items())


def test_without_a_token_nothing_is_asked_of_the_hub(exported, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    exported.export("alias", 0)
    with pytest.raises(EnvironmentProblem, match="HF_TOKEN: found none, expected"):
        exported.push()
    assert exported.hub.requests == []


def test_only_what_is_exported_for_this_organization_is_published(exported, tmp_path):
    with pytest.raises(ManifestError, match="found no exported folder of alias-tiny-x21, battlestar-tiny-x49"):
        exported.push()
    exported.export("alias", 0)
    with pytest.raises(ManifestError, match="found no exported folder of alias-tiny-x21/checkpoint-5"):
        exported.push(steps=[0, 5])
    with pytest.raises(ManifestError, match="found no exported folder of battlestar-tiny-x49"):
        exported.push(seeds=["alias", "battlestar"])
    exported.experiment = load_experiment(str(tmp_path / "tiny.yaml"), ("export.organization=other",))
    with pytest.raises(ManifestError, match=r"exported for another export\.organization"):
        exported.push()
    assert exported.hub.requests == []


def test_a_name_that_the_hub_refuses_is_told_at_once(exported, tmp_path):
    exported.export("alias", 0)
    long = load_experiment(str(tmp_path / "tiny.yaml"), (f"name={'x' * 64}", f"seeds={{{'y' * 64}: 1}}"))
    with pytest.raises(ConfigError, match="which the Hub refuses"):
        require_destination(long)
