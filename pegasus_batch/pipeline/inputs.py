"""Find a job's input files, read their footers, and open the output's file system."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pegasus_batch.pipeline.config import ConfigError

EXTENSIONS = (".parquet", ".parq", ".pq")
FOOTER_THREADS = 32  # footers are small; on an object store each costs one round trip
MAX_LISTED = 5  # bad files named in one message


@dataclass(frozen=True)
class Location:
    """A path on a file system, and what the user called it."""

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


@dataclass(frozen=True)
class Source:
    """Files that are read together: one file system, one root for ``key=value`` directories."""

    filesystem: fs.FileSystem
    root: str | None  # directory below which key=value directories are columns; None for files given one by one
    files: tuple[str, ...]
    rows: tuple[int, ...]
    columns: frozenset[str] = frozenset()  # of any of the files, and the keys
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself."""

    location: Location
    rows: int = 0
    size: int = 0
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    error: str | None = None


def locate(given: str) -> Location:
    """Resolve a local path or URI; the schemes that pyarrow lacks go through fsspec. Raises ConfigError."""
    if given.startswith("file://"):
        return Location(fs.LocalFileSystem(), str(Path(unquote(given.removeprefix("file://"))).resolve()), given)
    if "://" not in given:
        return Location(fs.LocalFileSystem(), str(Path(given).expanduser().resolve()), given)
    # pyarrow takes settings in the query (endpoint_override=...). A glob's ? is none, and neither globs nor spaces may
    # reach its URI parser, so only scheme, host and query do.
    query = re.search(r"\?\w+=.*$", given)
    plain = given[: query.start()] if query else given
    scheme, rest = plain.split("://", 1)
    host, _, key = rest.partition("/")
    try:
        filesystem, base = fs.FileSystem.from_uri(f"{scheme}://{host}/{query.group() if query else ''}")
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


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[Footer]]:
    """List every input, read every footer.

    Returns the sources and one footer per file, in the same order. Raises ConfigError where an input names no file, a
    file is not readable Parquet, or all files together hold no row.
    """
    found: list[tuple[str | None, list[Location]]] = []
    seen: set[tuple[str, str]] = set()
    for given in inputs:
        root, files = _list(locate(given))
        fresh = [file for file in files if (file.filesystem.type_name, file.path) not in seen]
        seen.update((file.filesystem.type_name, file.path) for file in fresh)
        found.append((root, fresh))
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(_read_footer, [file for _, files in found for file in files]))
    bad = [footer for footer in footers if footer.error]
    if bad:
        shown = "".join(f"\n  {footer.location.given}: {footer.error}" for footer in bad[:MAX_LISTED])
        more = f"\n  and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise ConfigError(
            f"{len(bad)} of {len(footers)} input files cannot be read as Parquet; repair or remove them:{shown}{more}"
        )
    if not sum(footer.rows for footer in footers):
        raise ConfigError(f"the input has no rows: {', '.join(inputs)}")
    by_path = {(footer.location.filesystem.type_name, footer.location.path): footer for footer in footers}
    sources: list[Source] = []
    for root, files in found:
        if not files:
            continue
        own = [by_path[file.filesystem.type_name, file.path] for file in files]
        keys = _directory_keys(root, own)
        rows = tuple(footer.rows for footer in own)
        columns = frozenset(keys).union(*(footer.schema.names for footer in own))
        paths = tuple(file.path for file in files)
        sources.append(Source(files[0].filesystem, root if keys else None, paths, rows, columns, keys))
    return _merge(sources), footers


def _list(location: Location) -> tuple[str | None, list[Location]]:
    filesystem, path = location.filesystem, location.path
    info = _info(location)
    if info.type == fs.FileType.File:
        return None, [location]
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
    matched = _select(entries, root, pattern)
    files = [Location(filesystem, entry.path, _as_given(location, entry.path)) for entry in matched]
    if not files:
        others = sorted({entry.base_name for entry in entries if entry.type == fs.FileType.File})[:3]
        hint = f" (it holds {', '.join(others)})" if others and not pattern else ""
        raise ConfigError(f"--input {location.given!r}: no Parquet files there{hint}; expected {' '.join(EXTENSIONS)}")
    return root, files


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


def _as_given(location: Location, path: str) -> str:
    return f"{location.given.split('://', 1)[0]}://{path}" if "://" in location.given else path


def _read_footer(location: Location) -> Footer:
    try:
        with location.filesystem.open_input_file(location.path) as file:
            size = file.size()
            if not size:
                return Footer(location, error="the file is empty (0 bytes)")
            metadata = pq.read_metadata(file)
            return Footer(location, metadata.num_rows, size, metadata.schema.to_arrow_schema())
    except (OSError, pa.ArrowException) as error:
        return Footer(location, error=str(error).split("\n", 1)[0])


def _directory_keys(root: str | None, footers: Sequence[Footer]) -> tuple[str, ...]:
    """Return the keys of ``key=value`` directories below the root, in order of appearance.

    A key that the files have as a column of their own is theirs: Ray would overwrite it with the directory's value.
    """
    if root is None:
        return ()
    keys: dict[str, None] = {}
    for footer in footers:
        for part in footer.location.path[len(root) :].strip("/").split("/")[:-1]:
            if "=" in part:
                keys[part.split("=", 1)[0]] = None
    own = {name for footer in footers for name in footer.schema.names}
    shared = [key for key in keys if key in own]
    if shared and len(shared) < len(keys):
        raise ConfigError(
            f"directories below {root} are named by {', '.join(keys)}, of which the files hold {', '.join(shared)} as "
            "a column too: rename that column, or pass the files one by one to ignore the directories"
        )
    return () if shared else tuple(keys)


def _merge(sources: Sequence[Source]) -> list[Source]:
    # Consecutive plain inputs of one file system become one read, so that a thousand --input flags are one scan.
    merged: list[Source] = []
    for source in sources:
        last = merged[-1] if merged else None
        if last and last.root is None and source.root is None and last.filesystem.equals(source.filesystem):
            files, rows, columns = last.files + source.files, last.rows + source.rows, last.columns | source.columns
            merged[-1] = Source(last.filesystem, None, files, rows, columns)
        else:
            merged.append(source)
    return merged


def first_rows(sources: Sequence[Source], limit: int) -> list[Source]:
    """Return the sources cut to the files that hold the first ``limit`` rows."""
    kept: list[Source] = []
    for source in sources:
        if limit <= 0:
            break
        n = 0
        while n < len(source.files) and limit > 0:
            limit -= source.rows[n]
            n += 1
        kept.append(replace(source, files=source.files[:n], rows=source.rows[:n]))
    return kept


def check_output(output: Location, inputs: Sequence[str], footers: Sequence[Footer]) -> None:
    """Raise ConfigError unless the output is absent or empty and neither lies in the input nor holds it."""
    info = output.filesystem.get_file_info(output.path)
    if info.type == fs.FileType.File:
        raise ConfigError(f"--output {output.given!r} is a file: name a directory")
    for given in inputs:
        location = locate(given)
        if _info(location).type != fs.FileType.Directory:
            continue
        if location.contains(output):
            raise ConfigError(
                f"--output {output.given!r} lies inside --input {given!r}, so a later run would read its own results: "
                "choose a directory outside of the input"
            )
    inside = next((footer.location for footer in footers if output.contains(footer.location)), None)
    if inside:
        raise ConfigError(
            f"--output {output.given!r} holds the input file {inside.given}: choose a directory outside of the input"
        )
    if info.type == fs.FileType.Directory:
        for entry in output.filesystem.get_file_info(fs.FileSelector(output.path, recursive=False)):
            if not entry.base_name.startswith(("_", ".")):
                raise ConfigError(
                    f"--output {output.given!r} is not empty (it holds {entry.base_name}): choose another "
                    "directory, or remove this one"
                )
