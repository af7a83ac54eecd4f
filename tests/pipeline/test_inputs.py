from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import InputFile, check_output, list_inputs, locate, read_footers
from tests.pipeline.conftest import write_documents


def files(*inputs: str | Path) -> list[str]:
    return [file.uri for file in list_inputs([str(given) for given in inputs])]


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


def test_footers(tree: Path) -> None:
    whole = (tree / "a.parquet").read_bytes()
    (tree / "b.pq").write_bytes(whole[: len(whole) // 2])
    (tree / "deep/er/c.PARQUET").write_bytes(b"")
    good, cut, empty = read_footers(list_inputs([str(tree)]))
    assert (good.row_groups, good.rows, good.schema.names, good.error) == ((2,), 2, ["id", "document"], None)
    assert cut.schema is None
    assert "magic bytes" in str(cut.error)
    assert empty.error == "the file is empty (0 bytes)"


def test_directory_keys_count_below_the_input(tmp_path: Path) -> None:
    for day in ("1", "2%20b"):
        write_documents(tmp_path / "run=7" / f"day={day}" / "a.parquet", ["x"])
    root = tmp_path / "run=7"
    assert [file.keys for file in list_inputs([str(root)])] == [(("day", "1"),), (("day", "2 b"),)]
    assert [file.keys for file in list_inputs([f"{root}/day=*/*.parquet"])] == [(("day", "1"),), (("day", "2 b"),)]
    assert [file.keys for file in list_inputs([f"{root}/day=1/a.parquet"])] == [()]


def test_a_column_of_the_file_wins_over_its_directory(tmp_path: Path) -> None:
    write_documents(tmp_path / "day=1" / "hour=2" / "a.parquet", ["x"], day=[7])
    (footer,) = read_footers(list_inputs([str(tmp_path)]))
    assert footer.schema == pa.schema(
        [("id", pa.int64()), ("document", pa.string()), ("day", pa.int64()), ("hour", pa.string())]
    )


def test_a_footer_tells_how_much_text_there_is(tmp_path: Path) -> None:
    texts = [f"{number:04}" * 100 for number in range(50)]
    table = pa.table({"id": range(50), "document": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20, use_dictionary=False)
    (footer,) = read_footers(list_inputs([str(tmp_path)]))
    assert 400 <= footer.row_bytes["document"] < 500


@pytest.mark.parametrize(
    "given",
    ["s3://KEY:hush@bucket/a.parquet", "s3://bucket/a?region=x&secret_key=hush", "s3://bucket?access_key=hush"],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError, match="set them in the environment") as caught:
        locate(given)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "path", "name", "uri"),
    [
        ("/data/in", "/data/in/a?b.parquet", "/data/in/a?b.parquet", "/data/in/a?b.parquet"),
        ("file:///data/a%20b", "/data/a b/c.parquet", "/data/a b/c.parquet", "/data/a b/c.parquet"),
        (
            "s3://bucket/in?region=eu-west-1",
            "bucket/in/a.pq",
            "s3://bucket/in/a.pq?region=eu-west-1",
            "s3://bucket/in/a.pq",
        ),
        ("gs://anonymous@bucket/*.pq", "bucket/a.pq", "gs://anonymous@bucket/a.pq", "gs://anonymous@bucket/a.pq"),
        ("memory://corpus/*.pq", "/corpus/a.pq", "memory://corpus/a.pq", "memory://corpus/a.pq"),
    ],
)
def test_a_listed_file_can_be_located_again(given: str, path: str, name: str, uri: str) -> None:
    child = locate(given).child(path)
    assert (child.given, locate(child.given).path) == (name, path)
    assert InputFile(child, 1, 1).uri == uri


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
    (file,) = list_inputs(["memory://corpus/*.parquet"])
    (footer,) = read_footers([file])
    assert (file.uri, footer.rows) == ("memory://corpus/a.parquet", 2)


def test_output_must_be_apart(tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in" / "a.parquet", ["x"])
    listed = list_inputs([str(tmp_path / "in")])

    def check(output: Path, given: Path = tmp_path / "in") -> None:
        check_output(locate(str(output)), [str(given)], listed)

    check(tmp_path / "absent")
    with pytest.raises(ConfigError, match="lies inside --input"):
        check(tmp_path / "in" / "out")
    with pytest.raises(ConfigError, match="holds the input file"):
        check(tmp_path, source)
    with pytest.raises(ConfigError, match="is a file"):
        check(source, source)
    check(tmp_path / "in-2")  # a common beginning of the name is no containment
