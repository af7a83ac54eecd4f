"""``pegasus-batch verify``: the examples of the two families' documentation, run on a released checkpoint.

The examples, and what they must give, are those of the Pegasus and BART pages of transformers 4.37.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from pegasus_batch.config import read_json
from pegasus_batch.models import causal, heads, seq2seq
from pegasus_batch.models.pretrained import PretrainedModel
from pegasus_batch.tokenization import Tokenizer, load_tokenizer

XSUM, LARGE = "google/pegasus-xsum", "google/pegasus-large"
BART_CNN, BART_LARGE, BART_BASE = "facebook/bart-large-cnn", "facebook/bart-large", "facebook/bart-base"
SST2, SQUAD = "valhalla/bart-large-sst2", "valhalla/bart-large-finetuned-squadv1"
RELEASED = (XSUM, LARGE, BART_CNN, BART_LARGE, BART_BASE, SST2, SQUAD)

PASSAGE = (
    "PG&E stated it scheduled the blackouts in response to forecasts for high winds amid dry conditions. The aim is to "
    "reduce the risk of wildfires. Nearly 800 thousand customers were scheduled to be affected by the shutoffs which were "
    "expected to last through at least midday tomorrow."
)
_XSUM_SUMMARY = "California's largest electricity provider has turned off power to hundreds of thousands of customers."
_GREETING = "Hello, my dog is cute"
Model = TypeVar("Model", bound=PretrainedModel)


class Checkpoint:
    """A model directory; the tokenizer is loaded once, a model for each example that needs its class."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return load_tokenizer(self.directory)

    def model(self, model_class: type[Model]) -> Model:
        """Load a model in float32."""
        return model_class.from_pretrained(self.directory)


@dataclass(frozen=True)
class Example:
    """Something that the documentation shows: with which checkpoints, and what must come out of ``compute``."""

    title: str
    checkpoints: tuple[str, ...]
    compute: Callable[[Checkpoint], Any]
    expected: Any


@dataclass(frozen=True)
class Finding:
    """What became of an example; ``held`` is None where the checkpoint cannot show it."""

    title: str
    held: bool | None
    remark: str = ""

    def __str__(self) -> str:
        verdict = {True: "held", False: "NOT HELD", None: "cannot show"}[self.held]
        return f"{verdict:<12}{self.title}" + (f": {self.remark}" if self.remark else "")


def _summarize_passage(checkpoint: Checkpoint) -> str:
    model = checkpoint.model(seq2seq.PegasusForConditionalGeneration)
    batch = checkpoint.tokenizer([f" {PASSAGE}"], truncation=True, padding="longest", return_tensors="pt")
    return _first_text(checkpoint, model.generate(**batch))


def _summarize_ids(checkpoint: Checkpoint) -> str:
    model = checkpoint.model(seq2seq.PegasusForConditionalGeneration)
    inputs = checkpoint.tokenizer([PASSAGE], max_length=1024, return_tensors="pt")
    return _first_text(checkpoint, model.generate(inputs["input_ids"]))


def _decode_states(checkpoint: Checkpoint) -> list[int]:
    model = checkpoint.model(seq2seq.PegasusModel)
    source = checkpoint.tokenizer(["Studies have been shown that owning a dog is good for you"], return_tensors="pt")
    target = checkpoint.tokenizer(["Studies show that"], return_tensors="pt")
    with torch.no_grad():
        return list(model(source["input_ids"], decoder_input_ids=target["input_ids"], return_dict=True)[0].shape)


def _count_parameters(checkpoint: Checkpoint) -> int:
    model = checkpoint.model(seq2seq.PegasusForConditionalGeneration)
    return sum(parameter.numel() for parameter in model.parameters())


def _reserved_ids(checkpoint: Checkpoint) -> list[int]:
    tokens = ["<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_102>", "<unk>"]
    return [*checkpoint.tokenizer.convert_tokens_to_ids(tokens), checkpoint.tokenizer.vocab_size]


def _language_model(model_class: type[causal.CausalLM]) -> Callable[[Checkpoint], bool]:
    def compute(checkpoint: Checkpoint) -> bool:
        model = checkpoint.model(model_class)
        ids = checkpoint.tokenizer([_GREETING], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids, return_dict=True)[0]
        return list(logits.shape) == [1, ids.shape[1], model.config.vocab_size] and bool(logits.isfinite().all())

    return compute


def _fill_headline(checkpoint: Checkpoint) -> str:
    model = checkpoint.model(seq2seq.BartForConditionalGeneration)
    batch = checkpoint.tokenizer(["UN Chief Says There Is No <mask> in Syria"], return_tensors="pt")
    return _first_text(checkpoint, model.generate(batch["input_ids"], forced_bos_token_id=0))


def _encode(text: str) -> Callable[[Checkpoint], list[int]]:
    return lambda checkpoint: checkpoint.tokenizer(text)["input_ids"]


def _shift_source(checkpoint: Checkpoint) -> bool:
    model = checkpoint.model(seq2seq.BartModel)
    inputs = checkpoint.tokenizer([_GREETING], return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs, return_dict=True)[0]
    return list(states.shape) == [*inputs["input_ids"].shape, model.config.d_model] and bool(states.isfinite().all())


def _summarize_briefly(checkpoint: Checkpoint) -> str:
    model = checkpoint.model(seq2seq.BartForConditionalGeneration)
    inputs = checkpoint.tokenizer([PASSAGE], max_length=1024, return_tensors="pt")
    return _first_text(checkpoint, model.generate(inputs["input_ids"], num_beams=2, min_length=0, max_length=20))


def _fill_by_logits(checkpoint: Checkpoint) -> list[str]:
    model, tokenizer = checkpoint.model(seq2seq.BartForConditionalGeneration), checkpoint.tokenizer
    ids = tokenizer(["My friends are <mask> but they eat too many carbs."], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model(ids, return_dict=True)
    logits: torch.Tensor = output["logits"][0, int((ids[0] == tokenizer.mask_token_id).nonzero())]
    words: list[str] = tokenizer.decode(logits.softmax(0).topk(5).indices).split()
    return words


def _classify(checkpoint: Checkpoint) -> tuple[str, float]:
    model = checkpoint.model(heads.BartForSequenceClassification)
    inputs = checkpoint.tokenizer([_GREETING], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, labels=torch.tensor([1]), return_dict=True)
    labels = model.config.extra.get("id2label") or {}
    chosen = str(int(output["logits"].argmax()))
    return labels.get(chosen, f"LABEL_{chosen}"), round(float(output["loss"]), 2)


def _answer(checkpoint: Checkpoint) -> tuple[str, float]:
    model, tokenizer = checkpoint.model(heads.BartForQuestionAnswering), checkpoint.tokenizer
    inputs = tokenizer(["Who was Jim Henson?"], ["Jim Henson was a nice puppet"], return_tensors="pt")
    targets = {"start_positions": torch.tensor([14]), "end_positions": torch.tensor([15])}
    with torch.no_grad():
        output = model(**inputs, **targets, return_dict=True)
    first, last = (int(output[name].argmax()) for name in ("start_logits", "end_logits"))
    answer = tokenizer.decode(inputs["input_ids"][0, first : last + 1], skip_special_tokens=True)
    return answer, round(float(output["loss"]), 2)


def _first_text(checkpoint: Checkpoint, sequences: Any) -> str:
    tokenizer: Tokenizer = checkpoint.tokenizer
    return tokenizer.batch_decode(sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]


_BARTS = (BART_BASE, BART_LARGE, BART_CNN)
EXAMPLES = (
    Example("Pegasus' usage example", (XSUM,), _summarize_passage, _XSUM_SUMMARY),
    Example("PegasusForConditionalGeneration, ids alone", (XSUM,), _summarize_ids, _XSUM_SUMMARY),
    Example("PegasusModel, shape of its states", (LARGE,), _decode_states, [1, 4, 1024]),
    Example("PegasusForCausalLM, shape of its logits", (LARGE,), _language_model(causal.PegasusForCausalLM), True),
    Example("Pegasus' 568 million parameters", (XSUM, LARGE), _count_parameters, 568_699_904),
    Example("Pegasus' reserved ids", (XSUM, LARGE), _reserved_ids, [0, 1, 2, 3, 4, 104, 105, 96_103]),
    Example(
        "BART's mask filling by generate()",
        (BART_LARGE,),
        _fill_headline,
        "UN Chief Says There Is No Plan to Stop Chemical Weapons in Syria",
    ),
    Example("BartTokenizer, 'Hello world'", _BARTS, _encode("Hello world"), [0, 31414, 232, 2]),
    Example("BartTokenizer, ' Hello world'", _BARTS, _encode(" Hello world"), [0, 20920, 232, 2]),
    Example("BartModel without decoder ids", (BART_BASE,), _shift_source, True),
    Example(
        "BartForConditionalGeneration, a summary",
        (BART_CNN,),
        _summarize_briefly,
        "PG&E scheduled the blackouts in response to forecasts for high winds amid dry conditions",
    ),
    Example(
        "BART's mask filling by its logits", (BART_BASE,), _fill_by_logits, ["not", "good", "healthy", "great", "very"]
    ),
    Example("BartForSequenceClassification, label and loss", (SST2,), _classify, ("POSITIVE", 0.0)),
    Example("BartForQuestionAnswering, answer and loss", (SQUAD,), _answer, (" nice puppet", 0.59)),
    Example("BartForCausalLM, shape of its logits", (BART_BASE,), _language_model(causal.BartForCausalLM), True),
)


def verify(model: str, released: str | None = None, examples: Sequence[Example] = EXAMPLES) -> list[Finding]:
    """Run every example that a checkpoint on this machine can show; nothing is downloaded.

    ``model`` is a directory or the name of a released checkpoint that the hub's cache holds, ``released`` says which one it is
    where its path and config do not. Raises FileNotFoundError saying what is needed where it is not there, and ValueError
    where it cannot be told which one it is.
    """
    directory = _locate(model)
    name = released or identify(model, directory)
    if name not in RELEASED:
        raise ValueError(
            f"which released checkpoint {model} is cannot be told{'' if name is None else f' from {name!r}'}; say it with "
            f"--as: {', '.join(RELEASED)}"
        )
    checkpoint = Checkpoint(directory)
    findings = []
    for example in examples:
        if name not in example.checkpoints:
            findings.append(Finding(example.title, None, f"it takes {' or '.join(example.checkpoints)}"))
            continue
        try:
            found = example.compute(checkpoint)
        except (OSError, ValueError, RuntimeError) as error:
            findings.append(Finding(example.title, False, f"it failed: {error}"))
            continue
        held = found == example.expected
        findings.append(Finding(example.title, held, "" if held else f"expected {example.expected!r}, got {found!r}"))
    return findings


def identify(model: str, directory: Path) -> str | None:
    """Return the released checkpoint that a name, a path or a config shows a model to be."""
    config = read_json(directory / "config.json", missing_ok=True)
    path = str(Path(model).absolute()).replace("--", "/")  # the hub's cache writes models--owner--name
    for told in (path, str(config.get("_name_or_path", ""))):
        found = [name for name in RELEASED if name.split("/")[1] in told.split("/")]
        if len(found) == 1:
            return found[0]
    return None


def _locate(model: str) -> Path:
    path = Path(model)
    if path.is_dir():
        return path
    if model in RELEASED:
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(model, local_files_only=True))
        except (ImportError, OSError, ValueError):  # the hub's "not in the cache" is one of these
            pass
    vocabulary = "spiece.model" if "pegasus" in model.lower() else "vocab.json, merges.txt"
    raise FileNotFoundError(
        f"{model} is not on this machine, and nothing is downloaded. Needed is a directory with config.json, "
        f"model.safetensors or pytorch_model.bin, and {vocabulary}: one of {', '.join(RELEASED)}, of 0.5 to 2.3 GB, as the "
        "hub has them or as pegasus-batch convert makes them"
    )
