"""Search documents with an engine, and print what it found as JSON: with the CUDA kernels emulated, if the environment says so.

``python -m tests.engine.emulated_search FAMILY DTYPE BEAMS LOUDNESS``.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import torch

from tests import emulated_cuda

emulated_cuda.install()  # before anything imports the extension

from pegasus_batch.config import GenerationConfig  # noqa: E402
from pegasus_batch.engine import slots  # noqa: E402
from pegasus_batch.generation import Search  # noqa: E402
from pegasus_batch.generation.slots import Slots  # noqa: E402
from tests.conftest import tiny_settings  # noqa: E402
from tests.models.oracle import ours_named  # noqa: E402

N_DOCUMENTS, N_SLOTS = 50, 6


def make_model(family: str, loudness: float = 1.0) -> Any:
    """Return a random model whose attention heads have the size of the released models', 64.

    ``loudness``: by how much more than usual the encoder's feed-forward blocks add to the residual stream.
    """
    torch.manual_seed(1)
    heads = {"d_model": 128, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.15}
    model_class = ours_named(family)
    model = model_class(model_class.config_class(**tiny_settings(**heads))).eval()
    for layer in model.model.encoder.layers:
        layer.fc2.weight.data.mul_(loudness)
    return model


def search(model: Any, dtype: torch.dtype, beams: int) -> list[tuple[list[int], float]]:
    """Return the tokens and the score of every document."""
    slots.MOST_SLOTS = N_SLOTS
    rng = random.Random(0)
    documents = [[rng.randrange(3, 61) for _ in range(rng.randrange(1, 40))] for _ in range(N_DOCUMENTS)]
    engine = slots.make_engine(model.config, model.to(dtype).engine_weights())
    engine.load(documents)
    options = GenerationConfig.from_dict(model.config.to_dict()).updated(
        num_beams=beams, max_length=12, no_repeat_ngram_size=2, min_length=4, length_penalty=0.8
    )
    prompts = [[model.config.decoder_start_token_id]] * N_DOCUMENTS
    running = Search(engine, options, documents, prompts, budget=150)
    assert isinstance(running._running, Slots) == bool(emulated_cuda.asked_for())
    found = dict(running)
    return [(found[number][0].tokens, found[number][0].score) for number in range(N_DOCUMENTS)]


if __name__ == "__main__":
    print(
        json.dumps(search(make_model(sys.argv[1], float(sys.argv[4])), getattr(torch, sys.argv[2]), int(sys.argv[3])))
    )
