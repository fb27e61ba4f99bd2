"""The real command line on a small corpus, from text to exported models, through kills and bad input."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def start(
    folder: Path,
    command: str,
    *arguments: str,
    workspace: str = "workspace",
    ranks: int = 1,
    experiment: str = "tiny.yaml",
    umask: int = -1,
) -> subprocess.Popen:
    line = [sys.executable, "-m", "pipeline.cli", command, str(folder / experiment), *arguments]
    line += ["--workspace", str(folder / workspace)]
    if command != "verify":
        line += ["--cluster", str(folder / f"ranks{ranks}.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, text=True, start_new_session=True, umask=umask, **pipes)


def run(folder: Path, command: str, *arguments: str, code: int = 0, **options) -> tuple[str, str]:
    process = start(folder, command, *arguments, **options)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    return output, errors


def weights_of(folder: Path, workspace: str = "workspace") -> dict[str, str]:
    root = folder / workspace / "runs"
    files = sorted(root.glob("*/checkpoints/*/model.safetensors"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def metrics_of(folder: Path, run_name: str, workspace: str = "workspace") -> list[dict]:
    path = folder / workspace / "runs" / run_name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("timing", "memory")} for line in lines]


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def modes(folder: Path) -> set[str]:
    """Of folders and of files, in octal."""
    return {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*")}


@pytest.mark.timeout(600)
def test_the_whole_line_survives_kills_with_the_same_bits(tiny):
    output, _ = run(tiny, "run", "--json", workspace="undisturbed", umask=0o027)
    assert modes(tiny / "undisturbed") == {"0o750", "0o640"}, "everything follows the umask"
    rows = json.loads(output)
    assert [row["seed"] for row in rows] == ["alias", "battlestar"]
    assert set(rows[0]) == {
        "seed", "steps", "train_loss", "validation_loss", "perplexity", "tokens_per_second", "exported",
    }  # fmt: skip
    assert all(Path(row["exported"]).is_dir() for row in rows)
    assert rows[0]["train_loss"] != rows[1]["train_loss"]

    metrics = tiny / "workspace/runs/alias-tiny-x21/metrics.jsonl"
    process = start(tiny, "run")
    wait_for(lambda: lines_in(metrics) >= 5, process)
    os.killpg(process.pid, signal.SIGKILL)  # the whole group, in mid-training
    process.communicate()
    process = start(tiny, "train", "--seed", "alias")
    wait_for(lambda: lines_in(metrics) >= 9, process)
    process.send_signal(signal.SIGTERM)  # in order: a state is saved
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    run(tiny, "run")

    expected, found = weights_of(tiny, "undisturbed"), weights_of(tiny)
    assert found == expected
    assert len(found) == 2 * 5  # steps 0, 2, 4, 8, 12
    assert len(set(found.values())) == 10  # the second seed differs, and so does every step
    for name in ("alias-tiny-x21", "battlestar-tiny-x49"):
        assert metrics_of(tiny, name) == metrics_of(tiny, name, "undisturbed")

    before = snapshot(tiny / "workspace")
    run(tiny, "run")
    assert snapshot(tiny / "workspace") == before, "a run with nothing to do changes no file"
    run(tiny, "run", experiment="workspace/runs/alias-tiny-x21/config.yaml")
    assert snapshot(tiny / "workspace") == before, "the config that a run keeps is that of the same run"

    output, _ = run(tiny, "verify")
    assert "no problems" in output
    for pattern in ("data/*/train/*.h5", "runs/*/checkpoints/*/model.safetensors", "runs/*/state/*/state.safetensors"):
        path = sorted((tiny / "workspace").glob(pattern))[-1]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        output, _ = run(tiny, "verify", code=3)
        assert path.relative_to(tiny / "workspace").as_posix() in output
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    run(tiny, "verify")


@pytest.mark.timeout(600)
def test_exported_models_load_offline_and_equal_the_trained_ones(tiny):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    run(tiny, "run", "--seed", "alias", "--set", "training.max_steps=4")
    trained = tiny / "workspace/runs/alias-tiny-x21/checkpoints/step-00000004"
    exported = tiny / "workspace/exports/alias-tiny-x21/checkpoint-4"
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(trained))
    model.load_state_dict(load_file(trained / "model.safetensors"), strict=False)
    model.tie_weights()
    ids = torch.arange(64).reshape(2, 32)
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, loaded.eval()(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.decode(tokenizer("To be, or not to be")["input_ids"]) == "To be, or not to be"
    assert (exported / "model.safetensors").stat().st_ino == (trained / "model.safetensors").stat().st_ino
    assert "alias-tiny-x21" in (exported / "README.md").read_text()
    output, _ = run(
        tiny, "generate", "--seed", "alias", "--prompt", "KING", "--tokens", "5", "--set", "training.max_steps=4"
    )
    assert "KING" in output


@pytest.mark.timeout(600)
def test_two_ranks_resume_with_the_same_bits_and_see_the_same_batches(tiny):
    run(tiny, "preprocess", workspace="a")
    run(tiny, "train", "--seed", "alias", ranks=2, workspace="a")
    metrics = tiny / "b/runs/alias-tiny-x21/metrics.jsonl"
    run(tiny, "preprocess", workspace="b")
    process = start(tiny, "train", "--seed", "alias", ranks=2, workspace="b")
    wait_for(lambda: lines_in(metrics) >= 6, process)
    children = subprocess.run(["pgrep", "-f", f"{tiny}/b.*--task"], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)  # one rank only
    process.communicate(timeout=60)
    assert process.returncode == 3
    run(tiny, "train", "--seed", "alias", ranks=2, workspace="b")
    assert weights_of(tiny, "a") == weights_of(tiny, "b")
    assert metrics_of(tiny, "alias-tiny-x21", "a") == metrics_of(tiny, "alias-tiny-x21", "b")
    _, errors = run(tiny, "train", "--seed", "battlestar", ranks=1, workspace="a", code=1)
    assert "world_size: was 2, is 1" in errors


@pytest.mark.timeout(600)
def test_bad_input_gets_a_clear_error_and_loses_nothing(tiny):
    _, errors = run(tiny, "train", code=1)
    assert "mistral-pipeline preprocess" in errors
    run(tiny, "preprocess")
    before = snapshot(tiny / "workspace")
    _, errors = run(tiny, "train", "--set", "training.global_batch_size=9", code=1)
    assert "multiple" in errors
    _, errors = run(tiny, "train", "--set", "training.global_batch_size=6", ranks=2, code=1)
    assert "use a multiple of 4" in errors
    _, errors = run(tiny, "train", "--set", "training.seq_len=64", code=1)
    assert "n_positions" in errors
    _, errors = run(tiny, "export", code=1)
    assert "mistral-pipeline train" in errors
    assert snapshot(tiny / "workspace") == before

    run(tiny, "preprocess", workspace="damaged")
    shard = next((tiny / "damaged").glob("data/*/train/*.h5"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    _, errors = run(tiny, "train", "--seed", "alias", workspace="damaged", code=1)
    assert shard.name in errors
    _, errors = run(tiny, "train", "--seed", "alias", "--set", "training.learning_rate=1e38", code=3)
    assert "expected a finite number" in errors
    _, errors = run(tiny, "train", "--seed", "alias", code=1)
    assert "training.learning_rate: was 1e+38, is 0.01" in errors


@pytest.mark.skipif(
    os.geteuid() != 0 and os.environ.get("CI") != "true",  # where it fails instead
    reason="only root can mount the small file system that this test fills",
)
def test_a_full_disk_is_told_and_nothing_half_written_counts(tiny):
    workspace = tiny / "small"
    workspace.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(workspace)], check=True)
    try:
        run(tiny, "preprocess", workspace="small")
        _, errors = run(tiny, "train", "--seed", "alias", workspace="small", code=1)
        assert "No space left on device" in errors
        assert "run the same command again" in errors
        run(tiny, "verify", workspace="small")
        subprocess.run(["mount", "-o", "remount,size=64m", str(workspace)], check=True)
        run(tiny, "train", "--seed", "alias", workspace="small")
        run(tiny, "verify", workspace="small")
    finally:
        subprocess.run(["umount", str(workspace)], check=True)
