"""Answer the questions of Parquet files: ``pegasus-batch answer`` as a script for ``ray job submit``."""

from pegasus_batch.cli import main_job

if __name__ == "__main__":
    main_job("answer")
