"""What every model can do beside its forward pass: be loaded and saved, be resized, be pruned, save memory in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pegasus_batch.checkpoints import huggingface
from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import GenerationConfig, Seq2SeqConfig
from pegasus_batch.engine.numerics import embedding_scale, sinusoids
from pegasus_batch.models.layers import PositionEmbedding, Stack
from pegasus_batch.models.outputs import ModelOutput

IGNORED_LABEL = -100
Output = TypeVar("Output", bound=ModelOutput)

_BLOCKS = {
    "encoder": "encoder.layers.{}.self_attn",
    "decoder": "decoder.layers.{}.self_attn",
    "cross": "decoder.layers.{}.encoder_attn",
}


class PretrainedModel(nn.Module):
    """Construction from a config, reading and writing Hugging Face directories, and changes of size."""

    config_class: ClassVar[type[Seq2SeqConfig]]
    prefix: ClassVar[str]  # of the bare network's tensors in a checkpoint file, relative to this class
    left_out: ClassVar[tuple[str, ...]] = ()  # beginnings of the names of a checkpoint's tensors that are not wanted

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.parameters()).dtype

    # ---- files

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        *,
        torch_dtype: torch.dtype | str | None = None,
        new_head: bool = False,
        **settings: Any,
    ) -> Self:
        """Load a Hugging Face directory (or hub id, where huggingface_hub is installed and online), ready to infer.

        ``dtype`` (or its older name ``torch_dtype``) is a torch dtype or its name, float32 by default; "auto" keeps the one
        that the checkpoint states. With "int8", generate() computes with 8-bit weights on the CPU, and everything else with
        float32 ones. ``new_head`` draws what the checkpoint lacks beside the bare network, to be trained. ``settings``
        replace those of config.json and, where the model generates, of generation_config.json. Raises FileNotFoundError for
        a missing file and ValueError naming every tensor that is missing, extra or misshapen, or an unknown setting.
        """
        path = resolve(directory)
        of_config = {field.name for field in dataclasses.fields(cls.config_class)} - {"extra"}
        config = cls.config_class.from_pretrained(path)
        config = dataclasses.replace(config, **{name: settings[name] for name in of_config & settings.keys()})
        model = cls.outline(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        defaults = {name: _buffer(name, tuple(buffer.shape)) for name, buffer in model.named_buffers()}
        if new_head:
            head = {name: shape for name, shape in expected.items() if not name.startswith(cls.prefix)}
            drawn = {name: torch.zeros(shape) for name, shape in head.items()}
            for name, tensor in drawn.items():
                if name.endswith("weight"):
                    nn.init.normal_(tensor, std=config.init_std)
            defaults = {**drawn, **defaults}
        tensors = huggingface.fit(huggingface.read(path), expected, defaults, config, cls.prefix, cls.left_out)
        target = huggingface.parse_dtype(dtype or torch_dtype or torch.float32, config)
        model._take_settings(path, target == torch.int8, settings)
        if target == torch.int8:
            target = torch.float32
        # One at a time, so that a tensor of another type is not held in both.
        model.load_state_dict({name: tensors.pop(name).to(target) for name in list(tensors)}, assign=True)
        return model.to(device).eval()

    @classmethod
    def outline(cls, config: Seq2SeqConfig) -> Self:
        """Return a model on the meta device: names and shapes without weights."""
        with torch.device("meta"), _Undrawn():
            return cls(config)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, generation_config.json where there is one, and model.safetensors, as Hugging Face lays them out."""
        generation = getattr(self, "generation_config", None)
        huggingface.write(directory, self.state_dict(), self.config, generation, type(self).__name__)

    def _take_settings(self, path: Path, quantized: bool, settings: Mapping[str, Any]) -> None:
        """Take what loading says beside the config; ValueError for what this class cannot heed."""
        if quantized:
            raise ValueError(f"dtype int8 is for generate() in the engine, which {type(self).__name__} does not use")
        unknown = settings.keys() - {field.name for field in dataclasses.fields(self.config)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: no setting of {type(self.config).__name__}")

    def _initialize(self, part: nn.Module | None = None) -> None:
        """Draw weights, of a part or all of them, from N(0, init_std); biases and the padding embedding are zero."""
        for module in (part or self).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()
            elif isinstance(module, PositionEmbedding) and isinstance(module.weight, nn.Parameter):
                nn.init.normal_(module.weight, std=self.config.init_std)

    # ---- sizes

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the weights: Pegasus' position tables among them, as at Hugging Face, unless only trained ones count."""
        total = 0
        for module in self.modules():
            if not (exclude_embeddings and isinstance(module, nn.Embedding | PositionEmbedding)):
                own: list[Tensor] = list(module.parameters(recurse=False))
                if isinstance(module, PositionEmbedding) and not own and not only_trainable:
                    own = [module.weight]
                total += sum(weight.numel() for weight in own if weight.requires_grad or not only_trainable)
        return total

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding, shared by encoder and decoder."""
        table = self._network().shared
        assert isinstance(table, nn.Embedding)
        return table

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Take another token embedding [V, D] in place of the present one; ValueError for another shape."""
        if value.weight.shape != (expected := self.get_input_embeddings().weight.shape):
            raise ValueError(
                f"the embedding is {list(value.weight.shape)}, expected {list(expected)}: call resize_token_embeddings first"
            )
        self._network().shared = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the head for words; a model of another kind has none."""
        return None

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Grow or cut the vocabulary, rounded up to a multiple if one is given, and return the token embedding.

        New rows, of an untied head too, are the mean of the old ones (Hewitt 2021, "Initializing New Word Embeddings"), or
        drawn with ``init_std``. The parameters are new ones: make an optimizer afterwards. Raises ValueError for a
        vocabulary that would lose a special token.
        """
        table = self.get_input_embeddings()
        if new_num_tokens is None and pad_to_multiple_of is None:
            return table
        size = table.num_embeddings if new_num_tokens is None else new_num_tokens
        size += -size % (pad_to_multiple_of or 1)
        self._reconfigure(vocab_size=size)
        table.weight = self._with_rows(table.weight, size, mean_resizing)
        table.num_embeddings = size
        return table

    def _with_rows(self, weight: Tensor, rows: int, mean: bool) -> nn.Parameter:
        old = weight.detach()
        new = old.float().mean(0).to(old.dtype).repeat(max(rows - len(old), 0), 1)
        if not mean:
            nn.init.normal_(new, std=self.config.init_std)
        return nn.Parameter(torch.cat((old[:rows], new)), requires_grad=weight.requires_grad)

    def get_position_embeddings(self) -> PositionEmbedding | tuple[PositionEmbedding, ...]:
        """Return the position tables of encoder and decoder, or the one where there is no encoder."""
        tables = tuple(module for module in self.modules() if isinstance(module, PositionEmbedding))
        return tables if len(tables) > 1 else tables[0]

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Make sinusoids for texts of this length; NotImplementedError where positions are learned."""
        if self.config.learned_positions:
            raise NotImplementedError(
                f"{type(self).__name__} has learned its {self.config.max_position_embeddings} positions, others cannot be "
                "computed: truncate the texts, or use a Pegasus model"
            )
        self._reconfigure(max_position_embeddings=new_num_position_embeddings)
        for module in self.modules():
            if isinstance(module, PositionEmbedding):
                module.resize(new_num_position_embeddings)

    def prune_heads(
        self,
        heads_to_prune: Mapping[int, Sequence[int]],
        attention: Literal["encoder", "decoder", "cross"] | None = None,
    ) -> None:
        """Take heads, given by layer, out of the encoder's self-attention, or of the decoder's or its cross-attention.

        A model without an encoder is pruned in the decoder by default. Heads keep their numbers, in head masks too; what is
        pruned is kept in the config, and so in a saved model. The parameters are new ones: make an optimizer afterwards.
        Raises ValueError for a layer or head that is not there.
        """
        network = self._network()
        stacks = [kind for kind, name in _BLOCKS.items() if hasattr(network, name.split(".")[0])]
        kind = attention or stacks[0]
        if kind not in stacks:
            raise ValueError(f"attention {kind!r} is not one of {', '.join(stacks)}, which {type(self).__name__} has")
        chosen = {_BLOCKS[kind].format(layer): set(heads) for layer, heads in heads_to_prune.items()}
        before = self.config.pruned_heads
        self._reconfigure(
            pruned_heads={
                **before,
                **{name: sorted(heads.union(before.get(name, ()))) for name, heads in chosen.items()},
            }
        )
        for name, heads in chosen.items():
            network.get_submodule(name).prune(heads)

    def _network(self) -> Any:
        """Return the bare network, which holds the token embedding and the stacks."""
        return getattr(self, "model", self)

    def _reconfigure(self, **changes: Any) -> None:
        config = dataclasses.replace(self.config, **changes)
        for module in self.modules():
            if "config" in vars(module):
                vars(module)["config"] = config

    # ---- training

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return any(isinstance(module, Stack) and module.checkpointing is not None for module in self.modules())

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Keep no state within layers in training, but compute it again; no cache is returned then.

        The options are those of ``torch.utils.checkpoint.checkpoint``.
        """
        self._checkpoint({"use_reentrant": False, **(gradient_checkpointing_kwargs or {})})

    def gradient_checkpointing_disable(self) -> None:
        """Keep every state again."""
        self._checkpoint(None)

    def _checkpoint(self, options: Mapping[str, Any] | None) -> None:
        for module in self.modules():
            if isinstance(module, Stack):
                module.checkpointing = options

    # ---- what forward passes share

    def _embed(self, ids: Tensor | None, embeds: Tensor | None, side: str, prefix: str = "") -> Tensor:
        """Return what a stack reads, [B, T, D]: embeddings of ids [B, T], or those given.

        Pegasus' decoder scales embeddings that a caller gives it, and so did the code that its checkpoints come from.
        Raises ValueError for both or neither, naming them after ``prefix``, and for an id outside the vocabulary.
        """
        if (ids is None) == (embeds is None):
            raise ValueError(f"pass exactly one of {prefix}input_ids and {prefix}inputs_embeds")
        scale = embedding_scale(self.config)
        if ids is None:
            assert embeds is not None
            return embeds * scale if side == "decoder" and not self.config.learned_positions else embeds
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise ValueError(
                f"token ids must lie in [0, {self.config.vocab_size}), got {int(ids.min())} to {int(ids.max())}: does the "
                "tokenizer belong to this model?"
            )
        table = self.get_input_embeddings()
        return F.embedding(ids, table.weight, table.padding_idx) * scale

    def _requested(self, attentions: bool | None, hidden_states: bool | None) -> tuple[bool, bool]:
        return (
            self.config.output_attentions if attentions is None else attentions,
            self.config.output_hidden_states if hidden_states is None else hidden_states,
        )

    def _returned(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """Return an output as it is, or as a tuple where the caller or else the config wants one."""
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _with_scores(
        self, kind: type[Output], decoded: ModelOutput, return_dict: bool | None, **scores: Tensor | None
    ) -> Output | tuple[Any, ...]:
        """Return what a head makes of the decoder's last state, with all else that the network returned."""
        others = {name: value for name, value in decoded.items() if name != "last_hidden_state"}
        return self._returned(kind(**scores, **others), return_dict)


class LanguageModel(PretrainedModel):
    """A network under a head for words, which is the token embedding or, untied, a layer of its own."""

    prefix = "model."

    def _take_settings(self, path: Path, quantized: bool, settings: Mapping[str, Any]) -> None:
        own = {name: value for name, value in settings.items() if name in GenerationConfig.names()}
        super()._take_settings(path, quantized, {name: value for name, value in settings.items() if name not in own})
        self.generation_config = GenerationConfig.from_pretrained(path).updated(**own)

    def _add_head(self) -> None:
        self.generation_config = GenerationConfig.from_dict(self.config.to_dict())
        if not self.config.tie_word_embeddings:
            self.lm_head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False)
            self._initialize(self.lm_head)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the head; a tied one has the token embedding's own weight."""
        if not self.config.tie_word_embeddings:
            return self.lm_head
        table = self.get_input_embeddings()
        head = nn.Linear(table.embedding_dim, table.num_embeddings, bias=False, device="meta")
        head.weight = table.weight
        return head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Take another head [V, D]; ValueError for another shape, or where the head is the token embedding."""
        if self.config.tie_word_embeddings:
            raise ValueError("the head is tied to the token embedding: call set_input_embeddings")
        if new_embeddings.weight.shape != (expected := self.lm_head.weight.shape):
            raise ValueError(f"the head is {list(new_embeddings.weight.shape)}, expected {list(expected)}")
        self.lm_head = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Grow or cut the vocabulary, of an untied head too."""
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if not self.config.tie_word_embeddings:
            self.lm_head.weight = self._with_rows(self.lm_head.weight, table.num_embeddings, mean_resizing)
            self.lm_head.out_features = table.num_embeddings
        return table

    def _head(self) -> Tensor:
        return self.get_input_embeddings().weight if self.config.tie_word_embeddings else self.lm_head.weight


def shift_right(ids: Tensor, config: Seq2SeqConfig, mask: Tensor | None = None) -> Tensor:
    """Put the decoder's start token before ids [B, T] and drop the last; -100, which marks no label, becomes padding.

    Under a 0/1 ``mask`` [B, T] the start token takes the place of the first token that it shows.
    """
    shifted = torch.cat((torch.full_like(ids[:, :1], config.decoder_start_token_id), ids[:, :-1]), dim=1)
    if mask is not None:
        shifted = shifted.masked_fill(mask.cumsum(1) == 1, config.decoder_start_token_id)
    return shifted.masked_fill(shifted == IGNORED_LABEL, config.pad_token_id)


def _buffer(name: str, shape: tuple[int, ...]) -> Tensor:
    """Make a buffer that a checkpoint file leaves out: it follows from the config."""
    return sinusoids(*shape) if name.endswith("embed_positions.weight") else torch.zeros(shape)


class _Undrawn(TorchFunctionMode):
    """Modules are made without drawing their weights, for which the meta device needs torch's compiler: a second and 80 MB."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = kwargs or {}
        return values["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **values)
