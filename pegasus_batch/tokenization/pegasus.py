"""The Pegasus tokenizer: a SentencePiece model behind ids that are reserved for pre-training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.files import prefixed
from pegasus_batch.tokenization.slow import SlowTokenizer
from pegasus_batch.tokenization.vocabulary import require_list, require_tokens

VOCAB_FILE = "spiece.model"


class PegasusLayout(Tokenizer):
    """``X </s>`` for a text and ``A B </s>`` for a pair."""

    required_tokens = ("eos_token", "unk_token", "pad_token")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``X </s>``, or ``A B </s>`` for a pair."""
        return token_ids_0 + (token_ids_1 or []) + [self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for every special token but the unknown one, whose place a word takes; see ``Tokenizer``."""
        special = self._special_id_set - {self.unk_token_id}
        mask = [int(index in special) for index in token_ids_0]
        if already_has_special_tokens:
            return mask
        return mask + [int(index in special) for index in token_ids_1 or []] + [1]


class PegasusTokenizer(PegasusLayout, SlowTokenizer):
    """SentencePiece pieces at piece id + ``offset``.

    Below them: 0 ``<pad>``, 1 ``</s>``, 2 ``<mask_1>`` (gap sentences), 3 ``<mask_2>`` (single tokens), 4 to 104
    ``<unk_2>`` to ``<unk_102>``; with ``offset`` 0 only the first four, over the model's own first pieces. A sequence
    ends with ``</s>`` and has nothing in front; a pair is ``A B </s>``. New lines are white space, and so are lost;
    checkpoints trained with ``<n>`` for a new line get it by replacing the text's new lines beforehand.
    """

    own_settings = ("offset", "mask_token_sent", "sp_model_kwargs")

    def __init__(
        self,
        vocab_file: str | Path,
        *,
        pad_token: str | AddedToken = "<pad>",
        eos_token: str | AddedToken = "</s>",
        unk_token: str | AddedToken = "<unk>",
        mask_token: str | AddedToken | None = "<mask_2>",
        mask_token_sent: str | None = "<mask_1>",
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        offset: int = 103,
        sp_model_kwargs: Mapping[str, Any] | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        bos_token: str | AddedToken | None = None,
        sep_token: str | AddedToken | None = None,
        cls_token: str | AddedToken | None = None,
        **common: Any,
    ) -> None:
        """Load a SentencePiece model file.

        ``sp_model_kwargs`` go to SentencePieceProcessor (``enable_sampling``, ``nbest_size``, ``alpha``);
        ``added_tokens_decoder`` are tokens with fixed ids above the reserved ones; ``common`` are the options of
        ``Tokenizer``. Raises FileNotFoundError or ValueError for a file that is missing or no SentencePiece model.
        """
        require_layout(offset, mask_token, mask_token_sent)
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        require_tokens(special, self.required_tokens)
        self.offset = offset
        self.mask_token_sent = mask_token_sent
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self._model_bytes = read_model(Path(vocab_file))
        self.sp_model = start_model(self._model_bytes, str(vocab_file), self.sp_model_kwargs)
        self._pieces: list[str] = [self.sp_model.id_to_piece(i) for i in range(len(self.sp_model))]
        self._piece_ids = {piece: i + offset for i, piece in enumerate(self._pieces)}
        super().__init__(
            special,
            additional_tokens(additional_special_tokens, mask_token_sent, offset),
            {
                **(added_tokens_decoder or {}),
                **_reserved_tokens(pad_token, eos_token, mask_token, mask_token_sent, offset),
            },
            **common,
        )

    # SentencePiece's own pickling forgets the sampling options.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "sp_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.sp_model = start_model(self._model_bytes, VOCAB_FILE, self.sp_model_kwargs)

    @classmethod
    def _load(cls, directory: Path, options: dict[str, Any]) -> Self:
        return cls(directory / VOCAB_FILE, **options)

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write spiece.model; see ``Tokenizer``."""
        path = prefixed(save_directory, VOCAB_FILE, filename_prefix)
        path.write_bytes(self._model_bytes)
        return (str(path),)

    @property
    def vocab_size(self) -> int:
        """Pieces and the ``offset`` ids before them; ``len()`` also counts the tokens added after them."""
        return len(self._pieces) + self.offset

    def _subword_ids(self) -> dict[str, int]:
        return self._piece_ids

    def _subword(self, index: int) -> str | None:
        piece = index - self.offset
        return self._pieces[piece] if 0 <= piece < len(self._pieces) else None

    def _unknown_id(self) -> int:
        # Not unk_token_id: the two differ where the model's unknown piece is not number 2.
        return self.sp_model.unk_id() + self.offset

    def _split_subwords(self, text: str) -> list[str]:
        return self.sp_model.encode(text, out_type=str)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text, special tokens spelled out between them, white space at both ends dropped."""
        text = ""
        run: list[str] = []
        for token in tokens:
            if token in self._special_set:
                text += self._join(run) + token
                run = []
            else:
                run.append(token)
        return (text + self._join(run)).strip()

    def _join(self, pieces: list[str]) -> str:
        return self.sp_model.decode(pieces) if pieces else ""


def require_layout(offset: int, mask_token: str | AddedToken | None, mask_token_sent: str | None) -> None:
    """Raise ValueError where there is no such layout of the reserved ids."""
    if offset < 0:
        raise ValueError(f"offset must not be negative, got {offset}")
    if mask_token is None and mask_token_sent is not None:
        raise ValueError(f"mask_token is None but mask_token_sent is {mask_token_sent!r}; set both or neither")


def read_model(path: Path) -> bytes:
    """The content of a model file, unchecked; raises FileNotFoundError where it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the SentencePiece model of the checkpoint, usually {VOCAB_FILE}")
    return path.read_bytes()


def start_model(content: bytes, name: str, options: Mapping[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """Start a SentencePiece model; raises ValueError, with the ``name`` of the file, where the content is none."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content, **options)
    except RuntimeError as error:
        raise ValueError(
            f"{name} ({len(content)} bytes) is not a SentencePiece model; download it again "
            "(a file of about 130 bytes is a Git LFS pointer)"
        ) from error


def additional_tokens(
    given: Sequence[str | AddedToken] | None, mask_token_sent: str | None, offset: int
) -> list[str | AddedToken]:
    """The additional special tokens, completed by ``<unk_x>`` up to the number that the reserved ids hold."""
    tokens = require_list(given or ())
    contents = {AddedToken.from_json(token).content for token in tokens}
    if mask_token_sent is not None and mask_token_sent not in contents:
        tokens.insert(0, mask_token_sent)
    # A given list is completed by position: the first of three given tokens too few is <unk_3>.
    numbers = range(2, offset) if given is None else range(len(tokens), offset - 1)
    return tokens + [f"<unk_{i}>" for i in numbers if f"<unk_{i}>" not in contents]


def _reserved_tokens(
    pad_token: str | AddedToken,
    eos_token: str | AddedToken,
    mask_token: str | AddedToken | None,
    mask_token_sent: str | None,
    offset: int,
) -> dict[int, AddedToken]:
    contents = [AddedToken.from_json(token).content for token in (pad_token, eos_token)]
    if mask_token_sent is not None and mask_token is not None:
        contents += [mask_token_sent, AddedToken.from_json(mask_token).content]
    contents += [f"<unk_{i}>" for i in range(2, offset)]
    return {index: AddedToken(content, normalized=False, special=True) for index, content in enumerate(contents)}
