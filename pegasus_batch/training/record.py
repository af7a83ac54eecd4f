"""What a run leaves to look at: a log of JSON lines, a picture of its curves and, if asked for, TensorBoard's files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.svg"
_REMEDY = "pip install 'pegasus-batch[train]'"


class RunRecord:
    """The log of the run in ``directory``; a continued run adds to it, and overwrites what came after its state."""

    def __init__(self, directory: Path, step: int, tensorboard: bool) -> None:
        """Continue at ``step``. Raises ImportError with the remedy where TensorBoard is wanted and missing."""
        self._path = directory / LOG_FILE
        entries = [entry for entry in read_log(self._path) if entry["step"] <= step]
        if self._path.exists():
            partial = self._path.with_name(f"{LOG_FILE}.partial")
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
            partial.replace(self._path)
        self._writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(f"tensorboard is not installed: {_REMEDY}") from error
            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add an entry. Its numbers become TensorBoard's scalars, those of a nested mapping under its name."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in _numbers(values):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def draw(self) -> None:
        """Draw the curves so far; without matplotlib there are none."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        entries = list(read_log(self._path))
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        losses, rouge, rate = figure.subplots(1, 3)
        training = [entry for entry in entries if "loss" in entry]
        measured = [{"step": entry["step"], **entry["validation"]} for entry in entries if "validation" in entry]
        _line(losses, training, "nll", "training, with dropout")
        _line(losses, measured, "loss", "validation")
        for name in ("rouge1", "rouge2", "rougeL"):
            _line(rouge, measured, name, name.replace("rouge", "ROUGE-"))
        best = [entry["step"] for entry in entries if entry.get("best")]
        if best:
            rouge.axvline(best[-1], color="0.6", linestyle=":", label=f"kept: step {best[-1]:,}")
        _line(rate, training, "rate", "learning rate")
        titles = ("nats a token", "ROUGE of greedy summaries, validation", "learning rate")
        for axes, title in zip((losses, rouge, rate), titles, strict=True):
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize="small")
        figure.savefig(self._path.with_name(CURVES_FILE))


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log; a last line that a crash cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _line(axes: Axes, entries: list[dict[str, Any]], name: str, label: str) -> None:
    axes.plot([entry["step"] for entry in entries], [entry[name] for entry in entries], label=label, linewidth=1.3)


def _numbers(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)
