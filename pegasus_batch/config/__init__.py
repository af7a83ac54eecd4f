"""Model and generation settings: frozen values that read and write Hugging Face's JSON files.

Every other module may import this one; it imports nothing else of the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pegasus_batch.config.checks import SAMPLING_OPTIONS, as_tuple, check_options

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_ATTENTION_BLOCK = re.compile(r"encoder\.layers\.\d+\.self_attn|decoder\.layers\.\d+\.(self|encoder)_attn")
DEFAULT_NEW_TOKENS = 20  # what Hugging Face generates when nobody sets a maximum


def _closest(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The settings that Pegasus and BART share; the class variables are the whole difference between the families.

    Field names and defaults are those of Hugging Face's ``config.json``. Settings of that file which concern neither the
    network nor its training are kept in ``extra`` and written back unchanged.
    """

    model_type: ClassVar[str]
    pre_norm: ClassVar[bool]  # layer norm before each block and once after the stack; otherwise after each block
    embedding_norm: ClassVar[bool]
    learned_positions: ClassVar[bool]  # otherwise sinusoids
    position_offset: ClassVar[int]  # unused rows at the head of the position table
    shifts_source: ClassVar[bool]  # decoder ids may be made from the source ids
    default_labels: ClassVar[int] = 2  # classes, where the config names none

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    use_cache: bool = True
    activation_function: str = "gelu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    decoder_start_token_id: int = 0
    scale_embedding: bool = False
    bos_token_id: int | None = None
    pad_token_id: int = 0
    eos_token_id: int = 1
    forced_eos_token_id: int | None = 1
    tie_word_embeddings: bool = True
    classifier_dropout: float = 0.0
    num_labels: int = (
        0  # classes of a classification head; 0 stands for as many as id2label names, else the family's default
    )
    problem_type: str | None = None  # what a classification head is trained for
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    # Ours alone: positions count the tokens that attention_mask shows, not columns, so that padding may stand on the left.
    positions_from_mask: bool = False
    pruned_heads: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)  # by attention block
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = self.extra.get("id2label")
        if not self.num_labels:
            object.__setattr__(self, "num_labels", len(labels) if labels else self.default_labels)
        elif labels and len(labels) != self.num_labels:  # names of other classes
            extra = {name: value for name, value in self.extra.items() if name not in ("id2label", "label2id")}
            object.__setattr__(self, "extra", extra)
        for name in (
            "num_labels",
            "vocab_size",
            "max_position_embeddings",
            "d_model",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "encoder_layers",
            "decoder_layers",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model {self.d_model} is not divisible by {name} {getattr(self, name)}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(f"activation_function {self.activation_function!r} is not one of {', '.join(ACTIVATIONS)}")
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type {self.problem_type!r} is not one of {', '.join(PROBLEM_TYPES)}")
        for name, pruned in self.pruned_heads.items():
            if not _ATTENTION_BLOCK.fullmatch(name):
                raise ValueError(f"pruned_heads names {name!r}, expected a block such as encoder.layers.0.self_attn")
            side, _, layer, _ = name.split(".")
            layers, heads = (getattr(self, f"{side}_{what}") for what in ("layers", "attention_heads"))
            if int(layer) >= layers or not set(pruned) <= set(range(heads)):
                raise ValueError(
                    f"cannot prune heads {list(pruned)} of {name}: there are {heads} in each of {layers} layers"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the mapping of a ``config.json``; keys it omits take the family's defaults, as they do at Hugging Face."""
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"config.json is of model_type {found!r}, {cls.__name__} reads {cls.model_type!r}")
        known = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        given = {name: value for name, value in values.items() if name in known}
        extra = {name: value for name, value in values.items() if name not in known and name != "model_type"}
        return cls(**given, extra=extra)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read ``config.json`` of a model directory."""
        return cls.from_dict(read_json(Path(directory) / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "extra"}
        return {**self.extra, **own, "model_type": self.model_type}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` into a model directory."""
        write_json(Path(directory) / "config.json", self.to_dict())


@dataclass(frozen=True)
class PegasusConfig(Seq2SeqConfig):
    """Pegasus: pre-norm, sinusoidal positions, no embedding norm, generation starts from the padding token."""

    model_type: ClassVar[str] = "pegasus"
    pre_norm: ClassVar[bool] = True
    embedding_norm: ClassVar[bool] = False
    learned_positions: ClassVar[bool] = False
    position_offset: ClassVar[int] = 0
    shifts_source: ClassVar[bool] = False


@dataclass(frozen=True)
class BartConfig(Seq2SeqConfig):
    """BART: post-norm, learned positions behind two unused rows, a norm over the embeddings."""

    model_type: ClassVar[str] = "bart"
    pre_norm: ClassVar[bool] = False
    embedding_norm: ClassVar[bool] = True
    learned_positions: ClassVar[bool] = True
    position_offset: ClassVar[int] = 2
    shifts_source: ClassVar[bool] = True
    default_labels: ClassVar[int] = 3

    bos_token_id: int | None = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 2
    forced_eos_token_id: int | None = 2


CONFIGS: dict[str, type[Seq2SeqConfig]] = {config.model_type: config for config in (PegasusConfig, BartConfig)}


def load_config(directory: str | Path) -> Seq2SeqConfig:
    """Read ``config.json`` of a Pegasus or BART directory, whichever it is."""
    values = read_json(Path(directory) / "config.json")
    model_type = values.get("model_type")
    if model_type not in CONFIGS:
        raise ValueError(
            f"{directory}/config.json has model_type {model_type!r}; this package runs {' and '.join(CONFIGS)} models"
        )
    return CONFIGS[model_type].from_dict(values)


def read_json(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    """Read a JSON object, {} for a missing file if that may be; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        if missing_ok:
            return {}
        raise FileNotFoundError(f"{path} does not exist; expected a model directory in the Hugging Face layout")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, keys sorted, creating the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# Options of Hugging Face's generation files that this package does not have, with the values at which they change nothing.
# A file that sets one of them to anything else asks for another search than ours, so it is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "penalty_alpha": (None,),
    "constraints": (None,),
    "guidance_scale": (None, 1.0),
    "low_memory": (None, False),
    "remove_invalid_values": (None, False),
    "token_healing": (None, False),
    "watermarking_config": (None,),
    "prompt_lookup_num_tokens": (None,),
    "dola_layers": (None,),
}


@dataclass(frozen=True)
class GenerationConfig:
    """How ``generate`` searches; names, defaults and meanings are Hugging Face's (transformers 4.57).

    ``max_length`` and ``min_length`` count the decoder prompt, ``max_new_tokens`` and ``min_new_tokens`` do not and win over
    them. ``max_length=None`` stands for the default of 20 new tokens. ``sequence_bias`` maps tuples of token ids to a bias; the
    list form ``[[ids, bias], ...]`` is accepted too. ``seed`` is our own: what is drawn follows from it and the document.
    docs/generation.md describes every option. Raises ValueError on values that contradict each other.
    """

    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    force_words_ids: Sequence[Sequence[int] | Sequence[Sequence[int]]] | None = None
    num_return_sequences: int = 1
    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    sequence_bias: Mapping[tuple[int, ...], float] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool = False
    do_sample: bool = False
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    typical_p: float | None = 1.0
    min_p: float | None = None
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    seed: int = 0
    max_time: float | None = None
    stop_strings: str | Sequence[str] | None = None
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self) -> None:
        bias: Any = self.sequence_bias
        if bias is not None and not isinstance(bias, Mapping):
            object.__setattr__(self, "sequence_bias", {tuple(ids): float(value) for ids, value in bias})
        check_options(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return every option's name."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the generation values of a Hugging Face file, ignoring what belongs to the network or is inert."""
        for name, neutral in _NEUTRAL.items():
            if values.get(name, neutral[0]) not in neutral:
                raise ValueError(f"the generation option {name}={values[name]!r} is not supported")
        known = set(cls.names())
        # None is a value of these alone: it turns them off.
        given = {
            name: value
            for name, value in values.items()
            if name in known and (value is not None or name in SAMPLING_OPTIONS)
        }
        if given.get("max_length") == DEFAULT_NEW_TOKENS:  # Hugging Face cannot tell this from an unset maximum
            del given["max_length"]
        if values.get("force_bos_token_to_be_generated") and "forced_bos_token_id" not in given:
            given["forced_bos_token_id"] = values.get("bos_token_id")
        return cls(**given)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read ``generation_config.json`` or, where it is missing or only mirrors it, the values in ``config.json``."""
        path = Path(directory) / "generation_config.json"
        if path.is_file():
            values = read_json(path)
            if not values.get("_from_model_config"):
                return cls.from_dict(values)
        return cls.from_dict(load_config(directory).to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return what ``generation_config.json`` holds: every value that differs from its default."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        if self.sequence_bias is not None:
            values["sequence_bias"] = [[list(ids), bias] for ids, bias in self.sequence_bias.items()]
        return values

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``generation_config.json`` into a model directory."""
        write_json(Path(directory) / "generation_config.json", self.to_dict())

    def updated(self, **options: Any) -> Self:
        """Return a copy with ``options`` replaced; an unknown name or a contradiction raises ValueError."""
        known = self.names()
        for name in options:
            if name not in known:
                raise ValueError(f"unknown generation option {name!r}{_closest(name, known)}")
        changed = dataclasses.replace(self, **options)
        for name in SAMPLING_OPTIONS:
            # Files may carry these unused, so only whoever asks for them now is told.
            if not changed.do_sample and options.get(name) not in (None, getattr(GenerationConfig, name)):
                raise ValueError(
                    f"{name}={options[name]!r} has no effect on a search: set do_sample=True or leave it out"
                )
        return changed

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends a sequence."""
        return as_tuple(self.eos_token_id)

    @property
    def start_token(self) -> int:
        """The decoder's first token; raises ValueError where neither it nor a begin-of-sequence token is set."""
        start = self.decoder_start_token_id if self.decoder_start_token_id is not None else self.bos_token_id
        if start is None:
            raise ValueError("neither decoder_start_token_id nor bos_token_id is set: pass decoder_start_token_id=")
        return start

    @property
    def fill_token(self) -> int:
        """The padding of returned rows: ``pad_token_id``, or the first end token where that is unset."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_ids[0] if self.eos_ids else 0

    def lengths(self, prompt_length: int, max_positions: int) -> tuple[int, int]:
        """Return (maximum, minimum) total length, prompt included; raises ValueError where no token could be generated."""
        if self.max_new_tokens is not None:
            longest = prompt_length + self.max_new_tokens
        elif self.max_length is not None:
            longest = self.max_length
        else:
            longest = min(prompt_length + DEFAULT_NEW_TOKENS, max_positions)
        if longest <= prompt_length:
            raise ValueError(
                f"max_length {longest} leaves no room after a decoder prompt of {prompt_length} tokens: raise max_length "
                "or set max_new_tokens"
            )
        if longest > max_positions + 1:  # the last generated token is never fed back
            raise ValueError(
                f"a maximum of {longest} tokens exceeds the model's {max_positions} positions: lower max_length"
            )
        shortest = self.min_length
        if self.min_new_tokens is not None:
            shortest = prompt_length + self.min_new_tokens
        return longest, shortest
