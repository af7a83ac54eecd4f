"""Turn a corpus of documents into pre-training examples: a Ray Data job whose output ``jobs/finetune.py`` reads."""

from __future__ import annotations

import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pyarrow import fs
from ray.data.datasource import BlockBasedFileDatasink

from pegasus_batch.pipeline import report
from pegasus_batch.pipeline.cluster import ray_session, termination_unwinds
from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import Footer, InputFile, Location, check_output, list_inputs, locate, read_footers
from pegasus_batch.pipeline.schema import conform, is_text, require_column, unify
from pegasus_batch.pipeline.stages import READ_ROWS, WRITE_CPUS, read_texts
from pegasus_batch.training.examples import Example
from pegasus_batch.training.pretrain_settings import PretrainSettings

RECORD = "_examples.json"  # settings and counts, written last; readers of Parquet directories skip the underscore
NO_TEXT = "no text"
_LEFT_OUT, _CUT = "__pegasus_left_out", "__pegasus_cut"  # why a row is no example; whether its document was cut
_EXAMPLE_FIELDS = (pa.field("document", pa.string()), pa.field("summary", pa.string()))
_NOTE_FIELDS = (pa.field(_LEFT_OUT, pa.string()), pa.field(_CUT, pa.bool_()))
_MOST_UNITS = 4000  # tasks that read; each is an object that the driver keeps
_BLOCK_BYTES = 4 * 2**20  # of documents: a second or two of work, so that one large file still feeds every process
_FILE_BYTES = 32 * 2**20  # of an output file, before compression


class PretrainFailed(RuntimeError):
    """The job started and did not finish; nothing was published."""


class Objective(Protocol):
    """Turns a text into an example, or into None for the reason ``left_out``."""

    @property
    def left_out(self) -> str:
        """Why some texts make no example."""

    def __call__(self, text: str, seed: int) -> Example | None:
        """Return the example of a text."""


@dataclass(frozen=True)
class Counts:
    """What became of the documents: every one of them is an example or has a reason."""

    documents: int
    examples: int
    cut: int  # of the examples, those whose document was longer than the settings allow
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadDocuments:
    """Turns a table of row groups (``at``, the name of a file, and ``group``) into their rows.

    Ray Data's own ``read_parquet`` would do, but leaves files out, without a word, whose names end in other ways than it
    expects. ``schema`` is that of the columns to read.
    """

    schema: pa.Schema

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Yield a few rows at a time, so that a row group of a million documents is never in memory whole."""
        for unit in units.to_pylist():
            at = locate(unit["at"])
            with at.filesystem.open_input_file(at.path) as handle:
                parquet = pq.ParquetFile(handle, page_checksum_verification=True)
                batches = parquet.iter_batches(READ_ROWS, [unit["group"]], self.schema.names, use_threads=False)
                for batch in batches:
                    yield conform(pa.Table.from_batches([batch]), self.schema)


@dataclass(frozen=True)
class MakeExamples:
    """Turns a table of documents into one of examples, row by row; rows that make none say why.

    ``passengers`` is the schema of the input columns that are kept.
    """

    objective: Objective
    text_column: str
    passengers: pa.Schema
    seed: int

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the passengers, ``document`` and ``summary``, and the notes that the sink counts and drops."""
        texts, unreadable = read_texts(table.column(self.text_column))
        columns: tuple[list[Any], ...] = ([], [], [], [])
        for row, text in enumerate(texts):
            example, reason = None, "the text is not valid UTF-8" if row in unreadable else NO_TEXT
            if text and text.strip():
                example, reason = self.objective(text, self.seed), self.objective.left_out
            made = (example.document, example.summary, None, example.cut) if example else (None, None, reason, False)
            for column, value in zip(columns, made, strict=True):
                column.append(value)
        kept = conform(table.select(self.passengers.names), self.passengers)
        for added, values in zip((*_EXAMPLE_FIELDS, *_NOTE_FIELDS), columns, strict=True):
            kept = kept.append_column(added, pa.array(values, added.type))
        return kept


class ExamplesDatasink(BlockBasedFileDatasink):
    """Ray Data's file writer, which leaves rows out that are no examples, and counts.

    The counts come back as the write tasks' results: Ray hands over those of finished tasks, once each, whatever it had
    to retry.
    """

    def __init__(self, directory: Location, schema: pa.Schema) -> None:
        super().__init__(
            directory.path, filesystem=directory.filesystem, file_format="parquet", try_create_dir=directory.is_local
        )
        self._schema = schema
        self.counts = Counts(0, 0, 0)

    @property
    def min_bytes_per_write(self) -> int:
        """How much a file holds."""
        return _FILE_BYTES

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Counter[str]:  # type: ignore[override]
        """Write the examples of one task; return how many rows there were by reason, examples under an empty one."""
        tables = [block for block in blocks if len(block)]
        if not tables:
            return Counter()
        rows = pa.concat_tables(tables)
        is_example = pc.is_null(rows.column(_LEFT_OUT))
        examples = rows.filter(is_example)
        if len(examples):
            super().write([conform(examples, self._schema)], ctx)
        counted = Counter(reason or "" for reason in rows.column(_LEFT_OUT).to_pylist())
        counted[_CUT] = pc.sum(examples.column(_CUT)).as_py() or 0
        return counted

    def write_block_to_file(self, block: Any, file: Any) -> None:
        """Write one file."""
        pq.write_table(block.to_arrow(), file, write_page_checksum=True)

    def on_write_complete(self, write_result: Any) -> None:
        """Add up the counts of all tasks."""
        total: Counter[str] = sum(write_result.write_returns, Counter())
        cut = total.pop(_CUT, 0)
        examples = total.pop("", 0)
        left_out = dict(total.most_common())
        self.counts = Counts(examples + sum(left_out.values()), examples, cut, left_out)


@dataclass(frozen=True)
class Corpus:
    """The input files, and the columns that are read: the text, and those that stay beside the examples."""

    files: tuple[Footer, ...]
    text_column: str
    passengers: pa.Schema

    @property
    def schema(self) -> pa.Schema:
        """The columns to read, in one type for all files."""
        text = pa.field(self.text_column, pa.large_string())
        return self.passengers if self.text_column in self.passengers.names else self.passengers.append(text)

    @property
    def rows(self) -> int:
        """Documents of all files."""
        return sum(file.rows for file in self.files)

    def units(self) -> list[pa.Table]:
        """Return every row group that has rows, several in a table where there are very many."""
        names = [(footer.file.location.given, footer.row_groups) for footer in self.files]
        groups = [(at, group) for at, sizes in names for group, rows in enumerate(sizes) if rows]
        step = max(1, -(-len(groups) // _MOST_UNITS))
        parts = [groups[start : start + step] for start in range(0, len(groups), step)]
        return [pa.table({"at": [at for at, _ in part], "group": [group for _, group in part]}) for part in parts]

    def texts(self) -> Iterator[str]:
        """Yield the texts in file order, a few in memory at a time."""
        for unit in self.units():
            for table in ReadDocuments(self.schema)(unit):
                texts, _ = read_texts(table.column(self.text_column))
                yield from (text for text in texts if text and text.strip())


def make_pretrain_data(settings: PretrainSettings, show: Callable[[str], None] = report.say) -> Counts | None:
    """Write the examples that ``settings`` describes; return what became of the documents, None without an output.

    Raises ConfigError before any work, and PretrainFailed if nothing could be published. Locally the output appears
    whole, by renaming a hidden directory beside it; elsewhere it is whole once it has a ``_examples.json``.
    """
    corpus = open_corpus(settings)
    objective = settings.make_objective()
    try:
        objective("A sentence. Another sentence.", settings.seed)
    except (ValueError, OSError, AssertionError) as error:
        raise ConfigError(f"--model {settings.model!r}: {error}") from error
    for number, (text, example) in enumerate(_first_examples(corpus, settings, objective), 1):
        print(f"--- example {number} of {settings.show}: the text\n{text}\n--- the document\n{example.document}")
        print(f"--- the summary\n{example.summary}\n", flush=True)
    if settings.output is None:
        return None
    output = locate(settings.output)
    check_new(output, settings.input, [footer.file for footer in corpus.files])
    with termination_unwinds(), _staged(output) as directory:
        counts = write_examples(corpus, settings, objective, directory)
        if counts.documents != corpus.rows:
            raise PretrainFailed(
                f"{counts.documents:,} documents were read of {corpus.rows:,}: an input file has changed"
            )
        if not counts.examples:
            raise PretrainFailed(f"no document made an example: {describe(counts)}")
        record = {"settings": settings.model_dump(mode="json"), **vars(counts)}
        with directory.filesystem.open_output_stream(f"{directory.path}/{RECORD}") as file:
            file.write(json.dumps(record, indent=1, ensure_ascii=False).encode())
    show(f"{describe(counts)}; in {output.given}")
    return counts


def open_corpus(settings: PretrainSettings) -> Corpus:
    """List the input and read its footers. Raises ConfigError for what cannot be read, with the reason."""
    files = list_inputs(settings.input)
    footers = read_footers(files)
    bad = next((footer for footer in footers if footer.schema is None), None)
    if bad:
        raise ConfigError(f"--input {bad.file.uri}: {bad.error}; repair the file or leave it out")
    wanted = [settings.text_column, *settings.columns]
    schemas = []
    for footer in footers:
        assert footer.schema is not None
        own = [column for column in footer.schema if column.name not in dict(footer.file.keys)]
        for name, flag in zip(wanted, ["--text-column", *["--columns"] * len(settings.columns)], strict=True):
            require_column([column.name for column in own], name, flag)
        schemas.append(pa.schema([column for column in own if column.name in wanted]))
    schema, misfits = unify(schemas, [file.uri for file in files], wanted)
    for index, reason in misfits.items():
        if settings.text_column not in reason or settings.text_column in settings.columns:
            raise ConfigError(f"--input {files[index].uri}: {reason}; make the files alike or leave it out")
    for file, one in zip(files, schemas, strict=True):
        text_type = one.field(settings.text_column).type
        if not is_text(text_type):
            raise ConfigError(f"--text-column {settings.text_column!r} is {text_type} in {file.uri}: expected a string")
    return Corpus(
        tuple(footers),
        settings.text_column,
        pa.schema([schema.field(name) for name in dict.fromkeys(settings.columns)]),
    )


def check_new(output: Location, inputs: Sequence[str], files: Sequence[InputFile]) -> None:
    """Raise ConfigError unless the output is a new or empty directory apart from the input."""
    check_output(output, inputs, files)
    entries = output.filesystem.get_file_info(fs.FileSelector(output.path, allow_not_found=True))
    if entries:
        raise ConfigError(
            f"--output {output.given!r} is not empty (it holds {entries[0].base_name}): examples of two runs would mix; name "
            "a new directory"
        )


def write_examples(corpus: Corpus, settings: PretrainSettings, objective: Objective, directory: Location) -> Counts:
    """Make the examples of every document and write them to a directory; return what became of the documents."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = _BLOCK_BYTES
    sink = ExamplesDatasink(directory, pa.schema([*corpus.passengers, *_EXAMPLE_FIELDS]))
    make = MakeExamples(objective, settings.text_column, corpus.passengers, settings.seed)
    try:
        with ray_session(), termination_unwinds(), ray.data.DataContext.current(context):
            # Stages of different shares of a CPU are not fused: one large row group is cut into blocks that many tasks work
            # on, and no task collects all that a row group makes.
            units = ray.data.from_arrow(corpus.units()).map_batches(
                ReadDocuments(corpus.schema), batch_format="pyarrow", batch_size=None, num_cpus=WRITE_CPUS
            )
            examples = units.map_batches(make, batch_format="pyarrow", batch_size=None, num_cpus=1)
            examples.write_datasink(sink, ray_remote_args={"num_cpus": WRITE_CPUS})
    except (ConfigError, ConnectionError):
        raise
    except Exception as error:
        raise PretrainFailed(f"{report.root_cause(error)}\nNothing was published") from error
    return sink.counts


def describe(counts: Counts) -> str:
    """Return the counts in words."""
    parts = [f"{counts.examples:,} examples of {counts.documents:,} documents"]
    parts += [f"{number:,} documents left out: {reason}" for reason, number in counts.left_out.items()]
    if counts.cut:
        parts.append(f"{counts.cut:,} documents cut")
    return "; ".join(parts)


def _first_examples(corpus: Corpus, settings: PretrainSettings, objective: Objective) -> Iterator[tuple[str, Example]]:
    n_shown = 0
    for text in corpus.texts() if settings.show else ():
        example = objective(text, settings.seed)
        if example is not None:
            yield text, example
            n_shown += 1
        if n_shown == settings.show:
            return


@contextmanager
def _staged(output: Location) -> Iterator[Location]:
    """Yield the directory to write to, which becomes the output if the block succeeds."""
    if not output.is_local:
        yield output
        return
    path = Path(output.path)
    staging = path.parent / f".{path.name}.unfinished-{secrets.token_hex(4)}"
    staging.mkdir(parents=True)
    try:
        yield Location(output.filesystem, str(staging), str(staging))
        try:
            staging.rename(path)
        except OSError as error:  # somebody else has filled it meanwhile
            raise PretrainFailed(f"--output {output.given!r}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
