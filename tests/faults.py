"""calls of the file system by this process -> errors in chosen ones, as a broken or full disk gives them.

An audit hook sees most calls before the kernel does, and may raise; stat, lstat and fsync have no audit event and are
wrapped. The code under test runs as it is.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

AUDITED = ("open", "os.scandir", "os.listdir", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
WRAPPED = ("stat", "lstat", "fsync")
Choose = Callable[[str, str], int | None]  # name of a call and its path -> errno, or None to let it through

_choose: list[Choose] = []  # the innermost is asked
_installed: list[bool] = []


@contextlib.contextmanager
def faults(choose: Choose) -> Iterator[None]:
    """Let the calls fail that are chosen."""
    _install()
    _choose.append(choose)
    try:
        yield
    finally:
        _choose.remove(choose)


def at(event: str, code: int, name: str) -> Choose:
    """Every call of a kind on a path that ends with a name."""
    return lambda call, path: code if call.removeprefix("os.") == event and path.endswith(name) else None


def _install() -> None:
    """Look at the calls of this process from now on; a hook cannot be taken away again."""
    if _installed:
        return
    _installed.append(True)
    sys.addaudithook(_audited)
    for name in WRAPPED:
        setattr(os, name, _wrapped(name, getattr(os, name)))


def _audited(event: str, arguments: tuple[Any, ...]) -> None:
    if _choose and event in AUDITED:
        _ask(event, arguments[0])


def _wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def ask_and_call(path: Any, *arguments: Any, **options: Any) -> Any:
        if _choose:
            _ask(name, path)
        return call(path, *arguments, **options)

    return ask_and_call


def _ask(event: str, path: Any) -> None:
    """Raise what was chosen; the calls that are made meanwhile are not looked at."""
    choose, asked = _choose[-1], _choose[:]
    _choose.clear()
    try:
        text = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fsdecode(path)
        code = choose(event, text)
    finally:
        _choose.extend(asked)
    if code is not None:
        raise OSError(code, os.strerror(code), text)
