"""generate() of whole models against transformers: what it returns beside tokens, and what callers may hand to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pegasus_batch import PegasusTokenizer
from pegasus_batch.generation.stopping import StopStrings
from tests.generation import legacy
from tests.models.oracle import batch, ours_named, pair, random_model, theirs_named

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

EVERYTHING = dict.fromkeys(
    ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"), True
)
MODES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4, "min_length": 5},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "renormalize_logits": True, "early_stopping": True},
]


@pytest.fixture
def models(family: str, tmp_path: Path) -> tuple[Any, Any]:
    """A model of transformers and ours, of one checkpoint; it ends now and then."""
    theirs, ours = pair(family, tmp_path, init_std=0.5)
    for model in (theirs, ours):
        model.final_logits_bias[0, model.config.eos_token_id] += 3.0
    return theirs, ours


@pytest.fixture
def causal(family: str, tmp_path: Path) -> tuple[Any, Any]:
    """The same of decoders alone."""
    whole, name = random_model(family, init_std=0.5), f"{family.title()}ForCausalLM"
    whole.save_pretrained(tmp_path)
    # By hand: transformers does not find the shared embedding in its own file and draws a new one.
    theirs, ours = theirs_named(name)(whole.config).eval(), ours_named(name).from_pretrained(tmp_path)
    theirs.model.decoder.load_state_dict(whole.model.decoder.state_dict())
    theirs.lm_head.weight = theirs.model.decoder.embed_tokens.weight
    theirs.generation_config = transformers.GenerationConfig(**ours.generation_config.to_dict())
    return theirs, ours


def left_padded(pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 61, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, :1] = 0, 0
    return ids.masked_fill(mask == 0, pad), mask


def assert_same(found: Any, expected: Any, n_rows: int) -> None:
    """Compare what both have, field by field; a document that has finished has zeros where transformers goes on."""
    assert torch.equal(found.sequences, expected.sequences)
    fields = [name for name in expected if name not in ("sequences", "past_key_values")]
    assert set(fields) <= set(found), fields
    for name in fields:
        ours, theirs = found[name], expected[name]
        if name.startswith("encoder"):
            steps = [(ours, theirs)]
        elif name == "beam_indices":
            assert torch.equal(ours, theirs)
            continue
        elif name == "sequences_scores":
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            continue
        else:
            assert len(ours) == len(theirs)
            steps = list(zip(ours, theirs, strict=True))
        for step, (one, other) in enumerate(steps):
            layers = [(one, other)] if isinstance(one, torch.Tensor) else list(zip(one, other, strict=True))
            for own, wanted in layers:
                assert own.shape == wanted.shape, (name, step)
                rows = own.unflatten(0, (-1, n_rows)) if not name.startswith("encoder") else own[:, None]
                live = (rows.flatten(1) != 0).any(1)
                assert live.any() and (step > 0 or live.all())
                torch.testing.assert_close(rows[live], wanted.view_as(rows)[live], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_scores_attentions_and_states(models: Any, options: dict[str, Any]) -> None:
    theirs, ours = models
    ids, mask = batch(4, 9)
    settings = {"max_new_tokens": 7, **options, **EVERYTHING}
    expected = theirs.generate(ids, attention_mask=mask, **settings)
    found = ours.generate(ids, mask, **settings)
    n_rows = options.get("num_beams", 1)
    assert_same(found, expected, n_rows)
    # The engine, which tells only scores and logits, finds the same.
    plain = {
        name: value for name, value in settings.items() if name not in ("output_attentions", "output_hidden_states")
    }
    assert_same(ours.generate(ids, mask, **plain), theirs.generate(ids, attention_mask=mask, **plain), n_rows)


def test_a_longer_prompt_is_one_step(models: Any) -> None:
    theirs, ours = models
    ids, mask = batch(2, 8)
    prompts = torch.tensor([[ours.config.decoder_start_token_id, 9, 12], [ours.config.decoder_start_token_id, 7, 7]])
    settings = {"max_new_tokens": 4, "num_beams": 2, "decoder_input_ids": prompts, **EVERYTHING}
    found = ours.generate(ids, mask, **settings)
    assert_same(found, theirs.generate(ids, attention_mask=mask, **settings), 2)
    assert found.decoder_attentions[0][0].shape[2:] == (3, 3)


def test_encoder_outputs_are_passed_on(models: Any) -> None:
    _, ours = models
    ids, mask = batch(2, 8)
    encoded = ours.get_encoder()(ids, mask, output_attentions=True, output_hidden_states=True)
    settings = {"max_new_tokens": 4, **EVERYTHING}
    found = ours.generate(encoder_outputs=encoded, attention_mask=mask, **settings)
    assert found.encoder_attentions is encoded.attentions
    assert torch.equal(found.sequences, ours.generate(ids, mask, max_new_tokens=4))


def test_training_mode_draws_no_dropout(models: Any) -> None:
    _, ours = models
    ids, mask = batch(2, 8)
    expected = ours.generate(ids, mask, max_new_tokens=5, **EVERYTHING).logits
    ours.train()
    found = ours.generate(ids, mask, max_new_tokens=5, **EVERYTHING).logits
    torch.testing.assert_close(found, expected)
    assert ours.training and ours.model.training


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_decoder_alone_with_left_padding(causal: Any, options: dict[str, Any]) -> None:
    theirs, ours = causal
    ids, mask = left_padded(ours.config.pad_token_id)
    settings = {"max_new_tokens": 7, **options, **EVERYTHING}
    expected = theirs.generate(ids, attention_mask=mask, **settings)
    # Hidden positions see nothing that anybody defines: compare what is visible.
    for output in (expected, found := ours.generate(ids, mask, **settings)):
        n_rows = options.get("num_beams", 1)
        seen = mask.repeat_interleave(n_rows, 0)
        for tensor in output.attentions[0]:
            tensor.mul_(seen[:, None, :, None])
        for tensor in output.hidden_states[0]:
            tensor.mul_(seen[:, :, None])
    assert_same(found, expected, n_rows)
    assert torch.equal(ours.generate(ids, max_new_tokens=7, **options), expected.sequences), "the mask follows from ids"


def test_a_decoder_alone_refuses_right_padding(causal: Any) -> None:
    _, ours = causal
    ids = torch.tensor([[5, 6, 7], [5, 6, ours.config.pad_token_id]])
    with pytest.raises(ValueError, match=r"prompts \[1\] end in padding: pad on the left"):
        ours.generate(ids)
    with pytest.raises(ValueError, match=r"attention_mask \[2, 2\] is not of input_ids' \[2, 3\]"):
        ours.generate(ids, ids[:, 1:])


def test_a_decoder_alone_keeps_its_generation_config(causal: Any, tmp_path: Path) -> None:
    _, ours = causal
    ours.generation_config = ours.generation_config.updated(num_beams=2, max_length=9)
    ours.save_pretrained(tmp_path / "decoder")
    again = type(ours).from_pretrained(tmp_path / "decoder")
    assert again.generation_config == ours.generation_config


class Listener:
    """Remembers what a streamer is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append(value.tolist())

    def end(self) -> None:
        self.told.append("end")


def test_a_streamer_is_told_what_transformers_tells(models: Any, causal: Any) -> None:
    ids, mask = batch(3, 8)
    theirs, ours = models
    one, other = Listener(), Listener()
    ours.generate(ids, mask, max_new_tokens=9, streamer=one)
    theirs.generate(ids, attention_mask=mask, max_new_tokens=9, streamer=other)
    assert one.told == other.told and one.told[-1] == "end"
    theirs, ours = causal
    one, other = Listener(), Listener()
    ours.generate(ids[:1], max_new_tokens=9, streamer=one)
    theirs.generate(ids[:1], max_new_tokens=9, streamer=other)
    assert one.told == other.told
    drawn = Listener()
    found = ours.generate(
        ids, torch.ones_like(ids), max_new_tokens=4, do_sample=True, num_return_sequences=2, streamer=drawn
    )
    steps = torch.tensor(drawn.told[1:-1]).T
    assert drawn.told[0] == ids.repeat_interleave(2, 0).tolist() and torch.equal(found[:, 8:], steps)


def length_and_token(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    return (ids.shape[1] > 4) & (ids[:, -1] % 3 == 0)


def confident(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    """Depends on the scores of all steps so far; of the rows themselves in greedy search."""
    assert len(scores) == ids.shape[1] - 1
    return torch.full((len(ids),), len(scores) == 5) | (scores[-1].softmax(-1).amax(-1) > 0.9)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_stopping_criteria(models: Any, options: dict[str, Any]) -> None:
    theirs, ours = models
    ids, mask = batch(5, 8)
    settings = {"max_new_tokens": 12, **options}
    unstopped = theirs.generate(ids, attention_mask=mask, **settings)
    wanted = transformers.StoppingCriteriaList([length_and_token])
    expected = theirs.generate(ids, attention_mask=mask, stopping_criteria=wanted, **settings)
    found = ours.generate(ids, mask, stopping_criteria=[length_and_token], **settings)
    assert torch.equal(found, expected) and not torch.equal(found[:, :5], unstopped)
    everywhere = ours.generate(ids, mask, stopping_criteria=[lambda ids, scores: ids.shape[1] == 3], **settings)
    assert everywhere.shape[1] == 3


def test_stopping_criteria_see_the_scores(models: Any) -> None:
    theirs, ours = models
    ids, mask = batch(3, 8)
    settings = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True}
    wanted = transformers.StoppingCriteriaList([confident])
    expected = theirs.generate(ids, attention_mask=mask, stopping_criteria=wanted, **settings)
    found = ours.generate(ids, mask, stopping_criteria=[confident], **settings)
    assert torch.equal(found.sequences, expected.sequences)
    with pytest.raises(ValueError, match=r"returned \[2\], not a bool or \[1\] of them"):
        ours.generate(ids, mask, stopping_criteria=[lambda ids, scores: torch.zeros(2, dtype=torch.bool)])
    with pytest.raises(ValueError, match=r"stopping_criteria=\[3\]: must be a list of callables"):
        ours.generate(ids, mask, stopping_criteria=[3])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_time_that_has_run_out(models: Any, num_beams: int) -> None:
    """A step is finished; more than enough time changes nothing."""
    theirs, ours = models
    ids, mask = batch(2, 8)
    settings = {"max_new_tokens": 9, "num_beams": num_beams, "min_new_tokens": 5}
    found = ours.generate(ids, mask, max_time=1e-9, **settings)
    assert torch.equal(found, theirs.generate(ids, attention_mask=mask, max_time=1e-9, **settings))
    assert found.shape[1] == 2
    assert torch.equal(ours.generate(ids, mask, max_time=1e4, **settings), ours.generate(ids, mask, **settings))


class Reversal(transformers.LogitsProcessor):
    """Depends on tokens and scores: the score of the newest token's neighbour is turned round."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        neighbour = (input_ids[:, -1:] * 7 + input_ids.shape[1]) % scores.shape[1]
        return scores.scatter_add(1, neighbour, torch.full_like(neighbour, 4.0, dtype=scores.dtype))


def odd_or_end(document: int, ids: torch.Tensor) -> list[int]:
    """Allow another third of the vocabulary in each step, and the end tokens."""
    return [1, 2, *range(3 + (len(ids) + int(ids[-1])) % 3, 61, 3)]


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("decoder_alone", [False, True])
def test_processors_and_prefixes_of_the_caller_s_own(
    models: Any, causal: Any, options: dict[str, Any], decoder_alone: bool
) -> None:
    theirs, ours = causal if decoder_alone else models
    ids, mask = left_padded(ours.config.pad_token_id) if decoder_alone else batch(4, 8)
    settings = {"max_new_tokens": 9, **options}
    plain = ours.generate(ids, mask, **settings)
    own: dict[str, Any]
    for own in (
        {"logits_processor": transformers.LogitsProcessorList([Reversal()])},
        {"prefix_allowed_tokens_fn": odd_or_end},
        {"prefix_allowed_tokens_fn": odd_or_end, "logits_processor": transformers.LogitsProcessorList([Reversal()])},
    ):
        expected = theirs.generate(ids, attention_mask=mask, **own, **settings)
        found = ours.generate(ids, mask, **own, **settings)
        assert torch.equal(found, expected)
        assert found.shape != plain.shape or not torch.equal(found, plain)


def test_wrong_callbacks_are_named(models: Any) -> None:
    _, ours = models
    ids, mask = batch(2, 8)
    with pytest.raises(ValueError, match=r"returned \[61\] for document 0: it must return at least one token id"):
        ours.generate(ids, mask, prefix_allowed_tokens_fn=lambda document, ids: [61])
    with pytest.raises(ValueError, match=r"returned \[\] for document 0"):
        ours.generate(ids, mask, prefix_allowed_tokens_fn=lambda document, ids: [])
    with pytest.raises(ValueError, match=r"returned \[1, 1\] for scores \[1, 61\]"):
        ours.generate(ids, mask, logits_processor=[lambda ids, scores: scores[:, :1]])
    with pytest.raises(ValueError, match=r"stop_strings=\['a'\]: pass tokenizer="):
        ours.generate(ids, mask, stop_strings=["a"])
    with pytest.raises(ValueError, match="unknown generation option 'assistant_model'"):
        ours.generate(ids, mask, assistant_model=ours)


def test_groups_and_constraints_of_whole_models(tmp_path: Path) -> None:
    """From the checkpoint to the padded rows, with 4.56.2 as the oracle."""
    ours = {}
    for family in ("pegasus", "bart"):
        legacy.model(family).save_pretrained(tmp_path / family)
        ours[family] = ours_named(family).from_pretrained(tmp_path / family)
    for case in json.loads(legacy.RESULTS.read_text())[::5]:
        options = {**case["options"], "return_dict_in_generate": True, "output_scores": True}
        ids = torch.tensor([case["source"]])
        found = ours[case["family"]].generate(ids, torch.ones_like(ids), **options)
        assert found.sequences.tolist() == case["sequences"]
        assert found.sequences_scores.tolist() == pytest.approx(case["scores"], abs=1e-4)
        # Every token's score is where beam_indices say it is.
        if "num_beam_groups" in options and "length_penalty" not in options:
            for row, path, score in zip(found.sequences, found.beam_indices, found.sequences_scores, strict=True):
                path = path[path >= 0]
                total = sum(float(found.scores[step][beam, row[1 + step]]) for step, beam in enumerate(path))
                if row[len(path)] == ours[case["family"]].generation_config.eos_ids[0]:
                    assert total / len(path) == pytest.approx(float(score), abs=1e-4)


@pytest.fixture
def tokenizers(model_dir: Path) -> tuple[PegasusTokenizer, Any]:
    return PegasusTokenizer.from_pretrained(model_dir), transformers.PegasusTokenizer.from_pretrained(model_dir)


STRINGS = ["fox", "s", "e l", "the quick", "q", " ", "azy dogs", ".", "</s>"]


def test_stop_strings_end_where_transformers_ends_them(tokenizers: Any) -> None:
    ours, theirs = tokenizers
    ids = torch.randint(0, ours.vocab_size, (400, 6))
    text = ours("the quick brown fox jumps over the lazy dogs").input_ids
    rows = torch.cat((ids, torch.tensor([text[start : start + 6] for start in range(len(text) - 5)] * 20)))
    for strings in (*STRINGS, STRINGS[:4], ["the", "dogs"]):
        expected = transformers.StopStringCriteria(theirs, strings)(rows, None)
        assert torch.equal(StopStrings(ours, strings)(rows, None), expected), strings
        assert torch.equal(StopStrings(theirs, strings)(rows, None), expected), strings
    assert expected.any() and not expected.all()
    assert not StopStrings(ours, "a")(torch.full((1, 3), 10**6), None).any(), "ids that the tokenizer lacks"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_ends_with_a_stop_string(model_dir: Path, tokenizers: Any, num_beams: int) -> None:
    theirs = transformers.PegasusForConditionalGeneration.from_pretrained(model_dir).eval()
    ours = ours_named("pegasus").from_pretrained(model_dir)
    ids = torch.tensor([tokenizers[0]("the quick brown fox").input_ids])
    settings = {
        "num_beams": num_beams,
        "max_length": 30,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [*range(1, 107)],
    }
    free = tokenizers[0].decode(ours.generate(ids, **{**settings, "num_beams": 1})[0], skip_special_tokens=True)
    strings = [free[len(free) // 2 : len(free) // 2 + 2]]
    found = ours.generate(ids, stop_strings=strings, tokenizer=tokenizers[0], **settings)
    # Its own stop_strings hand the tokenizer on to the network, which refuses it.
    criteria = transformers.StoppingCriteriaList([transformers.StopStringCriteria(tokenizers[1], strings)])
    assert torch.equal(found, theirs.generate(ids, stopping_criteria=criteria, **settings))
    assert num_beams > 1 or 3 < found.shape[1] < 30


def test_sampling_is_the_same_wherever_it_is_computed(models: Any) -> None:
    """In the engine, in the network itself, and of one document alone."""
    _, ours = models
    ids, mask = batch(3, 8)
    for options in ({"do_sample": True, "num_return_sequences": 2}, {"do_sample": True, "num_beams": 3}):
        settings = {"max_new_tokens": 6, "seed": 5, **options}
        found = ours.generate(ids, mask, **settings)
        openly = ours.generate(ids, mask, **settings, **EVERYTHING)
        assert torch.equal(openly.sequences, found)
        n = options.get("num_return_sequences", 1)
        for document in range(3):
            alone = ours.generate(ids[document : document + 1], mask[document : document + 1], **settings)
            both = found[document * n : document * n + n, : alone.shape[1]]
            assert torch.equal(alone, both)
        assert found.shape != ours.generate(ids, mask, **{**settings, "seed": 6}).shape or not torch.equal(
            found, ours.generate(ids, mask, **{**settings, "seed": 6})
        )
