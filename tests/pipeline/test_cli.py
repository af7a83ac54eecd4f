from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pegasus_batch import cli
from pegasus_batch.config import GenerationConfig
from pegasus_batch.pipeline import ConfigError, JobConfig, JobFailed
from pegasus_batch.pipeline.config import AnswerConfig, ClassifyConfig, CorpusConfig
from pegasus_batch.pipeline.report import Outcome
from tests.pipeline.conftest import write_documents

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[CorpusConfig]:
    """Collect the jobs that would run."""
    jobs: list[CorpusConfig] = []

    def fake_run(config: CorpusConfig) -> Outcome:
        jobs.append(config)
        return Outcome("out/run", 4, {"ok": 3, "failed": 1}, (("too hot", 1),), 2.0, 3.0, n_worked=4)

    monkeypatch.setattr(cli, "run_job", fake_run)
    return jobs


def invoke(*arguments: object, job: str = "summarize") -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [job, *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("job", "kind"), [("summarize", JobConfig), ("classify", ClassifyConfig), ("answer", AnswerConfig)]
)
def test_help_shows_every_option_once(job: str, kind: type[CorpusConfig]) -> None:
    code, text = invoke("--help", job=job)
    assert code == 0
    words = text.split()
    options = GenerationConfig.names() if kind is JobConfig else ()
    for name in (*kind.model_fields, *options, "config", "dry_run"):
        if name != "generation":
            assert words.count(f"--{name.replace('_', '-')}") >= 1, name
    assert ("--num-beams" in words) == (kind is JobConfig)


def test_flags_become_the_job(seen: list[CorpusConfig], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("num_beams: 2\nlimit: 9\nsummary-column: brief\n")
    code, text = invoke(
        "--config", file, "--input", "a", "--input", "b*", "--output", "o", "--columns", "url, lang",
        "--columns", "day",
        "--num-beams", 8, "--length-penalty", "1e-1", "--early-stopping", "never", "--bad-words-ids", "[[5, 6], [7]]",
        "--renormalize-logits", "true", "--newline-token", "<n>", "--num-gpus-per-worker", 0.5,
    )  # fmt: skip
    assert code == 0, text
    assert seen == [
        JobConfig(
            input=("a", "b*"), output="o", columns=("url", "lang", "day"), limit=9, summary_column="brief",
            newline_token="<n>", num_gpus_per_worker=0.5,
            generation={
                "num_beams": 8, "length_penalty": 0.1, "early_stopping": "never", "bad_words_ids": [[5, 6], [7]],
                "renormalize_logits": True,
            },
        )
    ]  # fmt: skip
    for part in ("rows ok", "1 x too hot", "documents/s", "out/run"):
        assert part in text


def test_flags_of_the_other_jobs(seen: list[CorpusConfig]) -> None:
    common = ["--input", "a", "--output", "o", "--model", "m"]
    flags = ["--labels", "city council,market", "--labels", "river", "--hypothesis", "About {}.", "--multi-label"]
    assert invoke(*common, *flags, job="classify")[0] == 0
    assert invoke(*common, "--overlap", 9, "--allow-impossible", job="answer")[0] == 0
    assert seen == [
        ClassifyConfig(
            input=("a",), output="o", model="m", labels=("city council", "market", "river"), hypothesis="About {}.",
            multi_label=True,
        ),
        AnswerConfig(input=("a",), output="o", model="m", overlap=9, allow_impossible=True),
    ]  # fmt: skip


def test_no_columns_is_not_all_columns(seen: list[CorpusConfig]) -> None:
    invoke("--output", "o", "--columns", "")
    invoke("--output", "o")
    assert [job.columns for job in seen] == [(), None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "o", "--num-workers", "0"], "error: --num-workers 0: should be greater than or equal to 1"),
        (["--output", "o", "--num-workers", "two"], "Invalid value for '--num-workers'"),
        (["--output", "o", "--num-beems", "2"], "No such option: --num-beems"),
        (["--output", "o", "--bad-words-ids", "[[1"], "is not a YAML value"),
        (["--output", "o", "--max-length", "0"], "error: generation options: max_length=0"),
        (["--output", "o", "--config", "absent.yaml"], "error: --config absent.yaml: No such file"),
        ([], "error: no output: pass --output"),
    ],
)
def test_wrong_usage_exits_with_2(seen: list[CorpusConfig], arguments: list[str], message: str) -> None:
    code, text = invoke(*arguments)
    assert code == 2
    assert message in text
    assert seen == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no such column"), 2, "error: no such column"),
        (JobFailed("OSError: disk full"), 1, "error: OSError: disk full"),
        (ConnectionError("no Ray session"), 1, "error: no Ray session"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_failures_set_the_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: JobConfig) -> Outcome:
        raise error

    monkeypatch.setattr(cli, "run_job", fail)
    found, text = invoke("--output", "o")
    assert found == code
    assert message in text


def test_dry_run_prints_the_plan_and_starts_nothing(seen: list[CorpusConfig], model_dir: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", ["quick fox"] * 3)
    flags = ["--input", source, "--output", tmp_path / "out", "--model", model_dir, "--limit", 2, "--num-beams", 3]
    code, text = invoke(*flags, "--dry-run")
    assert code == 0, text
    lines = dict(line.split(maxsplit=1) for line in text.splitlines()[1:])
    assert lines["rows"] == "2, limited"
    assert lines["columns"].startswith("id int64, document string, summary string, score double, ")
    assert lines["model"] == f"{model_dir} (device auto, dtype auto)"
    assert "num_beams=3" in lines["generation"]
    assert seen == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text-column", "body"], "--text-column 'body': the input has no such column"),
        (["--model", "/absent"], "error: --model: /absent is not a directory"),
        (["--summary-column", "document"], "'document' would overwrite input column of the same name"),
        (["--device", "cuda", "--num-gpus-per-worker", "0"], "--device cuda with --num-gpus-per-worker 0"),
        (["--max-source-tokens", "999"], "max_source_tokens=999"),
    ],
)
def test_a_job_that_cannot_run_is_refused(flags: list[str], message: str, model_dir: Path, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", ["quick fox"])
    code, text = invoke("--input", source, "--output", tmp_path / "out", "--model", model_dir, *flags)
    assert code == 2
    assert message in text


@pytest.mark.parametrize("job", ["summarize", "classify", "answer"])
def test_the_script_is_the_same_command(seen: list[CorpusConfig], monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    flags = ["--output", "o", "--input", "a", "--model", "m", "--limit", "3"]
    invoke(*flags, job=job)
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
    assert ended.value.code == 0
    command, script = seen
    assert command == script and command.limit == 3
