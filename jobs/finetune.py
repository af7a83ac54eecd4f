"""Fine-tune a model on a Parquet file of documents and summaries; see --help, and pegasus_batch.training."""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from pegasus_batch.pipeline.config import describe_problems
from pegasus_batch.training.launch import train
from pegasus_batch.training.settings import FinetuneSettings, read_recipe


def main(arguments: list[str] | None = None) -> int:
    """Run one training; returns 0 at its end, 1 when it was stopped before and can be continued."""
    parser = argparse.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", help="YAML file of settings; options on the command line win over it")
    for name, field in FinetuneSettings.model_fields.items():
        default = "" if field.is_required() or field.default is None else f" (default {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{field.description}{default}".replace("%", "%%"))
    given = vars(parser.parse_args(arguments))
    try:
        recipe = read_recipe(given.pop("recipe")) if "recipe" in given else {}
        return 0 if train(FinetuneSettings.model_validate({**recipe, **given})) else 1
    except ValidationError as error:
        parser.error(describe_problems(error))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
