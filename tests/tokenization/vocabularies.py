"""Small vocabularies: trained on text made here, or written piece by piece."""

import io
import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

_FREQUENT_FIRST = (
    "the a of and to in that he she it was for on with as his her they at be this from have or by one had not but what "
    "all were when we there can an your which their said if do will each about how up out them then many some so these "
    "would other into has more two like him see time could no make than first been its who now people my made over did "
    "down only way find use may water long little very after words called just where most know city council mayor fire "
    "river market price company profit shares minister election vote court judge police school teacher hospital doctor "
    "naïve café Zürich São Köln Straße œuvre 2019 1,024 3.14 50% $12 can't don't we'll I'm they've isn't PG&E U.S. x=y"
)
WORDS = _FREQUENT_FIRST.split()


def corpus(n_sentences: int = 1500) -> list[str]:
    """Sentences with an English-like distribution, and some of every script that the texts below use."""
    rng = random.Random(7)
    weights = [1.0 / (rank + 3) for rank in range(len(WORDS))]
    sentences = []
    for i in range(n_sentences):
        words = rng.choices(WORDS, weights, k=rng.randint(4, 18))
        sentences.append(" ".join(words).capitalize() + rng.choice([".", "?", "!", "...", "; (sic)"]))
        if i % 40 == 0:
            sentences.append(
                rng.choice(["東京は日本の首都です。", "Привет, мир!", "مرحبا بالعالم", "한국어 문장입니다."])
            )
    return sentences


def train_sentencepiece(path: Path, **options: object) -> Path:
    """Train a small SentencePiece model; the options override those of a Pegasus-like unigram model."""
    model = io.BytesIO()
    arguments = {
        "model_type": "unigram",
        "vocab_size": 400,
        "hard_vocab_limit": False,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, **{**arguments, **options}
    )
    path.write_bytes(model.getvalue())
    return path


SENTENCEPIECE_MODELS: dict[str, dict[str, object]] = {
    "unigram": {"user_defined_symbols": ["<n>"]},
    "byte_fallback": {"byte_fallback": True, "vocab_size": 600},
    "unk_is_0": {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2},
    "bpe": {"model_type": "bpe", "character_coverage": 0.99},
}


def write_spiece(path: Path, pieces: Sequence[tuple[str, float, int]], unk_id: int) -> Path:
    """Write a SentencePiece model whose every piece the test chooses, so that its ids can be read off the page.

    A piece is (text, log probability, kind): kind 1 normal, 2 unknown, 3 control, 4 user-defined. This is the protocol
    buffer by hand: no trainer's arithmetic decides an expected id.
    """
    body = b""
    for text, score, kind in pieces:
        encoded = _field(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _varint(3 << 3)
        body += _field(1, encoded + _varint(kind))
    index = {text: i for i, (text, _, _) in enumerate(pieces)}
    no_id = (1 << 64) - 1
    ids = {40: unk_id, 41: no_id, 42: index["</s>"], 43: index["<pad>"]}
    trainer = _varint(3 << 3) + _varint(1) + b"".join(_varint(number << 3) + _varint(i) for number, i in ids.items())
    path.write_bytes(body + _field(2, trainer) + _field(3, _field(1, b"identity")))
    return path


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def train_byte_level(directory: Path) -> Path:
    """Train a small byte-level vocabulary laid out as BART's; writes vocab.json and merges.txt."""
    pipeline = Pipeline(BPE(unk_token="<unk>"))
    pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    pipeline.train_from_iterator(corpus(), trainer)
    pipeline.model.save(str(directory))
    path = directory / "vocab.json"
    ids = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**ids, "<mask>": len(ids)}), encoding="utf-8")
    return directory
