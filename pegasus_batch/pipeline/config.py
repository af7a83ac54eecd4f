"""What a job is asked to do: one model that the command line, the job file and Python callers all fill in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import pegasus_batch
from pegasus_batch.config import GenerationConfig
from pegasus_batch.config.checks import SAMPLING_OPTIONS

DEMO_DIRECTORY = Path(pegasus_batch.__file__).parent / "demo"
DEMO_MODEL = DEMO_DIRECTORY / "model"
DEMO_CORPUS = DEMO_DIRECTORY / "corpus.parquet"


class ConfigError(ValueError):
    """The job cannot run as asked; the message names the offending value and the remedy. Raised before any work."""


class JobConfig(BaseModel):
    """A summarization job. Field names are the long flags of the command line and the keys of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: tuple[str, ...] = Field(
        (),
        description="Parquet file, directory, glob, s3:// or gs:// URI; repeatable. The sample corpus if left out.",
    )
    output: str = Field(
        description="Directory of the results, a local path or URI like the input. What is there already is not done again."
    )
    model: str | None = Field(
        None, description="Model directory in the Hugging Face layout. The embedded default if left out."
    )
    text_column: str = Field("document", description="Column that holds the texts.")
    id_column: str = Field("id", description="Column that identifies a row; always kept.")
    columns: tuple[str, ...] | None = Field(
        None,
        description="Input columns to keep beside the id: repeat or use commas; '' keeps none. All if left out.",
    )
    summary_column: str = Field("summary", description="Name of the output column that holds the summary.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="Precision of the model; auto is float32 on CPU and bfloat16 on GPU. int8 is for CPUs."
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
    newline_token: str | None = Field(
        None,
        description="Token that stands for a line break in this model's texts, such as '<n>'; written back as one.",
    )
    limit: int | None = Field(None, ge=1, description="Summarize only the first N rows.")
    rows_per_file: int | None = Field(
        None,
        ge=1,
        description="Most rows of an output file, and about what a crash costs. If left out, a 200th of the run.",
    )
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail", description="What an input file that cannot be read does: end the job before it begins, or be reported."
    )
    changed_rows: bool = Field(
        False, description="In input files that were rewritten, summarize only rows whose text is new or changed."
    )
    abandon: str | None = Field(
        None, description="Unfinished run to forget, with all its rows, before the work begins."
    )
    generation: dict[str, Any] = Field(
        default_factory=dict, description="Options of Hugging Face's generate(); those left out come from the model."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _one_input_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _commas_separate_columns(cls, value: Any) -> Any:
        return split_names(value) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _bytes_are_for_cpus(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("dtype") == "int8":
            if values.get("device") == "cuda":
                raise ValueError("--dtype int8 is for CPUs: with --device cuda use bfloat16 or float16")
            return {**values, "device": "cpu"}
        return values

    @property
    def is_demo(self) -> bool:
        """Whether the job summarizes the sample corpus."""
        return not self.input

    @property
    def model_directory(self) -> Path:
        """The directory that the model is read from."""
        return Path(self.model).expanduser() if self.model else DEMO_MODEL


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names, dropping the white space around them."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def read_job_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML job file: the fields of JobConfig, generation options at the top level or under ``generation``."""
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


def build_config(values: Mapping[str, Any], file_values: Mapping[str, Any] | None = None) -> JobConfig:
    """Merge flags over a job file's values (None means not given) and validate.

    Generation options merge one by one. Raises ConfigError listing every wrong field.
    """
    merged = dict(file_values or {})
    generation = {**merged.get("generation", {}), **(values.get("generation") or {})}
    merged.update({name: value for name, value in values.items() if value is not None and name != "generation"})
    if generation:
        merged["generation"] = generation
    known = set(JobConfig.model_fields) | set(GenerationConfig.names())
    for name in merged:
        if name not in JobConfig.model_fields:
            close = difflib.get_close_matches(str(name), sorted(known), n=1)
            raise ConfigError(f"unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if not merged.get("output"):
        raise ConfigError("no output: pass --output DIRECTORY")
    try:
        config = JobConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(describe_problems(error)) from error
    try:
        GenerationConfig().updated(**_checkable(config.generation))
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
    flag = "--" + str(problem["loc"][0]).replace("_", "-")
    return f"{flag}: {reason}" if problem["type"] == "missing" else f"{flag} {problem['input']!r}: {reason}"
