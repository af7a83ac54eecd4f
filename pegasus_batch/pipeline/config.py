"""What a job is asked to do: one model that the command line, the job file and Python callers all fill in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import pegasus_batch
from pegasus_batch.answering import MAX_ANSWER_TOKENS
from pegasus_batch.classification import HYPOTHESIS
from pegasus_batch.config import GenerationConfig
from pegasus_batch.config.checks import SAMPLING_OPTIONS

DEMO_DIRECTORY = Path(pegasus_batch.__file__).parent / "demo"
DEMO_MODEL = DEMO_DIRECTORY / "model"
DEMO_CORPUS = DEMO_DIRECTORY / "corpus.parquet"


Config = TypeVar("Config", bound="CorpusConfig")


class ConfigError(ValueError):
    """The job cannot run as asked; the message names the offending value and the remedy. Raised before any work."""


class CorpusConfig(BaseModel):
    """What every job over a corpus is asked. Field names are the long flags of the command line and the keys of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: tuple[str, ...] = Field(
        min_length=1, description="Parquet file, directory, glob, s3:// or gs:// URI; repeatable."
    )
    output: str = Field(
        description="Directory of the results, a local path or URI like the input. What is there already is not done again."
    )
    model: str | None = Field(description="Model directory in the Hugging Face layout.")
    id_column: str = Field("id", description="Column that identifies a row; always kept.")
    columns: tuple[str, ...] | None = Field(
        None,
        description="Input columns to keep beside the id: repeat or use commas; '' keeps none. All if left out.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the model; auto is float32 on CPU and bfloat16 on GPU."
    )
    num_workers: int | None = Field(
        None, ge=1, description="Copies of the model. If left out, one per GPU, or one per four CPUs without GPUs."
    )
    num_gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPUs that Ray reserves for a worker; 0 runs on CPUs. If left out, 1 where there are GPUs.",
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="Source tokens in one batch of the model. If left out, 4096 on CPU and 131072 on GPU."
    )
    max_source_tokens: int | None = Field(
        None, ge=2, description="Longer documents are cut to this many tokens. The model's own maximum if left out."
    )
    limit: int | None = Field(None, ge=1, description="Do only the first N rows.")
    rows_per_file: int | None = Field(
        None,
        ge=1,
        description="Most rows of an output file, and about what a crash costs. If left out, a 200th of the run.",
    )
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail", description="What an input file that cannot be read does: end the job before it begins, or be reported."
    )
    changed_rows: bool = Field(
        False, description="In input files that were rewritten, do only rows whose text is new or changed."
    )
    abandon: str | None = Field(
        None, description="Unfinished run to forget, with all its rows, before the work begins."
    )

    text_flags: ClassVar[tuple[str, ...]]  # the fields that name columns that the model reads
    result_flag: ClassVar[str]  # the field that names the principal column of the results
    deciding: ClassVar[tuple[str, ...]] = ("dtype", "max_source_tokens")  # fields that decide a row, beside those

    @field_validator("input", mode="before")
    @classmethod
    def _one_input_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _commas_separate_columns(cls, value: Any) -> Any:
        return split_names(value) if isinstance(value, str) else value

    @property
    def texts(self) -> dict[str, str]:
        """The columns that the model reads, by their flags."""
        named = {flag_of(name): getattr(self, name) for name in self.text_flags}
        return {flag: name for flag, name in named.items() if name is not None}

    @property
    def decides(self) -> dict[str, Any]:
        """What decides a row of the output beside its input, the model and the options that come with that."""
        names = (*self.deciding, *self.text_flags, self.result_flag)
        columns = sorted(self.columns) if self.columns is not None else None
        return {**{name: getattr(self, name) for name in names}, "columns": columns}

    @property
    def is_demo(self) -> bool:
        """Whether the job works on the sample corpus."""
        return not self.input


class JobConfig(CorpusConfig):
    """A summarization job."""

    text_flags = ("text_column",)
    result_flag = "summary_column"
    deciding = (*CorpusConfig.deciding, "newline_token")

    input: tuple[str, ...] = Field(
        (),
        description="Parquet file, directory, glob, s3:// or gs:// URI; repeatable. The sample corpus if left out.",
    )
    model: str | None = Field(
        None, description="Model directory in the Hugging Face layout. The embedded default if left out."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(  # type: ignore[assignment]
        "auto", description="Precision of the model; auto is float32 on CPU and bfloat16 on GPU. int8 is for CPUs."
    )
    text_column: str = Field("document", description="Column that holds the texts.")
    summary_column: str = Field("summary", description="Name of the output column that holds the summary.")
    long_documents: Literal["truncate", "chunk"] = Field(
        "truncate",
        description="What is done with a text longer than --max-source-tokens: cut it, or summarize it in windows of "
        "whole sentences and join the summaries.",
    )
    newline_token: str | None = Field(
        None,
        description="Token that stands for a line break in this model's texts, such as '<n>'; written back as one.",
    )
    generation: dict[str, Any] = Field(
        default_factory=dict, description="Options of Hugging Face's generate(); those left out come from the model."
    )

    @model_validator(mode="before")
    @classmethod
    def _bytes_are_for_cpus(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("dtype") == "int8":
            if values.get("device") == "cuda":
                raise ValueError("--dtype int8 is for CPUs: with --device cuda use bfloat16 or float16")
            return {**values, "device": "cpu"}
        return values

    @property
    def decides(self) -> dict[str, Any]:
        """As for every job; a setting that came later counts where it is used, so that earlier runs stay the same ones."""
        chunk = {"long_documents": "chunk"} if self.long_documents == "chunk" else {}
        return {**super().decides, **chunk}


class ClassifyConfig(CorpusConfig):
    """A classification job: with the checkpoint's own labels, or with any, by entailment."""

    text_flags = ("text_column", "pair_column")
    result_flag = "label_column"

    text_column: str = Field("document", description="Column that holds the texts.")
    pair_column: str | None = Field(
        None, description="Column of second texts, for a checkpoint that judges pairs. None if left out."
    )
    label_column: str = Field("label", description="Name of the output column that holds the best label.")
    labels: tuple[str, ...] | None = Field(
        None,
        description="Labels to choose from, with commas between them, by a checkpoint trained on entailment. The "
        "checkpoint's own if left out.",
    )
    hypothesis: str = Field(HYPOTHESIS, description="What a text says of which a label holds; {} is the label.")
    multi_label: bool = Field(False, description="Judge each of --labels alone: several may hold, or none.")

    @field_validator("labels", mode="before")
    @classmethod
    def _commas_separate_labels(cls, value: Any) -> Any:
        return split_names(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind_of_pair(self) -> Self:
        if self.labels is not None and self.pair_column is not None:
            raise ValueError("--labels and --pair-column exclude each other: a label's hypothesis is the second text")
        if self.labels is None and (self.multi_label or self.hypothesis != HYPOTHESIS):
            raise ValueError("--hypothesis and --multi-label are for --labels: name some")
        return self


class AnswerConfig(CorpusConfig):
    """A question answering job: each row has a question and the context that answers it."""

    text_flags = ("question_column", "context_column")
    result_flag = "answer_column"

    question_column: str = Field("question", description="Column that holds the questions.")
    context_column: str = Field("context", description="Column that holds the texts to find the answers in.")
    answer_column: str = Field("answer", description="Name of the output column that holds the answer.")
    allow_impossible: bool = Field(
        False, description="Let the model say that there is no answer; it must have been trained for that."
    )
    max_answer_tokens: int = Field(
        MAX_ANSWER_TOKENS, ge=1, description=f"Longest answer, in tokens. Default: {MAX_ANSWER_TOKENS}."
    )
    overlap: int | None = Field(
        None,
        ge=0,
        description="Tokens of the context that neighbouring windows share. If left out 128, or half of a shorter window.",
    )
    max_source_tokens: int | None = Field(
        None,
        ge=2,
        description="Question and context in one window; longer contexts are read in several. If left out 384, or what "
        "the model reads.",
    )


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names, dropping the white space around them."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def read_job_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML job file: the fields of a job, generation options at the top level or under ``generation``."""
    path = Path(path).expanduser()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} holds a {type(values).__name__}; expected a mapping of option: value")
    generation = values.pop("generation", None) or {}
    if not isinstance(generation, dict):
        raise ConfigError(f"--config {path}: generation holds a {type(generation).__name__}; expected option: value")
    names = {str(name).replace("-", "_"): value for name, value in values.items()}
    generation = {**generation, **{name: names.pop(name) for name in GenerationConfig.names() if name in names}}
    return {**names, **({"generation": generation} if generation else {})}


def build_config(
    values: Mapping[str, Any],
    file_values: Mapping[str, Any] | None = None,
    kind: type[Config] = JobConfig,  # type: ignore[assignment]
) -> Config:
    """Merge flags over a job file's values (None means not given) and validate them as a ``kind`` of job.

    Generation options merge one by one. Raises ConfigError listing every wrong field.
    """
    merged = dict(file_values or {})
    generation = {**merged.get("generation", {}), **(values.get("generation") or {})}
    merged.update({name: value for name, value in values.items() if value is not None and name != "generation"})
    if generation:
        merged["generation"] = generation
    known = set(kind.model_fields) | (set(GenerationConfig.names()) if "generation" in kind.model_fields else set())
    for name in merged:
        if name not in kind.model_fields:
            close = difflib.get_close_matches(str(name), sorted(known), n=1)
            raise ConfigError(f"unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if not merged.get("output"):
        raise ConfigError("no output: pass --output DIRECTORY")
    try:
        config = kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(describe_problems(error)) from error
    try:
        GenerationConfig().updated(**_checkable(generation))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generation options: {error}") from error
    return config


def _checkable(options: Mapping[str, Any]) -> dict[str, Any]:
    # The model's own settings are unknown here and decide, for instance, whether num_return_sequences fits num_beams:
    # this refuses unknown names and values that are wrong alone; the whole is checked once the model is read.
    alone = dict(options)
    groups = ("num_beam_groups", "diversity_penalty", "force_words_ids")
    for name in ("num_return_sequences", "min_length", "min_new_tokens", *groups, *SAMPLING_OPTIONS):
        alone.pop(name, None)
    return alone


def describe_problems(error: ValidationError) -> str:
    """Say every wrong setting in the words of the command line."""
    return "; ".join(_describe(problem) for problem in error.errors())


def _describe(problem: Any) -> str:
    reason = re.sub("^Input should", "should", problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:  # of several fields together, which the message names
        return reason
    flag = flag_of(str(problem["loc"][0]))
    return f"{flag}: {reason}" if problem["type"] == "missing" else f"{flag} {problem['input']!r}: {reason}"
