"""bytes -> files that are whole or absent: write beside, fsync, rename; sha256; canonical JSON."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mistral.errors import MistralError, StorageError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PRIVATE = 0o600  # the mode of what safetensors and tempfile write, whatever the umask is


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8 (the form that is hashed).

    Raises:
        ValueError: a number is not finite, a text has no UTF-8 form, or a key is not text (JSON would turn it into
            text, which sorts elsewhere once it is read back).
    """
    _refuse_other_keys(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _refuse_other_keys(value: Any) -> None:
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"found the key {wrong[0]!r} in a value for JSON, expected text")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            _refuse_other_keys(inner)


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
        ValueError: it is not JSON, or nested too deeply to read.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into one StorageError that names the file and the free space.

    Libraries report a full disk in their own ways (h5py and safetensors as text inside another exception), so
    an exception that mentions it counts as well.
    """
    try:
        yield
    except MistralError:
        raise
    except OSError as error:
        raise _storage_error(path, error) from error
    except Exception as error:
        if any(text in str(error) for text in ("No space left on device", "Disk quota exceeded", "File too large")):
            raise _storage_error(path, OSError(errno.ENOSPC, "No space left on device")) from error
        raise


# There is no such file, or a folder in its place. All other errors say nothing about the file.
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one StorageError that names the file and the errno.

    That a file is not there, or is a folder, is an answer: these errors pass as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno in ABSENT:
            raise
        name = errno.errorcode.get(error.errno or 0, f"errno {error.errno}")
        raise StorageError(
            f"cannot read {path}: {error.strerror or error} ({name}), expected a file system that answers; nothing was "
            "changed\n  check its permissions and the file system, then run the same command again"
        ) from error


def _storage_error(path: Path, error: OSError) -> StorageError:
    folder = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    room, reason = os.statvfs(folder), error.strerror or str(error)
    left = f"{room.f_bavail * room.f_frsize / 1e6:,.1f} MB free on its file system"
    advice = "make room, then run the same command again: everything recorded so far is whole"
    if error.errno not in FULL and "No space left" not in str(error):
        advice = "check the path, its permissions and the file system, then run the same command again"
    elif room.f_files and not room.f_favail and room.f_bavail:
        left += f", but none of its {room.f_files:,} inodes, of which each file and folder takes one"
        advice = (
            "remove files there, or get more inodes (df -i shows them), then run the same command again: everything "
            "recorded so far is whole"
        )
    return StorageError(f"cannot write {path}: {reason} ({left}).\n  {advice}")


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def finish_file(path: Path) -> None:
    """Make a file durable and, if a library made it private, as readable as the umask lets any other file be."""
    if stat.S_IMODE(path.stat().st_mode) == PRIVATE:
        path.chmod(_mode_of_new_files(path))
    fsync_file(path)


def _mode_of_new_files(path: Path) -> int:
    """The mode that open(2) gives a file beside a path: by the umask, or by the default ACL of the folder."""
    example = temporary_beside(path)
    try:
        with example.open("xb") as file:
            return stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        example.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no other process uses and that no reader takes for a result."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well it is durable and takes `path`'s place."""
    make_folder(path.parent)
    temporary = temporary_beside(path)
    try:
        with storage_errors(path):
            yield temporary
            finish_file(temporary)
            temporary.replace(path)
            fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file by `data`: readers see the old bytes or the new ones, never a part."""
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


def publish_bytes(path: Path, data: bytes) -> bool:
    """Create a file that must not exist yet; False if it exists already, in which case it stays as it is.

    link(2) creates the name in one step and never overwrites, also over NFS.
    """
    make_folder(path.parent)
    temporary = temporary_beside(path)
    try:
        with storage_errors(path):
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
                created = True
            except FileExistsError:  # over NFS also when the answer to our own link was lost
                created = path.samefile(temporary)
            fsync_folder(path.parent)
            return created
    finally:
        temporary.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it, if it is there and stays there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
