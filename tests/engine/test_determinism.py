"""A document's summary, to the last bit of its score, whatever is computed beside it and on however many threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pegasus_batch import BartConfig, GenerationConfig, PegasusConfig
from pegasus_batch.engine import linear as linears
from pegasus_batch.engine.engine import Engine
from pegasus_batch.engine.linear import Linear, make_linear
from pegasus_batch.engine.numerics import row_activation
from pegasus_batch.generation import Hypothesis, generate
from pegasus_batch.models.seq2seq import ConditionalGeneration
from tests.conftest import tiny_settings
from tests.models.oracle import ours_named

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each thread count in turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_engine(model: ConditionalGeneration, dtype: torch.dtype) -> Engine:
    quantized = dtype == torch.int8
    model = model.to(torch.float32 if quantized else dtype).eval()
    return Engine(model.config, model.engine_weights(), quantized=quantized)


def search(
    engine: Engine, documents: list[list[int]], num_beams: int, budget: int | None = None
) -> list[list[Hypothesis]]:
    options = GenerationConfig(
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_length=24,
        no_repeat_ngram_size=2,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    engine.load(documents)
    prompts = [[0]] * len(documents)
    return generate(engine, options, documents, prompts, budget=budget, max_positions=64)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_batch_mates_do_not_matter(family: str, dtype: torch.dtype, activation: str, num_beams: int) -> None:
    """Alone, in company, in another order, some at a time: equal tokens and bit-equal scores."""
    config_class = PegasusConfig if family == "pegasus" else BartConfig
    config = config_class(**tiny_settings(activation_function=activation, d_model=27, encoder_attention_heads=3))
    engine = make_engine(ours_named(family)(config), dtype)
    lengths = [1, 2, 3, 7, 16, 33, 40, 63]
    documents = [torch.randint(3, 61, (length,)).tolist() for length in lengths]
    together = search(engine, documents, num_beams)
    backwards = search(engine, documents[::-1], num_beams)[::-1]
    alone = [search(engine, [document], num_beams)[0] for document in documents]
    assert together == backwards == alone
    for budget in (1, 50, 70, 120):
        assert search(engine, documents, num_beams, budget) == alone
        assert search(engine, documents[::-1], num_beams, budget) == alone[::-1]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_threads_do_not_matter(family: str, dtype: torch.dtype, threads: int) -> None:
    """The number of workers sets the threads of each, so a summary may depend on neither."""
    torch.manual_seed(1)
    config_class = PegasusConfig if family == "pegasus" else BartConfig
    config = config_class(**tiny_settings(activation_function="gelu", vocab_size=3001))
    engine = make_engine(ours_named(family)(config), dtype)
    documents = [torch.randint(3, 3001, (length,)).tolist() for length in (5, 9, 30, 61)]
    found = search(engine, documents, 4)
    torch.set_num_threads(1)
    assert search(engine, documents, 4) == found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(27, 9), (64, 256), (250, 1030)])
@pytest.mark.parametrize("own", [True, False])
def test_a_row_of_a_product_ignores_the_others(
    dtype: torch.dtype, shape: tuple[int, int], own: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of our own product, and of oneDNN's for the processors where that is faster."""
    monkeypatch.setattr(linears, "_is_fast", lambda dtype: own)
    inner, outer = shape
    linear = make_linear(torch.randn(outer, inner).to(dtype), torch.randn(outer).to(dtype))
    states = torch.randn(300, inner).to(dtype)
    whole = linear(states)
    for rows in (1, 2, 3, 5, 8, 17, 64, 129, 300):
        assert torch.equal(linear(states[:rows]), whole[:rows]), rows
    exact = states.double() @ linear_weight(linear, inner, outer).double().T
    assert whole.shape == exact.shape


def linear_weight(linear: Linear, inner: int, outer: int) -> torch.Tensor:
    """Recover a packed weight through its product with the identity, less the bias."""
    eye = torch.eye(inner).to(linear.dtype)
    return (linear(eye) - linear(torch.zeros_like(eye))).T.reshape(outer, inner)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_new", "silu"])
@pytest.mark.parametrize("width", [27, 32, 20_000])
def test_a_row_of_an_activation_ignores_the_others(name: str, dtype: torch.dtype, width: int, threads: int) -> None:
    """Torch's own activations differ in the last bit between the body and the end of a loop."""
    states = torch.randn(101, width).to(dtype)
    whole = row_activation(name, states)
    for rows in (1, 2, 3, 7, 33):
        assert torch.equal(row_activation(name, states[:rows]), whole[:rows]), rows
    torch.testing.assert_close(whole.double(), torch_activation(name, states.double()), atol=5e-3, rtol=1e-2)


def torch_activation(name: str, states: torch.Tensor) -> torch.Tensor:
    """The activations' definitions."""
    if name == "relu":
        return states.clamp(min=0)
    if name == "silu":
        return states * torch.sigmoid(states)
    if name == "gelu":
        return states * 0.5 * (1 + torch.erf(states / 2**0.5))
    return states * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (states + 0.044715 * states**3)))
