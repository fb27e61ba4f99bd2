"""Progress is a bar on a terminal and a plain line now and then elsewhere; both tell the same."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import time

import pytest

from mistral.numbers import counted, duration, number, pace
from pipeline import reporter
from pipeline.reporter import Reporter


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that the test moves."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(reporter.time, "monotonic", lambda: Clock.now)
    return Clock


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


@pytest.fixture
def terminal():
    """Draws on a real pseudo-terminal, and hands back what it showed."""
    master, slave = pty.openpty()

    def shown(draw) -> str:
        with os.fdopen(slave, "w", encoding="utf-8") as stream:
            draw(Reporter(stream))
        parts = []
        with contextlib.suppress(OSError):  # EIO: the other end is closed and everything was read
            while part := os.read(master, 4096):
                parts.append(part)
        return b"".join(parts).decode().replace("\r\n", "\n")

    yield shown
    os.close(master)


def test_elsewhere_a_line_every_30_seconds(clock):
    stream = io.StringIO()
    progress = Reporter(stream)
    progress.start("train alias", 100, "steps")
    for _ in range(90):
        clock.now += 1
        progress.advance(1, loss=3.25)
    assert lines(stream) == [
        "train alias: 0 of 100 steps",
        "train alias: 30 of 100 steps, 1 step/s, loss 3.25, 70 s left",
        "train alias: 60 of 100 steps, 1 step/s, loss 3.25, 40 s left",
        "train alias: 90 of 100 steps, 1 step/s, loss 3.25, 10 s left",
    ]
    clock.now += 5
    progress.advance(10, loss=2.5)
    progress.finish()
    assert lines(stream)[4:] == ["train alias: 100 of 100 steps, 1.05 steps/s, loss 2.5"]


def test_what_was_found_finished_is_not_counted_as_speed(clock):
    stream = io.StringIO()
    progress = Reporter(stream)
    progress.start("export", 100, "checkpoints", done=90)
    clock.now += 30
    progress.advance(3)
    assert lines(stream) == [
        "export: 90 of 100 checkpoints",
        "export: 93 of 100 checkpoints, 10 s/checkpoint, 70 s left",
    ]


def test_pieces_of_work_follow_each_other_and_share_nothing(clock):
    stream = io.StringIO()
    progress = Reporter(stream)
    progress.start("one", 2, "units")
    clock.now += 40
    progress.advance(2, loss=1.0)
    progress.finish()
    progress.start("two", 2, "units")
    clock.now += 40
    progress.advance()
    progress.say("a word")
    progress.finish()
    progress.finish()
    assert [line for line in lines(stream) if line.startswith("two")] == [
        "two: 0 of 2 units",
        "two: 1 of 2 units, 40 s/unit, 40 s left",
        "two: 1 of 2 units, 40 s/unit, 40 s left",
    ]
    assert "a word" in lines(stream)


def test_work_that_ends_at_once_is_told(clock):
    stream = io.StringIO()
    progress = Reporter(stream)
    progress.start("verify", 1, "MB")
    progress.finish()
    assert lines(stream) == ["verify: 0 of 1 MB", "verify: 0 of 1 MB"]
    progress.start("recompute", 0, "runs")
    progress.finish()
    assert len(lines(stream)) == 2, "nothing is said of no work"


def test_lines_are_shown_at_once(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as stream:  # buffered, as stderr of a job may be
        Reporter(stream).say("saved")
        assert path.read_text() == "saved\n"


def test_progress_goes_to_stderr_and_results_alone_to_stdout(capsys):
    progress = Reporter()
    progress.start("train", 1, "steps")
    progress.advance()
    progress.finish()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 2


def test_a_terminal_shows_a_bar_with_facts_and_a_word_stands_on_its_own_line(terminal):
    def draw(progress: Reporter) -> None:
        progress.start("train alias", 10, "steps", done=4)
        for _ in range(3):
            time.sleep(0.11)  # tqdm draws ten times a second
            progress.advance(1, loss=3.14159)
        progress.say("saved a state")
        progress.advance(3, loss=2.0)
        progress.finish()
        progress.say("the end")

    screen = terminal(draw)
    bars = re.findall(r"train alias: +(\d+)%\|[^|]*\| (\d+)/10 \[([^\]]*)\]", screen)
    assert bars[0][:2] == ("40", "4")
    assert any(done == "6" and "loss=3.142" in facts for _, done, facts in bars)
    assert bars[-1][:2] == ("100", "10")
    assert "loss=2" in bars[-1][2]
    assert "\rsaved a state\n" in screen
    assert screen.endswith("\nthe end\n")


def test_each_piece_of_work_leaves_one_bar(terminal):
    def draw(progress: Reporter) -> None:
        for name in ("train", "export"):
            progress.start(name, 10, "units")
            progress.advance(5)
            progress.finish()
            progress.finish()

    *lines, rest = terminal(draw).split("\n")
    assert rest == ""
    left = [line.rpartition("\r")[2] for line in lines]
    assert [re.sub(r"%\|.*\|", "%", line).split(" [")[0] for line in left] == ["train:  50% 5/10", "export:  50% 5/10"]


def test_what_the_work_waits_for_is_told_at_least_every_30_seconds(clock):
    stream = io.StringIO()
    progress = Reporter(stream)
    progress.start("push crfm/alias", 10, "revisions")
    progress.advance(2)
    for second in range(95):
        clock.now += 1
        progress.waiting(f"no answer yet after {second + 1} s")
    assert [line.rpartition("; ")[2] for line in lines(stream)[1:]] == [
        "no answer yet after 29 s", "no answer yet after 58 s", "no answer yet after 87 s"
    ]  # fmt: skip
    progress.finish()
    for second in range(30):
        clock.now += 1
        progress.waiting(f"collecting, {second + 1} s")
    assert lines(stream)[-1] == "collecting, 29 s", "also between two pieces of work"


def test_the_time_left_is_never_less_than_what_the_work_expects(clock):
    stream = io.StringIO()
    progress = Reporter(stream)
    progress.start("push crfm/alias", 100, "revisions")
    progress.expect(7200)
    for _ in range(30):
        clock.now += 1
        progress.advance(1)
    assert lines(stream)[-1] == "push crfm/alias: 30 of 100 revisions, 1 revision/s, 120 min left"


def test_the_bar_of_a_terminal_tells_the_time_left_that_the_work_expects_and_what_it_waits_for(terminal):
    def draw(progress: Reporter) -> None:
        progress.start("push crfm/alias", 100, "revisions")
        progress.expect(7200.5)
        progress.advance(50)
        progress.waiting("120 commits in the last hour")
        progress.finish()

    shown = terminal(draw)
    assert "<2:00:00" in shown
    assert "120 commits in the last hour" in shown


def test_a_bar_of_small_files_ends_at_a_hundred_percent_and_tells_slow_and_fast_work_in_plain_numbers(terminal):
    def draw(progress: Reporter) -> None:
        progress.start("verify", 0.6, "MB")
        for size in (0.1, 0.2, 0.3):  # which are 0.6000000000000001
            time.sleep(0.11)
            progress.advance(size)
        progress.finish()

    last = terminal(draw).rstrip("\n").rpartition("\r")[2]
    assert re.match(r"verify: 100%\|[^|]*\| 1/1 \[", last)


@pytest.mark.parametrize(
    ("amount", "seconds", "unit", "told"),
    [
        (3, 3.36, "checkpoints", "1.12 s/checkpoint"),
        (49_900, 1, "MB", "49,900 MB/s"),
        (1, 1, "steps", "1 step/s"),
        (1, 4, "MB", "0.25 MB/s"),
        (0, 9, "units", ""),
        (5, 7200, "revisions", "1,440 s/revision"),
    ],
)
def test_a_pace_has_no_exponent_and_its_unit_the_right_number(amount, seconds, unit, told):
    assert pace(amount, seconds, unit) == told


def test_counts_and_durations_are_those_that_people_say():
    assert [counted(n, "units") for n in (0, 1, 2, 1200)] == ["0 units", "1 unit", "2 units", "1,200 units"]
    assert [number(value) for value in (1.0, 0.9999, 12.345, 999.4, 1000, 49_900.0)] == [
        "1", "1", "12.3", "999", "1,000", "49,900",
    ]  # fmt: skip
    assert [duration(s) for s in (0.4, 119, 121, 7199, 12_000)] == ["0 s", "119 s", "2 min", "120 min", "3 h 20 min"]


@pytest.mark.parametrize("columns", [80, 160])
def test_the_bar_of_a_long_run_fits_into_the_terminal(terminal, columns):
    def draw(progress: Reporter) -> None:
        size = struct.pack("HHHH", 50, columns, 0, 0)
        fcntl.ioctl(progress._stream.fileno(), termios.TIOCSWINSZ, size)
        progress.start("train alias-gpt2-small-x21", 400_000, "steps", done=120_000)
        time.sleep(0.11)
        progress.advance(3, loss=3.14159)
        progress.finish()

    last = terminal(draw).rstrip("\n").rpartition("\r")[2]
    assert len(last) <= columns
    assert re.match(
        r"train alias-gpt2-small-x21:  30%\|.*left, [\d.]+ steps/s, loss=3.142\]$"
        if columns == 80
        else r"train alias-gpt2-small-x21:  30%\|.*\| 120,003/400,000 \[.*<.*, [\d.]+ steps/s, loss=3.142\]$",
        last,
    )
