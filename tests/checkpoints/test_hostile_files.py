"""Files that are broken or meant to do harm: a clear error, nothing run, nothing large allocated."""

from __future__ import annotations

import argparse
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pegasus_batch.checkpoints import fairseq, flax, tensorflow
from pegasus_batch.checkpoints.bundle import Bundle
from pegasus_batch.checkpoints.crc32c import crc32c
from pegasus_batch.checkpoints.foreign import Stored
from pegasus_batch.checkpoints.sstable import decompress_snappy, read_table
from tests.checkpoints.bundles import entry, field, masked, slow_crc32c, table, varint, write_bundle

Checkpoint = Callable[[str, str], Path]
ENORMOUS = 1 << 40
TENSORS = {
    "encoder/a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "encoder/ab": np.arange(5, dtype=np.int64),
    "encoder/abc": np.ones((2, 1, 3), np.float16),
    "step": np.array(7, np.int64),
    "z": np.zeros((0, 4), np.float32),
}


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Fail a test that allocates more than 30 MB at a time."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def read_all(stored: Stored) -> dict[str, torch.Tensor]:
    return {name: load() for name, load in stored}


def read_bundle(prefix: Path) -> dict[str, torch.Tensor]:
    bundle = Bundle(prefix)
    return {name: bundle.read(name) for name in bundle.entries}


@pytest.mark.parametrize("length", [0, 1, 3, 4, 63, 64, 65, 1000, 4097, 70_001])
def test_the_checksum(length: int) -> None:
    """Against the textbook's, a bit at a time; the known answers are those of RFC 3720, B.4."""
    data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
    assert crc32c(data) == slow_crc32c(data)
    assert (crc32c(bytes(32)), crc32c(b"\xff" * 32), crc32c(bytes(range(32)))) == (0x8A9136AA, 0x62A8AB43, 0x46DD794E)


@pytest.mark.parametrize("text", [b"", b"a", b"abcd" * 500, bytes(range(256)) * 9, b"x" * 70 + b"yz" * 40 + b"x" * 3])
def test_snappy(text: bytes) -> None:
    """What Apache Arrow's Snappy compressed; and a damaged block of it, whichever byte it is, ends in an error or in text."""
    packed = pa.Codec("snappy").compress(text, asbytes=True)
    assert decompress_snappy(packed) == text
    for at in range(len(packed)):
        try:
            decompress_snappy(packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :])
        except ValueError:
            continue
    for cut in range(len(packed) - 1):
        with pytest.raises(ValueError, match=r"promise"):
            decompress_snappy(packed[:cut])


@pytest.mark.parametrize("compress", [None, lambda data: pa.Codec("snappy").compress(data, asbytes=True)])
def test_a_bundle_of_several_blocks(compress: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    found = read_bundle(write_bundle(tmp_path / "model.ckpt-1", TENSORS, compress=compress))
    assert {name: (value.shape, value.tolist()) for name, value in found.items()} == {
        name: (value.shape, value.tolist()) for name, value in TENSORS.items()
    }


def test_a_damaged_index(checkpoint: Checkpoint) -> None:
    """Cut anywhere or with any byte changed, TensorFlow's own file is refused, or says what it said."""
    prefix = checkpoint("google", "xsum") / "model.ckpt-1500"
    whole, index = Bundle(prefix).entries, prefix.with_name("model.ckpt-1500.index")
    data = index.read_bytes()
    for cut in range(0, len(data), 13):
        index.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"index is damaged or no checkpoint's index"):
            Bundle(prefix)
    refused = 0
    for at in range(0, len(data), 7):
        index.write_bytes(data[:at] + bytes([data[at] ^ 0xA5]) + data[at + 1 :])
        try:
            assert Bundle(prefix).entries == whole
        except ValueError:
            refused += 1
    assert refused > len(data) // 7 - 10, "the padding of the footer alone may change"


def test_damaged_data(checkpoint: Checkpoint) -> None:
    prefix = checkpoint("google", "xsum") / "model.ckpt-1500"
    path = prefix.with_name("model.ckpt-1500.data-00000-of-00001")
    data = path.read_bytes()
    path.write_bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])
    with pytest.raises(ValueError, match=r"is damaged: the checksum of .* is wrong"):
        read_bundle(prefix)
    path.write_bytes(data[:3000])
    with pytest.raises(ValueError, match=r"is cut short: .* ends beyond its 3000 bytes"):
        read_bundle(prefix)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="the checkpoint is incomplete"):
        read_bundle(prefix)


RIGHT = masked(TENSORS["encoder/a"].tobytes())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (entry(1, (3, 4), 0, 48, RIGHT ^ 1), "checksum of encoder/a is wrong"),
        (entry(1, (ENORMOUS, ENORMOUS), 0, 48, RIGHT), "48 bytes for the shape"),
        (entry(1, (ENORMOUS,), 0, 4 * ENORMOUS, RIGHT), "cut short"),
        (entry(1, (3, 4), ENORMOUS, 48, RIGHT), "cut short"),
        (entry(1, (3, 4), 0, 47, RIGHT), "47 bytes for the shape"),
        (entry(1, (-3, -4), 0, 48, RIGHT), "where a number belongs"),
        (entry(1, (3, 4), -8, 48, RIGHT), "where a number belongs"),
        (entry(7, (3, 4), 0, 48, RIGHT), "TensorFlow's type 7"),
        (entry(1, (3, 4), 0, 48, RIGHT, shard=9), "data-00009-of-00001 is missing"),
        (entry(1, (3, 4), 0, 48, RIGHT) + field(7, b""), "a partitioned variable"),
        (entry(1, (ENORMOUS,) * 9, 0, 48, RIGHT), "has 9 dimensions"),
        (entry(1, (0, ENORMOUS), 0, 0, masked(b"")), "has the shape"),
        (b"\x0b", "a field of kind 3"),
        (b"\x12" + varint(ENORMOUS), "bytes are promised where 0 are left"),
        (b"\x08" + b"\xff" * 11, "more than ten bytes"),
        (field(2, 5), "where a message belongs"),
    ],
)
def test_entries_that_lie(value: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_bundle(write_bundle(tmp_path / "model.ckpt-1", TENSORS, {"encoder/a": value}))


def test_an_index_that_repeats_a_block_or_swells() -> None:
    """Blocks that overlap, and names that grow by sharing, would make much of little."""
    entries = {b"": b"", **{f"{i:03d}".encode(): b"x" for i in range(9)}}
    assert dict(read_table(table(entries))) == entries
    content = b"\x00\x01\x01ax" + bytes(4) + (1).to_bytes(4, "little")
    stored = content + b"\x00" + masked(content + b"\x00").to_bytes(4, "little")
    handle = varint(0) + varint(len(content))
    index = b"\x00\x01" + varint(len(handle)) + b"a" + handle + b"\x00\x01" + varint(len(handle)) + b"b" + handle
    index += bytes(4) + (1).to_bytes(4, "little")
    footer = handle + varint(len(stored)) + varint(len(index))
    data = stored + index + b"\x00" + masked(index + b"\x00").to_bytes(4, "little")
    with pytest.raises(ValueError, match="begins before the last one ends"):
        list(read_table(data + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")))
    with pytest.raises(ValueError, match="shares 0 bytes with one of 0 and adds 5000"):
        list(read_table(table({b"k" * 5000: b""})))
    with pytest.raises(ValueError, match=r"6 compressed bytes promise 2147483647"):
        decompress_snappy(varint(2**31 - 1) + b"\0")


# Flax


def packed(shape: Any, dtype: Any, data: Any) -> bytes:
    msgpack = pytest.importorskip("msgpack")
    result: bytes = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))})
    return result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\xc1", "damaged or no Flax"),
        (b"\x93\x01\x02\x03", "exceeds max_array_len"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "damaged or no Flax"),
        (b"\xc9\xff\xff\xff\xff\x01", "damaged or no Flax"),
        (b"\x81\xa1a" * 2000 + b"\xc0", "damaged or no Flax"),
        (b"\x81\xa1a" * 20 + b"\xc0", "a/a/a/a"),
        (b"\x81\x01\xc0", "damaged or no Flax"),
        (b"\x81\xa1a\xd4\x02\x00", "an extension of type 2"),
        (b"\x81\xa1a\xa1b", "a is str, not a map of arrays"),
        ([[2, 2], "float32", b"\0" * 15], "15 bytes where shape"),
        ([[ENORMOUS, ENORMOUS], "float32", b"\0" * 16], "has the shape"),
        ([[1 << 20, 1 << 20], "float32", b"\0" * 16], "16 bytes where shape"),
        ([[-2, -2], "float32", b"\0" * 16], "has the shape"),
        ([[2, "2"], "float32", b"\0" * 16], "has the shape"),
        ([[2], "object", b"\0" * 16], "an array of type 'object'"),
        ([[2], ["float32"], b"\0" * 8], "damaged or no Flax"),
        ([[2], "float32", "12345678"], "an array of type 'float32'"),
        ([4, "float32", b"\0" * 16], "without its shape"),
    ],
)
def test_flax_files_that_lie(content: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("msgpack")
    path = tmp_path / flax.FILE
    path.write_bytes(content if isinstance(content, bytes) else packed(*content))
    with pytest.raises(ValueError, match=message):
        read_all(flax.read(path))


def test_flax_chunks_that_lie(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    piece = msgpack.unpackb(packed([3], "float32", bytes(12)))["a"]
    for shape, chunks in (
        ({"0": 4}, {"0": piece}),
        ({"0": 3}, {"1": piece}),
        ({"0": 3}, {"0": 5}),
        ({"0": 3}, None),
        ({}, {}),
    ):
        tree = {"a": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}}
        (tmp_path / flax.FILE).write_bytes(msgpack.packb(tree))
        with pytest.raises(ValueError, match="damaged or no Flax"):
            read_all(flax.read(tmp_path / flax.FILE))


def test_a_flax_file_cut_short(checkpoint: Checkpoint) -> None:
    pytest.importorskip("msgpack")
    path = checkpoint("flax", "pegasusModel") / flax.FILE
    data = path.read_bytes()
    for cut in range(1, len(data), 53):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="damaged or no Flax"):
            read_all(flax.read(path))


# TensorFlow's HDF5


def test_a_keras_file_cut_short(checkpoint: Checkpoint) -> None:
    pytest.importorskip("h5py")
    path = checkpoint("tensorflow", "pegasusModel") / tensorflow.FILE
    data = path.read_bytes()
    for cut in (0, 7, 100, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="is damaged"):
            read_all(tensorflow.read(path))


def test_keras_files_that_lie(tmp_path: Path) -> None:
    """Promised and never stored, taken from another file, or no number: no such data set is read, no link followed."""
    h5py = pytest.importorskip("h5py")
    path, secret = tmp_path / tensorflow.FILE, tmp_path / "secret"
    secret.write_bytes(bytes(16))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3, np.float32)

    def fails(make: Callable[[Any], object], message: str) -> None:
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(ValueError, match=message):
            read_all(tensorflow.read(path))

    fails(
        lambda file: file.create_dataset("a", (ENORMOUS,), "f4", chunks=(1024,)),
        "0 bytes are stored where its shape takes",
    )
    fails(lambda file: file.create_dataset("a", (4,), "f4", external=[(str(secret), 0, 16)]), "lies in another file")
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3,))
    fails(lambda file: file.create_virtual_dataset("a", layout), "lies in another file")
    fails(lambda file: file.create_dataset("a", data=["text"]), "its type is object")
    with h5py.File(path, "w") as file:
        file["here"] = np.ones(2, np.float32)
        file["away"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        file["nowhere"] = h5py.SoftLink("/absent")
    assert list(read_all(tensorflow.read(path))) == ["here"]


# fairseq


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (marker.write_text, ("boom",))

    for content in ({"model": {}, "args": Bomb()}, {"model": {}, "args": argparse.Namespace(x=Bomb())}):
        (tmp_path / "model.pt").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"model\.pt is damaged or holds more than tensors"):
            fairseq.load(tmp_path / "model.pt")
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=r"model\.pt is damaged or holds more than tensors"):
            fairseq.load(tmp_path / "model.pt")
    assert not marker.exists()


def test_files_that_are_not_fairseqs(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    arguments = argparse.Namespace(encoder_attention_heads=2, decoder_attention_heads=2)
    for content, message in (
        ([1, 2], "no tensors under 'model'"),
        ({"args": arguments}, "no tensors under 'model'"),
        ({"model": {"a": 1}, "args": arguments}, "no tensors under 'model'"),
        ({"model": {"a": torch.ones(1)}, "cfg": {}}, "no training arguments"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            fairseq.load(path)
    torch.save({"model": {"a": torch.ones(1)}, "args": arguments}, path)
    with pytest.raises(ValueError, match=r"encoder.embed_tokens.weight, .* is missing"):
        fairseq.derive_settings(*fairseq.load(path))
    heads = {f"classification_heads.{name}.out_proj.bias": torch.ones(3) for name in ("mnli", "rte")}
    layers = {f"{stack}.layers.0.fc1.weight": torch.ones(2, 4) for stack in ("encoder", "decoder")}
    tables = {f"encoder.embed_{kind}.weight": torch.ones(9, 4) for kind in ("tokens", "positions")}
    with pytest.raises(ValueError, match="the classification heads mnli, rte"):
        fairseq.derive_settings({**heads, **layers, **tables}, vars(arguments))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        fairseq.load(path)
