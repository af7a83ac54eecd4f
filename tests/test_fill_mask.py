"""Masks filled: BART's against transformers' fill-mask pipeline, Pegasus' (which that lacks) against its forward pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.pegasus.modeling_pegasus import shift_tokens_right

from pegasus_batch import FillMask
from tests.heads import pipeline, save_head

KIND = transformers.BartForConditionalGeneration
ONE = ["The mayor <mask> a river.", "<mask> market", "A naïve <mask>"]
SEVERAL = ["The <mask> said it <mask> be.", "<mask><mask> no <mask>."]


@pytest.fixture(scope="module")
def bart(bart_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_head(KIND, bart_dir, tmp_path_factory.mktemp("fill") / "model")


def same(found: Any, expected: list[dict[str, Any]]) -> None:
    assert [(each.token, each.token_str, each.sequence) for each in found] == [
        (each["token"], each["token_str"], each["sequence"]) for each in expected
    ]
    assert [each.score for each in found] == pytest.approx([each["score"] for each in expected], rel=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"targets": ["Ġthe", "Ġmarket", "Ġriver"]}, {"targets": "Ġriver", "top_k": 9}]
)
def test_one_mask(bart: Path, options: dict[str, Any]) -> None:
    oracle, filler = pipeline("fill-mask", KIND, bart), FillMask(bart, device="cpu")
    for text, found in zip(ONE, filler.fill(ONE, **options), strict=True):
        assert len(found) == 1
        same(found[0], oracle(text, **options))


def test_several_masks(bart: Path) -> None:
    oracle = pipeline("fill-mask", KIND, bart)
    for text, found in zip(SEVERAL, FillMask(bart, device="cpu").fill(SEVERAL, top_k=3), strict=True):
        expected = oracle(text, top_k=3)
        assert len(found) == len(expected) == text.count("<mask>")
        for ours, theirs in zip(found, expected, strict=True):
            same(ours, theirs)


def test_a_target_that_is_no_token_stands_for_its_first(bart: Path) -> None:
    oracle, filler = pipeline("fill-mask", KIND, bart), FillMask(bart, device="cpu")
    with pytest.warns(UserWarning, match=r"target 'zebracorn' is no token of this vocabulary; 'z"):
        ((found,),) = filler.fill(ONE[:1], targets=["zebracorn", "Ġthe"])
    same(found, oracle(ONE[0], targets=["zebracorn", "Ġthe"]))
    with pytest.raises(ValueError, match="name at least one token"):
        filler.fill(ONE, targets=[])


def test_both_masks_of_pegasus(model_dir: Path) -> None:
    filler = FillMask(model_dir, device="cpu")
    text = "quick brown <mask_2> jumps. <mask_1> lazy dogs"
    oracle = transformers.PegasusForConditionalGeneration.from_pretrained(model_dir).eval()
    ids = filler.tokenizer.encode(text, return_tensors="pt")
    shifted = shift_tokens_right(ids, oracle.config.pad_token_id, oracle.config.decoder_start_token_id)
    with torch.no_grad():
        probabilities = oracle(ids, decoder_input_ids=shifted).logits[0].softmax(-1)
    places = [ids[0].tolist().index(mask) for mask in (3, 2)]
    (found,) = filler.fill([text], top_k=4)
    for ours, place, other in zip(found, places, ("<mask_1>", "<mask_2>"), strict=True):
        best = probabilities[place].topk(4)
        assert [each.token for each in ours] == best.indices.tolist()
        assert [each.score for each in ours] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert all(other in each.sequence for each in ours)


def test_what_cannot_be_filled_is_refused(bart: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text 1 has no mask: write <mask> where"):
        FillMask(bart, device="cpu").fill(["a <mask>", "no"])
    with pytest.raises(ValueError, match="write <mask_2> or <mask_1> where"):
        FillMask(model_dir, device="cpu").fill(["no"])
    with pytest.raises(ValueError, match=r"text 0 has \d+ tokens, and the model reads 64"):
        FillMask(bart, device="cpu").fill(["<mask>" + " the" * 80])
    with pytest.raises(ValueError, match="top_k=0"):
        FillMask(bart, device="cpu").fill(ONE, top_k=0)
    shutil.copytree(bart, tmp_path / "bare")
    tokenizer = transformers.BartTokenizer.from_pretrained(bart, mask_token=None)
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no mask token"):
        FillMask(tmp_path / "bare", device="cpu")
