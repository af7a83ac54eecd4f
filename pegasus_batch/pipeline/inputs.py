"""Find a job's input files, read their footers, and open file systems."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pegasus_batch.pipeline.config import ConfigError

EXTENSIONS = (".parquet", ".parq", ".pq")
FOOTER_THREADS = 32  # footers are small; on an object store each costs one round trip
_SECRETS = re.compile(r"://[^/?]*:[^/?]*@|[?&](access_key|secret_key|session_token)=", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A path on a file system, and the name by which it can be located again."""

    filesystem: fs.FileSystem
    path: str
    given: str

    @property
    def is_local(self) -> bool:
        """Whether this machine's file system holds it."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def contains(self, other: Location) -> bool:
        """Whether ``other`` is this path or lies below it."""
        if self.filesystem.type_name != other.filesystem.type_name:
            return False
        root = self.path.rstrip("/")
        return other.path.rstrip("/") == root or other.path.startswith(root + "/")

    def child(self, path: str) -> Location:
        """Return the location of another path of the same file system; its name can be located again."""
        if "://" not in self.given or self.given.startswith("file://"):
            return Location(self.filesystem, path, path)
        scheme, rest, query = _split_uri(self.given)
        if isinstance(self.filesystem, fs.PyFileSystem):
            return Location(self.filesystem, path, f"{scheme}://{path.lstrip('/')}{query}")
        host = rest.partition("/")[0]
        base = _open_uri(f"{scheme}://{host}/{query}")[1].strip("/")
        return Location(self.filesystem, path, f"{scheme}://{host}/{path.strip('/')[len(base) :].lstrip('/')}{query}")


@dataclass(frozen=True)
class InputFile:
    """A file of documents: where it is, which version of it, and what the directories above it say of its rows."""

    location: Location
    size: int
    mtime_ns: int
    keys: tuple[tuple[str, str], ...] = ()  # of key=value directories below the input, outermost first

    @property
    def uri(self) -> str:
        """The name that tells it from every other file, however the job reaches it today."""
        given = self.location.given
        return "{}://{}".format(*_split_uri(given)[:2]) if "://" in given else given


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself, its directories' keys included; or why it cannot."""

    file: InputFile
    row_groups: tuple[int, ...] = ()  # rows of each
    schema: pa.Schema | None = None
    error: str | None = None
    row_bytes: Mapping[str, float] = field(default_factory=dict)  # of a column in the first group, uncompressed

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_groups)


def locate(given: str) -> Location:
    """Resolve a local path or URI; the schemes that pyarrow lacks go through fsspec. Raises ConfigError."""
    if given.startswith("file://"):
        return Location(fs.LocalFileSystem(), str(Path(unquote(given.removeprefix("file://"))).resolve()), given)
    if "://" not in given:
        return Location(fs.LocalFileSystem(), str(Path(given).expanduser().resolve()), given)
    if secret := _SECRETS.search(given):
        raise ConfigError(
            f"{given[: secret.start()]}://...: a URI with credentials would end up in logs and manifests; set them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the provider's own way)"
        )
    # pyarrow takes settings in the query (endpoint_override=...). A glob's ? is none, and neither globs nor spaces may
    # reach its URI parser, so only scheme, host and query do.
    scheme, rest, query = _split_uri(given)
    host, _, key = rest.partition("/")
    try:
        filesystem, base = _open_uri(f"{scheme}://{host}/{query}")
        return Location(filesystem, "/".join(part for part in (base.rstrip("/"), key) if part or base == "/"), given)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass  # a scheme that is fsspec's
    except OSError as error:
        raise ConfigError(f"{given!r}: {error}") from error
    try:
        handler, path = fsspec.core.url_to_fs(given)
        return Location(fs.PyFileSystem(fs.FSSpecHandler(handler)), path, given)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{given!r}: no file system for {scheme}:// ({error}); install its fsspec package") from error


def _split_uri(given: str) -> tuple[str, str, str]:
    """Return scheme, host with path, and the query with its question mark (or an empty text)."""
    query = re.search(r"\?\w+=.*$", given)
    plain = given[: query.start()] if query else given
    scheme, rest = plain.split("://", 1)
    return scheme, rest, query.group() if query else ""


@functools.lru_cache(maxsize=16)
def _open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    # A file system of an object store costs a connection; every unit of work asks for one.
    filesystem, base = fs.FileSystem.from_uri(uri)
    return filesystem, base


def list_inputs(inputs: Sequence[str]) -> list[InputFile]:
    """Return the files that the inputs name, each once. Raises ConfigError where an input names none."""
    found: dict[tuple[str, str], InputFile] = {}
    for given in inputs:
        for file in _list(locate(given)):
            found.setdefault((file.location.filesystem.type_name, file.location.path), file)
    return list(found.values())


def read_footers(files: Sequence[InputFile]) -> list[Footer]:
    """Return one footer for each file, in the same order."""
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(_read_footer, files))


def _list(location: Location) -> list[InputFile]:
    filesystem, path = location.filesystem, location.path
    info = _info(location)
    if info.type == fs.FileType.File:
        return [InputFile(location.child(path), info.size, info.mtime_ns or 0)]
    if info.type == fs.FileType.Directory:
        root, pattern = path.rstrip("/"), None
    elif re.search(r"[*?\[]", path):
        fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
        root, pattern = fixed.rsplit("/", 1)[0], _glob_pattern(path)
    else:
        raise ConfigError(f"--input {location.given!r}: no such file or directory")
    try:
        entries = filesystem.get_file_info(fs.FileSelector(root or "/", recursive=True, allow_not_found=True))
    except OSError as error:
        raise ConfigError(f"--input {location.given!r}: cannot be listed: {error}") from error
    files = [
        InputFile(location.child(entry.path), entry.size, entry.mtime_ns or 0, _directory_keys(root, entry.path))
        for entry in _select(entries, root, pattern)
    ]
    if not files:
        others = sorted({entry.base_name for entry in entries if entry.type == fs.FileType.File})[:3]
        hint = f" (it holds {', '.join(others)})" if others and not pattern else ""
        raise ConfigError(f"--input {location.given!r}: no Parquet files there{hint}; expected {' '.join(EXTENSIONS)}")
    return files


def _info(location: Location) -> fs.FileInfo:
    try:
        return location.filesystem.get_file_info(location.path)
    except OSError as error:
        raise ConfigError(f"--input {location.given!r}: {error}") from error


def _select(entries: Iterable[fs.FileInfo], root: str, pattern: re.Pattern[str] | None) -> list[fs.FileInfo]:
    # A glob may name a directory ("day=*"): its files match because one of their parents does. Files that the glob
    # itself names need no extension; those found below a directory do.
    kept = []
    for entry in entries:
        if entry.type != fs.FileType.File:
            continue
        relative = entry.path[len(root) :].strip("/")
        if any(part.startswith(("_", ".")) for part in relative.split("/")):
            continue
        is_parquet = entry.base_name.lower().endswith(EXTENSIONS)
        if pattern is None:
            wanted = is_parquet
        else:
            parents = [entry.path[: match.start()] for match in re.finditer("/", entry.path)]
            wanted = bool(pattern.fullmatch(entry.path)) or (is_parquet and any(map(pattern.fullmatch, parents)))
        if wanted:
            kept.append(entry)
    return sorted(kept, key=lambda entry: entry.path)


def _glob_pattern(path: str) -> re.Pattern[str]:
    # fnmatch lets * cross directories; a shell does not.
    out, i = "", 0
    while i < len(path):
        if path.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
        elif path[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif path[i] == "?":
            out, i = out + "[^/]", i + 1
        elif path[i] == "[" and (end := path.find("]", i + 2)) > 0:
            inside = path[i + 1 : end].replace("\\", "\\\\")
            out, i = out + "[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]", end + 1
        else:
            out, i = out + re.escape(path[i]), i + 1
    return re.compile(out, re.DOTALL)


def _directory_keys(root: str, path: str) -> tuple[tuple[str, str], ...]:
    """Return the (key, value) pairs of ``key=value`` directories between the root and a file."""
    parts = path[len(root) :].strip("/").split("/")[:-1]
    pairs = [part.split("=", 1) for part in parts if "=" in part]
    return tuple({key: (key, unquote(value)) for key, value in pairs}.values())


def _read_footer(file: InputFile) -> Footer:
    location = file.location
    if not file.size:
        return Footer(file, error="the file is empty (0 bytes)")
    try:
        with location.filesystem.open_input_file(location.path) as handle:
            metadata = pq.read_metadata(handle)
            schema = metadata.schema.to_arrow_schema()
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            row_bytes = _row_bytes(groups[0]) if groups else {}
    except (OSError, pa.ArrowException) as error:
        return Footer(file, error=str(error).split("\n", 1)[0])
    for key, _ in file.keys:
        if key not in schema.names:  # a column of the file wins over its directory
            schema = schema.append(pa.field(key, pa.string()))
    return Footer(file, tuple(group.num_rows for group in groups), schema, row_bytes=row_bytes)


def _row_bytes(group: pq.RowGroupMetaData) -> dict[str, float]:
    columns = [group.column(i) for i in range(group.num_columns)]
    return {column.path_in_schema: column.total_uncompressed_size / max(1, group.num_rows) for column in columns}


def check_output(output: Location, inputs: Sequence[str], files: Sequence[InputFile]) -> None:
    """Raise ConfigError if the output is a file, lies in the input or holds it: a later run would read its own results."""
    if output.filesystem.get_file_info(output.path).type == fs.FileType.File:
        raise ConfigError(f"--output {output.given!r} is a file: name a directory")
    for given in inputs:
        location = locate(given)
        if location.contains(output) and _info(location).type == fs.FileType.Directory:
            raise ConfigError(
                f"--output {output.given!r} lies inside --input {given!r}, so a later run would read its own results: "
                "choose a directory outside of the input"
            )
    inside = next((file.location for file in files if output.contains(file.location)), None)
    if inside:
        raise ConfigError(
            f"--output {output.given!r} holds the input file {inside.given}: choose a directory outside of the input"
        )
