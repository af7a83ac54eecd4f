"""Everything about a job that can be known, and refused, before Ray starts."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from pegasus_batch.config import GenerationConfig
from pegasus_batch.pipeline.config import DEMO_CORPUS, ConfigError, JobConfig
from pegasus_batch.pipeline.inputs import Footer, Location, Source, check_output, find_sources, first_rows, locate
from pegasus_batch.pipeline.schema import check_collisions, choose_passengers, is_text, result_fields, unify
from pegasus_batch.pipeline.stages import ModelSettings, check_model, model_name


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the work begins."""

    config: JobConfig
    sources: tuple[Source, ...]
    n_files: int
    n_bytes: int
    n_rows: int  # that will be read, the limit included
    passengers: pa.Schema
    columns: tuple[str, ...]  # read from the files: the passengers and the text
    output: Location
    run_id: str
    settings: ModelSettings
    generation: GenerationConfig  # the model's own with the job's options over it
    notes: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether each document gets a list of summaries too."""
        return self.generation.num_return_sequences > 1

    @property
    def schema(self) -> pa.Schema:
        """The schema of every output file."""
        fields = [*self.passengers, *result_fields(self.config.summary_column, self.several)]
        return pa.schema(fields)


def make_plan(config: JobConfig) -> Plan:
    """Check everything that can be checked without starting Ray. Raises ConfigError."""
    settings = ModelSettings(
        model_name(config.model),
        config.device,
        config.dtype,
        config.generation,
        config.max_source_tokens,
        config.batch_tokens,
        config.newline_token,
    )
    if config.model is None and not config.model_directory.is_dir():
        raise ConfigError(f"this installation has no embedded model ({config.model_directory}): pass --model DIRECTORY")
    try:
        generation = check_model(settings.directory, config.generation, config.max_source_tokens)
    except OSError as error:
        raise ConfigError(f"--model: {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.device == "cuda" and config.num_gpus_per_worker == 0:
        raise ConfigError("--device cuda with --num-gpus-per-worker 0: give each worker a GPU, or use --device cpu")
    if config.is_demo and not DEMO_CORPUS.is_file():
        raise ConfigError(f"this installation has no sample corpus ({DEMO_CORPUS}): pass --input FILE")
    inputs = config.input or (str(DEMO_CORPUS),)
    sources, footers = find_sources(inputs)
    output = locate(config.output)
    check_output(output, inputs, footers)
    available = _input_schema(sources, footers)
    passengers = choose_passengers(available.names, config.id_column, config.text_column, config.columns)
    check_collisions(passengers, config.text_column, config.summary_column, generation.num_return_sequences > 1)
    n_rows = sum(footer.rows for footer in footers)
    if config.limit is not None and config.limit < n_rows:
        n_rows = config.limit
        sources = first_rows(sources, config.limit)
    notes = []
    text_type = available.field(config.text_column).type
    if not is_text(text_type):
        notes.append(f"column {config.text_column!r} is {text_type}, not text: every row will be invalid")
    return Plan(
        config=config,
        sources=tuple(sources),
        n_files=sum(len(source.files) for source in sources),
        n_bytes=sum(footer.size for footer in footers),
        n_rows=n_rows,
        passengers=pa.schema([available.field(name) for name in passengers]),
        columns=tuple(name for name in available.names if name in passengers or name == config.text_column),
        output=output,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        settings=settings,
        generation=generation,
        notes=tuple(notes),
    )


def _input_schema(sources: Sequence[Source], footers: Sequence[Footer]) -> pa.Schema:
    schema = unify([footer.schema for footer in footers], [footer.location.given for footer in footers])
    keys = dict.fromkeys(key for source in sources for key in source.keys)
    for key in keys:
        if key in schema.names:
            raise ConfigError(f"{key!r} is a column of some input files and a key=value directory of others")
        schema = schema.append(pa.field(key, pa.string()))
    return schema
