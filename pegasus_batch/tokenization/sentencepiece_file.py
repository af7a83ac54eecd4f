"""What a SentencePiece model file says, for building the same segmentation with another library."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class PieceKind(IntEnum):
    """Kinds of pieces that are treated apart; every other kind is text."""

    CONTROL = 3
    USER_DEFINED = 4


@dataclass(frozen=True)
class SentencePieceFile:
    """The parts of a model file that the SentencePiece library itself does not hand out.

    ``pieces`` are (text, score, kind); ``algorithm`` is 1 for unigram and 2 for byte-pair encoding; with
    ``byte_fallback`` unknown characters become bytes; ``character_map`` is the compiled normalization, empty for none.
    Source: sentencepiece_model.proto.
    """

    pieces: list[tuple[str, float, int]]
    algorithm: int
    unknown_id: int
    unknown_piece: str
    byte_fallback: bool
    character_map: bytes

    @classmethod
    def parse(cls, content: bytes) -> "SentencePieceFile":
        """Read the protocol buffer of a model that SentencePiece has accepted."""
        pieces = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(content):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append(
                    (piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1))
                )
            elif number == 2:
                trainer.update(_fields(value))
            elif number == 3:
                normalizer.update(_fields(value))
        return cls(
            pieces,
            algorithm=trainer.get(3, 1),
            unknown_id=trainer.get(40, 0),
            unknown_piece=trainer.get(45, b"<unk>").decode("utf-8"),
            byte_fallback=bool(trainer.get(35, 0)),
            character_map=normalizer.get(2, b""),
        )


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of every field: an int, or the bytes of anything that is no varint."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        else:
            size = {1: 8, 5: 4}[wire]
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
