"""tasks -> processes on this machine, and the ranks of a task; signals go to the children, none outlives its parent."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mistral.errors import Stopped

PARENT = "MISTRAL_PARENT_PID"
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
# How long the other ranks may take to end by themselves once one has stopped in order, or has failed.
PATIENCE_SECONDS = {Stopped.exit_code: 30.0}
PATIENCE_AFTER_FAILURE_SECONDS = 3.0


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies, however it dies (Linux, prctl(2))."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


class EndsAtOnce(contextlib.ContextDecorator):
    """Let a process that has trained, or was told to stop, end as soon as the command line has set its exit code.

    Threads of its process group outlive the interpreter, and one that asks for it while it is taken down aborts the
    process (seen on a loaded machine: exit code -6 after everything was saved). And who presses Ctrl-C does not wait
    for threads that hash large files.
    """

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, end: BaseException | None, trace: object) -> None:
        code = getattr(end, "code", None)
        if isinstance(code, int) and ("deepspeed" in sys.modules or code == Stopped.exit_code):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command that runs this program again."""
    return [sys.executable, "-m", "pipeline.cli", *arguments]


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int  # a negative number is a signal, as subprocess gives it
    killed_here: bool = False  # by this program, as another one had failed


def killed_by(number: int) -> str:
    """`killed by signal 9 (out of memory?)`."""
    return f"killed by signal {number}" + (" (out of memory?)" if number == signal.SIGKILL else "")


def run_together(command: Sequence[str], environments: Sequence[dict[str, str]]) -> list[int]:
    """As `run_ranks`; returns exit codes only."""
    return [end.code for end in run_ranks(command, environments)]


def run_ranks(command: Sequence[str], environments: Sequence[dict[str, str]]) -> list[End]:
    """Run one process per environment and wait for all of them; what they print goes to stderr.

    Signals that ask to stop are passed on; those that come while the processes are started wait until all of them are.
    When one process fails, the others are ended: they would wait for it in a collective for ever.

    Returns:
        how each ended, in order.

    Raises:
        Stopped: a signal came, and the processes had done their work all the same.
    """
    parent = {PARENT: str(os.getpid())}
    children: list[subprocess.Popen[bytes]] = []
    received: list[tuple[int, int]] = []  # a signal, and how many processes it was passed on to

    def forward(number: int, frame: FrameType | None) -> None:
        received.append((number, len(children)))
        _send(children, number)

    former: dict[int, Any] = {}
    try:
        with signals_held():
            former.update({number: signal.signal(number, forward) for number in FORWARDED})
            for environment in environments:
                children.append(subprocess.Popen(command, stdout=2, env={**os.environ, **parent, **environment}))
            for number, told in list(received):  # another thread of this process took them
                _send(children[told:], number)
        ends = _wait_for(children)
    finally:
        with signals_held():
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            for number, handler in former.items():
                signal.signal(number, handler)
    if received and not any(end.code for end in ends):
        _stop(received[0][0], None)
    return ends


def _send(children: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let the signals that ask to stop wait. A process that is started meanwhile begins with them held: `listen`."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def listen() -> None:
    """Take the signals that came since `run_ranks` started this process; its handlers are in place now."""
    if PARENT in os.environ:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _wait_for(children: list[subprocess.Popen[bytes]]) -> list[End]:
    deadline, killed = None, frozenset[int]()
    while True:
        codes = [child.poll() for child in children]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(children):
            return [End(code, number in killed) for number, code in enumerate(ended)]
        if any(ended) and deadline is None:
            worst = next(code for code in ended if code)
            deadline = time.monotonic() + PATIENCE_SECONDS.get(worst, PATIENCE_AFTER_FAILURE_SECONDS)
        if deadline is not None and time.monotonic() > deadline:
            killed |= {number for number, code in enumerate(codes) if code is None}
            for child in children:
                child.kill()
        time.sleep(0.05)


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """What each of `ranks` processes on this machine needs to find the others."""
    port = free_port()
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared, **address} for rank in range(ranks)]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


RECEIVED: list[str] = []  # the signals that asked this process to stop, in the order in which they came


def signals_received() -> list[str]:
    """`SIGUSR2`, `SIGTERM`, ...: what asked this process to stop."""
    return list(RECEIVED)


class StopFlag:
    """Raised by SIGINT, SIGTERM or SIGUSR2; the training loop looks at it between two steps.

    It is up from the start if a signal came before: a library that was being imported may have caught its exception.
    """

    def __init__(self) -> None:
        self.raised = bool(RECEIVED)
        self._former = {number: signal.signal(number, self._raise) for number in FORWARDED}

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.raised

    def _raise(self, number: int, frame: FrameType | None) -> None:
        RECEIVED.append(signal.Signals(number).name)
        self.raised = True

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)


def stop_on_sigterm() -> None:
    """Make SIGTERM and SIGUSR2 end this process in order, like Ctrl-C, wherever no StopFlag is up."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """Let a process that is leaving anyway tell why, without being interrupted."""
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    RECEIVED.append(signal.Signals(number).name)
    raise Stopped(f"stopped by {signal.Signals(number).name}\n  run the same command to go on")


# --- who owns a run ---------------------------------------------------------------------------------------------


def process_owner() -> dict[str, Any]:
    """This process, as a lease names it."""
    pid = os.getpid()
    return {
        "kind": "local",
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": pid,
        "start_time": _start_time(pid),
    }


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the process that a lease names still runs; None if it ran on another machine."""
    if owner.get("kind") != "local" or owner.get("host") != socket.gethostname():
        return None
    if owner.get("boot_id") != _boot_id():
        return False
    if not isinstance(owner.get("pid"), int):  # its file was edited
        return None
    return _start_time(owner["pid"]) == owner.get("start_time")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot at which a process began; None if it does not run or is a zombie (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])
