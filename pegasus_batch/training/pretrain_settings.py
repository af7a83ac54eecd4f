"""The settings of a job that makes pre-training examples, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pegasus_batch.pipeline.config import ConfigError, describe_problems, split_names
from pegasus_batch.training.denoising import Corruption, Denoising, read_corruption
from pegasus_batch.training.gap_sentences import GapSentences, Strategy


class PretrainSettings(BaseModel):
    """Everything that decides which examples a corpus makes. Field names are the flags of ``jobs/pretrain.py``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: tuple[str, ...] = Field(
        min_length=1, description="Parquet file, directory, glob, s3:// or gs:// URI of documents; repeatable"
    )
    output: str | None = Field(None, description="new or empty directory of the examples, a local path or URI")
    text_column: str = Field("document", description="column of the input that holds the texts")
    columns: tuple[str, ...] = Field(
        (), description="input columns to keep beside the examples, such as ids: repeat or use commas"
    )
    objective: Literal["gsg", "denoising"] = Field("gsg", description="gsg, as Pegasus, or denoising, as BART")
    seed: int = Field(0, ge=0, description="decides every random draw, together with a document's text")
    show: int = Field(0, ge=0, description="examples to print first; without an output, all that is done")

    strategy: Strategy = Field(
        "ind-orig", description="how gsg selects sentences: ind-orig, ind-uniq, seq-orig, seq-uniq, lead or random"
    )
    gap_ratio: tuple[float, float] = Field(
        (0.15, 0.45), description="share of sentences that gsg selects: a number, or LOW:HIGH to draw it by document"
    )
    unmasked_share: float = Field(
        0.2, ge=0, le=1, description="probability that a selected sentence stays in the document"
    )
    importance_noise: float = Field(
        0.2, ge=0, le=1, description="n draws a factor from 1-n to 1+n for the score of every sentence"
    )
    min_sentences: int = Field(2, ge=2, description="gsg leaves out, and counts, documents with fewer sentences")
    max_sentences: int = Field(500, ge=2, description="gsg cuts, and counts, documents with more sentences")

    model: str | None = Field(None, description="directory of the tokenizer that denoising needs")
    corruption: tuple[str, ...] = Field(
        ("sentence-permutation", "text-infilling:0.3"),
        description="what denoising does, in this order, NAME or NAME:SHARE; repeatable. Names: token-masking, "
        "token-deletion, text-infilling, sentence-permutation, document-rotation",
    )
    max_tokens: int = Field(510, ge=1, description="denoising cuts, and counts, documents with more tokens")

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("columns", "corruption", mode="before")
    @classmethod
    def _commas_separate(cls, value: Any) -> Any:
        texts = (value,) if isinstance(value, str) else value
        if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
            return tuple(name for text in texts for name in split_names(text))
        return value

    @field_validator("gap_ratio", mode="before")
    @classmethod
    def _one_or_two_numbers(cls, value: Any) -> Any:
        if isinstance(value, str):
            low, colon, high = value.partition(":")
            try:
                return float(low), float(high if colon else low)
            except ValueError:
                raise ValueError("should be a number, or two as LOW:HIGH, such as 0.15:0.45") from None
        return (value, value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.gap_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"--gap-ratio {low:g}:{high:g}: both lie between 0 and 1, the lower first")
        if self.output is None and not self.show:
            raise ValueError("give output (a new directory), or show (a number of examples to print)")
        if self.objective == "denoising" and self.model is None:
            raise ValueError("denoising works on tokens: give model, the directory of a tokenizer with a mask token")
        if self.objective == "gsg" and self.model is not None:
            raise ValueError(f"model {self.model!r}: gsg works on sentences and needs none; leave it out")
        if self.max_sentences < self.min_sentences:
            raise ValueError(f"max_sentences {self.max_sentences} is below min_sentences {self.min_sentences}")
        taken = [name for name in self.columns if name in ("document", "summary")]
        if taken:
            raise ValueError(f"columns {taken[0]!r}: the examples have a column of that name; rename it in the input")
        self.corruptions()
        return self

    def corruptions(self) -> tuple[Corruption, ...]:
        """Return what denoising does."""
        return tuple(read_corruption(text) for text in self.corruption)

    def make_objective(self) -> GapSentences | Denoising:
        """Return what turns a text into an example."""
        if self.objective == "denoising":
            assert self.model is not None
            # Absolute: workers run in other directories.
            return Denoising(str(Path(self.model).expanduser().absolute()), self.corruptions(), self.max_tokens)
        return GapSentences(
            self.strategy,
            self.gap_ratio,
            self.unmasked_share,
            self.importance_noise,
            self.min_sentences,
            self.max_sentences,
        )


def build_settings(values: Mapping[str, Any]) -> PretrainSettings:
    """Validate settings. Raises ConfigError that names every wrong value and what is right."""
    try:
        return PretrainSettings.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(describe_problems(error)) from error
