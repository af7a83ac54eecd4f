"""Make pre-training examples of a corpus: masked documents with the text to write, which jobs/finetune.py trains on."""

from __future__ import annotations

import argparse
import sys

from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.training.pretrain_data import PretrainFailed, make_pretrain_data
from pegasus_batch.training.pretrain_settings import PretrainSettings, build_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one job; returns 0, or 1 when it started and nothing was published."""
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    for name, field in PretrainSettings.model_fields.items():
        default = "" if field.is_required() or not field.default else f" (default {field.default})"
        several = name in ("input", "columns", "corruption")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            action="append" if several else "store",
            help=f"{field.description}{default}".replace("%", "%%"),
        )
    try:
        make_pretrain_data(build_settings(vars(parser.parse_args(arguments))))
    except (ConfigError, ConnectionError) as error:
        parser.error(str(error))
    except PretrainFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
