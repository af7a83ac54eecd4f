"""jobs/evaluate.py and what it calls, on a model and on a job's output."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from pegasus_batch.evaluation import run

ROWS = {
    "id": ["a", "b"],
    "document": ["Maps for all. They are old.", "A game. It is new."],
    "summary": ["maps for all", "new game"],
}


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate", Path(__file__).parents[2] / "jobs" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pq.write_table(pa.table(ROWS), tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def invoke(job: ModuleType, *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(job.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_predictions_are_joined_by_id(data: Path, tmp_path: Path) -> None:
    """A job's output is in another order; by position every row would be wrong."""
    output = tmp_path / "out.parquet"
    pq.write_table(pa.table({"id": ["b", "a"], "summary": ["new game", "maps for all"]}), output)
    scores = run.evaluate(data, predictions=output)
    assert scores[str(output)]["rouge1"].mean == pytest.approx(100.0)
    assert scores[run.BASELINE]["rouge1"].mean == pytest.approx((100.0 + 50.0) / 2)


@dataclass
class Said:
    text: str


def test_a_model_is_run_with_the_options_given(
    job: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Echo:
        def __init__(self, model: Path, *, device: str, dtype: str, generation: dict[str, object]) -> None:
            assert (device, dtype) == ("cpu", "float32")
            assert generation == {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True}

        def summarize(self, texts: list[str]) -> list[Said]:
            return [Said(text.split(".")[0]) for text in texts]

    monkeypatch.setattr(run, "Summarizer", Echo)
    options = ["--option", "num_beams=3", "--option", "length_penalty=0.5", "--option", "early_stopping=true"]
    options += ["--device", "cpu", "--dtype", "float32", "--resamples", "5"]
    saved = tmp_path / "saved.parquet"
    result = invoke(job, "--data", data, "--model", "some/model", "--limit", 1, "--save", saved, *options)
    assert result.exit_code == 0, result.output
    assert "some/model" in result.output
    assert pq.read_table(saved).to_pylist() == [
        {"document": ROWS["document"][0], "reference": "maps for all", "prediction": "Maps for all"}
    ]


def test_two_outputs_are_compared_and_the_page_is_written(job: ModuleType, data: Path, tmp_path: Path) -> None:
    ours, theirs, page = tmp_path / "ours.parquet", tmp_path / "theirs.parquet", tmp_path / "pages" / "page.html"
    pq.write_table(pa.table({"id": ["b", "a"], "summary": ["new game", "maps by ACME"]}), ours)
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["maps for all", "old game"]}), theirs)
    arguments = ["--data", data, "--predictions", ours, "--baseline", theirs, "--baseline-column", "text"]
    arguments += ["--html", page, "--sort-by", "rouge1", "--save", tmp_path / "saved.parquet"]
    result = invoke(job, *arguments)
    assert result.exit_code == 0, result.output
    for shown in ("novel words %", "losses", "not in the source", "ACME", f"wrote {page}"):
        assert shown in result.output
    text = page.read_text(encoding="utf-8")
    assert text.index("System furthest above") < text.index("<h3>b <") < text.index("System furthest below")
    assert pq.read_table(tmp_path / "saved.parquet")["baseline"].to_pylist() == ["maps for all", "old game"]


def test_one_column_is_compared_with_another_of_the_same_output(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    pq.write_table(
        pa.table({"id": ["a", "b"], "summary": ["maps", "game"], "best": ["maps for all", "new game"]}), output
    )
    scores = run.evaluate(
        data, predictions=output, prediction_column="best", baseline=output, baseline_column="summary"
    )
    assert scores[str(output)]["rouge1"].mean > scores[f"{output} (summary)"]["rouge1"].mean


def test_without_a_baseline_the_page_compares_with_the_first_sentence(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "summary": ["maps for all", None]}), output)
    run.evaluate(data, predictions=output, html=tmp_path / "page.html", diagnostics=False)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"{output} against {run.BASELINE}" in text
    assert "density" not in text


def test_diagnostics_are_printed_unless_told_not_to(
    job: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "summary": ["maps for all", None]}), output)
    for flag, there in (("--diagnostics", True), ("--no-diagnostics", False)):
        result = invoke(job, "--data", data, "--predictions", output, flag)
        assert ("density" in result.output) == there
        assert "1 of 2 rows have no summary" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"id": ["x"], "summary": ["maps"]},
            "share no id: column 'id' holds 'x' in the one and 'a' in the other; choose",
        ),
        ({"id": [1], "summary": ["maps"]}, "share no id: column 'id' holds 1 in the one"),
        ({"id": [], "summary": []}, "has no rows: has the job that writes it finished?"),
        (
            {"id": ["a"], "text": ["maps"]},
            "no column 'summary'; its columns: id, text; choose with --id-column and --baseline",
        ),
        ({"key": ["a"], "summary": ["maps"]}, "no column 'id'"),
        ({"id": ["a"], "summary": [3]}, "holds 3, which is not text; choose with --baseline-column"),
        ({"id": ["a", "a"], "summary": ["maps", "map"]}, "the id 'a' occurs more than once in the predictions"),
    ],
)
def test_a_baseline_that_does_not_fit_is_explained(
    data: Path, tmp_path: Path, rows: dict[str, list[object]], message: str
) -> None:
    ours, theirs = tmp_path / "ours.parquet", tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "summary": ["maps for all", "new game"]}), ours)
    pq.write_table(pa.table(rows), theirs)
    with pytest.raises(ValueError, match=re.escape(message)):
        run.evaluate(data, predictions=ours, baseline=theirs)


def test_data_without_rows_or_ids_is_explained(tmp_path: Path) -> None:
    empty, bare = tmp_path / "empty.parquet", tmp_path / "bare.parquet"
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ROWS}), empty)
    pq.write_table(pa.table({name: ROWS[name] for name in ("document", "summary")}), bare)
    with pytest.raises(ValueError, match=r"empty\.parquet has no rows"):
        run.evaluate(empty, predictions=empty)
    with pytest.raises(ValueError, match="no column 'id'; its columns: document, summary; choose with --id-column"):
        run.evaluate(bare, predictions=empty)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --model or --predictions"),
        (["--model", "m", "--predictions", "p"], "give either --model or --predictions"),
        (["--model", "m", "--text-column", "body"], "no column 'body'"),
        (["--model", "m", "--option", "num_beams"], "is not NAME=VALUE"),
        (["--model", "m", "--sort-by", "size"], "--sort-by 'size' is not a measure that is taken"),
        (["--model", "m", "--sort-by", "density", "--no-diagnostics"], "is not a measure that is taken"),
        (["--model", "m", "--baseline", "nowhere.parquet"], "no Parquet file or directory at nowhere.parquet"),
    ],
)
def test_wrong_arguments_are_explained(job: ModuleType, data: Path, arguments: list[str], message: str) -> None:
    result = invoke(job, "--data", data, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
