"""Checkpoints of every kind behind one face: which kind a path is, and its tensors under Hugging Face's bare names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegasus_batch.checkpoints import fairseq, flax, google, huggingface, tensorflow
from pegasus_batch.checkpoints.foreign import Ignored, Place, Stored
from pegasus_batch.config import read_json

KINDS = {
    "huggingface": "Hugging Face",
    "flax": "Flax",
    "tensorflow": "TensorFlow",
    "google": "google-research/pegasus",
    "fairseq": "fairseq",
}
_NAMES = {flax.FILE: "flax", tensorflow.FILE: "tensorflow", fairseq.FILE: "fairseq"}
_SUFFIXES = {".msgpack": "flax", ".h5": "tensorflow", ".pt": "fairseq"}


@dataclass
class Source:
    """A checkpoint: its kind, its file (a directory for Hugging Face's own), and what was read of it.

    ``tensors`` have Hugging Face's layout and names, less the leading ``model.``; ``origins`` says under which names the
    source has them, ``ignored`` which of its tensors were left out and why, ``added`` which of them are zeros that it
    goes without. ``settings`` are those of config.json.
    ``checksums`` are sums of the tensors' bits, which no reordering changes.
    """

    kind: str
    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the files beside the weights are."""
        return self.path if self.path.is_dir() else self.path.parent


def detect(source: Path) -> Source:
    """Return the checkpoint, still unread, that a path to it or to its directory means.

    Raises FileNotFoundError for nothing, and ValueError where a directory holds nothing that is known, or several.
    """
    if not source.is_dir():
        if source.is_file() and source.suffix in _SUFFIXES:
            return Source(_SUFFIXES[source.suffix], source)
        if source.is_file() and source.name in huggingface.FILES:
            return Source("huggingface", source.parent)
        prefix = source.with_suffix("") if source.suffix == ".index" else source
        if prefix.with_name(f"{prefix.name}.index").is_file():
            return Source("google", prefix)
        raise FileNotFoundError(f"{source} is neither a checkpoint's file nor a directory that holds one")
    found = [Source(kind, source / name) for name, kind in _NAMES.items() if (source / name).is_file()]
    found += [Source("google", path.with_suffix("")) for path in sorted(source.glob("*.index"))]
    if any((source / name).is_file() for name in huggingface.FILES):
        found.append(Source("huggingface", source))
    if not found:
        expected = ", ".join((*_NAMES, "NAME.index", *huggingface.FILES))
        raise ValueError(f"{source} holds no checkpoint of a known kind: expected one of {expected}")
    if len(found) > 1:
        kinds = ", ".join(f"{KINDS[one.kind]} ({one.path.name})" for one in found)
        raise ValueError(f"{source} holds several checkpoints: {kinds}; give the path of one file")
    return found[0]


def load(source: Source, given: Mapping[str, Any], advance: Callable[[int], None] = lambda n_bytes: None) -> None:
    """Read a detected checkpoint; ``given`` settings win over its config.json, and that over what its shapes show.

    ``advance`` hears the bytes of every tensor that was read. Raises ValueError for a damaged file and for tensors that
    belong nowhere.
    """
    path = source.path
    derived: dict[str, Any] = {}
    match source.kind:
        case "flax":
            _collect(source, flax.read(path), flax.rename, advance)
        case "tensorflow":
            _collect(source, tensorflow.read(path), tensorflow.rename, advance)
        case "google":
            _collect(source, google.read(path), google.rename, advance)
            source.ignored |= google.PADDING
            source.added = google.complete(source.tensors)
            source.checksums |= dict.fromkeys(source.added, 0)
            derived = google.derive_settings(source.tensors, path)
        case "fairseq":
            tensors, arguments = fairseq.load(path)
            derived = fairseq.derive_settings(tensors, arguments)
            _collect(source, _each(tensors), fairseq.rename, advance)
        case _:
            _collect(source, _each(huggingface.read(path)), _rename_bare, advance)
    source.settings = {**derived, **read_json(source.directory / "config.json", missing_ok=True), **given}
    if "model_type" not in source.settings:
        raise FileNotFoundError(
            f"{source.directory} has no config.json, and the weights alone do not say what they are: put the model's "
            "config.json beside them or pass it"
        )
    _tie(source)


def _each(tensors: dict[str, Tensor]) -> Stored:
    for name in list(tensors):
        yield name, lambda name=name: tensors.pop(name)  # type: ignore[misc]


def _rename_bare(name: str) -> Place | Ignored | None:
    return Ignored("a mark of fairseq's") if name.endswith(huggingface.LEFTOVERS) else Place(name)


def _collect(
    source: Source, stored: Stored, rename: Callable[[str], Place | Ignored | None], advance: Callable[[int], None]
) -> None:
    """Read the tensors that belong somewhere, one at a time, so that no more than one is held twice."""
    nowhere = []
    for origin, read in stored:
        place = rename(origin)
        if isinstance(place, Ignored):
            source.ignored[origin] = place.reason
        elif place is None:
            nowhere.append(origin)
        else:
            tensor = read()
            name = place.name.removeprefix("model.")
            if name in source.tensors:
                raise ValueError(f"{source.path}: {origin} and {source.origins[name]} are both {name}")
            source.checksums[name], source.origins[name] = checksum(tensor), origin
            advance(tensor.nbytes)
            source.tensors[name] = tensor.t().contiguous() if place.transposed and tensor.ndim == 2 else tensor
    if nowhere:
        raise ValueError(f"{source.path} has tensors that belong nowhere: {huggingface.some(nowhere)}")


def _tie(source: Source) -> None:
    """Keep one of the tensors that are the token embedding; ValueError where they differ."""
    tied = source.settings.get("tie_word_embeddings", True)
    names = [*huggingface.TOKEN_EMBEDDINGS, *([huggingface.HEAD] if tied else [])]
    first, *others = [name for name in names if name in source.tensors] or [""]
    if not first:
        raise ValueError(f"{source.path} has no token embedding")
    for name in others:
        if not source.tensors[name].equal(source.tensors[first]):
            raise ValueError(
                f"{source.path}: {source.origins[name]} and {source.origins[first]} differ, and should be tied"
            )
        source.ignored[source.origins.pop(name)] = f"the same as {source.origins[first]}"
        del source.tensors[name], source.checksums[name]
    name = huggingface.TOKEN_EMBEDDINGS[0]
    source.tensors[name] = source.tensors.pop(first)
    source.origins[name] = source.origins.pop(first)
    source.checksums[name] = source.checksums.pop(first)


def checksum(tensor: Tensor) -> int:
    """Return the sum of a tensor's elements, each read as the integer of its bits, modulo 2^64."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.contiguous().view(integers[tensor.element_size()]).sum(dtype=torch.int64))
