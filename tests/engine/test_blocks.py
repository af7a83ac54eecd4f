"""Whole blocks in one call: the bits of single ops, what is not taken, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pegasus_batch import (
    BartConfig,
    BartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    kernels,
)
from pegasus_batch.checkpoints.huggingface import parse_dtype
from pegasus_batch.engine.engine import Engine
from pegasus_batch.kernels import PackedLayer, pack_weights
from pegasus_batch.summarizer import load_engine
from tests.conftest import tiny_settings

CPU = torch.device("cpu")
N, D, HEADS, INNER = 5, 32, 4, 40

needs_native = pytest.mark.skipif(kernels.backend() == "reference", reason="needs the extension")


def decode(engine: Engine) -> list[Tensor]:
    """Return the logits of three steps of two documents, of which the second has three beams from the second step on."""
    engine.load([[5, 6, 7, 1], list(range(20, 60))])
    engine.start(3)
    engine.admit([0, 1])
    steps = [
        ([2, 2], [0, 1], [1, 1]),
        ([9, 8, 7, 6, 5, 4], [0, 0, 0, 1, 1, 1], [3, 3]),
        ([3, 4, 5, 6, 7, 8], [2, 0, 0, 3, 5, 5], [3, 3]),
    ]
    return [engine.step(torch.tensor(tokens), torch.tensor(parents), widths) for tokens, parents, widths in steps]


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("family", ["pegasus", "bart"])
def test_the_same_bits_as_by_single_ops(
    family: str, activation: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    settings = tiny_settings(activation_function=activation)
    model = (
        PegasusForConditionalGeneration(PegasusConfig(**settings))
        if family == "pegasus"
        else BartForConditionalGeneration(BartConfig(**settings))
    )
    model.save_pretrained(tmp_path)
    engine, _ = load_engine(tmp_path, parse_dtype(dtype), CPU)
    called, block = [], kernels.block

    def counted(kind: str, *arguments: Any) -> Tensor:
        called.append(kind)
        return block(kind, *arguments)

    monkeypatch.setattr(kernels, "block", counted)
    got = decode(engine)
    if dtype == "int8" or kernels.backend() != "native:baseline":
        layers = model.config.decoder_layers
        assert called.count("cached_attention") == called.count("source_attention") == 3 * layers
        encoded = called.count("attention")
        assert encoded == model.config.encoder_layers
        assert called.count("feed_forward") == (3 * layers + encoded if activation == "relu" else 0)
    called.clear()
    monkeypatch.setattr(kernels, "takes_blocks", lambda *_: False)
    for one, other in zip(got, decode(engine), strict=True):
        assert torch.equal(one, other)
    assert not called


@needs_native
def test_who_has_to_see_single_ops_sees_them() -> None:
    states = torch.zeros(1, 1)
    assert kernels.takes_blocks(states)
    assert not kernels.takes_blocks(states.half())
    assert not kernels.takes_blocks(states.to("meta"))
    assert not kernels.takes_blocks(torch.zeros(1, 1, requires_grad=True))
    with kernels.use("reference"):
        assert not kernels.takes_blocks(states)
    with torch.profiler.profile():
        assert not kernels.takes_blocks(states)


@needs_native
def test_heads_too_large_for_the_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = tiny_settings(d_model=520, encoder_attention_heads=2, decoder_attention_heads=2, init_std=0.05)
    PegasusForConditionalGeneration(PegasusConfig(**wide)).save_pretrained(tmp_path)
    engine, _ = load_engine(tmp_path, parse_dtype("float32"), CPU)
    assert not kernels.takes_blocks(torch.zeros(1, 520), 2)
    got = decode(engine)
    with kernels.use("reference"):
        for one, other in zip(got, decode(engine), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def layer(outputs: int, inputs: int) -> PackedLayer:
    return pack_weights(torch.randn(outputs, inputs)), None, torch.zeros(outputs)


def feed_forward(**changes: Any) -> Tensor:
    call = {"states": torch.randn(N, D), "norm": (), "enter": layer(INNER, D), "leave": layer(D, INNER)} | changes
    return kernels.block("feed_forward", *call.values())


def source_attention(heads: int = HEADS, **changes: Any) -> Tensor:
    rows, zero, one = (torch.tensor(x, dtype=torch.int32) for x in ([0, N], [0], [1]))
    panels = torch.zeros(1, HEADS, kernels.panel_elements(D // HEADS, torch.float32))
    call = {"states": torch.randn(N, D), "norm": (), "enter": layer(D, D), "leave": layer(D, D)} | changes
    return kernels.block("source_attention", *call.values(), heads, panels, panels, rows, zero, one, 1.0)


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": torch.randn(D)}, r"states must be float32 or bfloat16 \[any, any\], got float32 \[32\]"),
        ({"states": torch.randn(N, D).double()}, r"states must be float32 or bfloat16 \[any, any\], got float64"),
        ({"states": torch.randn(N, D + 1)}, r"weights must be float32 \[1, 33, 64\], got float32 \[1, 32, 64\]"),
        ({"states": torch.randn(N, D).bfloat16()}, r"states must be float32 \[any, any\], got bfloat16 \[5, 32\]"),
        ({"enter": layer(INNER + 1, D)}, r"weights must be float32 \[1, 41, 64\], got float32 \[1, 40, 64\]"),
        ({"leave": layer(D + 1, INNER)}, r"out must be float32 or bfloat16 \[5, 33\], got float32 \[5, 32\]"),
        ({"enter": layer(INNER, D)[:2]}, r"a layer is its weights, their scales or None, and its bias"),
        ({"leave": (layer(D, INNER)[0], torch.ones(D), torch.ones(D))}, r"weight_scales go with weights of 8 bits"),
        (
            {"norm": (torch.ones(D - 1), torch.ones(D - 1), 1e-5)},
            r"norm_weight must be float32 \[32\], got float32 \[31\]",
        ),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    assert feed_forward().shape == (N, D)
    with pytest.raises(ValueError, match=message):
        feed_forward(**changes)


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"the first layer's 32 outputs are not 1 times as many heads as 3"),
        ({"heads": 0}, r"as many heads as 0"),
        ({"heads": 8}, r"key_panels"),
        ({"enter": layer(2 * D, D)}, r"weights must be float32 \[1, 64, 64\], got float32 \[1, 32, 64\]"),
    ],
)
def test_bad_attention(changes: dict[str, Any], message: str) -> None:
    assert source_attention().shape == (N, D)
    with pytest.raises(ValueError, match=message):
        source_attention(**changes)
