"""Searches that transformers had for the last time in release 4.56.2: groups of beams, and constraints.

``python -m tests.generation.legacy`` under that release writes what its ``generate`` returns to ``legacy.json``; the tests
run under a later one and compare. The weights come from NumPy's legacy generator, whose numbers never change.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

RESULTS = Path(__file__).with_suffix(".json")
VOCABULARY = 41
SOURCES = [[5, 6, 7, 5, 6, 8, 9, 1], [33, 40, 12, 33, 40, 12, 21, 3, 1], [17, 1]]


def model(family: str) -> Any:
    """Return a tiny model whose weights are the same everywhere."""
    names = {"pegasus": "Pegasus", "bart": "BART"}[family]
    classes = {
        "Pegasus": ("PegasusConfig", "PegasusForConditionalGeneration"),
        "BART": ("BartConfig", "BartForConditionalGeneration"),
    }
    config_class, model_class = (getattr(transformers, name) for name in classes[names])
    settings = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }
    made = model_class(config_class(**settings)).eval()
    numbers = np.random.RandomState(len(family))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not parameter.requires_grad:  # sinusoids
                continue
            values = numbers.standard_normal(tuple(parameter.shape)) * 0.5 + (
                "norm" in name and name.endswith("weight")
            )
            parameter.copy_(torch.from_numpy(values))
        made.final_logits_bias.copy_(torch.from_numpy(numbers.standard_normal((1, VOCABULARY))))
        made.final_logits_bias[0, made.config.eos_token_id] += 2.0  # or else a random model seldom ends
    return made


def draw(rng: random.Random) -> dict[str, Any]:
    """Draw a family and a set of options for groups or for constraints."""
    token = lambda: rng.randrange(3, VOCABULARY)  # noqa: E731
    tokens = lambda n: [token() for _ in range(n)]  # noqa: E731
    family = rng.choice(["pegasus", "bart"])
    options: dict[str, Any]
    if rng.random() < 0.5:
        options = dict(
            rng.choice(
                [
                    {"num_beams": 2, "num_beam_groups": 2},
                    {"num_beams": 4, "num_beam_groups": 2},
                    {"num_beams": 6, "num_beam_groups": 3},
                    {"num_beams": 3, "num_beam_groups": 3},
                ]
            )
        )
        options["diversity_penalty"] = rng.choice([0.3, 1.0, 4.0])
    else:
        first = token()
        words: list[Any] = [tokens(rng.choice([1, 2, 3])) for _ in range(rng.choice([0, 1, 2]))]
        if rng.random() < 0.6 or not words:
            # Alternatives that part after their first token.
            words.append(
                rng.choice([[[first], [first + 1 if first < 40 else 3, 4]], [[first, 5, 6], [first, 7], [8, 9]]])
            )
        options = {"num_beams": rng.choice([2, 4, 5]), "force_words_ids": words}
    possible: dict[str, Any] = {
        "length_penalty": rng.choice([-0.5, 0.0, 2.0]),
        "eos_token_id": rng.choice([[1, 2, 9], [30, 1]]),
        "min_length": rng.choice([3, 6, 9]),
        "no_repeat_ngram_size": rng.choice([1, 2, 3]),
        "repetition_penalty": rng.choice([0.7, 1.3]),
        "bad_words_ids": [tokens(rng.choice([1, 2])) for _ in range(10)],
        "sequence_bias": [[tokens(rng.choice([1, 2])), rng.choice([-5.0, 2.0])] for _ in range(10)],
        "forced_eos_token_id": 1,
        "suppress_tokens": tokens(3),
        "renormalize_logits": True,
    }
    options.update({name: value for name, value in possible.items() if rng.random() < 0.2})
    options["early_stopping"] = rng.choice([False, True, "never", "never"])
    options["num_return_sequences"] = rng.randint(1, options["num_beams"])
    options.update(rng.choice([{"max_length": 9}, {"max_length": 14}, {"max_new_tokens": 11}]))
    return {"family": family, "source": rng.choice(SOURCES), "options": options}


def expected(case: dict[str, Any], made: Any) -> dict[str, Any]:
    """Return what this release generates."""
    ids = torch.tensor([case["source"]])
    output = made.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_scores=True,
        trust_remote_code=True,
        pad_token_id=made.config.pad_token_id,
        **{"eos_token_id": made.config.eos_token_id, **case["options"]},
    )
    return {"sequences": output.sequences.tolist(), "scores": [round(s, 5) for s in output.sequences_scores.tolist()]}


def main(count: int = 40) -> None:
    """Write the results of ``count`` cases of each kind; none failed or came down to what ranks first of things ruled out."""
    models = {family: model(family) for family in ("pegasus", "bart")}
    rng = random.Random(0)
    lines: dict[bool, list[str]] = {False: [], True: []}
    while min(map(len, lines.values())) < count:
        case = draw(rng)
        kind = lines["force_words_ids" in case["options"]]
        if len(kind) == count:
            continue
        try:
            found = expected(case, models[case["family"]])
        except RuntimeError:  # its beam indices, where constraints could not be fulfilled
            continue
        if all(math.isfinite(score) for score in found["scores"]):
            kind.append(json.dumps({**case, **found}))
    RESULTS.write_text("[\n" + ",\n".join(lines[False] + lines[True]) + "\n]\n")


if __name__ == "__main__":
    if not transformers.__version__.startswith("4.56."):
        raise SystemExit(
            f"transformers is {transformers.__version__}: release 4.56.2 is the last that has these searches"
        )
    main()
