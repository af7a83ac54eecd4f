"""A corpus becomes examples: every document is one or is counted, the same in any order and on any number of files."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pegasus_batch.pipeline.cluster import ray_session
from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.training import pretrain_data
from pegasus_batch.training.gap_sentences import SENTENCE_MASK, GapSentences
from pegasus_batch.training.pairs import read_pairs
from pegasus_batch.training.pretrain_data import RECORD, Counts, PretrainFailed, make_pretrain_data
from pegasus_batch.training.pretrain_settings import build_settings
from tests.conftest import sentence
from tests.pipeline.conftest import run_script
from tests.pipeline.s3 import S3, s3_service  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """The Ray session that other tests have opened, or one of this file's."""
    with ray_session():
        yield


on_ray = [
    pytest.mark.usefixtures("session"),
    # Ray warns of the defaults of its own context, and of an argument that only write_datasink still needs.
    pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning"),
    # Ray's file lister objects when a job ends before the listing does.
    pytest.mark.filterwarnings("ignore:.*completion-signaler:pytest.PytestUnhandledThreadExceptionWarning"),
]


def make(*, show: list[str] | None = None, **options: Any) -> Counts | None:
    return make_pretrain_data(build_settings(options), show=(show if show is not None else []).append)


def make_texts(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(f"{sentence(rng, rng.randint(3, 9)).capitalize()}." for _ in range(rng.randint(2, 8)))
        for _ in range(n)
    ]


def write(path: Path, texts: list[str | None], start: int = 0, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = range(start, start + len(texts))
    pq.write_table(pa.table({"id": list(ids), "document": pa.array(texts, pa.string()), **columns}), path)
    return path


def read(path: Path) -> dict[int, tuple[str, str]]:
    table = pq.read_table(path)
    assert table.column_names == ["id", "document", "summary"]
    rows = table.to_pylist()
    found = {row["id"]: (row["document"], row["summary"]) for row in rows}
    assert len(found) == len(rows)
    return found


class TestOnRay:
    pytestmark = on_ray

    def test_examples_do_not_depend_on_order_files_or_batches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One file of 300 documents; three files in another order, smaller blocks and batches, a hard directory name."""
        texts = make_texts(300)
        short = {7: None, 20: "  \n", 40: "One sentence.", 41: "", 299: "another one"}
        rows = [short.get(i, text) for i, text in enumerate(texts)]
        write(tmp_path / "whole.parquet", rows)
        lines: list[str] = []
        counts = make(
            input=str(tmp_path / "whole.parquet"), output=str(tmp_path / "a" / "out"), columns="id", show=lines
        )
        assert counts == Counts(300, 295, 0, {"no text": 3, "fewer than 2 sentences": 2})
        assert "295 examples of 300 documents; 3 documents left out: no text; 2 documents left out" in lines[-1]
        whole = read(tmp_path / "a" / "out")
        assert sorted(whole) == sorted(set(range(300)) - set(short))
        assert any(SENTENCE_MASK in document for document, _ in whole.values())

        monkeypatch.setattr(pretrain_data, "_MOST_UNITS", 2)
        monkeypatch.setattr(pretrain_data, "_BLOCK_BYTES", 4096)
        monkeypatch.setattr(pretrain_data, "_FILE_BYTES", 20_000)
        parts = tmp_path / "docs in" / "part #1%20" / "day=1"
        write(parts / "a.parquet", rows[200:], start=200, other=pa.nulls(100, pa.int8()))
        write(parts / "b.parquet", rows[:90])
        write(parts / "C.PQ", rows[90:200], start=90)
        again = make(input=str(parts.parent), output=str(tmp_path / "b"), columns="id")
        assert again == counts
        assert read(tmp_path / "b") == whole
        other = make(input=str(parts.parent), output=str(tmp_path / "c"), columns="id", seed="1")
        assert other == counts and read(tmp_path / "c") != whole

        record = json.loads((tmp_path / "b" / RECORD).read_text())
        assert record["settings"]["seed"] == 0 and record["left_out"] == counts.left_out
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    def test_denoising_and_its_file_of_pairs(self, model_dir: Path, tmp_path: Path) -> None:
        """What comes out is what the fine-tuning job reads."""
        texts = make_texts(40)
        source = write(tmp_path / "in.parquet", [*texts, None])
        counts = make(
            input=str(source), output=str(tmp_path / "out"), objective="denoising", model=str(model_dir), max_tokens=60
        )
        assert counts is not None
        assert counts.documents == 41 and counts.cut > 5 and counts.left_out["no text"] == 1
        pairs = read_pairs(tmp_path / "out")
        assert len(pairs) == counts.examples
        assert all(any(text.startswith(summary) for text in texts) for summary in pairs.summaries)
        assert sum("<mask_2>" in document for document in pairs.documents) > 30

    def test_a_failure_leaves_nothing_that_looks_complete(self, tmp_path: Path) -> None:
        """A page that cannot be decoded, of a file whose footer can be read."""
        source = write(tmp_path / "in.parquet", [*make_texts(50)])
        data = source.read_bytes()
        at = len(data) // 2
        source.write_bytes(data[:at] + bytes(100) + data[at + 100 :])
        with pytest.raises(PretrainFailed, match=r"(?s)Error.*Nothing was published"):
            make(input=str(source), output=str(tmp_path / "out"))
        assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]

    def test_no_example_at_all_is_an_error(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in.parquet", ["one", None])
        with pytest.raises(PretrainFailed, match="no document made an example: 0 examples of 2 documents"):
            make(input=str(source), output=str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_bytes_that_are_no_text_are_counted(self, tmp_path: Path) -> None:
        offsets, data = pa.array([0, 3, 15], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb" + b"One. Two it.")
        texts = pa.StringArray.from_buffers(2, offsets, data)
        pq.write_table(pa.table({"document": texts}), tmp_path / "in.parquet")
        counts = make(input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"))
        assert counts == Counts(2, 1, 0, {"the text is not valid UTF-8": 1})


@pytest.mark.slow
def test_an_object_store_gets_the_record_last(s3: S3) -> None:
    """The job from S3 to S3, in a Ray session that knows where the service is; run again, it mixes nothing."""
    texts = make_texts(30)
    source, output = locate(s3.uri()), locate(s3.uri())
    with source.filesystem.open_output_stream(f"{source.path}/a.parquet") as file:
        pq.write_table(pa.table({"id": range(30), "document": texts}), file)
    command = "import sys; from jobs.pretrain import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--input", source.given, "--output", output.given, "--columns", "id"]
    done = run_script(command, *arguments)
    assert done.returncode == 0, done.stderr
    assert "30 examples of 30 documents" in done.stderr
    written = {info.base_name: info for info in output.filesystem.get_file_info(fs.FileSelector(output.path))}
    assert max(written.values(), key=lambda info: info.mtime_ns).base_name == RECORD
    local = make_pretrain_examples(texts)
    (name,) = set(written) - {RECORD}
    rows = pq.read_table(f"{output.path}/{name}", filesystem=output.filesystem).to_pylist()
    assert {row["id"]: (row["document"], row["summary"]) for row in rows} == local
    again = run_script(command, *arguments)
    assert again.returncode == 2 and "is not empty" in again.stderr


def make_pretrain_examples(texts: list[str]) -> dict[int, tuple[str, str]]:
    """The examples without Ray."""
    examples = ((i, GapSentences()(text, 0)) for i, text in enumerate(texts))
    return {i: (example.document, example.summary) for i, example in examples if example is not None}


def test_the_job_shows_examples_without_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.parquet", ["One.", "First things first. Then the rest."])
    assert run_job("--input", source, "--show", 3, "--strategy", "lead", "--unmasked-share", 0) == 0
    printed = capsys.readouterr().out
    assert "the text\nFirst things first. Then the rest.\n" in printed
    assert "the document\n<mask_1> Then the rest.\n" in printed and "the summary\nFirst things first.\n" in printed
    assert printed.count("--- example") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give output"),
        ({"output": "x", "gap_ratio": "a:b"}, "--gap-ratio 'a:b': should be a number, or two as LOW:HIGH"),
        ({"output": "x", "gap_ratio": "0.5:0.2"}, r"--gap-ratio 0\.5:0\.2"),
        ({"output": "x", "gap_ratio": "1"}, r"--gap-ratio 1:1"),
        ({"output": "x", "strategy": "best"}, "--strategy 'best': should be 'ind-orig'"),
        ({"output": "x", "min_sentences": "1"}, "--min-sentences '1'"),
        ({"output": "x", "objective": "denoising"}, "give model"),
        ({"output": "x", "model": "m"}, "leave it out"),
        ({"output": "x", "columns": "id,summary"}, "columns 'summary'"),
        ({"output": "x", "objective": "denoising", "model": "m", "corruption": "noise"}, "unknown corruption 'noise'"),
        ({"output": "x", "unmasked_share": "2"}, "--unmasked-share '2'"),
    ],
)
def test_wrong_settings_name_the_value_and_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings({"input": "in.parquet", **options})


def test_wrong_input_and_output_are_refused_before_any_work(tmp_path: Path, model_dir: Path) -> None:
    source = write(tmp_path / "in" / "a.parquet", ["One. Two."])
    given = {"input": str(source), "output": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="'text': the input has no such column"):
        make(**given, text_column="text")
    with pytest.raises(ConfigError, match="--columns 'nothing'"):
        make(**given, columns="nothing")
    with pytest.raises(ConfigError, match="int64"):
        make(**given, text_column="id")
    with pytest.raises(ConfigError, match="no such file"):
        make(input=str(tmp_path / "none"), output=given["output"])
    with pytest.raises(ConfigError, match=r"is not empty \(it holds a.parquet\)"):
        make(input=str(write(tmp_path / "other.parquet", ["One. Two."])), output=str(tmp_path / "in"))
    with pytest.raises(ConfigError, match="lies inside --input"):
        make(input=str(tmp_path / "in"), output=str(tmp_path / "in" / "out"))
    with pytest.raises(ConfigError, match="--model"):
        make(**given, objective="denoising", model=str(tmp_path / "in"))
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ConfigError, match=r"b\.parquet.*repair the file or leave it out"):
        make(input=str(tmp_path / "in"), output=given["output"])
    assert not (tmp_path / "out").exists()


def run_job(*arguments: object) -> int:
    spec = importlib.util.spec_from_file_location("job_pretrain", ROOT / "jobs" / "pretrain.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return int(job.main(list(map(str, arguments))))


def test_the_job_explains_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--output", "x"], "--input: Field required"),
        (["--input", tmp_path, "--output", "x", "--gap-ratio", "2"], "--gap-ratio 2:2"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_job(*arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
