"""Everything about a job that can be known, and refused, before Ray starts; and what one run of it will do."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.pipeline.answer import make_answer
from pegasus_batch.pipeline.classify import make_classify
from pegasus_batch.pipeline.config import (
    DEMO_CORPUS,
    DEMO_MODEL,
    AnswerConfig,
    ClassifyConfig,
    ConfigError,
    CorpusConfig,
    JobConfig,
    flag_of,
)
from pegasus_batch.pipeline.inputs import Footer, InputFile, Location, check_output, list_inputs, locate, read_footers
from pegasus_batch.pipeline.schema import check_collisions, choose_passengers, is_text, unify
from pegasus_batch.pipeline.summarize import make_summarize
from pegasus_batch.pipeline.task import Task

MAX_LISTED = 5  # bad files named in one message
_MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt"}
_NOT_THE_MODEL = {"generation_config.json", "training.json"}  # the options that are used are hashed themselves


@dataclass(frozen=True)
class Job:
    """A request that has been checked: what decides the results, and where they go."""

    config: CorpusConfig
    task: Task
    output: Location
    fingerprint: str  # of all that decides a row of the output beside the input

    @property
    def inputs(self) -> tuple[str, ...]:
        """What is read: the sample corpus if nothing was named."""
        return self.config.input or (str(DEMO_CORPUS),)

    @property
    def fields(self) -> list[pa.Field]:
        """The columns that the job adds."""
        return list(self.task.fields.values())


@dataclass(frozen=True)
class Version:
    """A file as it was when it was listed: rewritten files differ in size or time."""

    uri: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PlannedFile:
    """A file of a run. Its place in the plan and a position within it are the key of a row."""

    version: Version
    at: str  # the name that it can be located by
    row_groups: tuple[int, ...]  # rows of each
    rows: int  # to do, from the first on; fewer than there are where the job is limited
    keys: tuple[tuple[str, str], ...] = ()
    previous: str | None = None  # the run whose summaries serve rows that did not change

    @property
    def complete(self) -> bool:
        """Whether the run covers the whole file."""
        return self.rows == sum(self.row_groups)


@dataclass(frozen=True)
class BadFile:
    """A file that was skipped, and why."""

    version: Version
    reason: str


@dataclass(frozen=True)
class RunPlan:
    """What one run does. Written before the work begins, so that a later process can finish it."""

    run_id: str
    fingerprint: str
    created: str
    files: tuple[PlannedFile, ...]
    bad: tuple[BadFile, ...]
    passengers: pa.Schema
    notes: tuple[str, ...] = ()
    text_bytes: int = 0  # of a row, on the average; 0 if not known

    @property
    def n_rows(self) -> int:
        """Rows that the run must account for."""
        return sum(file.rows for file in self.files)

    def schema(self, job: Job) -> pa.Schema:
        """Return the schema of every output file."""
        return pa.schema([*self.passengers, *job.fields])

    def columns(self, job: Job) -> list[str]:
        """Return the columns to read: the passengers and the texts."""
        return list(dict.fromkeys([*self.passengers.names, *job.config.texts.values()]))

    def to_bytes(self) -> bytes:
        """Return the plan as JSON; the schema is Arrow's own form of it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["passengers"] = write_schema(self.passengers)
        values["files"] = [dataclasses.asdict(file) for file in self.files]
        values["bad"] = [dataclasses.asdict(file) for file in self.bad]
        return json.dumps(values, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> RunPlan:
        """Read what ``to_bytes`` wrote."""
        values = json.loads(data)
        values["passengers"] = read_schema(values["passengers"])
        values["bad"] = tuple(BadFile(Version(**bad["version"]), bad["reason"]) for bad in values["bad"])
        values["files"] = tuple(_planned_file(file) for file in values["files"])
        values["notes"] = tuple(values["notes"])
        return cls(**values)


def _planned_file(values: Mapping[str, Any]) -> PlannedFile:
    return PlannedFile(
        Version(**values["version"]),
        values["at"],
        tuple(values["row_groups"]),
        values["rows"],
        tuple((key, value) for key, value in values["keys"]),
        values["previous"],
    )


def check_job(config: CorpusConfig) -> Job:
    """Check all of a job but its input files. Raises ConfigError."""
    if config.model is None and not DEMO_MODEL.is_dir():
        raise ConfigError(f"this installation has no embedded model ({DEMO_MODEL}): pass --model DIRECTORY")
    try:
        task = make_task(config)
    except OSError as error:
        raise ConfigError(f"--model: {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.device == "cuda" and config.num_gpus_per_worker == 0:
        raise ConfigError("--device cuda with --num-gpus-per-worker 0: give each worker a GPU, or use --device cpu")
    if config.is_demo and not DEMO_CORPUS.is_file():
        raise ConfigError(f"this installation has no sample corpus ({DEMO_CORPUS}): pass --input FILE")
    return Job(config, task, locate(config.output), _fingerprint(config, task))


def make_task(config: CorpusConfig) -> Task:
    """Return what a job does, after reading all of its model but the weights. Raises ValueError or OSError."""
    match config:
        case JobConfig():
            return make_summarize(config)
        case ClassifyConfig():
            return make_classify(config)
        case AnswerConfig():
            return make_answer(config)
    raise TypeError(f"{type(config).__name__} is not the config of a known job")


def _fingerprint(config: CorpusConfig, task: Task) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps({**task.options, **config.decides}, sort_keys=True).encode())
    for path in sorted(resolve(task.settings.directory).iterdir()):
        if path.suffix in _MODEL_SUFFIXES and path.name not in _NOT_THE_MODEL and path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]


def plan_run(
    job: Job, done: Collection[Version], known_bad: Collection[Version], runs: Mapping[str, str]
) -> RunPlan | None:
    """Plan the input files that are not ``done``; None if there are none.

    ``known_bad`` were skipped before; ``runs`` says for a file (by uri) which run holds its newest summaries. Raises
    ConfigError on files that cannot be read, unless the job skips them, and on columns that do not fit.
    """
    config = job.config
    listed = list_inputs(job.inputs)
    check_output(job.output, job.inputs, listed)
    skipped = set(known_bad) if config.on_bad_file == "skip" else set()
    todo = [file for file in listed if _version(file) not in skipped and _version(file) not in done]
    if not todo:
        return None
    footers = read_footers(todo)
    good = [footer for footer in footers if footer.schema is not None]
    bad = [BadFile(_version(footer.file), footer.error or "") for footer in footers if footer.schema is None]
    available, misfits = _fit(good, config)
    bad += [BadFile(_version(good[index].file), reason) for index, reason in misfits.items()]
    good = [footer for index, footer in enumerate(good) if index not in misfits]
    _check_bad(bad, len(todo), config, nothing_else=not good and not done)
    n_rows = sum(footer.rows for footer in good)
    if not n_rows and not done and not bad:
        raise ConfigError(f"the input has no rows: {', '.join(job.inputs)}")
    texts = list(config.texts.values())
    passengers = pa.schema([])
    notes: tuple[str, ...] = ()
    if good:
        names = choose_passengers(available.names, config.id_column, config.texts, config.columns)
        check_collisions(names, texts, job.fields, flag_of(config.result_flag))
        passengers = pa.schema([available.field(name) for name in names])
        types = {name: available.field(name).type for name in texts}
        notes = tuple(
            f"column {name!r} is {data_type}, not text: every row will be invalid"
            for name, data_type in types.items()
            if not is_text(data_type)
        )
    return RunPlan(
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        fingerprint=job.fingerprint,
        created=now(),
        files=tuple(_plan_files(good, config, runs)),
        bad=tuple(bad),
        passengers=passengers,
        notes=notes,
        text_bytes=int(
            sum(footer.rows * footer.row_bytes.get(name, 0) for footer in good for name in texts) / max(1, n_rows)
        ),
    )


def now() -> str:
    """Return the time as plans and manifests note it."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def write_schema(schema: pa.Schema) -> str:
    """Return a schema as plans and manifests note it: Arrow's own form, in base 64."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def read_schema(text: str) -> pa.Schema:
    """Read what ``write_schema`` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _version(file: InputFile) -> Version:
    return Version(file.uri, file.size, file.mtime_ns)


def _fit(footers: Sequence[Footer], config: CorpusConfig) -> tuple[pa.Schema, dict[int, str]]:
    schemas = [footer.schema for footer in footers if footer.schema is not None]
    everything = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    if everything:  # a column that no file has is a wrong option, not a bad file
        choose_passengers(everything, config.id_column, config.texts, config.columns)
    required = (*config.texts.values(), config.id_column)
    return unify(schemas, [footer.file.uri for footer in footers], required)


def _check_bad(bad: Sequence[BadFile], n_files: int, config: CorpusConfig, nothing_else: bool) -> None:
    if not bad or (config.on_bad_file == "skip" and not nothing_else):
        return
    shown = "".join(f"\n  {file.version.uri}: {file.reason}" for file in bad[:MAX_LISTED])
    more = f"\n  and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
    remedy = "" if config.on_bad_file == "skip" else ", or skip them with --on-bad-file skip"
    raise ConfigError(
        f"{len(bad)} of {n_files} input files cannot be used; repair or remove them{remedy}:{shown}{more}"
    )


def _plan_files(footers: Sequence[Footer], config: CorpusConfig, runs: Mapping[str, str]) -> list[PlannedFile]:
    files = []
    left = config.limit
    for footer in footers:
        rows = footer.rows if left is None else min(left, footer.rows)
        if left is not None:
            if left <= 0:
                break
            left -= rows
        version = _version(footer.file)
        previous = runs.get(version.uri) if config.changed_rows else None
        files.append(
            PlannedFile(version, footer.file.location.given, footer.row_groups, rows, footer.file.keys, previous)
        )
    return files
