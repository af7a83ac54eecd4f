"""``pegasus-batch convert``: checkpoints of other projects become Hugging Face directories, or Flax's and TensorFlow's."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn
from torch import Tensor

from pegasus_batch.checkpoints import fairseq, flax, huggingface, sources, tensorflow
from pegasus_batch.checkpoints.sources import KINDS, Source
from pegasus_batch.config import CONFIGS, GenerationConfig, Seq2SeqConfig, read_json, write_json
from pegasus_batch.engine.numerics import sinusoids
from pegasus_batch.models import causal, heads, seq2seq
from pegasus_batch.models.pretrained import PretrainedModel
from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer

ARCHITECTURES: dict[str, type[PretrainedModel]] = {
    model.__name__: model
    for model in (
        seq2seq.PegasusModel,
        seq2seq.PegasusForConditionalGeneration,
        causal.PegasusForCausalLM,
        heads.PegasusForSequenceClassification,
        heads.PegasusForQuestionAnswering,
        seq2seq.BartModel,
        seq2seq.BartForConditionalGeneration,
        causal.BartForCausalLM,
        heads.BartForSequenceClassification,
        heads.BartForQuestionAnswering,
    )
}
_BOTH = {f"{family}{head}" for family in ("Pegasus", "Bart") for head in ("Model", "ForConditionalGeneration")}
# The classes that transformers has in the other frameworks.
TARGETS: dict[str, set[str]] = {
    "huggingface": set(ARCHITECTURES),
    "flax": _BOTH | {"BartForSequenceClassification", "BartForQuestionAnswering", "BartForCausalLM"},
    "tensorflow": _BOTH | {"BartForSequenceClassification"},
}
# What a tokenizer in Hugging Face's layout may consist of.
_COPIED = (
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_CHECKED_TOKENS = 16
_SINUSOID_ERROR = 0.01  # half precision's, with room


@dataclass(frozen=True)
class Conversion:
    """What was made of a checkpoint. ``made`` are the tensors that it lacks and that follow from the config."""

    source: Source
    destination: Path
    architecture: str
    written: Mapping[str, tuple[int, ...]]
    made: tuple[str, ...]
    tokenizer: str


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "huggingface",
    config: str | Path | None = None,
    vocabulary: str | Path | None = None,
) -> Conversion:
    """Read a checkpoint of any kind, write it as another, and load and run what was written; only then is it there.

    ``to`` is huggingface, flax or tensorflow. ``config`` is a JSON file whose settings win over those beside the source,
    ``vocabulary`` the SentencePiece model of a checkpoint from google-research. Raises FileNotFoundError,
    FileExistsError for a destination that is not empty, and ValueError for a damaged source, for tensors that are
    missing or belong nowhere, and for a copy that is not the same.
    """
    target = Path(destination)
    if to not in TARGETS:
        raise ValueError(f"cannot convert to {to!r}: expected one of {', '.join(TARGETS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty: give a new directory")
    found = sources.detect(Path(source))
    given = {} if config is None else read_json(Path(config))
    with _progress(found) as advance:
        sources.load(found, given, advance)
    model_class = _choose_class(found)
    if model_class.__name__ not in TARGETS[to]:
        raise ValueError(f"transformers has no {model_class.__name__} for {KINDS[to]}")
    searching = set(GenerationConfig.names()) - {field.name for field in dataclasses.fields(model_class.config_class)}
    network = {name: value for name, value in found.settings.items() if name not in searching}
    settings = model_class.config_class.from_dict(network)
    if to == "flax" and not settings.learned_positions:
        _drop_sinusoids(found)
    tensors, made = _fit(found, model_class, settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        part = Path(work) / target.name
        _write(part, to, tensors, settings, model_class)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        tensors.clear()
        found.tensors.clear()
        tokenizer = _write_rest(found, part, settings, vocabulary)
        check(found, part, model_class)
        if target.exists():
            target.rmdir()
        part.rename(target)
    return Conversion(found, target, model_class.__name__, shapes, made, tokenizer)


def _choose_class(source: Source) -> type[PretrainedModel]:
    """Return the class that the config names or, where it names none, that the tensors show."""
    family = source.settings["model_type"]
    if family not in CONFIGS:
        raise ValueError(f"{source.directory} is of model_type {family!r}; this package has {' and '.join(CONFIGS)}")
    named = source.settings.get("architectures") or []
    if named:
        name = str(named[0]).removeprefix("Flax").removeprefix("TF")
        if name not in ARCHITECTURES:
            raise ValueError(f"{source.directory} is a {named[0]}; this package has {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[name]
    parts = {name.split(".")[0] for name in source.tensors}
    if "encoder" not in parts:
        head = "ForCausalLM"
    elif "classification_head" in parts:
        head = "ForSequenceClassification"
    else:
        head = "ForQuestionAnswering" if "qa_outputs" in parts else "ForConditionalGeneration"
    return ARCHITECTURES[f"{family.capitalize()}{head}"]


def _fit(
    source: Source, model_class: type[PretrainedModel], settings: Seq2SeqConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors under a class' names, and the names of those that follow from the config."""
    if settings.encoder_layers + settings.decoder_layers > len(source.tensors):
        layers = f"{settings.encoder_layers} and {settings.decoder_layers} layers"
        raise ValueError(f"{source.path} has {len(source.tensors)} tensors, and should have {layers} by its settings")
    model = model_class.outline(settings)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    defaults = dict(model.named_buffers())
    fitted = huggingface.fit(source.tensors, expected, defaults, settings, model_class.prefix)
    made = tuple(name for name, tensor in fitted.items() if tensor.is_meta)
    used = {name.removeprefix(model_class.prefix) for name in fitted if name not in made}
    if left := sorted(set(source.tensors) - used):
        names = huggingface.some([source.origins.get(name, name) for name in left])
        raise ValueError(f"{source.path} has tensors that a {model_class.__name__} has no place for: {names}")
    return {name: tensor for name, tensor in fitted.items() if name not in made}, made


def _drop_sinusoids(source: Source) -> None:
    """Leave out Pegasus' positions, which Flax computes; ValueError where they are not what it computes."""
    for name in [name for name in source.tensors if name.endswith("embed_positions.weight")]:
        table = source.tensors.pop(name)
        if not table.float().allclose(sinusoids(*table.shape), atol=_SINUSOID_ERROR):
            raise ValueError(f"{source.path}: {source.origins[name]} are no sinusoids; Flax has no place for others")
        source.ignored[source.origins[name]] = "sinusoids, which Flax computes"
        del source.checksums[name]


def _write(
    directory: Path, to: str, tensors: Mapping[str, Tensor], settings: Seq2SeqConfig, model_class: type[PretrainedModel]
) -> None:
    if issubclass(model_class, causal.CausalLM):  # Hugging Face's causal classes call the embedding the decoder's own
        tensors = {name.replace("model.shared", "model.decoder.embed_tokens"): tensors[name] for name in tensors}
    if to == "huggingface":
        huggingface.write(directory, tensors, settings, None, model_class.__name__)
        return
    write_json(directory / "config.json", {**settings.to_dict(), "architectures": [model_class.__name__]})
    if to == "tensorflow":
        tensorflow.write(directory / tensorflow.FILE, tensors, model_class.__name__)
    else:
        flax.write(directory / flax.FILE, tensors)


def _write_rest(source: Source, directory: Path, settings: Seq2SeqConfig, vocabulary: str | Path | None) -> str:
    """Write the settings of generate() and the tokenizer; return what became of the latter."""
    generation = read_json(source.directory / "generation_config.json", missing_ok=True)
    if not generation or generation.get("_from_model_config"):
        generation = {**settings.to_dict(), **source.settings}
    GenerationConfig.from_dict(generation).save_pretrained(directory)
    if source.kind == "google":
        return _write_spiece(source, directory, settings, vocabulary)
    if source.kind == "fairseq":
        return _write_byte_level(source.directory, directory, settings)
    copied = [name for name in _COPIED if (source.directory / name).is_file()]
    for name in copied:
        shutil.copyfile(source.directory / name, directory / name)
    return f"copied: {', '.join(copied)}" if copied else f"none: {source.directory} has no tokenizer's files"


def _write_spiece(source: Source, directory: Path, settings: Seq2SeqConfig, vocabulary: str | Path | None) -> str:
    """Write Pegasus' tokenizer around the SentencePiece model that is given or, alone, beside or above the checkpoint."""
    near = source.path.absolute().parent
    found = [path for place in (near, near.parent) for end in ("*.model", "*.spm") for path in sorted(place.glob(end))]
    if vocabulary is not None:
        found = [Path(vocabulary)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        return f"none: which SentencePiece model is the vocabulary must be said with --vocabulary (found: {names})"
    tokenizer = PegasusTokenizer(found[0], model_max_length=settings.max_position_embeddings)
    if tokenizer.vocab_size != settings.vocab_size:
        raise ValueError(
            f"{found[0]} has {tokenizer.vocab_size - tokenizer.offset} pieces, with the {tokenizer.offset} ids before "
            f"them {tokenizer.vocab_size}; the checkpoint's embedding has {settings.vocab_size} rows"
        )
    tokenizer.save_pretrained(directory)
    return f"made from {found[0].name}, its ids behind {tokenizer.offset} reserved ones"


def _write_byte_level(near: Path, directory: Path, settings: Seq2SeqConfig) -> str:
    lacking = [name for name in fairseq.TOKENIZER_FILES if not (near / name).is_file()]
    if lacking:
        return f"none: {near} lacks {', '.join(lacking)}"
    ids, merges = fairseq.read_vocabulary(near, settings.vocab_size)
    with tempfile.TemporaryDirectory() as work:
        files = Path(work) / "vocab.json", Path(work) / "merges.txt"
        write_json(files[0], ids)
        files[1].write_text(merges, encoding="utf-8")
        tokenizer = BartTokenizer(*files, model_max_length=settings.max_position_embeddings)
    tokenizer.save_pretrained(directory)
    return f"made from {', '.join(fairseq.TOKENIZER_FILES)}"


def check(source: Source, directory: Path, model_class: type[PretrainedModel]) -> None:
    """Read a copy, compare it with its source bit for bit, and run it; ValueError where anything is amiss."""
    copy = sources.detect(directory)
    sources.load(copy, {})
    differing = [name for name in source.checksums if copy.checksums.get(name) != source.checksums[name]]
    if differing or len(copy.checksums) != len(source.checksums):
        raise ValueError(f"{directory} is not what was read: {huggingface.some(differing or list(copy.checksums))}")
    if copy.kind == "huggingface":
        model = model_class.from_pretrained(directory)
    else:
        model = model_class(model_class.config_class.from_dict(copy.settings))
        model.load_state_dict(_fit(copy, model_class, model.config)[0], strict=False, assign=True)
        model.float().eval()
    config = model.config
    ids = torch.arange(min(config.vocab_size, config.max_position_embeddings, _CHECKED_TOKENS))[None]
    ids[0, -1] = config.eos_token_id
    given = {} if isinstance(model, causal.CausalLM) else {"decoder_input_ids": ids}
    with torch.no_grad():
        output = model(ids, **given, use_cache=False)
    for name, value in output.items():
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            raise ValueError(f"{source.path} computes {name} that are not finite: its weights are damaged")


@contextlib.contextmanager
def _progress(source: Source) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of a file has been read."""
    columns = (TextColumn("reading {task.description}"), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(source.path.name, total=None)
        yield lambda n_bytes: progress.advance(task, n_bytes)


def describe(conversion: Conversion) -> list[str]:
    """Say what was mapped, what was not and why."""
    source = conversion.source
    tensors, parameters = Counter[str](), Counter[str]()
    for name, shape in conversion.written.items():
        part = ".".join(name.removeprefix("model.").split(".")[:2])
        tensors[part] += 1
        parameters[part] += math.prod(shape)
    lines = [
        f"{KINDS[source.kind]} checkpoint {source.path} is now the {conversion.architecture} {conversion.destination}"
    ]
    lines += [f"{'part':<32}{'tensors':>8}{'parameters':>16}"]
    lines += [f"{part:<32}{count:>8}{parameters[part]:>16,}" for part, count in tensors.items()]
    lines += [f"{'all':<32}{tensors.total():>8}{parameters.total():>16,}"]
    for reason, count in Counter(source.ignored.values()).items():
        names = [name for name, why in source.ignored.items() if why == reason]
        lines += [f"ignored, {reason}: {count} ({huggingface.some(names, 3)})"]
    if source.added:
        lines += [
            f"zeros in place of what the source has none of: {len(source.added)} ({huggingface.some(source.added, 3)})"
        ]
    if conversion.made:
        lines += [f"not stored, as they follow from the config: {', '.join(conversion.made)}"]
    return [
        *lines,
        f"tokenizer: {conversion.tokenizer}",
        "checked: the same bits as in the source; finite numbers from a run",
    ]
