"""The Ray Data job: Parquet of documents in, Parquet with summaries out."""

from pegasus_batch.pipeline.config import ConfigError, JobConfig
from pegasus_batch.pipeline.ledger import read_summaries
from pegasus_batch.pipeline.run import JobFailed, run_job
from pegasus_batch.pipeline.stages import summarize_dataset

__all__ = ["ConfigError", "JobConfig", "JobFailed", "read_summaries", "run_job", "summarize_dataset"]
