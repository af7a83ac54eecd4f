"""The compiled module; csrc/bindings.cpp. Only pegasus_batch/kernels/native.py imports it."""

from torch import Tensor

with_cuda: bool
emulated: bool

def connect(tensor_type: type[Tensor]) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def select_isa(name: str) -> None: ...
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_begin: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    scale: float,
    out: Tensor,
) -> None: ...
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_begin: Tensor,
    ancestry: Tensor,
    n_keys: Tensor,
    scale: float,
    out: Tensor,
) -> None: ...
def pack_source(
    key: Tensor,
    value: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    panel_begin: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
) -> None: ...
def source_attention(
    query: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
    query_begin: Tensor,
    panel_begin: Tensor,
    n_keys: Tensor,
    scale: float,
    out: Tensor,
    workspace: Tensor | None,
) -> None: ...
def source_workspace(query: Tensor, key_panels: Tensor, n_keys: Tensor) -> int: ...
def beam_step(*arguments: Tensor | float | bool) -> None: ...
def beam_step_workspace(logits: Tensor, beams: int, edits: int, eos_ids: int) -> int: ...
def greedy_step(*arguments: Tensor | bool) -> None: ...
def greedy_step_workspace(logits: Tensor, edits: int) -> int: ...
def plan_edits(*arguments: Tensor | float) -> None: ...
def extend_beams(*arguments: Tensor) -> None: ...
def add_norm(
    stream: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    post_norm: bool,
    normed: Tensor,
) -> None: ...
def linear(
    states: Tensor,
    weights: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    out: Tensor,
    workspace: Tensor,
) -> None: ...
def linear_workspace(states: Tensor, weights: Tensor, has_norm: bool) -> int: ...
def weight_rows(weights: Tensor, rows: Tensor, out: Tensor) -> None: ...
def attention_block(*arguments: object) -> None: ...
def cached_attention_block(*arguments: object) -> None: ...
def source_attention_block(*arguments: object) -> None: ...
def feed_forward_block(*arguments: object) -> None: ...
