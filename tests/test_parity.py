"""The whole path (config, checkpoint, engine, kernels, search) against transformers, over random models and options.

Each document is searched by us in a batch and by transformers alone, so that equality also proves independence of batch
mates. A row may differ only where transformers disagrees with itself between float32 and float64, and at most one in 500.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EncoderRepetitionPenaltyLogitsProcessor, LogitsProcessorList

from tests.generation.test_parity import draw
from tests.models.oracle import pair

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

COMBINATIONS = 320
GROUPS = 16  # of tests, so that a failure is found sooner


def random_settings(rng: random.Random) -> dict[str, Any]:
    """Draw a tiny network: odd head sizes, unequal sides, any activation."""
    heads = rng.choice([1, 2, 3])
    return {
        "d_model": heads * rng.choice([6, 9, 10, 15]),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": rng.choice([1, heads]),
        "encoder_layers": rng.choice([1, 2, 3]),
        "decoder_layers": rng.choice([1, 2]),
        "encoder_ffn_dim": rng.choice([16, 33]),
        "activation_function": rng.choice(["relu", "gelu", "gelu_new", "silu"]),
        "scale_embedding": rng.random() < 0.5,
        "init_std": rng.choice([0.3, 0.5]),
        "decoder_start_token_id": rng.choice([0, 2]),
    }


def theirs_alone(
    model: Any, document: list[int], prompt: list[int], options: dict[str, Any]
) -> tuple[Any, list[float]]:
    """Generate with transformers for one document; returns its rows and scores."""
    options = dict(options)
    ids = torch.tensor([document])
    custom = LogitsProcessorList()
    if penalty := options.pop("encoder_repetition_penalty", None):
        # Release 4.57 penalises the first beam only; release 5 repeats the source for every beam, as we do.
        custom.append(EncoderRepetitionPenaltyLogitsProcessor(penalty, ids.repeat(options["num_beams"], 1)))
        model.generation_config.encoder_repetition_penalty = penalty  # keeps the place in the order of processors
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=torch.tensor([prompt]),
        return_dict_in_generate=True,
        output_scores=True,
        logits_processor=custom,
        **options,
    )
    if options["num_beams"] > 1:
        return output.sequences, output.sequences_scores.tolist()
    logs = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    length = len(output.scores)
    return output.sequences, [float(logs.sum()) / length ** options.get("length_penalty", 1.0)]


def trimmed(row: torch.Tensor, prompt: int, ends: set[int]) -> list[int]:
    """Cut a padded row after its first end token behind the prompt."""
    tokens = row.tolist()
    for index in range(prompt, len(tokens)):
        if tokens[index] in ends:
            return tokens[: index + 1]
    return tokens


def one_combination(seed: int, directory: Path) -> tuple[int, list[str]]:
    """Compare one random model under one random set of options; returns rows compared and unexplained differences."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    family = rng.choice(["pegasus", "bart"])
    theirs, ours = pair(family, directory, **random_settings(rng))
    options = draw(rng)
    documents = [[rng.randrange(3, 61) for _ in range(rng.randint(1, 25))] for _ in range(3)]
    prompt = [theirs.config.decoder_start_token_id, *(rng.randrange(3, 61) for _ in range(rng.choice([0, 0, 0, 2])))]
    width = max(map(len, documents))
    ids = torch.tensor([document + [theirs.config.pad_token_id] * (width - len(document)) for document in documents])
    mask = torch.tensor([[1] * len(document) + [0] * (width - len(document)) for document in documents])
    found = ours.generate(
        ids,
        mask,
        decoder_input_ids=torch.tensor([prompt] * len(documents)),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    eos = options.get("eos_token_id", ours.config.eos_token_id)
    ends = set(eos) if isinstance(eos, list) else {eos}
    per_document = options.get("num_return_sequences", 1)
    compared, problems = 0, []
    for number, document in enumerate(documents):
        rows, scores = theirs_alone(theirs, document, prompt, options)
        if any(math.isnan(score) for score in scores):
            continue  # its length decay adds infinity to a banned end token's minus infinity
        for place in range(per_document):
            index = number * per_document + place
            ours_row = trimmed(found.sequences[index], len(prompt), ends)
            theirs_row = trimmed(rows[place], len(prompt), ends)
            compared += 1
            if ours_row == theirs_row:
                ours_score = float(found.sequences_scores[index])
                if not math.isclose(ours_score, scores[place], abs_tol=1e-4, rel_tol=1e-6):
                    problems.append(f"seed {seed}: score {ours_score} against {scores[place]}")
            else:
                exact, _ = theirs_alone(theirs.double(), document, prompt, options)
                theirs.float()
                unstable = trimmed(exact[place], len(prompt), ends) != theirs_row
                problems.append(
                    f"{'near-tie ' if unstable else ''}seed {seed}, {options}: {ours_row} against {theirs_row}"
                )
    return compared, problems


@pytest.mark.parametrize("group", range(GROUPS))
def test_generate_equals_transformers(group: int, tmp_path: Path, record_property: Any) -> None:
    compared, problems = 0, []
    for seed in range(group, COMBINATIONS, GROUPS):
        rows, different = one_combination(seed, tmp_path / str(seed))
        compared += rows
        problems += different
    record_property("rows", compared)
    unexplained = [problem for problem in problems if not problem.startswith("near-tie")]
    assert not unexplained, "\n".join(unexplained)
    assert len(problems) <= max(1, compared // 500), "\n".join(problems)
