"""The settings of a fine-tuning run, checked before anything loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator


class FinetuneSettings(BaseModel):
    """Everything that decides what a run computes. Lengths count tokens, the end of sentence included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Path = Field(description="Parquet file (or directory) of training pairs")
    validation: Path = Field(description="Parquet file (or directory) of pairs that choose the best weights")
    output: Path = Field(description="directory of the run: state, log and best model")
    document_column: str = Field("document", description="column of the source texts")
    summary_column: str = Field("summary", description="column of the reference summaries")

    model: Path | None = Field(None, description="model directory to continue from (Pegasus or BART)")
    config: Path | None = Field(
        None, description="config.json of a new model with random weights, instead of a model directory"
    )
    tokenizer: Path | None = Field(None, description="tokenizer directory, where it is not the model's")
    vocab_size: int = Field(
        8103, gt=103, description="ids of the vocabulary that is trained when there is no tokenizer"
    )

    epochs: float | None = Field(
        None, gt=0, description="passes over the training pairs; sets the length of the schedule"
    )
    steps: int | None = Field(None, gt=0, description="optimizer steps; sets the length of the schedule")
    minutes: float | None = Field(
        None, gt=0, description="minutes of training; the schedule ends by the clock (not repeatable)"
    )
    batch_tokens: int = Field(2500, gt=0, description="source tokens of one step, padding counted")
    micro_batch_tokens: int | None = Field(
        None, gt=0, description="source tokens computed at once; a larger batch's gradients are accumulated in parts"
    )
    max_source_tokens: int = Field(512, gt=1, description="longer documents are cut")
    max_target_tokens: int = Field(128, gt=1, description="longer reference summaries are cut")

    optimizer: Literal["adafactor", "adamw"] = Field(
        "adafactor", description="adafactor, as Pegasus was trained with: least memory; or adamw"
    )
    learning_rate: float = Field(
        0.01, gt=0, description="highest rate; adafactor's is relative to the weights, and also capped at 1/sqrt(step)"
    )
    warmup_steps: int = Field(500, ge=0, description="steps over which the rate rises from 0")
    decay: Literal["linear", "cosine", "inverse_sqrt", "constant"] = Field(
        "linear", description="how the rate falls: to 0, with one over the root of the step, or not at all"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay, times the rate, a step")
    clip_norm: float = Field(1.0, gt=0, description="the gradients' norm is cut to this")
    lead_steps: int = Field(
        0,
        ge=0,
        description="steps at the beginning that teach to copy a document's first sentence, before the summaries",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all tokens")
    source_masking: float = Field(
        0.0, ge=0, lt=1, description="share of source tokens hidden: 80 % by the mask token, 10 % by another token"
    )
    mlm_weight: float = Field(
        0.0, ge=0, description="weight of the loss with which the encoder predicts the hidden tokens; 0 only hides them"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout, where it is not the model configuration's")
    average_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the average of the weights, which is what is kept"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast; auto where the device is fast at it"
    )
    device: str = Field("cpu", description="torch device")
    seed: int = Field(0, description="decides initial weights, order and dropout")

    log_every: int = Field(50, gt=0, description="steps between log lines")
    checkpoint_every: int = Field(500, gt=0, description="steps between saved states to resume from")
    validate_every: int = Field(1000, gt=0, description="steps between validations")
    validation_rows: int | None = Field(None, gt=0, description="rows that validation summarizes; all by default")
    select_by: Literal["rouge", "loss"] = Field("rouge", description="what the kept weights are best at")
    patience: int | None = Field(None, gt=0, description="validations without a better one after which training ends")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the run's directory")
    workers: int | None = Field(
        None, gt=0, description="processes of a Ray cluster that train together; without it this process trains alone"
    )

    export: Path | None = Field(None, description="where the finished model goes, in bfloat16")
    num_beams: int = Field(4, gt=0, description="beams that the exported model generates with")
    length_penalty: float = Field(0.8, description="length penalty that the exported model generates with")
    no_repeat_ngram_size: int = Field(2, ge=0, description="n-grams that the exported model never repeats")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError(
                "give either model (a directory to continue from) or config (a config.json for a new model)"
            )
        if self.mlm_weight and not self.source_masking:
            raise ValueError("mlm_weight predicts hidden tokens: set source_masking, 0.15 as Pegasus was trained")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise ValueError("give epochs, steps or minutes: without one the training would have no end")
        return self


# What a resumed run may change without computing something else than the run that it continues.
CHANGEABLE = frozenset(
    {"output", "epochs", "steps", "minutes", "log_every", "checkpoint_every", "validate_every", "export"}
    | {"num_beams", "length_penalty", "no_repeat_ngram_size", "device", "precision"}
    | {"micro_batch_tokens", "patience", "tensorboard", "workers"}
)


def read_recipe(path: str | Path) -> dict[str, object]:
    """Read settings from a YAML file; its relative paths start at the current directory, as on a command line."""
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of settings, it holds {type(values).__name__}")
    return values


def check_continuation(saved: str, settings: FinetuneSettings) -> None:
    """Raise ValueError if ``settings`` would not continue the run whose settings are ``saved`` (JSON)."""
    now = json.loads(settings.model_dump_json())
    differing = [
        f"{name} was {value!r}, is {now.get(name)!r}"
        for name, value in json.loads(saved).items()
        if name not in CHANGEABLE and now.get(name) != value
    ]
    if differing:
        raise ValueError(f"{settings.output} holds another run ({'; '.join(differing)}): give another output directory")
