"""Small files are whole or absent, on a disk and on object stores, whoever else writes at the same time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pyarrow import fs

from pegasus_batch.pipeline import store as store_module
from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import locate
from pegasus_batch.pipeline.store import Store
from tests.pipeline.s3 import S3, s3_service  # noqa: F401

KINDS = ("disk", "s3", "s3 through fsspec", "memory")


def in_children(n: int, task: Callable[[int], object]) -> list[int]:
    """Run a function in ``n`` processes at once, and return their exit codes."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(n)

    def run(i: int) -> None:
        ready.wait()
        task(i)

    children = [context.Process(target=run, args=(i,)) for i in range(n)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: these touch nothing of theirs
        for child in children:
            child.start()
    for child in children:
        child.join()
    return [child.exitcode or 0 for child in children]


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(locate(str(tmp_path / "an out#put" / "50%?x")))


@pytest.fixture
def s3_store(s3: S3) -> Store:
    return Store(locate(s3.uri()))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "disk":
        yield request.getfixturevalue("disk")
    elif request.param == "memory":
        yield Store(locate("memory://out/here"))
        fsspec.filesystem("memory").store.clear()
    else:
        uri = request.getfixturevalue("s3").uri() + "/a b#c"
        yield Store(locate(uri.replace("s3://", "s3a://") if "fsspec" in request.param else uri))


def test_a_directory_that_is_not_there_is_empty(store: Store) -> None:
    assert store.names() == []
    assert store.read("x") is None
    assert store.info("x").type == fs.FileType.NotFound
    store.delete("x")
    store.remove_if_empty()


def test_files_are_put_listed_read_and_deleted(store: Store) -> None:
    store.put("_b.gz", b"1")  # a name by which Arrow would compress
    store.put("_a", b"")
    store.put("c", b"3")
    assert store.names() == ["_a", "_b.gz", "c"]
    assert store.names("_") == ["_a", "_b.gz"]
    store.put("_b.gz", b"22")
    assert (store.read("_b.gz"), store.read("_a")) == (b"22", b"")
    info = store.info("_b.gz")
    assert (info.type, info.size) == (fs.FileType.File, 2)
    assert info.mtime_ns, "the lock goes by the time of modification"
    store.delete("_a")
    assert store.names() == ["_b.gz", "c"]


def test_put_new_never_replaces(store: Store) -> None:
    store.check_put_new()
    store.put_new("x", b"1")
    with pytest.raises(FileExistsError):
        store.put_new("x", b"2")
    store.put("y", b"3")
    with pytest.raises(FileExistsError):
        store.put_new("y", b"4")
    assert (store.read("x"), store.read("y")) == (b"1", b"3")
    store.delete("x")
    store.put_new("x", b"5")
    assert store.read("x") == b"5"
    assert store.names() == ["x", "y"]


def test_directories_are_listed_and_deleted_as_a_whole(store: Store) -> None:
    store.put("file", b"")
    Store(store.location.child(f"{store.location.path}/run")).put("deep", b"1")
    Store(store.location.child(f"{store.location.path}/run/er")).put("deeper", b"1")
    assert store.names() == ["file", "run"]
    store.delete("run")
    assert store.names() == ["file"]


def test_another_process_sees_what_was_put(store: Store) -> None:
    """A listing that fsspec remembers hid files of other processes."""
    other = Store(locate(store.location.given.replace("s3a://", "s3://")))  # a client of its own
    store, other = other, store
    assert (other.names(), other.read("x")) == ([], None)
    store.put("x", b"1")
    assert (other.names(), other.read("x")) == (["x"], b"1")
    store.delete("x")
    assert (other.names(), other.read("x")) == ([], None)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0"])
def test_only_children_have_names(disk: Store, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: disk.put(name, b""),
        lambda: disk.put_new(name, b""),
        lambda: disk.read(name),
        lambda: disk.delete(name),
        lambda: disk.info(name),
        lambda: disk.rename(name, "x"),
        lambda: disk.rename("x", name),
    ]
    disk.put("x", b"")
    for call in calls:
        with pytest.raises(ValueError, match="no name of a file"):
            call()
    assert disk.names() == ["x"]


# On a disk


def test_rename_moves_a_directory(disk: Store) -> None:
    assert disk.can_rename
    Store(disk.location.child(f"{disk.location.path}/old")).put("x", b"1")
    disk.rename("old", "new")
    assert disk.names() == ["new"]


def test_an_empty_directory_is_removed_and_no_other(disk: Store) -> None:
    disk.put("x", b"")
    disk.remove_if_empty()
    assert disk.names() == ["x"]
    disk.delete("x")
    disk.remove_if_empty()
    assert not Path(disk.location.path).exists()


def test_others_may_read_what_the_umask_lets_them(disk: Store) -> None:
    old = os.umask(0o022)
    try:
        disk.put("x", b"")
        disk.put_new("y", b"")
    finally:
        os.umask(old)
    assert [(Path(disk.location.path) / name).stat().st_mode & 0o777 for name in "xy"] == [0o644, 0o644]


def test_a_failed_put_leaves_the_old_file_and_nothing_else(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.put("x", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    for put in (disk.put, disk.put_new):
        with pytest.raises(OSError, match="no space left"):
            put("x", b"new")
    assert (disk.names(), disk.read("x")) == (["x"], b"old")


def test_names_and_bytes_are_synced_before_a_put_returns(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the second of them, a power failure could take a manifest that was reported as committed."""
    disk.put("first", b"")
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()) or real(fd))
    directory = Path(disk.location.path)
    for put in (disk.put, disk.put_new):
        put(put.__name__, b"x")
        assert len(synced) == 2
        assert synced[0].parent == directory
        assert synced[0].name.startswith("."), "the bytes, while the file is hidden"
        assert synced[1] == directory
        synced.clear()
    disk.delete("put")
    disk.rename("put_new", "other")
    assert synced == [directory, directory]


def test_readers_never_see_half_a_file(disk: Store) -> None:
    whole = {bytes([letter]) * 300_000 for letter in b"abc"}
    disk.put("x", min(whole))

    def write_or_read(i: int) -> None:
        for turn in range(40):
            if i == 0:
                disk.put("x", sorted(whole)[turn % 3])
            else:
                assert disk.read("x") in whole

    assert in_children(3, write_or_read) == [0, 0, 0]
    assert disk.names() == ["x"]


def test_one_process_of_many_creates_a_file(disk: Store, tmp_path: Path) -> None:
    def create(i: int) -> None:
        for turn in range(15):
            try:
                disk.put_new(f"name-{turn}", b"%d" % i)
            except FileExistsError:
                continue
            (tmp_path / f"{turn} by {i}").touch()

    assert in_children(5, create) == [0] * 5
    for turn in range(15):
        winners = [path.name.split(" by ")[1] for path in tmp_path.glob(f"{turn} by *")]
        assert len(winners) == 1
        assert disk.read(f"name-{turn}") == winners[0].encode()


def test_a_directory_that_vanishes_is_made_again(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that had nothing to do removes the directory just when another one begins."""
    real, left = store_module._make_directory, [2]

    def make(path: Path) -> None:
        real(path)
        if left[0] and path == Path(disk.location.path):
            left[0] -= 1
            path.rmdir()

    monkeypatch.setattr(store_module, "_make_directory", make)
    disk.put("x", b"1")
    assert (disk.read("x"), left) == (b"1", [0])


def test_a_link_whose_answer_was_lost_counts(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.hardlink_to

    def link_twice(path: Path, target: Path) -> None:
        real(path, target)
        real(path, target)  # as NFS does when it got no answer

    monkeypatch.setattr(Path, "hardlink_to", link_twice)
    disk.put_new("x", b"1")
    with pytest.raises(FileExistsError):
        disk.put_new("x", b"2")
    assert (disk.names(), disk.read("x")) == (["x"], b"1")


def test_put_new_does_without_hard_links(disk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "not supported here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    disk.put_new("x", b"1")
    with pytest.raises(FileExistsError):
        disk.put_new("x", b"2")
    assert (disk.names(), disk.read("x")) == (["x"], b"1")


# On S3


def test_s3_cannot_rename(s3_store: Store) -> None:
    assert not s3_store.can_rename
    with pytest.raises(RuntimeError, match="cannot rename"):
        s3_store.rename("a", "b")


def test_an_object_that_goes_while_it_is_read_is_absent(s3_store: Store) -> None:
    """The client first asks for its size; a lock file is gone a moment later, and the read failed with INTERNAL_FAILURE."""
    filesystem = s3_store._filesystem

    class Hasty:
        get_file_info = filesystem.get_file_info

        def open_input_file(self, path: str) -> Any:
            stream = filesystem.open_input_file(path)
            filesystem.delete_file(path)
            return stream

    s3_store.put("x", b"1")
    s3_store._filesystem = Hasty()
    assert s3_store.read("x") is None


def test_one_thread_of_many_creates_an_object(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    n_threads, n_turns = 6, 4
    barrier = threading.Barrier(n_threads)
    # All of them find it absent: only the service's own condition is left.
    absent = fs.FileInfo("x", fs.FileType.NotFound)
    monkeypatch.setattr(Store, "info", lambda self, name: absent)

    def create(i: int) -> list[int]:
        won = []
        for turn in range(n_turns):
            barrier.wait()
            try:
                s3_store.put_new(f"name-{turn}", b"%d" % i)
                won.append(turn)
            except FileExistsError:
                pass
        return won

    with ThreadPoolExecutor(n_threads) as pool:
        wins = list(pool.map(create, range(n_threads)))
    assert sorted(turn for turns in wins for turn in turns) == list(range(n_turns))
    for i, turns in enumerate(wins):
        assert all(s3_store.read(f"name-{turn}") == b"%d" % i for turn in turns)


def test_the_settings_of_a_uri_reach_the_conditional_put(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody there
    host = s3.endpoint.removeprefix("http://")
    for query in (
        f"endpoint_override={host}&scheme=http&region=us-west-2",
        f"region=us-west-2&endpoint_override=http://{host}",
    ):
        store = Store(locate(f"{s3.uri()}?{query}"))
        store.put_new("x", b"1")
        with pytest.raises(FileExistsError):
            store.put_new("x", b"2")
        assert store.read("x") == b"1"
        assert store._conditional().client_kwargs["region_name"] == "us-west-2"


def test_a_conditional_put_whose_answer_was_lost_counts(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client sends it again, and the service refuses to create what the first one created."""
    filesystem = s3_store._conditional()
    real, calls = filesystem.pipe_file, []

    def twice(*args: Any, **options: Any) -> None:
        for _ in range(2):
            calls.append(args)
            real(*args, **options)

    monkeypatch.setattr(filesystem, "pipe_file", twice)
    s3_store.put_new("x", b"1")
    assert s3_store.read("x") == b"1"
    assert len(calls) == 2


def _answer(code: str) -> OSError:
    cause = Exception()
    cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error = OSError(errno.EINVAL, "as s3fs translates it")
    error.__cause__ = cause
    return error


def test_a_refusal_without_details_means_that_the_object_exists(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some services answer 412 and do not say which condition failed; s3fs then raises a plain OSError."""

    def refuse(path: str, data: bytes, **options: Any) -> None:
        s3_store.put("x", b"of another")
        raise _answer("PreconditionFailed")

    monkeypatch.setattr(s3_store._conditional(), "pipe_file", refuse)
    with pytest.raises(FileExistsError):
        s3_store.put_new("x", b"mine")


def test_a_conflict_of_two_conditional_puts_is_tried_again(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = s3_store._conditional()
    real, answers = filesystem.pipe_file, ["ConditionalRequestConflict"] * 2

    def answer(*args: Any, **options: Any) -> None:
        if answers:
            raise _answer(answers.pop())
        real(*args, **options)

    monkeypatch.setattr(filesystem, "pipe_file", answer)
    s3_store.put_new("x", b"1")
    assert (s3_store.read("x"), answers) == (b"1", [])
    answers.append("SlowDown")
    with pytest.raises(OSError, match="as s3fs"):
        s3_store.put_new("y", b"1")


def test_a_missing_package_is_named_before_the_work(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = sys.modules["fsspec.registry"]._registry  # of the classes that are imported
    monkeypatch.delitem(known, "s3", raising=False)
    for call in (s3_store.check_put_new, lambda: s3_store.put_new("x", b"")):
        with pytest.raises(ConfigError, match=r"pip install 'pegasus-batch\[s3\]'"):
            call()
    assert s3_store.names() == []
