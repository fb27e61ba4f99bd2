"""A resumed run never repeats or loses a line."""

import json
from pathlib import Path

import pytest

from mistral.errors import StorageError
from mistral.metrics import Metrics, read_metrics


def line(step: int) -> dict:
    return {"step": step, "loss": 1.0 / step, "timing": {"seconds": 0.1}}


def test_a_resume_drops_later_lines_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, tmp_path / "tensorboard", 0) as metrics:
        for step in range(1, 6):
            metrics.log(line(step))
        metrics.make_durable()
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lo')
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3, 4, 5]
    with Metrics(path, tmp_path / "tensorboard", 3) as metrics:
        metrics.log(line(4))
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["metrics", "curves"])
def test_a_full_disk_is_told_with_advice(tmp_path, monkeypatch, what):
    from torch.utils.tensorboard import SummaryWriter

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"No space left on device(.|\n)*run the same command again"):  # noqa: SIM117
        with Metrics(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0) as metrics:
            if what == "metrics":
                metrics._file.close()
                metrics._file = Path("/dev/full").open("ab")  # noqa: SIM115  metrics closes it
            else:
                monkeypatch.setattr(SummaryWriter, "add_scalar", refuse)
            metrics.log(line(1))


def test_curves_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0) as metrics:
        metrics.log(line(1))
        metrics.log({"step": 1, "evaluation": {"validation": {"loss": 2.0, "perplexity": 7.4}}})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "timing/seconds", "evaluation/validation/perplexity"} <= set(events.Tags()["scalars"])
