"""A resumed run never repeats or loses a line."""

import json
from pathlib import Path

import pytest

from mistral.errors import CheckpointError, StorageError
from mistral.metrics import Metrics, metrics_digest, metrics_problems, parse_line, read_metrics


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


DAMAGE = [b"{broken", b"[1]", b"7", b"null", b"\xff\x00", b"{}", b'{"step": "3", "loss": 1.0}', b'{"step": 3}']
DAMAGE += [
    b'{"step": 3, "loss": "1.0"}',
    b'{"step": true, "loss": 1.0}',
    b'{"step": 3, "evaluation": {"validation": 1.0}}',
]
DAMAGE += [b'{"step": 3, "loss": 1.0, "timing": 0}', b"[" * 100_000]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_line_is_named_where_it_matters_and_only_there(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps(line(step)).encode() for step in (1, 2, 3, 4)]
    path.write_bytes(b"\n".join([*good[:2], damage, *good[3:], b""]))
    assert parse_line(damage) is None
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 3: found something else than a measurement"):
        list(read_metrics(path))
    with pytest.raises(CheckpointError, match="line 3"):
        Metrics(path, tmp_path / "tensorboard", 4)
    assert len(path.read_bytes().splitlines()) == 4, "what a resume refuses stays as it is"
    path.write_bytes(b"\n".join([*good, damage, b""]))
    assert [entry["step"] for entry in read_metrics(path, 3)] == [1, 2, 3]
    with Metrics(path, tmp_path / "tensorboard", 3):
        assert path.read_bytes() == b"\n".join([*good[:3], b""])


def test_a_start_from_step_0_needs_no_former_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with Metrics(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0) as metrics:
        metrics.log(line(1))
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [line(1)]


def evaluation(step: int) -> dict:
    return {"step": step, "evaluation": {"validation": {"loss": 2.0, "perplexity": 7.4}}}


@pytest.mark.parametrize(
    ("lines", "every", "last_step", "expected"),
    [
        ([line(2), line(4), evaluation(4), line(6), line(8)], 2, 6, []),
        ([line(1), line(3), line(10)], None, 10, []),
        ([line(2), line(4)], 2, 7, ["found no line of 1 step (6), expected one every 2 steps up to 7"]),
        ([], 1, 9, ["found no line of 9 steps (1, 2, 3, 4, 5, ...)"]),
        ([line(2), line(2)], 2, 2, ["line 2: found a loss of step 2 again"]),
        ([line(2), evaluation(2), evaluation(2)], 2, 2, ["line 3: found an evaluation of step 2 again"]),
        ([line(4), line(2)], 2, 4, ["line 2: found step 2 after step 4"]),
    ],
)  # fmt: skip
def test_repeated_misplaced_and_missing_steps_are_told(tmp_path, lines, every, last_step, expected):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    problems = metrics_problems(path, every, last_step)
    assert len(problems) == len(expected)
    assert all(text in problem for text, problem in zip(expected, problems, strict=True))


def test_the_digest_covers_what_no_clock_decides(tmp_path):
    slower = line(1) | {"timing": {"seconds": 9.9}, "memory": {"host_gigabytes": 3.0}}
    assert metrics_digest([line(1)]) == metrics_digest([slower]) != metrics_digest([line(2)])
