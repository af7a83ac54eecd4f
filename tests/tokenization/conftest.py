"""Vocabularies made here, and texts that tokenizers disagree about."""

import random
import unicodedata
from pathlib import Path

import pytest

from tests.tokenization.vocabularies import SENTENCEPIECE_MODELS, WORDS, train_byte_level, train_sentencepiece


@pytest.fixture(scope="session")
def spiece_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model file for every name in SENTENCEPIECE_MODELS."""
    root = tmp_path_factory.mktemp("spiece")
    return {
        name: train_sentencepiece(root / f"{name}.model", **options) for name, options in SENTENCEPIECE_MODELS.items()
    }


@pytest.fixture(scope="session")
def bart_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of a small byte-level vocabulary."""
    return train_byte_level(tmp_path_factory.mktemp("bart"))


@pytest.fixture(scope="session")
def hard_texts() -> list[str]:
    """Texts that have separated implementations: white space, controls, scripts, literal special tokens."""
    spaces = ["", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\x0b", "\x0c", "\x85", "\xa0", "\u2028", "\u3000", " \n\t "]
    wrapped = [f"{s}word{s}{s}next{s}" for s in spaces[1:]]
    controls = ["a\x00b", "\x00", "a\x01\x02b", "\x1b[0m red", "\x7f", "\x1c\x1d", "soft\xadhyphen", "zero\u200bwidth"]
    controls += ["joi\u200dner", "\ufeffbom", "bidi\u202eoverride", "\ufffd", "\ue000", "\U0010ffff", "a\u0301e\u0308"]
    specials = ["</s>", "<s>", "<pad>", "<unk>", "<mask>", "<mask_1>", "<mask_2>", "<mask_3>", "<unk_2>", "<unk_7>"]
    specials += ["<unk_10>", "<unk_102>", "<unk_103>", "<unk_1>", "<n>", "<unk_", "<mask_1", "mask_1>", "<", ">", "</s"]
    around = [form.replace("#", s) for s in specials for form in ("a # b", "a#b", "##", " # # ", "word.#\nnext")]
    mixed = [
        "</s></s><pad> <pad>",
        "<mask_1><mask_2> <mask_1> <mask_2>",
        "<mask_1>\n<mask_1>\t<mask_2>",
        "<<mask_1>>",
        "<unk_<unk_7>",
        "<unk_7><unk_70>",
        "line one\nline two<n>line three <n> line four",
        "<n><n> <n>",
        "A <mask> and \t<mask>, \xa0<mask>\x85<mask><mask>",
        "＜/s＞ ＜pad＞ full-width brackets",
    ]
    scripts = [
        "東京は日本の首都です。",
        "友達",
        "Привет, мир!",
        "مرحبا بالعالم",
        "שלום",
        "สวัสดีชาวโลก",
        "नमस्ते",
        "한국어",
    ]
    scripts += ["🙂", "a🙂b 👩‍👩‍👧‍👦 🇩🇪", "ﬁ ﬂ ½ ² ™ Ⅷ ㎏", "Straße ẞ İ ı", "ǅ ﷺ", "٣٤٥ ౧౨", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "１２３ ＡＢＣ"]
    words = ["can't won't I'M WE'LL they've 's 't 're d' 'D", "U.S.A. e.g. 3.14 1,000,000", "x" * 700, "ab" * 400]
    words += ["don’t “quote” — dash … ellipsis", "a.b.c@d.org https://e.org/?q=1&r=%20#x", "-" * 300, "!?" * 50]
    words += ["_under_score_ CamelCase snake_case", "▁", "▁▁ ▁word", "a▁b", "Ġword Ċ", "<0x0A> <0xE5>", "\\n \\t"]
    words += ["Hello world", " Hello world", "Hello  world   again", "trailing space ", "x=y+z*(a-b)/c", "the " * 400]
    return [*spaces, *wrapped, *controls, *specials, *around, *mixed, *scripts, *words]


@pytest.fixture(scope="session")
def random_texts() -> list[str]:
    """Seeded texts over all of Unicode that is assigned, mixed with words, spaces and special tokens.

    Unassigned characters are left out: whether one is a letter depends on the Unicode version of a library.
    """
    rng = random.Random(20191218)
    parts = [*WORDS, " ", "  ", "\n", "\t", "</s>", "<s>", "<pad>", "<mask>", "<mask_1>", "<mask_2>", "<unk_33>", "<n>"]
    texts = []
    for _ in range(150):
        text = ""
        for _ in range(rng.randint(1, 24)):
            if rng.random() < 0.6:
                text += rng.choice(parts) + rng.choice(["", " "])
            else:
                text += _assigned(rng)
        texts.append(text)
    return texts


def _assigned(rng: random.Random) -> str:
    while True:
        char = chr(rng.choice([rng.randrange(0x250), rng.randrange(0x3100), rng.randrange(0x110000)]))
        if unicodedata.category(char) not in ("Cn", "Cs"):
            return char
