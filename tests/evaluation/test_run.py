"""jobs/evaluate.py and what it calls, on a model and on a job's output."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --model or --predictions"),
        (["--model", "m", "--predictions", "p"], "give either --model or --predictions"),
        (["--model", "m", "--text-column", "body"], "no column 'body'"),
        (["--model", "m", "--option", "num_beams"], "is not NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_explained(job: ModuleType, data: Path, arguments: list[str], message: str) -> None:
    result = invoke(job, "--data", data, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
