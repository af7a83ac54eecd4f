"""Fixtures that several rooms share: tiny random models and their Hugging Face twins."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may be fetched while testing
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import sentencepiece
import torch

from tests import emulated_cuda

emulated_cuda.install()  # before anything imports the extension

from pegasus_batch import (  # noqa: E402
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PegasusTokenizer,
)
from tests.tokenization.vocabularies import train_byte_level  # noqa: E402

# A slow machine is no failure, and the same commit draws the same examples everywhere.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Refuse to skip what needs a GPU, if the environment says so."""
    if os.environ.get("PEGASUS_REQUIRE_CUDA") and not torch.cuda.is_available():
        raise pytest.UsageError("PEGASUS_REQUIRE_CUDA is set, but torch sees no GPU")


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    """Start every test from the same random state."""
    torch.manual_seed(0)
    yield


def tiny_settings(**overrides: Any) -> dict[str, Any]:
    """Return settings of a network small enough for a test, with logits far enough apart to rank."""
    settings = {
        "vocab_size": 61,
        "max_position_embeddings": 64,
        "d_model": 18,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 3,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 40,
        "init_std": 0.4,
        "activation_function": "relu",
    }
    return {**settings, **overrides}


@pytest.fixture(params=["pegasus", "bart"])
def family(request: pytest.FixtureRequest) -> str:
    """Each of the two model families in turn."""
    return str(request.param)


@pytest.fixture
def tiny_config(family: str) -> PegasusConfig | BartConfig:
    """A tiny config of the family."""
    return (PegasusConfig if family == "pegasus" else BartConfig)(**tiny_settings())


WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dogs",
    "while",
    "seven",
    "packages",
    "provide",
    "small",
    "fast",
    "tools",
    "for",
    "reading",
    "writing",
    "and",
    "searching",
    "large",
    "text",
    "files",
    "on",
    "many",
    "machines",
    "without",
    "network",
    "access",
    "or",
    "graphical",
    "interface",
]


def sentence(rng: random.Random, length: int) -> str:
    """Return ``length`` words drawn from a small vocabulary."""
    return " ".join(rng.choice(WORDS) for _ in range(length))


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model in the Pegasus layout, learned from a few hundred sentences."""
    directory = tmp_path_factory.mktemp("vocabulary")
    rng = random.Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([sentence(rng, 12) + "." for _ in range(400)]),
        model_prefix=str(directory / "spiece"),
        vocab_size=120,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return directory / "spiece.model"


@pytest.fixture(scope="session")
def model_dir(vocabulary_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Pegasus with its tokenizer: a directory that every entry point takes."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = PegasusTokenizer(vocabulary_file, model_max_length=64)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    model = PegasusForConditionalGeneration(PegasusConfig(**tiny_settings(vocab_size=tokenizer.vocab_size)))
    model.generation_config = model.generation_config.updated(num_beams=2, max_length=12)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def bart_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BART with its tokenizer."""
    directory = train_byte_level(tmp_path_factory.mktemp("bart_model"))
    tokenizer = BartTokenizer.from_pretrained(directory, model_max_length=64)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    BartForConditionalGeneration(BartConfig(**tiny_settings(vocab_size=len(tokenizer)))).save_pretrained(directory)
    return directory
