"""The model and tokenizer that a run starts from, and the directory that it ends as."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from pegasus_batch.config import CONFIGS, GenerationConfig, load_config, read_json, write_json
from pegasus_batch.models.seq2seq import ConditionalGeneration, model_class_of
from pegasus_batch.tokenization import PegasusTokenizer, Tokenizer, load_tokenizer
from pegasus_batch.training.pairs import TextPairs
from pegasus_batch.training.settings import FinetuneSettings
from pegasus_batch.training.vocabulary import train_vocabulary


def load_or_train_tokenizer(settings: FinetuneSettings, pairs: TextPairs) -> Tokenizer:
    """Return the tokenizer of the settings or of the model, or a Pegasus one trained on the pairs, kept in the run."""
    directory = settings.tokenizer or settings.model
    if directory is None:
        directory = settings.output / "tokenizer"
        vocabulary = directory / "spiece.model"
        if not vocabulary.exists():
            directory.mkdir(parents=True, exist_ok=True)
            partial = directory / "spiece.model.partial"
            train_vocabulary([*pairs.documents, *pairs.summaries], partial, settings.vocab_size, seed=settings.seed)
            partial.replace(vocabulary)
        return PegasusTokenizer(str(vocabulary), model_max_length=settings.max_source_tokens)
    return load_tokenizer(directory)


def build_model(settings: FinetuneSettings, tokenizer: Tokenizer) -> ConditionalGeneration:
    """Load the model in float32, or make one with random weights; its vocabulary must hold the tokenizer's ids."""
    if settings.model is not None:
        config = load_config(settings.model)
    else:
        assert settings.config is not None
        values = read_json(settings.config)
        if values.get("model_type") not in CONFIGS:
            raise ValueError(
                f"{settings.config} has model_type {values.get('model_type')!r}; known: {', '.join(CONFIGS)}"
            )
        values.setdefault("vocab_size", tokenizer.vocab_size)
        config = CONFIGS[values["model_type"]].from_dict(values)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}: take the model's own"
        )
    longest = max(settings.max_source_tokens, settings.max_target_tokens)
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"texts of {longest} tokens exceed the model's {config.max_position_embeddings} positions: "
            "lower max_source_tokens or max_target_tokens"
        )
    family = model_class_of(config)
    if settings.dropout is not None:
        config = dataclasses.replace(config, dropout=settings.dropout)
    model = family(config)
    if settings.model is not None:
        model.load_state_dict(family.from_pretrained(settings.model, dtype=torch.float32).state_dict())
    return model


def save_directory(model: ConditionalGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write model and tokenizer to ``directory``, replacing what was there only once the new one is complete."""
    fresh, old = directory.with_name(directory.name + ".new"), directory.with_name(directory.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def export_model(settings: FinetuneSettings, record: dict[str, object], target: Path) -> None:
    """Write the run's best model to ``target`` in bfloat16, ready to summarize.

    Files that are already there and are not the model's, such as a README, stay. ``generation_config.json`` gets the
    settings' beams and length penalty; ``training.json`` says how the model was made.
    """
    best = settings.output / "best"
    config = load_config(best)
    model = model_class_of(config).from_pretrained(best, dtype=torch.bfloat16)
    target.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        max_length=settings.max_target_tokens,
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        forced_eos_token_id=config.forced_eos_token_id,
    )
    model.save_pretrained(target)
    load_tokenizer(best).save_pretrained(target)
    places = {
        name for name, value in settings if isinstance(value, Path)
    }  # of this machine, they say nothing elsewhere
    run = json.loads(settings.model_dump_json(exclude=places, exclude_none=True))
    write_json(target / "training.json", {"settings": run, **record})
