"""The Ray Data job: Parquet of documents in, Parquet with summaries out."""

from typing import TYPE_CHECKING

from pegasus_batch._lazy import attach

if TYPE_CHECKING:
    from pegasus_batch.pipeline.config import ConfigError, JobConfig
    from pegasus_batch.pipeline.ledger import read_summaries
    from pegasus_batch.pipeline.run import JobFailed, run_job
    from pegasus_batch.pipeline.summarize import summarize_dataset

_HOMES = {
    "ConfigError": "config",
    "JobConfig": "config",
    "JobFailed": "run",
    "read_summaries": "ledger",
    "run_job": "run",
    "summarize_dataset": "summarize",
}
__all__ = [
    "ConfigError",
    "JobConfig",
    "JobFailed",
    "read_summaries",
    "run_job",
    "summarize_dataset",
]
__getattr__, __dir__ = attach(__name__, _HOMES)
