from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import Source, check_output, find_sources, first_rows, locate
from tests.pipeline.conftest import write_documents


def files(*inputs: str | Path) -> list[str]:
    return [file for source in find_sources([str(given) for given in inputs])[0] for file in source.files]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a.parquet", "b.pq", "deep/er/c.PARQUET", "_tmp/d.parquet", ".hidden.parquet", "deep/odd.data"):
        write_documents(root / name, ["x", "y"])
    (root / "notes.txt").write_text("not Parquet")
    return root


def test_a_directory_gives_its_parquet_files(tree: Path) -> None:
    assert files(tree) == [str(tree / name) for name in ("a.parquet", "b.pq", "deep/er/c.PARQUET")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet"]),
        ("?.p*", ["a.parquet", "b.pq"]),
        ("[!b].*", ["a.parquet"]),
        ("deep/*", ["deep/er/c.PARQUET", "deep/odd.data"]),  # a directory that matches gives its files
        ("**/*.PARQUET", ["deep/er/c.PARQUET"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    assert files(f"{tree}/{pattern}") == [str(tree / name) for name in expected]


def test_a_named_file_needs_no_extension_and_counts_once(tree: Path) -> None:
    odd = tree / "deep" / "odd.data"
    assert files(odd, f"file://{odd}", tree / "a.parquet", tree) == [
        str(tree / name) for name in ("deep/odd.data", "a.parquet", "b.pq", "deep/er/c.PARQUET")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.parquet", "no such file or directory"),
        ("absent/*.parquet", "no Parquet files there"),
        ("deep/*.parquet", "no Parquet files there"),
    ],
)
def test_nothing_found(tree: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files(tree / name)


def test_a_directory_without_parquet_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "docs.csv").write_text("id,document\n")
    with pytest.raises(ConfigError, match=r"no Parquet files there \(it holds docs\.csv\)"):
        files(tmp_path)


def test_unreadable_files_are_all_named(tree: Path) -> None:
    """Ray skips a file of zero bytes in silence, and with it its rows."""
    whole = (tree / "a.parquet").read_bytes()
    (tree / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tree / "empty.parquet").write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        files(tree)
    message = str(caught.value)
    assert message.startswith("2 of 5 input files cannot be read as Parquet")
    assert f"{tree}/empty.parquet: the file is empty (0 bytes)" in message
    assert f"{tree}/cut.parquet: " in message


def test_no_rows_at_all(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.parquet", [])
    with pytest.raises(ConfigError, match="the input has no rows"):
        files(tmp_path)


def test_directory_keys_count_below_the_input(tmp_path: Path) -> None:
    for day in ("1", "2"):
        write_documents(tmp_path / "run=7" / f"day={day}" / "a.parquet", ["x"])
    root = tmp_path / "run=7"
    (below,), _ = find_sources([str(root)])
    assert (below.root, below.keys) == (str(root), ("day",))
    (by_glob,), _ = find_sources([f"{root}/day=*/*.parquet"])
    assert by_glob.keys == ("day",)
    (single,), _ = find_sources([f"{root}/day=1/a.parquet"])
    assert (single.root, single.keys) == (None, ())


def test_a_column_of_the_file_wins_over_its_directory(tmp_path: Path) -> None:
    """Ray would overwrite the column with the directory's value."""
    write_documents(tmp_path / "day=1" / "a.parquet", ["x"], day=["Monday"])
    (source,), _ = find_sources([str(tmp_path)])
    assert source.keys == ()
    write_documents(tmp_path / "day=1" / "hour=2" / "b.parquet", ["x"], day=["Monday"])
    with pytest.raises(ConfigError, match="named by day, hour, of which the files hold day"):
        find_sources([str(tmp_path)])


def test_first_rows_keeps_the_files_that_hold_them() -> None:
    local = fs.LocalFileSystem()
    sources = [Source(local, None, ("a", "b"), (3, 0)), Source(local, "r", ("c", "d"), (5, 2), keys=("k",))]
    assert [source.files for source in first_rows(sources, 3)] == [("a",)]
    assert [source.files for source in first_rows(sources, 4)] == [("a", "b"), ("c",)]
    assert first_rows(sources, 99)[1] == sources[1]


@pytest.mark.parametrize(
    ("given", "type_name", "path"),
    [
        ("s3://bucket/a b/*.parquet?region=eu-west-1", "s3", "bucket/a b/*.parquet"),
        ("s3://bucket?region=eu-west-1&endpoint_override=localhost%3A9000", "s3", "bucket"),
        ("gs://anonymous@bucket/a?.parquet", "gcs", "bucket/a?.parquet"),
        ("file:///data/a%20b", "local", "/data/a b"),
        ("memory://a/b", "py::fsspec+memory", "/a/b"),
    ],
)
def test_uris(given: str, type_name: str, path: str) -> None:
    location = locate(given)
    assert (location.filesystem.type_name, location.path) == (type_name, path)


def test_an_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match=r"no file system for nowhere://"):
        locate("nowhere://a/b")


def test_fsspec_inputs_are_listed_and_read() -> None:
    location = locate("memory://corpus/a.parquet")
    location.filesystem.create_dir("/corpus")
    with location.filesystem.open_output_stream(location.path) as file:
        pq.write_table(pa.table({"id": [1, 2]}), file)
    (source,), (footer,) = find_sources(["memory://corpus/*.parquet"])
    assert (source.files, footer.rows) == (("/corpus/a.parquet",), 2)


def test_output_must_be_new_and_apart(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in" / "a.parquet", ["x"])
    _, footers = find_sources([str(tmp_path / "in")])

    def check(output: Path, given: Path = tmp_path / "in") -> None:
        check_output(locate(str(output)), [str(given)], footers)

    check(tmp_path / "absent")
    (tmp_path / "out" / "_run-of-a-killed-job").mkdir(parents=True)
    check(tmp_path / "out")
    (tmp_path / "out" / "20240101").mkdir()
    with pytest.raises(ConfigError, match=r"is not empty \(it holds 20240101\): choose another"):
        check(tmp_path / "out")
    with pytest.raises(ConfigError, match="lies inside --input"):
        check(tmp_path / "in" / "out")
    with pytest.raises(ConfigError, match="holds the input file"):
        check(tmp_path, source)
    with pytest.raises(ConfigError, match="is a file"):
        check(source, source)
    check(tmp_path / "in-2")  # a common beginning of the name is no containment
