"""The promises of corpus.py, readers.py and packing.py: every document once, or a clear refusal."""

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.config import Experiment, load_experiment
from mistral.corpus import Piece, Plan, SourceFile, plan_units
from mistral.documents import Bad
from mistral.errors import DataError
from mistral.readers import read_piece
from mistral.splitting import first_train_digest
from mistral.yamltext import write_yaml

CONFIG = Path(__file__).parent.parent / "conf" / "experiments" / "quickstart.yaml"


def experiment(folder: Path, source: dict[str, Any], **data: Any) -> Experiment:
    raw = load_experiment(str(CONFIG)).model_dump(mode="json")
    raw["data"] = {"name": "corpus", "source": source, "validation_fraction": 0, **data}
    (folder / "experiment.yaml").write_text(write_yaml(raw))
    return load_experiment(str(folder / "experiment.yaml"))


def plan(folder: Path, source: dict[str, Any], **data: Any) -> Plan:
    return plan_units(experiment(folder, source, **data), folder / "sources")


def read(planned: Plan, field: str = "text") -> list[str | Bad]:
    pieces = [piece for unit in planned.units for piece in unit.pieces]
    return [document for piece in pieces for document in read_piece(planned.files[piece.name], piece, field)]


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts))


TEXTS = [f"document {i}: " + "ä" * (i * 37 % 101) for i in range(50)]


def write_parquet(path: Path) -> None:
    table = pyarrow.table({"id": range(50), "text": TEXTS})
    pyarrow.parquet.write_table(table, path, row_group_size=7)


def zstd_frames(path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(json_lines(TEXTS[:20])) + compress(json_lines(TEXTS[20:])))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(json_lines(TEXTS)),
    "a.json": lambda path: path.write_bytes(json_lines(TEXTS)),
    "a.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress(json_lines(TEXTS[:9])) + gzip.compress(json_lines(TEXTS[9:]))
    ),
    "a.jsonl.zst": zstd_frames,
    "a.parquet": write_parquet,
    "a.txt": lambda path: path.write_text("\r\n\n".join(TEXTS), encoding="utf-8", newline=""),
    "a.md": lambda path: path.write_text("\n".join(TEXTS), encoding="utf-8"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_its_documents_in_order(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(plan(tmp_path, {"files": [f"*{Path(name).suffix}"], "document": "line"})) == TEXTS


def test_a_text_file_is_one_document_with_its_bytes_kept(tmp_path):
    text = "\ufeffone\r\n\r\n two\x00 \u2028"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(plan(tmp_path, {"files": ["*.txt"]})) == [text]


# --- units ------------------------------------------------------------------------------------------------------


def test_small_files_share_a_unit_and_a_compressed_stream_has_its_own(tmp_path):
    for name in ("b.txt", "a.txt", "d.md", "deep/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * 400_000)
    WRITERS["a.jsonl.gz"](tmp_path / "c.jsonl.gz")
    units = plan(tmp_path, {"files": ["**/*.txt", "*.gz", "*.md"]}, unit_megabytes=1).units
    assert [[piece.name for piece in unit.pieces] for unit in units] == [
        ["a.txt", "b.txt"],
        ["deep/x.txt"],
        ["c.jsonl.gz"],
        ["d.md"],
    ]
    assert [unit.name for unit in units] == ["00000", "00001", "00002", "00003"]


def test_a_large_file_of_lines_is_cut_into_units_of_about_equal_size(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x" * 999] * 3_500))
    planned = plan(tmp_path, {"files": ["*.jsonl"]}, unit_megabytes=1)
    assert [unit.bytes() for unit in planned.units[:3]] == [1_000_000] * 3
    assert len(read(planned)) == 3_500


@settings(max_examples=60)
@given(
    lines=st.lists(st.text(alphabet="ab \n\r", max_size=8).map(lambda t: t.replace("\n", "")), max_size=20),
    limit=st.integers(1, 30),
    ends=st.booleans(),
)
def test_byte_ranges_own_each_line_once_wherever_they_are_cut(tmp_path_factory, lines, limit, ends):
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    raw = "\n".join(lines).encode() + (b"\n" if ends else b"")
    path.write_bytes(raw)
    cuts = [(start, min(start + limit, len(raw))) for start in range(0, len(raw), limit)]
    pieces = [Piece("a.txt", ".txt", start, stop, stop - start, "train", True) for start, stop in cuts]
    documents = [document for piece in pieces for document in read_piece(SourceFile.at(path), piece, "text")]
    assert documents == [line.removesuffix("\r") for line in lines if line.strip()]


def test_a_corpus_that_moves_to_another_folder_keeps_its_plan(tmp_path):
    for place in ("here", "there/deeper"):
        (tmp_path / place / "texts").mkdir(parents=True)
        (tmp_path / place / "texts" / "a.txt").write_text("text")
        write_parquet(tmp_path / place / "texts" / "b.parquet")
    plans = [plan(tmp_path / place, {"files": ["texts/*"]}) for place in ("here", "there/deeper")]
    assert plans[0].units == plans[1].units
    assert str(tmp_path) not in str([asdict(unit) for unit in plans[0].units])


def test_a_file_that_two_globs_match_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    assert read(plan(tmp_path, {"files": ["*.txt", "a.txt", "../" + tmp_path.name + "/b.txt"]})) == ["one", "two"]


def test_files_of_one_name_in_two_folders_are_both_read(tmp_path):
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text(place)
    assert read(plan(tmp_path, {"files": ["first/*.txt", "second/*.txt"]})) == ["first", "second"]


def test_a_package_is_read_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "site" / "corpus_that_cannot_be_imported"
    (package / "texts").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "texts" / "a.md").write_text("text")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert read(plan(tmp_path, {"package": package.name, "glob": "texts/*.md"})) == ["text"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": ["nothing/*.txt"]}, r"no file that matches nothing/\*\.txt in .*expected at least one"),
        ({"files": ["*.csv"]}, r"a\.csv, expected a file that ends in \.jsonl\.gz, \.jsonl\.zst, \.jsonl"),
        ({"package": "no_such_package", "glob": "*.md"}, "no installed package no_such_package"),
        ({"files": ["*.txt"], "validation_files": ["b.txt"]}, r"b\.txt in both files and validation_files"),
        ({"files": ["broken.parquet"]}, "not parquet"),
        ({"hub": "folder"}, "found no dataset"),
        ({"hub": "nobody/nothing"}, r"no dataset nobody/nothing at revision main(.|\n)*where there is one"),
    ],
)
def test_a_source_that_cannot_be_planned_is_refused_with_advice(tmp_path, monkeypatch, source, message):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("a.csv", "b.txt", "c.txt", "broken.parquet"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        plan(tmp_path, source)


# --- datasets ---------------------------------------------------------------------------------------------------


def save_dataset(folder: Path) -> None:
    splits = {"train": TEXTS, "validation": ["valid"]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"id": range(len(t)), "text": t}) for name, t in splits.items()}
    ).save_to_disk(str(folder))


def test_a_saved_dataset_is_read_with_its_own_validation_split(tmp_path):
    save_dataset(tmp_path / "saved")
    planned = plan(tmp_path, {"hub": "saved", "validation_split": "validation"})
    assert [(piece.name, piece.split) for unit in planned.units for piece in unit.pieces] == [
        ("train", "train"),
        ("validation", "validation"),
    ]
    assert read(planned) == [*TEXTS, "valid"]


def test_a_dataset_without_splits_does_not_stand_in_for_its_own_validation(tmp_path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert read(plan(tmp_path, {"hub": "saved"})) == TEXTS
    with pytest.raises(DataError, match="without splits"):
        plan(tmp_path, {"hub": "saved", "validation_split": "validation"})


# --- bad documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON"),
        (b'{"text": "cut off', "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "deep"}', "not JSON"),
        (b'{"body": "x"}', "no such field"),
        (b'{"text": 3}', "the field is not text"),
        (b'{"text": null}', "the field is not text"),
        (b'["text"]', "not an object"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "fine", "other": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_bad_line_is_named_with_its_number_also_in_the_middle_of_a_file(tmp_path, line, reason):
    before = json_lines(["x"] * 10) + b"\n  \n"
    path = tmp_path / "a.jsonl"
    path.write_bytes(before + line + b"\n" + json_lines(["y"]))
    size = path.stat().st_size
    for start in (0, 30, len(before)):
        documents = list(
            read_piece(SourceFile.at(path), Piece("a.jsonl", ".jsonl", start, size, size - start, "train"), "text")
        )
        [bad] = [document for document in documents if isinstance(document, Bad)]
        assert (bad.reason, bad.where()) == (reason, f"{path}, line 13")
        assert documents[-1] == "y"


def test_a_text_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    [bad] = read(plan(tmp_path, {"files": ["*.txt"]}))
    assert (bad.reason, bad.where()) == ("not UTF-8", f"{tmp_path}/a.txt, line 3")


def test_a_bad_row_of_parquet_is_named_with_its_number(tmp_path):
    offsets = pyarrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2, 4)))
    damaged = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"ok\xff\xfe"))
    table = pyarrow.table({"text": pyarrow.chunked_array([pyarrow.array(["a", None, "c"]), damaged])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    documents = read(plan(tmp_path, {"files": ["*.parquet"]}))
    assert [d.reason if isinstance(d, Bad) else d for d in documents] == [
        "a", "the field is not text", "c", "ok", "not UTF-8",
    ]  # fmt: skip
    assert documents[4].where() == f"{tmp_path}/a.parquet, row 4 (the first is 0)"


def test_a_table_without_the_text_field_names_the_columns_that_it_has(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    save_dataset(tmp_path / "saved")
    for source in ({"files": ["*.parquet"]}, {"hub": "saved"}):
        with pytest.raises(DataError, match=r"columns id, text, expected body; set data\.text_field"):
            read(plan(tmp_path, source), field="body")


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flip(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes(255 - byte for byte in raw[middle : middle + 30]) + raw[middle + 30 :]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_stream_is_refused_and_never_taken_for_a_short_one(tmp_path, name, damage):
    texts = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(2_000)]
    compress = gzip.compress if name.endswith("gz") else zstandard.ZstdCompressor(write_checksum=True).compress
    (tmp_path / name).write_bytes(damage(compress(json_lines(texts))))
    with pytest.raises(DataError, match="cannot be read"):
        read(plan(tmp_path, {"files": ["a.*"]}))


def test_a_file_that_changed_after_the_plan_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)
    (tmp_path / "b.jsonl").write_bytes(json_lines(TEXTS))
    planned = plan(tmp_path, {"files": ["a.txt"]}), plan(tmp_path, {"files": ["b.jsonl"]})
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text("")
    for one in planned:
        with pytest.raises(DataError, match="found 0 bytes"):
            read(one)


# --- split ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.floats(0, 1, exclude_max=True))
def test_the_split_is_the_documented_function_of_the_text(text, fraction):
    raw = text.encode()
    number = int(hashlib.sha256(raw).hexdigest()[:16], 16)
    assert (hashlib.sha256(raw).digest() < first_train_digest(fraction)) == (number / 2**64 < fraction)


@given(st.floats(0, 1, exclude_max=True), st.integers(-3, 3))
def test_the_least_digest_that_is_not_validation_is_exact(fraction, step):
    first = first_train_digest(fraction)
    number = min(max(int.from_bytes(first[:8], "big") + step, 0), 2**64 - 1)
    digest = number.to_bytes(8, "big") + bytes(24)
    assert (digest < first) == (number / 2**64 < fraction)
