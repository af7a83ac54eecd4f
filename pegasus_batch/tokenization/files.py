"""The JSON files beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pegasus_batch.config import read_json, write_json
from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.vocabulary import SPECIAL_NAMES

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
FULL_TOKENIZER = "tokenizer.json"

# Options that every tokenizer takes from tokenizer_config.json; a class adds its own.
PLAIN_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
)
COMMON_SETTINGS = (*SPECIAL_NAMES, "additional_special_tokens", "added_tokens_decoder", *PLAIN_SETTINGS)


def prefixed(directory: str | Path, name: str, prefix: str | None) -> Path:
    """Where a vocabulary file of an existing directory goes; raises FileNotFoundError where there is none."""
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory; create it first")
    return path / (f"{prefix}-{name}" if prefix else name)


def read_settings(directory: Path) -> dict[str, Any]:
    """What the files of a directory say about its tokenizer, as constructor options.

    ``added_tokens_decoder`` maps ids to AddedToken. A tokenizer_config.json that lists it is complete; before
    transformers 4.34 it was not, and the three other files are merged in, in the order in which transformers does.
    """
    settings = read_json(directory / CONFIG, missing_ok=True)
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 5's name for the additional ones
        settings.setdefault("additional_special_tokens", extra)
    elif extra:
        raise ValueError(
            f"{directory / CONFIG} has extra_special_tokens={extra!r}, special tokens under names of their own, which "
            "are not supported; list them under additional_special_tokens"
        )
    if "max_len" in settings:
        settings.setdefault("model_max_length", settings["max_len"])
    if "added_tokens_decoder" in settings:
        added = {int(i): AddedToken.from_json(value) for i, value in settings["added_tokens_decoder"].items()}
    else:
        for name, value in read_json(directory / SPECIAL_TOKENS, missing_ok=True).items():
            settings[name] = _merged(settings.get(name), value) if name == "additional_special_tokens" else value
        added = _added_tokens(directory, _special_contents(settings))
    by_content = {token.content: token for token in added.values()}
    for name in SPECIAL_NAMES:
        value = settings.get(name)
        if value is not None:
            content = AddedToken.from_json(value).content
            settings[name] = by_content.get(content, value if isinstance(value, str) else AddedToken.from_json(value))
    settings["added_tokens_decoder"] = added
    return settings


def _merged(configured: Sequence[Any] | None, mapped: Sequence[Any]) -> list[Any]:
    merged = [_token(value) for value in configured or ()]
    for value in map(_token, mapped):
        if value not in merged:
            merged.append(value)
    return merged


def _token(value: Any) -> str | AddedToken:
    return value if isinstance(value, str) else AddedToken.from_json(value)


def _special_contents(settings: Mapping[str, Any]) -> set[str]:
    named = [settings[name] for name in SPECIAL_NAMES if settings.get(name) is not None]
    additional = settings.get("additional_special_tokens") or ()
    return {AddedToken.from_json(value).content for value in (*named, *additional)}


def _added_tokens(directory: Path, special: set[str]) -> dict[int, AddedToken]:
    added = {
        int(index): AddedToken(content, normalized=content not in special, special=content in special)
        for content, index in read_json(directory / ADDED_TOKENS, missing_ok=True).items()
    }
    for value in read_json(directory / FULL_TOKENIZER, missing_ok=True).get("added_tokens", ()):
        added[int(value["id"])] = AddedToken.from_json(value)
    return added


def write_settings(
    directory: Path,
    settings: Mapping[str, Any],
    special: Mapping[str, AddedToken],
    additional: Sequence[str],
    added: Mapping[int, AddedToken],
    vocab_size: int,
) -> None:
    """Write the files so that this package and transformers read the same tokenizer back from them."""
    names = {name: token.content for name, token in special.items()}
    more = {"additional_special_tokens": list(additional)} if additional else {}
    config = {
        **settings,
        **names,
        **more,
        "added_tokens_decoder": {str(index): token.to_json() for index, token in sorted(added.items())},
    }
    flags = {
        name: {key: value for key, value in token.to_json().items() if key != "special"}
        for name, token in special.items()
    }
    write_json(directory / CONFIG, config)
    write_json(directory / SPECIAL_TOKENS, {**flags, **more})
    later = {token.content: index for index, token in added.items() if index >= vocab_size}
    if later:
        write_json(directory / ADDED_TOKENS, later)
    else:
        (directory / ADDED_TOKENS).unlink(missing_ok=True)
