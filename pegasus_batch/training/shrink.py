"""Smaller models cut from larger ones: the start of a distillation, or of a quick trial.

Source: Shleifer and Rush, "Pre-trained Summarization Distillation" (arXiv 2010.13002), whose "shrink and fine-tune" copies
layers spread over the teacher's stack and then trains on the task.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pegasus_batch.checkpoints import huggingface
from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import load_config, read_json, write_json

# What a model directory holds beside weights and config.json, and what stays true of the smaller model.
_COMPANIONS = (
    "generation_config.json",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_LAYER = re.compile(r"^((?:model\.)?(encoder|decoder)\.layers\.)(\d+)(\..+)$")

Layers = int | Sequence[int] | None


def spread_layers(n_layers: int, n_kept: int) -> tuple[int, ...]:
    """Choose ``n_kept`` of ``n_layers`` layers, evenly spaced, the first and the last among them; one is the first.

    12 to 3 keeps 0, 6, 11; 16 to 4 keeps 0, 5, 10, 15. Raises ValueError for a number that is not in [1, n_layers].
    """
    if not 1 <= n_kept <= n_layers:
        raise ValueError(f"cannot keep {n_kept} of {n_layers} layers: choose from 1 to {n_layers}")
    if n_kept == 1:
        return (0,)
    gaps = n_kept - 1
    return tuple((2 * i * (n_layers - 1) + gaps) // (2 * gaps) for i in range(n_kept))  # halves round up


def choose_layers(stack: str, n_layers: int, layers: Layers) -> tuple[int, ...]:
    """Return the layers to keep of a ``stack`` of ``n_layers``: all for None, spread ones for a number, else those listed.

    Raises ValueError, naming the stack, for an empty list, a layer that is not there, and an order that does not ascend.
    """
    if layers is None:
        return tuple(range(n_layers))
    if isinstance(layers, int):
        try:
            return spread_layers(n_layers, layers)
        except ValueError as error:
            raise ValueError(f"{stack}: {error}") from error
    chosen = tuple(layers)
    if not chosen:
        raise ValueError(f"{stack}: the list of layers is empty; a stack needs at least one")
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise ValueError(f"{stack}: there is no layer {layer}; the model has layers 0 to {n_layers - 1}")
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise ValueError(f"{stack}: the layers {list(chosen)} must ascend without repetition")
    return chosen


def parse_layers(text: str) -> Layers:
    """Read "all", a number of layers such as "3", or a list of them such as "0,6,11" or "4,"; ValueError otherwise."""
    if text == "all":
        return None
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(
            f'{text!r} names no layers: write "all", how many ("3"), or which ("0,6,11"; one alone as "4,")'
        )
    numbers = [int(part) for part in parts]
    return numbers if "," in text else numbers[0]


def shrink(
    model: str | Path, output: str | Path, *, encoder_layers: Layers = None, decoder_layers: Layers = None
) -> dict[str, tuple[int, ...]]:
    """Write ``model``, a Pegasus or BART directory, to ``output`` with fewer layers; the tensors are copied bit by bit.

    Layers are given as in ``choose_layers``. config.json changes in its numbers of layers alone; tokenizer and generation
    settings come along. ``output`` appears only when it is complete. Returns the kept layers of "encoder" and "decoder".
    Raises FileExistsError where ``output`` holds something, FileNotFoundError for an incomplete model, and ValueError for
    layers that cannot be kept or weights that do not fit their config.json.
    """
    source, target = resolve(model), Path(output)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty directory: choose another output")
    config = load_config(source)
    if config.pruned_heads:
        raise ValueError(
            f"{source} has pruned heads ({', '.join(config.pruned_heads)}): shrink first, prune afterwards"
        )
    kept = {
        "encoder": choose_layers("encoder", config.encoder_layers, encoder_layers),
        "decoder": choose_layers("decoder", config.decoder_layers, decoder_layers),
    }
    tensors = huggingface.read(source)
    _check_layers(tensors, {"encoder": config.encoder_layers, "decoder": config.decoder_layers}, source)
    values = read_json(source / "config.json")
    values |= {f"{stack}_layers": len(layers) for stack, layers in kept.items()}
    if "num_hidden_layers" in values:  # transformers' other name for the encoder's
        values["num_hidden_layers"] = len(kept["encoder"])
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = fresh / "model.safetensors"
    save_file(select_layers(tensors, kept), weights, metadata={"format": "pt"})
    write_json(fresh / "config.json", values)
    weights.chmod((fresh / "config.json").stat().st_mode)  # safetensors writes for the owner alone
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, fresh / name)
    fresh.replace(target)  # onto nothing, or an empty directory
    return kept


def select_layers(tensors: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return the tensors outside the layers and those of the ``kept`` layers of each stack, renumbered from 0.

    Of tensors that share their memory, as the tied embeddings of a pickled checkpoint do, the first name stays: the format
    written here holds no aliases, and readers tie the others again.
    """
    places = {stack: {layer: place for place, layer in enumerate(layers)} for stack, layers in kept.items()}
    selected: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        found = _LAYER.match(name)
        if found:
            place = places[found[2]].get(int(found[3]))
            if place is None:
                continue
            name = f"{found[1]}{place}{found[4]}"
        storage = (tensor.data_ptr(), tuple(tensor.shape))
        if storage not in seen:
            selected[name] = tensor.contiguous()
        seen.add(storage)
    return selected


def _check_layers(tensors: Mapping[str, Tensor], expected: Mapping[str, int], source: Path) -> None:
    for stack, n_layers in expected.items():
        present = {int(found[3]) for name in tensors if (found := _LAYER.match(name)) and found[2] == stack}
        if present != set(range(n_layers)):
            raise ValueError(
                f"{source}/config.json promises {n_layers} {stack} layers, the weights hold {sorted(present)}: the checkpoint "
                "does not fit its config"
            )
