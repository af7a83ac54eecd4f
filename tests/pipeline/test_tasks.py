"""Each kind of job: its columns, what it refuses, and the stages with a tiny model; two of them whole, through Ray."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from pegasus_batch.answerer import Answerer
from pegasus_batch.classifier import Classifier
from pegasus_batch.pipeline import ConfigError, run_job
from pegasus_batch.pipeline.carry import hash_texts
from pegasus_batch.pipeline.config import AnswerConfig, ClassifyConfig, CorpusConfig, JobConfig, build_config
from pegasus_batch.pipeline.plan import RunPlan, check_job, plan_run
from pegasus_batch.pipeline.schema import CARRIED, EARLIER, READ_ERROR
from pegasus_batch.pipeline.stages import RunModel, TokenizeDocuments
from pegasus_batch.summarizer import Summarizer
from tests.heads import NAMES, save_head
from tests.pipeline.conftest import write_documents
from tests.tokenization.vocabularies import corpus

LABELS = ("market", "river", "water")


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute here with as many threads as the workers of these tests, and undo what they set for the process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mnli(bart_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("mnli") / "model"
    return str(save_head(transformers.BartForSequenceClassification, bart_dir, directory, id2label=NAMES))


@pytest.fixture(scope="module")
def reader(bart_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("reader") / "model"
    return str(save_head(transformers.BartForQuestionAnswering, bart_dir, directory))


def long_text(seed: int, n_sentences: int = 12) -> str:
    return " ".join(random.Random(seed).choices(corpus(200), k=n_sentences))


def run_stages(config: CorpusConfig, table: pa.Table) -> pa.Table:
    """Run a job's two stages on a table, without Ray."""
    job = check_job(config)
    tokenized = TokenizeDocuments(job.task, tuple(config.texts.values()), pa.schema([table.schema.field("id")]))(table)
    result = RunModel(job.task, False, 1)(tokenized)
    assert result.schema == pa.schema([table.schema.field("id"), *job.fields])
    return result


def test_long_documents_in_windows(model_dir: Path) -> None:
    texts = [long_text(1), None, "quick fox", long_text(2)]
    config = JobConfig(output="o", model=str(model_dir), long_documents="chunk", device="cpu")
    result = run_stages(config, pa.table({"id": [1, 2, 3, 4], "document": texts}))
    direct = Summarizer(model_dir, device="cpu", long_documents="chunk").summarize(texts)
    assert result["summary"].to_pylist() == [summary.text for summary in direct]
    assert result["chunks"].to_pylist() == [summary.chunks for summary in direct]
    assert result["chunks"][0].as_py() > 1 and result["chunks"][2].as_py() == 1
    assert result["truncated"].to_pylist() == [False] * 4
    assert result["status"].to_pylist() == ["ok", "invalid", "ok", "ok"]


@pytest.mark.parametrize("options", [{}, {"pair_column": "other"}, {"labels": LABELS, "multi_label": True}])
def test_labels(mnli: str, options: dict[str, Any]) -> None:
    texts, others = ["A river.", None, long_text(3), "Where?"], ["It is water.", "x", "a", None]
    table = pa.table({"id": [1, 2, 3, 4], "document": texts, "other": others})
    config = ClassifyConfig(input=("in",), output="o", model=mnli, device="cpu", label_column="what", **options)
    result = run_stages(config, table)
    pairs = others if "pair_column" in options else None
    zero_shot = {name: value for name, value in options.items() if name != "pair_column"}
    direct = Classifier(mnli, device="cpu", **zero_shot).classify(texts, pairs)
    assert result["what"].to_pylist() == [each.label for each in direct]
    assert result["score"].to_pylist() == [each.score for each in direct]
    assert result["labels"].to_pylist() == [list(each.labels) or None for each in direct]
    assert result["scores"].to_pylist() == [list(each.scores) or None for each in direct]
    assert result["truncated"].to_pylist() == [False, False, True, False]
    assert result["status"].to_pylist() == ["ok", "invalid", "ok", "invalid" if pairs else "ok"]
    assert result["error"][3].as_py() == ("the pair is null" if pairs else None)


def test_answers(reader: str) -> None:
    questions, contexts = ["Who?", "Who?", "Where?", None], ["The mayor said it.", long_text(4), None, "x"]
    table = pa.table({"id": [1, 2, 3, 4], "q": questions, "c": contexts})
    config = AnswerConfig(
        input=("in",), output="o", model=reader, device="cpu", question_column="q", context_column="c"
    )
    result = run_stages(config, table)
    direct = Answerer(reader, device="cpu").answer(questions, contexts)
    for name, attribute in (("answer", "text"), ("score", "score"), ("start", "start"), ("end", "end")):
        assert result[name].to_pylist() == [getattr(each, attribute) for each in direct]
    assert result["chunks"].to_pylist() == [1, direct[1].chunks, 1, 1] and direct[1].chunks > 2
    assert result["error"].to_pylist() == [None, None, "the context is null", "the question is null"]


def test_what_an_earlier_run_said_is_taken_over(mnli: str) -> None:
    """Lists among the results too; the model does not see such a row."""
    job = check_job(ClassifyConfig(input=("in",), output="o", model=mnli, device="cpu"))
    tokenize, model = (
        TokenizeDocuments(job.task, ("document",), pa.schema([("id", pa.int64())])),
        RunModel(job.task, False, 1),
    )
    table = pa.table({"id": [1, 2], "document": ["A river.", "Where?"]})
    fresh = model(tokenize(table))
    invented = {**fresh.drop_columns(["id"]).to_pylist()[0], "label": "x", "labels": ["x", "y"], "scores": [0.75, 0.25]}
    earlier = pa.array([invented, None], pa.struct(job.fields))
    result = model(tokenize(table.append_column(EARLIER, earlier)))
    assert result[CARRIED].to_pylist() == [True, False]
    assert result.drop_columns([CARRIED]).to_pylist() == [{"id": 1, **invented}, fresh.to_pylist()[1]]


def test_a_column_that_cannot_be_read_is_named(reader: str) -> None:
    config = AnswerConfig(input=("in",), output="o", model=reader, device="cpu")
    task = check_job(config).task
    table = pa.table({"question": [b"x", b"y", b"z"], "context": ["a", "b", None], READ_ERROR: [None, "torn", None]})
    tokenized = TokenizeDocuments(task, ("question", "context"))(table)
    assert tokenized["__pegasus_text_error"].to_pylist() == [
        "question: the text is of type binary, expected a string",
        "torn",
        "question: the text is of type binary, expected a string",
    ]


def test_a_row_is_recognised_by_all_its_texts() -> None:
    one, two = (pa.chunked_array([pa.array(values)]) for values in (["ab", "a", "ab", None], ["c", "bc", "c", "c"]))
    first, second, third, fourth = hash_texts(one, two).to_pylist()
    assert first == third != second and fourth is None
    assert first != hash_texts(two, one)[0].as_py()
    assert hash_texts(one)[0].as_py() not in (first, None)


def test_what_decides_the_results_is_in_the_fingerprint(model_dir: Path, mnli: str, reader: str) -> None:
    classify: dict[str, Any] = {"input": ("in",), "output": "o", "model": mnli}
    answer: dict[str, Any] = {"input": ("in",), "output": "o", "model": reader}
    same = [
        JobConfig(output="o", model=str(model_dir)),
        JobConfig(output="p", model=str(model_dir), limit=3, batch_tokens=99),
        JobConfig(output="o", model=str(model_dir), long_documents="truncate"),
    ]
    others = [
        JobConfig(output="o", model=str(model_dir), long_documents="chunk"),
        ClassifyConfig(**classify),
        ClassifyConfig(**classify, pair_column="x"),
        ClassifyConfig(**classify, labels=LABELS),
        ClassifyConfig(**classify, labels=LABELS[:2]),
        ClassifyConfig(**classify, labels=LABELS, multi_label=True),
        ClassifyConfig(**classify, labels=LABELS, hypothesis="{}!"),
        AnswerConfig(**answer),
        AnswerConfig(**answer, allow_impossible=True),
        AnswerConfig(**answer, overlap=3),
        AnswerConfig(**answer, context_column="x"),
    ]
    (fingerprint,) = {check_job(config).fingerprint for config in same}
    found = [check_job(config).fingerprint for config in others]
    assert len({fingerprint, *found}) == 1 + len(others)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ClassifyConfig, {}, "--input: Field required; --model: Field required"),
        (ClassifyConfig, {"input": "a", "model": "m", "labels": "a,b", "pair_column": "x"}, "exclude each other"),
        (ClassifyConfig, {"input": "a", "model": "m", "multi_label": True}, "are for --labels"),
        (ClassifyConfig, {"input": "a", "model": "m", "num_beams": 2}, "unknown option 'num_beams'"),
        (AnswerConfig, {"input": "a", "model": "m", "max_answer_tokens": 0}, "--max-answer-tokens 0"),
        (AnswerConfig, {"input": "a", "model": "m", "dtype": "int8"}, "--dtype 'int8'"),
        (JobConfig, {"long_documents": "split"}, "--long-documents 'split'"),
    ],
)
def test_wrong_options_are_named(kind: type[CorpusConfig], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"output": "o", **options}, None, kind)


def test_labels_are_split_at_commas() -> None:
    values = {"output": "o", "input": "a", "model": "m", "labels": "city council, market,"}
    assert build_config(values, None, ClassifyConfig).labels == ("city council", "market")


@pytest.mark.parametrize(
    ("kind", "model", "options", "message"),
    [
        (ClassifyConfig, "pegasus", {}, "needs a checkpoint for SequenceClassification"),
        (AnswerConfig, "mnli", {}, "needs a checkpoint for QuestionAnswering"),
        (ClassifyConfig, "mnli", {"labels": ("a",), "hypothesis": "b"}, r"has no \{\}"),
        (ClassifyConfig, "/absent", {}, "--model: /absent is not a directory"),
        (JobConfig, "pegasus", {"max_source_tokens": 65, "long_documents": "chunk"}, "max_source_tokens=65"),
    ],
)
def test_a_job_that_cannot_run_is_refused(
    kind: type[CorpusConfig], model: str, options: dict[str, Any], message: str, model_dir: Path, mnli: str
) -> None:
    directory = {"pegasus": str(model_dir), "mnli": mnli}.get(model, model)
    with pytest.raises(ConfigError, match=message):
        check_job(kind(input=("a",), output="o", model=directory, **options))


def test_missing_and_colliding_columns_name_their_flags(mnli: str, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", ["a"], label=["x"])
    common: dict[str, Any] = {"input": (str(source),), "output": str(tmp_path / "out"), "model": mnli}
    with pytest.raises(ConfigError, match="--pair-column 'other': the input has no such column"):
        plan_run(check_job(ClassifyConfig(**common, pair_column="other")), (), (), {})
    with pytest.raises(
        ConfigError, match=r"'label' would overwrite.*or rename the output with --label-column label_text"
    ):
        plan_run(check_job(ClassifyConfig(**common)), (), (), {})


def test_a_plan_knows_how_long_the_texts_of_a_row_are(mnli: str, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "in.parquet", ["a" * 400 + str(i) for i in range(9)], other=["b" * 100] * 9)
    common: dict[str, Any] = {"input": (str(source),), "output": str(tmp_path / "out"), "model": mnli}
    alone = plan_run(check_job(ClassifyConfig(**common)), (), (), {})
    paired = plan_run(check_job(ClassifyConfig(**common, pair_column="other")), (), (), {})
    assert alone is not None
    assert paired is not None
    assert 400 <= alone.text_bytes < paired.text_bytes
    assert RunPlan.from_bytes(paired.to_bytes()) == paired


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*completion-signaler:pytest.PytestUnhandledThreadExceptionWarning")
def test_whole_jobs(model_dir: Path, mnli: str, tmp_path: Path) -> None:
    """The same rows classified, and summarized in windows: every row once, with what the models say without Ray."""
    texts = [long_text(seed, 1 + 3 * (seed % 4)) if seed % 7 else None for seed in range(40)]
    source = write_documents(tmp_path / "in.parquet", texts, kept=[str(seed) for seed in range(40)])
    common: dict[str, Any] = {"input": (str(source),), "device": "cpu", "num_gpus_per_worker": 0, "num_workers": 1}
    lines: list[str] = []
    config = ClassifyConfig(**common, output=str(tmp_path / "labels"), model=mnli, labels=LABELS, columns=("kept",))
    outcome = run_job(config, show=lines.append)
    assert outcome.by_status == {"ok": 34, "invalid": 6}
    assert lines[0].startswith("classifying 40 rows of 1 file")
    result = pq.read_table(tmp_path / "labels").sort_by("id")
    assert result.column_names[:3] == ["id", "kept", "label"]
    direct = Classifier(mnli, device="cpu", labels=LABELS).classify(texts)
    assert result["label"].to_pylist() == [each.label for each in direct]
    # With other numbers of threads the last bits differ.
    scores = [[score or 0.0 for score in column] for column in (result["score"].to_pylist(), [e.score for e in direct])]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert run_job(config, show=lines.append).n_rows == 0  # nothing new

    chunked = JobConfig(**common, output=str(tmp_path / "out"), model=str(model_dir), long_documents="chunk")
    assert run_job(chunked).by_status == {"ok": 34, "invalid": 6}
    result = pq.read_table(tmp_path / "out").sort_by("id")
    summaries = Summarizer(model_dir, device="cpu", long_documents="chunk").summarize(texts)
    assert result["summary"].to_pylist() == [summary.text for summary in summaries]
    assert result["chunks"].to_pylist() == [summary.chunks for summary in summaries]
    assert max(result["chunks"].to_pylist()) > 2
