"""The small files directly inside an output directory: each is there as a whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

import fsspec
from pyarrow import fs

from pegasus_batch.pipeline.config import ConfigError
from pegasus_batch.pipeline.inputs import Location

_PACKAGES = {"s3": "'pegasus-batch[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs"}
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_TRIES = 5
_WRITER = "writer"  # the metadata that tells whose an object is


class Store:
    """The files of one directory, which need not exist yet.

    Everything is durable when a call returns, and strongly consistent: what one process has put, the next listing of any
    other process shows. Names are those of direct children; ValueError for any other.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._filesystem = location.filesystem
        self._directory = Path(location.path) if location.is_local else None

    @property
    def can_rename(self) -> bool:
        """Whether a file or directory can get another name in one step; object stores copy and delete instead."""
        return self._directory is not None

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None if there is none."""
        path = self._path(name)
        try:
            if self._directory is not None:
                return Path(path).read_bytes()
            self._forget_listings()
            with self._filesystem.open_input_file(path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError:  # deleted between a look at it and the read, which S3's client reports as an internal failure
            if self._directory is None and self.info(name).type == fs.FileType.NotFound:
                return None
            raise

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of the files and directories that begin with ``prefix``.

        As anywhere, a listing is no snapshot: it holds what was there all the while, and perhaps what came or went.
        """
        if self._directory is not None:
            try:
                names = [entry.name for entry in self._directory.iterdir()]
            except FileNotFoundError:
                return []
        else:
            self._forget_listings()
            selector = fs.FileSelector(self.location.path, allow_not_found=True)
            names = [entry.base_name for entry in self._filesystem.get_file_info(selector)]
        return sorted(name for name in names if name.startswith(prefix))

    def info(self, name: str) -> fs.FileInfo:
        """Return type, size and time of modification (by the store's clock) of a file or directory."""
        path = self._path(name)
        self._forget_listings()
        info = self._filesystem.get_file_info(path)
        wrapped = self._wrapped()
        if wrapped is None or info.type != fs.FileType.File or info.mtime is not None:
            return info
        try:  # Arrow looks for the time under one of the names by which fsspec's file systems know it
            return fs.FileInfo(path, info.type, size=info.size, mtime=wrapped.modified(path))
        except FileNotFoundError:
            return fs.FileInfo(path, fs.FileType.NotFound)
        except NotImplementedError:
            return info

    def put(self, name: str, data: bytes) -> None:
        """Create a file, or replace it.

        On S3 a reader at that very moment may see the beginning of a longer file where a shorter one was.
        """
        path = self._path(name)
        if self._directory is not None:
            with self._temporary(data) as temporary:
                temporary.replace(path)
            _sync(self._directory)
            return
        try:
            stream = self._filesystem.open_output_stream(path, compression=None)
        except FileNotFoundError:  # a remote file system that has directories
            self._filesystem.create_dir(self.location.path, recursive=True)
            stream = self._filesystem.open_output_stream(path, compression=None)
        with stream:
            stream.write(data)

    def put_new(self, name: str, data: bytes) -> None:
        """Create a file; of several callers at once, one succeeds. Raises FileExistsError if it is there already.

        Object stores decide that (If-None-Match on S3, ifGenerationMatch on Google's). Raises ConfigError if the fsspec
        package that can ask them is missing.
        """
        path = self._path(name)
        if self._directory is None:
            self._upload_new(path, data)
            return
        with self._temporary(data) as temporary:
            _link(temporary, Path(path))
        _sync(self._directory)

    def check_put_new(self) -> None:
        """Raise ConfigError if ``put_new`` lacks a package: a job wants to know before its work, not after."""
        if self._directory is None:
            self._conditional()

    def delete(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it; it may be gone already."""
        path = self._path(name)
        if self._directory is not None:
            _delete(Path(path))
            _sync(self._directory)
            return
        kind = self.info(name).type
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            if kind == fs.FileType.File:
                self._filesystem.delete_file(path)
            elif kind != fs.FileType.NotFound:
                self._filesystem.delete_dir(path)

    def rename(self, old: str, new: str) -> None:
        """Give a file or directory another name, in one step. Raises RuntimeError where ``can_rename`` is False."""
        if self._directory is None:
            raise RuntimeError(f"{self.location.given}: an object store cannot rename {old} to {new} in one step")
        Path(self._path(old)).rename(self._path(new))
        _sync(self._directory)

    def remove_if_empty(self) -> None:
        """Remove the directory if nothing is in it, so that a run that did nothing leaves nothing; locally only.

        Elsewhere a directory is removed by removing what is in it, and somebody may just be putting something there.
        """
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._directory.rmdir()

    def _path(self, name: str) -> str:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name of a file in {self.location.given!r}")
        return f"{self.location.path.rstrip('/')}/{name}"

    # On a local disk: a hidden file first, then its name. The hidden one's name is short, for names have a longest length.

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        assert self._directory is not None
        path = self._directory / f".{uuid.uuid4().hex}.tmp"
        try:
            with self._open_new(path) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _open_new(self, path: Path) -> BinaryIO:
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # another run has just removed the directory as empty
                _make_directory(path.parent)
                return path.open("xb")
        raise FileNotFoundError(errno.ENOENT, "the directory is removed as fast as it is made", str(path.parent))

    # Elsewhere: Arrow for everything but the conditional put, which it lacks.

    def _upload_new(self, path: str, data: bytes) -> None:
        filesystem = self._conditional()
        # A request whose answer was lost is sent again, and then refused: who wrote the object is noted on it.
        mark = {"Metadata": {_WRITER: uuid.uuid4().hex}} if "s3" in filesystem.protocol else {}
        for attempt in range(1, _TRIES + 1):
            # A store that does not know the condition would ignore it; so much at least it will not do.
            if self.info(path.rsplit("/", 1)[1]).type != fs.FileType.NotFound:
                raise FileExistsError(errno.EEXIST, "exists already", path)
            try:
                filesystem.pipe_file(path, data, mode="create", **mark)
                return
            except OSError as error:
                code = _service_code(error)
                if isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412"):
                    with contextlib.suppress(FileNotFoundError):  # it was there, and is gone again
                        if mark and filesystem.metadata(path).get(_WRITER) == mark["Metadata"][_WRITER]:
                            return
                    raise FileExistsError(errno.EEXIST, "exists already", path) from error
                # S3 says so when another conditional put of the same key was under way, which may yet fail.
                if code not in ("ConditionalRequestConflict", "409") or attempt == _TRIES:
                    raise
                time.sleep(0.1 * attempt)

    def _wrapped(self) -> Any:
        """Return the file system that Arrow reaches through fsspec, if it does."""
        handler = getattr(self._filesystem, "handler", None)
        return handler.fs if isinstance(handler, fs.FSSpecHandler) else None

    def _forget_listings(self) -> None:
        wrapped = self._wrapped()
        if wrapped is not None:
            wrapped.invalidate_cache()  # fsspec's listings are its own, and as old as they please

    def _conditional(self) -> Any:
        """Return an fsspec file system for the same store as Arrow's, with the settings of its URI."""
        wrapped = self._wrapped()
        if wrapped is not None:
            return wrapped
        scheme, _, rest = self.location.given.partition("://")
        query = re.search(r"\?(\w+=.*)$", rest)
        settings = {key: values[-1] for key, values in parse_qs(query.group(1)).items()} if query else {}
        options: dict[str, Any] = {"use_listings_cache": False}
        if endpoint := settings.get("endpoint_override"):
            url = endpoint if "://" in endpoint else f"{settings.get('scheme', 'https')}://{endpoint}"
            options["endpoint_url"] = url
        if isinstance(self._filesystem, fs.S3FileSystem):
            options["client_kwargs"] = {"region_name": self._filesystem.region}
            if authority := settings.get("tls_ca_file_path"):
                options["client_kwargs"]["verify"] = authority
        try:
            return fsspec.core.url_to_fs(f"{scheme}://{re.split('[/?]', rest)[0]}/", **options)[0]
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(scheme, f"the fsspec package for {scheme}://")
            raise ConfigError(
                f"{self.location.given!r}: a finished run is published by a conditional put, for which a package is "
                f"missing: pip install {package}"
            ) from error


def _link(temporary: Path, path: Path) -> None:
    """Give a file a second name that nobody has. Raises FileExistsError."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        # Over NFS a request whose answer was lost is sent again, and then refused: the link itself says whether it was made.
        if temporary.stat().st_nlink == 1:
            raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        path.open("xb").close()  # the name is ours; a crash before the next line leaves an empty file
        temporary.replace(path)


def _delete(path: Path) -> None:
    while True:
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # the latter is what some systems say of a directory
            if not path.is_dir():
                raise
            with contextlib.suppress(FileNotFoundError):  # somebody else deletes it too: once more
                shutil.rmtree(path)
        else:
            return


def _make_directory(path: Path) -> None:
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Make what names a directory holds survive a power failure, on file systems that can."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return  # removed as empty, so none of its names matters
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


def _service_code(error: BaseException | None) -> str:
    """Return the error code of the object store's answer that led to an exception, or an empty text."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
