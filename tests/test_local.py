"""Processes of this machine: none outlives its parent, a failed rank ends the others, an owner's life is seen."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mistral.errors import DeadRank, Findings, LostRanks, MistralError, Stopped
from pipeline import local
from pipeline.train import lost_connections_told, report_ranks


def gone(pid: int) -> bool:
    return local._start_time(pid) is None


def test_a_child_does_not_outlive_its_killed_parent():
    child = (
        "from pipeline.local import die_with_parent; die_with_parent(); import time; "
        "print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys\nos.environ['MISTRAL_PARENT_PID'] = str(os.getpid())\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "p.stdout.readline(); print(p.pid, flush=True)\nimport time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert not gone(pid)
        process.kill()
    end = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_failed_rank_ends_the_others():
    script = "import os, sys, time\nsys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    start = time.monotonic()
    codes = local.run_together([sys.executable, "-c", script], local.rank_environments(2))
    assert codes == [-signal.SIGKILL, 7]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "before the first is started"),
        (signal.SIGTERM, "as the second starts"),
        (signal.SIGTERM, "while they start up"),
        (signal.SIGUSR2, "while they start up"),
        (signal.SIGINT, "while they start up"),
    ],
)
def test_a_signal_that_comes_while_ranks_are_started_stops_all_of_them(tmp_path, monkeypatch, number, moment):
    """It is sent before any of them could have a handler: one that it ends by default is -15, one it misses is 3."""

    class Popen(subprocess.Popen):
        started = 0

        def __init__(self, *arguments, **options):
            if moment == "before the first is started" and not Popen.started:
                os.kill(os.getpid(), number)
            Popen.started += 1
            super().__init__(*arguments, **options)
            if moment == "as the second starts" and Popen.started == 2:  # which is not known as a child yet
                os.kill(os.getpid(), number)

    def wait_for(children):
        if moment == "while they start up":
            os.kill(os.getpid(), number)
        return codes_of(children)

    codes_of = local._wait_for
    monkeypatch.setattr(local, "_wait_for", wait_for)
    monkeypatch.setattr(subprocess, "Popen", Popen)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    verify = local.command_line(("verify", "--workspace", str(tmp_path)))
    assert local.run_together(verify, local.rank_environments(2)) == [Stopped.exit_code] * 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


ENDED_HERE = local.End(-signal.SIGKILL, killed_here=True)


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ([local.End(75), local.End(LostRanks.exit_code)], Stopped),
        ([ENDED_HERE, local.End(75)], Stopped),
        ([local.End(75), local.End(3)], Findings),
        ([local.End(75), local.End(-9)], DeadRank),
    ],
)
def test_ranks_that_lose_one_that_was_stopped_are_stopped_and_did_not_fail(ends, outcome):
    with pytest.raises(outcome):
        report_ranks("alias-tiny-x21", ends)


def test_a_signal_that_comes_as_the_last_rank_ends_is_not_lost(monkeypatch):
    """So that the next seed is not begun."""
    monkeypatch.setattr(local, "RECEIVED", [])
    script = f"import os, signal, sys; os.kill({os.getpid()}, signal.SIGTERM)"
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        local.run_together([sys.executable, "-c", script], [{}])


def test_a_flag_is_up_from_the_start_if_a_signal_came_before(monkeypatch):
    monkeypatch.setattr(local, "RECEIVED", ["SIGTERM"])
    flag = local.StopFlag()
    flag.restore()
    assert flag()


@pytest.mark.parametrize(
    ("fates", "kind", "told"),
    [
        (["sys.exit(76)", "os.kill(os.getpid(), 9)"], DeadRank, "rank 1 was killed by signal 9 (out of memory?);"),
        (["time.sleep(60)", "os.kill(os.getpid(), 9)"], DeadRank, "rank 1 was killed by signal 9 (out of memory?);"),
        (["sys.exit(76)", "time.sleep(60)"], DeadRank, "rank 1 did not answer the others, and was ended;"),
        (["sys.exit(76)", "sys.exit(1)"], MistralError, "rank 1 failed with exit code 1;"),
        (["sys.exit(76)", "sys.exit(3)"], Findings, "rank 1 failed with exit code 3;"),
        (["sys.exit(76)", "sys.exit(75)"], Stopped, "stopped with everything saved"),
    ],
)
def test_the_rank_that_ended_first_is_named_and_not_those_that_lost_it(monkeypatch, fates, kind, told):
    monkeypatch.setattr(local, "PATIENCE_AFTER_FAILURE_SECONDS", 0.2)
    script = f"import os, sys, time\nexec({fates!r}[int(os.environ['RANK'])])"
    ends = local.run_ranks([sys.executable, "-c", script], local.rank_environments(2))
    with pytest.raises(MistralError) as caught:
        report_ranks("alias-tiny-x21", ends)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"alias-tiny-x21: {told}")


def test_what_gloo_says_of_a_lost_rank_has_no_pictures():
    with pytest.raises(LostRanks) as caught, lost_connections_told(0):
        raise RuntimeError("\U0001f6a8 [pair.cc:547] Connection closed by peer \u26a0\nmore")
    assert str(caught.value).isascii()
    assert "Connection closed by peer" in str(caught.value)


def test_a_process_that_has_trained_ends_with_its_code_and_takes_no_interpreter_down(tmp_path):
    script = (
        "import atexit, sys\nfrom pipeline.cli import main\nsys.modules['deepspeed'] = sys\n"
        "atexit.register(print, 'the interpreter was taken down')\n"
        f"sys.argv = ['mistral-pipeline', 'verify', '--workspace', {str(tmp_path)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "found no record" in done.stdout
    assert "taken down" not in done.stdout


def test_the_life_of_an_owner_is_seen():
    assert local.is_alive(local.process_owner()) is True
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = {**local.process_owner(), "pid": process.pid, "start_time": local._start_time(process.pid)}
        assert local.is_alive(owner) is True
        process.kill()
        time.sleep(0.2)  # a zombie until it is waited for
        assert local.is_alive(owner) is False
    assert local.is_alive({**owner, "pid": os.getpid()}) is False  # the number given to another process
    assert local.is_alive({**owner, "host": "elsewhere"}) is None
    assert local.is_alive({**owner, "boot_id": "before"}) is False
