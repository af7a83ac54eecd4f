"""``pegasus-batch``: subcommands whose flags are made from the settings that they fill in."""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer
import yaml
from pydantic.fields import FieldInfo
from rich.console import Console

from pegasus_batch.config import GenerationConfig
from pegasus_batch.pipeline import report
from pegasus_batch.pipeline.config import (
    AnswerConfig,
    ClassifyConfig,
    ConfigError,
    CorpusConfig,
    JobConfig,
    build_config,
    flag_of,
    read_job_file,
)
from pegasus_batch.pipeline.ledger import Ledger
from pegasus_batch.pipeline.lock import OutputLocked
from pegasus_batch.pipeline.plan import check_job
from pegasus_batch.pipeline.run import JobFailed, find_work, run_job
from pegasus_batch.pipeline.status import describe_output

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="pegasus-batch",
    help="Work through whole corpora with Pegasus and BART.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long flags short
)


@app.callback()
def main_options() -> None:
    """Work through whole corpora with Pegasus and BART."""


def _run(kind: type[CorpusConfig], flags: dict[str, Any]) -> None:
    """Run a job of this kind as its flags say."""
    dry_run, job_file = flags.pop("dry_run"), flags.pop("config")
    given = {name: text for name in _generation_options(kind) if (text := flags.pop(name)) is not None}
    generation = {name: parse_option(name, text) for name, text in given.items()}
    # A name may hold a comma only in a job file.
    flags = {name: ",".join(v) if isinstance(v, list) and name != "input" else v for name, v in flags.items()}
    try:
        file_values = read_job_file(job_file) if job_file else None
        config = build_config({**flags, "generation": generation}, file_values, kind)
        if dry_run:
            job = check_job(config)
            print("\n".join(report.plan_lines(job, find_work(job, Ledger(job.output), report.say, change=False))))
            return
        outcome = run_job(config)
    except ConfigError as error:
        raise _stop(error, USAGE) from error
    except (JobFailed, OutputLocked, ConnectionError) as error:
        raise _stop(error, FAILURE) from error
    except KeyboardInterrupt as error:
        raise _stop("interrupted; the same command goes on from here", INTERRUPTED) from error
    except SystemExit:  # what SIGTERM becomes
        report.say("stopped; the same command goes on from here")
        raise
    Console().print(report.outcome_table(outcome))


def _stop(reason: object, code: int) -> typer.Exit:
    report.say(f"error: {reason}")
    return typer.Exit(code)


def parse_option(name: str, text: str) -> Any:
    """Read a generation option as YAML writes it: 4, 0.8, true, never, [[5, 6], [7]], null."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"{text!r} is not a YAML value", param_hint=flag_of(name)) from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML takes 1e-3, without a point, for a word
            return float(value)
    return value


def _generation_options(kind: type[CorpusConfig]) -> tuple[str, ...]:
    return GenerationConfig.names() if "generation" in kind.model_fields else ()


def _job_command(kind: type[CorpusConfig], text: str) -> Callable[..., None]:
    """Return a command with one flag for each field of a kind of job and, if it generates, of GenerationConfig."""

    def command(**flags: Any) -> None:
        _run(kind, flags)

    parameters = [_job_flag(name, field) for name, field in kind.model_fields.items() if name != "generation"]
    parameters += [
        _flag("config", str, "YAML file of these options; flags win over it.", metavar="JOB.YAML"),
        inspect.Parameter(
            "dry_run",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and stop.")],
        ),
    ]
    parameters += [
        _flag(
            option.name,
            str,
            f"{option.name} of generate(); the model's own if left out.",
            metavar=_type_name(option.type),
        )
        for option in fields(GenerationConfig)
        if option.name in _generation_options(kind)
    ]
    command.__doc__ = text
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _job_flag(name: str, field: FieldInfo) -> inspect.Parameter:
    kinds = [kind for kind in _members(field.annotation) if kind is not type(None)]
    kind, metavar = kinds[0], None
    if typing.get_origin(kind) is typing.Literal:
        kind, metavar = str, "|".join(typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        kind = list[str]
    text = field.description or ""
    if field.default is not None and not field.is_required() and isinstance(field.default, str):
        text += f" Default: {field.default.rstrip('.')}."
    return _flag(name, kind, text, metavar)


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _flag(name: str, kind: Any, text: str, metavar: str | None = None) -> inspect.Parameter:
    # None says that the flag was not given: defaults are the job's, so that a job file can come in between.
    option = typer.Option(flag_of(name), help=text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _type_name(annotation: Any) -> str:
    name = re.sub(r"Literal\[['\"](\w+)['\"]\]", r"\1", str(annotation))
    return name.replace(" | None", "").replace("Sequence", "list").replace(" ", "")


JOBS = {
    "summarize": _job_command(
        JobConfig, "Summarize the documents of Parquet files: one output row for every input row."
    ),
    "classify": _job_command(
        ClassifyConfig, "Classify the texts of Parquet files, or pairs of texts: one output row for every input row."
    ),
    "answer": _job_command(
        AnswerConfig, "Answer the questions of Parquet files out of their contexts: one output row for every input row."
    ),
}
for name, command in JOBS.items():
    app.command(name)(command)


@app.command("status")
def status(output: Annotated[str, typer.Argument(help="Output directory of the job, a local path or URI.")]) -> None:
    """List the runs of an output directory: rows, errors, skipped files, and what is unfinished."""
    try:
        Console().print(describe_output(output))
    except ConfigError as error:
        raise _stop(error, USAGE) from error


@app.command("convert")
def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint of Flax, TensorFlow, fairseq or google-research/pegasus.")],
    destination: Annotated[str, typer.Argument(help="New directory for the model.")],
    to: Annotated[str, typer.Option(help="What to write.", metavar="huggingface|flax|tensorflow")] = "huggingface",
    config: Annotated[str | None, typer.Option(help="JSON file of settings that win over the source's.")] = None,
    vocabulary: Annotated[str | None, typer.Option(help="SentencePiece model of a google-research checkpoint.")] = None,
) -> None:
    """Convert a checkpoint, check that the copy is the same, and run it once."""
    from pegasus_batch import conversion  # with torch, which the job's own commands start without

    try:
        done = conversion.convert(source, destination, to, config, vocabulary)
    except (OSError, ValueError, ImportError) as error:
        raise _stop(error, USAGE) from error
    print("\n".join(conversion.describe(done)))


@app.command("verify")
def verify(
    model: Annotated[
        str, typer.Argument(help="Directory of a released checkpoint, or its name if the hub's cache has it.")
    ],
    released: Annotated[str | None, typer.Option("--as", help="Which one it is, where that cannot be told.")] = None,
) -> None:
    """Run the documentation's examples on a released checkpoint and compare; nothing is downloaded."""
    from pegasus_batch import verification

    try:
        findings = verification.verify(model, released)
    except (OSError, ValueError) as error:
        raise _stop(error, USAGE) from error
    print("\n".join(map(str, findings)))
    if any(finding.held is False for finding in findings):
        raise typer.Exit(FAILURE)


def main() -> None:
    """Run ``pegasus-batch``."""
    app()


def main_job(name: str) -> None:
    """Run the command of one job alone: what the scripts in ``jobs/`` are."""
    job = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    job.command()(JOBS[name])
    job()


if __name__ == "__main__":
    main()
