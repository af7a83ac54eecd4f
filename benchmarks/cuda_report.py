"""What the CUDA compiler makes of every kernel: registers, spills and the instructions that matter. Needs nvcc, no GPU.

``python benchmarks/cuda_report.py`` writes docs/cuda_kernels.md. cuobjdump: on PATH, beside nvcc, or in triton's wheel.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from chart import markdown_table

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_90")
INSTRUCTIONS = {  # what is counted: how it begins in the machine code
    "tensor-core products": r"HMMA\.16816",
    "16-byte copies to shared memory": r"LDGSTS\.E\S*\.128",
    "16-byte loads": r"LDG\.E\S*\.128",
    "16-byte stores": r"STG\.E\S*\.128",
    "local memory": r"(LDL|STL)\b",
}


def find_cuobjdump(nvcc: str) -> str:
    """Return the disassembler's path; SystemExit where there is none."""
    beside = Path(nvcc).resolve().parent / "cuobjdump"
    triton = importlib.util.find_spec("triton")
    wheel = [Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"] if triton and triton.origin else []
    for path in [*filter(None, [shutil.which("cuobjdump")]), beside, *wheel]:
        if Path(path).exists():
            return str(path)
    sys.exit("cuobjdump was not found: put it on PATH, or `pip install triton`, whose wheel has one")


def short_name(mangled: str) -> str:
    """Return a kernel's name with its template arguments, without namespaces and parameters."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|pegasus::cuda::|^void ", "", name)
    name = re.sub(r"\([A-Za-z_:]+\)(?=\d)", "", name)  # (bool)1 and the like among template arguments
    return name.partition("(")[0]


def measure(source: Path, architecture: str, nvcc: str, cuobjdump: str, directory: Path) -> list[list[str]]:
    """Compile one source for one architecture; returns a row for each kernel."""
    cubin = directory / f"{source.stem}_{architecture}.cubin"
    command = [nvcc, "-std=c++17", f"-arch={architecture}", "-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-cubin"]
    log = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True, check=True).stderr
    usage = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    code = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    counts = {}
    for part in code.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        counts[name.strip()] = Counter({kind: len(re.findall(pattern, body)) for kind, pattern in INSTRUCTIONS.items()})
    rows = []
    for name, stores, loads, registers in usage:
        seen = [str(counts[name][kind]) for kind in INSTRUCTIONS]
        rows.append([f"`{short_name(name)}`", architecture, registers, str(int(stores) + int(loads)), *seen])
    return rows


def main() -> None:
    """Write the table."""
    nvcc = shutil.which("nvcc") or sys.exit("nvcc was not found")
    cuobjdump = find_cuobjdump(nvcc)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            for architecture in ARCHITECTURES:
                rows += measure(source, architecture, nvcc, cuobjdump, Path(directory))
    rows.sort()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout.split("release ")[
        1
    ]
    release = version.split(",")[0]
    intro = f"""By nvcc {release}, for Ampere (sm_80) and Hopper (sm_90): registers of a thread, bytes spilled, and how often an
instruction stands in the machine code. Tensor-core products and 16-byte copies belong in the attention kernels of 16-bit types,
16-byte loads wherever memory is what a kernel waits for. `python benchmarks/cuda_report.py` made this table; nothing in it was
measured on a GPU."""
    table = markdown_table(["kernel", "for", "registers", "spilled", *INSTRUCTIONS], rows)
    text = f"# The CUDA kernels as compiled\n\n{intro}\n\n{table}\n"
    (ROOT / "docs" / "cuda_kernels.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
