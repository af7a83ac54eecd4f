"""Seeded strings of every kind that has separated tokenizers."""

import random
from collections.abc import Callable

from tests.tokenization.vocabularies import WORDS

SPACES = (
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
)
LITERALS = [
    "</s>",
    "<s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<mask_1>",
    "<mask_2>",
    "<mask_3>",
    "<unk_2>",
    "<unk_7>",
    "<unk_70>",
]
LITERALS += [
    "<unk_102>",
    "<unk_103>",
    "<n>",
    "<0x0A>",
    "<0xE5>",
    "<unk_",
    "<mask_1",
    "mask_2>",
    "</",
    "s>",
    "▁",
    "▁▁",
    "Ġ",
]
LITERALS += ["Ċ", "ĠĠ", "<<mask>>", "＜/s＞", "</S>", "<MASK>", "[MASK]", "<|endoftext|>"]
EMOJI = ["😀", "👩", "👨", "👧", "❤", "🏳", "🌈", "👍", "🇩", "🇪", "1", "#", "☠", "🦸"]
JOINERS = ["\u200d", "\ufe0f", "\ufe0e", "\u20e3", *map(chr, range(0x1F3FB, 0x1F400)), "\U000e0067", "\U000e007f"]
RIGHT_TO_LEFT = [
    chr(code) for code in (*range(0x5D0, 0x5EB), *range(0x620, 0x64B), *range(0x660, 0x66A), 0x640, 0xFDFA)
]
MARKS = [
    *map(chr, range(0x300, 0x370)),
    *map(chr, range(0x5B0, 0x5C0)),
    *map(chr, range(0x64B, 0x653)),
    *map(chr, range(0x1AB0, 0x1AC0)),
    *map(chr, range(0x20D0, 0x20F0)),
]
CONTROLS = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\xad\u200b\u200e\u200f\u202a\u202e\u2060\u2066\u2069",
]
RANGES = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
RANGES += [(0x20000, 0x40000), (0x40000, 0xF0000), (0xF0000, 0x110000)]


def make_texts(n: int, seed: int) -> list[str]:
    """Return ``n`` strings; about one in a hundred holds a lone surrogate, and one in two hundred is very long."""
    rng = random.Random(seed)
    return [_text(rng) for _ in range(n)]


def _text(rng: random.Random) -> str:
    text = "".join(rng.choice(_PARTS)(rng) + rng.choice(["", "", " "]) for _ in range(rng.randint(0, 12)))
    if rng.random() < 0.01:
        at = rng.randint(0, len(text))
        text = text[:at] + chr(rng.randrange(0xD800, 0xE000)) + text[at:]
    if rng.random() < 0.005:
        text = (text[: rng.randint(1, 30)] or "a") * rng.randint(100, 400)
    return text


def _several(rng: random.Random, choices: list[str] | str, most: int) -> str:
    return "".join(rng.choices(choices, k=rng.randint(1, most)))


def _any_character(rng: random.Random) -> str:
    return "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randint(1, 6)))


def _marked(rng: random.Random) -> str:
    return "".join(rng.choice("aeoüクक") + _several(rng, MARKS, 5) for _ in range(rng.randint(1, 3)))


def _right_to_left(rng: random.Random) -> str:
    return "".join(rng.choice(RIGHT_TO_LEFT) + rng.choice(["", rng.choice(MARKS)]) for _ in range(rng.randint(1, 8)))


def _emoji(rng: random.Random) -> str:
    return "".join(rng.choice(EMOJI) + rng.choice(["", rng.choice(JOINERS)]) for _ in range(rng.randint(1, 6)))


def _literal(rng: random.Random) -> str:
    before, after = (rng.choice(["", " ", "  ", "\n", "a"]) for _ in range(2))
    return before + rng.choice(LITERALS) + after


def _word(rng: random.Random) -> str:
    word = rng.choice(WORDS)
    return rng.choice([word, word, word.upper(), word.title(), word + rng.choice(".,;:!?'\"")])


_PARTS: list[Callable[[random.Random], str]] = [
    _word,
    _word,
    _word,
    _any_character,
    _marked,
    _right_to_left,
    _emoji,
    _literal,
    _literal,
    lambda rng: _several(rng, SPACES, 12),
    lambda rng: rng.choice([" ", "\n", "\t"]) * rng.randint(1, 30),
    lambda rng: _several(rng, CONTROLS, 4),
]
