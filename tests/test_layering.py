"""The direction of imports and includes: no arrow may run against the flow of data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pegasus_batch
import pegasus_batch.pipeline

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pegasus_batch"

# What each room may import of the package. ``config`` is a leaf that anyone reads, and is left out.
ROOMS: dict[str, set[str]] = {
    "config": set(),
    "kernels": set(),
    "tokenization": set(),
    "generation": {"kernels"},
    "engine": {"generation", "kernels"},
    "checkpoints": set(),
    "models": {"checkpoints", "engine", "generation"},
    "sentences": set(),
    "documents": {"checkpoints", "sentences", "tokenization"},
    "device": {"checkpoints"},
    "summarizer": {"checkpoints", "device", "documents", "engine", "generation", "models"},
    "forward": {"device", "documents", "models"},
    "classification": {"checkpoints", "documents", "tokenization"},
    "classifier": {"checkpoints", "classification", "documents", "forward", "models"},
    "answering": {"checkpoints", "documents", "tokenization"},
    "answerer": {"answering", "checkpoints", "documents", "forward", "models"},
    "fill_mask": {"checkpoints", "forward", "models", "tokenization"},
    "demo": set(),
    "verification": {"models", "tokenization"},
    "conversion": {"checkpoints", "engine", "models", "tokenization"},
    "evaluation": {"demo", "models", "sentences", "tokenization", "summarizer"},
    "training": {"checkpoints", "demo", "evaluation", "models", "pipeline", "sentences", "tokenization", "summarizer"},
    "pipeline": {
        "answerer",
        "answering",
        "checkpoints",
        "classification",
        "classifier",
        "demo",
        "documents",
        "summarizer",
    },
    "cli": {"pipeline", "training", "evaluation", "conversion", "verification"},
}
CORE = {
    "config",
    "kernels",
    "tokenization",
    "generation",
    "engine",
    "checkpoints",
    "models",
    "sentences",
    "documents",
    "device",
    "summarizer",
    "forward",
    "classification",
    "classifier",
    "answering",
    "answerer",
    "fill_mask",
    "demo",
}
CORE_LIBRARIES = {"torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "huggingface_hub", "pegasus_batch"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """Return the room that a file of the package is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_imports_run_one_way(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "_lazy"):
        return
    assert here in ROOMS, f"{here} is a room without a place in the layering"
    for name in imports(path):
        parts = name.split(".")
        if name == "pegasus_batch":
            assert here not in CORE, "the package's own root imports the core"
        elif parts[0] == "pegasus_batch":
            other = parts[1]
            assert other in {here, "config", "_lazy"} | ROOMS[here] or (here == "kernels" and other == "_native"), name
            if other == "_native":
                assert path.name == "native.py", f"only kernels/native.py imports the extension: {name}"
        elif here in CORE:
            assert parts[0] in CORE_LIBRARIES or parts[0] in sys.stdlib_module_names, name
    if path.name == "reference.py":
        outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert outside == {"torch"}


@pytest.mark.parametrize(
    ("done", "absent"),
    [
        ("import pegasus_batch.pipeline.run, pegasus_batch.pipeline.guard", "torch"),
        (
            "from pegasus_batch import Summarizer; Summarizer('pegasus_batch/demo/model').summarize(['A text.'])",
            "torch._dynamo",
        ),
    ],
)
def test_no_process_takes_more_along_than_it_needs(done: str, absent: str) -> None:
    """A job has many that only read, tokenize or write; torch is 200 MB and two seconds, its compiler 80 and one."""
    code = f"import sys; {done}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", [pegasus_batch, pegasus_batch.pipeline])
def test_every_public_name_is_at_home(package: ModuleType) -> None:
    """Type checkers want the names spelled out, so they stand twice."""
    assert package.__all__ == list(package._HOMES) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith("pegasus_batch.")
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = package.absent


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.name)
def test_jobs_hold_no_logic(path: Path) -> None:
    """A job parses arguments and calls the package; nothing else."""
    parsing = {"argparse", "pathlib", "pydantic", "sys", "typer", "typing", "__future__"}
    assert {name.split(".")[0] for name in imports(path)} <= {"pegasus_batch"} | parsing


def test_cpp_includes_run_one_way() -> None:
    """From bindings to ops to cpu or cuda; the two never meet, pybind11 stays in bindings.cpp, no torch header anywhere."""
    include = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
    assert sources
    for path in sources:
        here = path.relative_to(ROOT / "csrc").parts[0]
        for name in include.findall(path.read_text(encoding="utf-8")):
            assert not name.startswith(("torch/", "ATen/", "c10/")), f"{path}: {name}"
            assert not name.startswith("pybind11/") or path.name == "bindings.cpp", f"{path}: {name}"
            if here == "cpu":
                assert not name.startswith("cuda/"), f"{path}: {name}"
            if here == "cuda":
                assert not name.startswith("cpu/"), f"{path}: {name}"


def test_files_stay_short() -> None:
    """Over 500 lines is two rooms in one."""
    suffixes = {".py", ".cpp", ".h", ".cu", ".cuh", ".hpp"}
    folders = ("pegasus_batch", "jobs", "csrc", "tests")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
