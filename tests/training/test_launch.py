"""Training in several processes of a Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pegasus_batch.training.finetune import Finetuner
from pegasus_batch.training.launch import train
from tests.training.test_finetune import quiet, settings, weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")  # Ray, of its own context's defaults
def test_two_workers_take_the_steps_of_one(corpus: Path, tmp_path: Path) -> None:
    """Without dropout the gradient of a batch is the same however many workers compute it, up to rounding."""
    config = {**json.loads((corpus / "config.json").read_text()), "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    alone = settings(corpus, tmp_path / "alone", config=tmp_path / "config.json", source_masking=0.0, precision="fp32")
    trainer = Finetuner(alone, quiet)
    assert trainer.run()
    assert train(alone.model_copy(update={"output": tmp_path / "pair", "workers": 2}))
    together = Finetuner(alone.model_copy(update={"output": tmp_path / "pair"}), quiet)
    assert together.progress.step == trainer.progress.step
    assert [path.name for path in (tmp_path / "pair" / "best").iterdir()]
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(weights(together)[name], tensor, rtol=1e-3, atol=1e-4)
