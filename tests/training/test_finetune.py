"""A run learns, keeps its best weights, and continues after a stop as if there had been none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pegasus_batch.config import BartConfig, GenerationConfig, load_config
from pegasus_batch.evaluation.rouge import first_sentence
from pegasus_batch.models.seq2seq import BartForConditionalGeneration, PegasusForConditionalGeneration
from pegasus_batch.summarizer import Summarizer
from pegasus_batch.training import finetune
from pegasus_batch.training.finetune import Finetuner
from pegasus_batch.training.pairs import collate, read_pairs
from pegasus_batch.training.settings import FinetuneSettings
from pegasus_batch.training.validate import Validation

ROOT = Path(__file__).parents[2]


def settings(corpus: Path, output: Path, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "train": corpus / "train.parquet",
        "validation": corpus / "validation.parquet",
        "config": corpus / "config.json",
        "output": output,
        "vocab_size": 150,
        "steps": 12,
        "batch_tokens": 1000,
        "max_source_tokens": 64,
        "max_target_tokens": 24,
        "warmup_steps": 3,
        "average_decay": 0.9,
        "source_masking": 0.05,
        "log_every": 4,
        "checkpoint_every": 5,
        "validate_every": 1000,
        "validation_rows": 4,
    }
    return FinetuneSettings(**{**values, **changes})


def quiet(line: str) -> None:
    """Report nothing."""


def weights(trainer: Finetuner) -> dict[str, torch.Tensor]:
    """Return the weights and their average."""
    own = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.average.swap()
    averaged = {f"average of {name}": tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.average.swap()
    return {**own, **averaged}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp32"},
        {"precision": "bf16", "mlm_weight": 1.0},
        {"optimizer": "adamw", "learning_rate": 0.001, "lead_steps": 8},
    ],
)
def test_a_resumed_run_is_bit_identical_to_an_unbroken_one(
    corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = Finetuner(settings(corpus, tmp_path / "whole", **changes), quiet)
    assert whole.run()

    class StopsAtSeven(Finetuner):
        def _step(self, indices: Any) -> tuple[float, float, int]:
            if self.progress.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._step(indices)

    broken = StopsAtSeven(settings(corpus, tmp_path / "broken", **changes), quiet)
    assert not broken.run()
    assert broken.progress.step == 7
    torch.manual_seed(99)  # the state must bring its own
    resumed = Finetuner(settings(corpus, tmp_path / "broken", **changes), quiet)
    assert resumed.progress.step == 7
    assert resumed.run()
    assert (resumed.progress.epoch, resumed.progress.position) == (whole.progress.epoch, whole.progress.position)
    assert_equal(weights(resumed), weights(whole))


def test_the_first_steps_teach_the_first_sentence(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[torch.Tensor] = []

    def remember(pairs: Any, indices: Any, **options: Any) -> Any:
        batch = collate(pairs, indices, **options)
        labels.append(batch.labels)
        return batch

    monkeypatch.setattr(finetune, "collate", remember)
    trainer = Finetuner(settings(corpus, tmp_path, steps=2, lead_steps=1), quiet)
    assert trainer.run()
    first, second = trainer._plan(0)[:2]
    texts = read_pairs(corpus / "train.parquet", drop_duplicates=True)
    expected = [first_sentence(texts.documents[first[0]]), texts.summaries[second[0]]]
    found = [trainer.tokenizer.decode([i for i in rows[0].tolist() if i >= 0], True) for rows in labels[:2]]
    for text, target in zip(found, expected, strict=True):
        assert text
        assert target.startswith(text)


def test_a_crash_costs_only_the_steps_since_the_last_state(corpus: Path, tmp_path: Path) -> None:
    class Crashes(Finetuner):
        def _step(self, indices: Any) -> tuple[float, float, int]:
            if self.progress.step == 8:
                raise MemoryError
            return super()._step(indices)

    whole = Finetuner(settings(corpus, tmp_path / "whole"), quiet)
    assert whole.run()
    with pytest.raises(MemoryError):
        Crashes(settings(corpus, tmp_path / "crashed"), quiet).run()
    resumed = Finetuner(settings(corpus, tmp_path / "crashed"), quiet)
    assert resumed.progress.step == 5
    assert resumed.run()
    assert_equal(weights(resumed), weights(whole))


def test_the_best_weights_are_kept_not_the_last(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation says 1, 3, 2 at steps 2, 4 and 6: step 4's average must be what lies in best/."""
    scores = iter([1.0, 3.0, 2.0])
    seen: list[torch.Tensor] = []

    def measured(model: Any, *arguments: Any, **options: Any) -> Validation:
        seen.append(model.get_input_embeddings().weight.detach().clone())
        return Validation(1.0, *[next(scores)] * 3)

    monkeypatch.setattr(finetune, "validate", measured)
    trainer = Finetuner(settings(corpus, tmp_path, steps=6, validate_every=2), quiet)
    assert trainer.run()
    assert trainer.progress.best_step == 4
    kept = PegasusForConditionalGeneration.from_pretrained(tmp_path / "best").get_input_embeddings().weight
    assert torch.equal(kept, seen[1])
    assert not torch.equal(kept, seen[2])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["best"] for line in log if "validation" in line] == [True, True, False]


def test_validation_leaves_the_training_untouched(corpus: Path, tmp_path: Path) -> None:
    """Dropout draws and weights must not depend on how often somebody looks."""
    seldom = Finetuner(settings(corpus, tmp_path / "seldom", steps=6), quiet)
    assert seldom.run()
    often = Finetuner(settings(corpus, tmp_path / "often", steps=6, validate_every=1), quiet)
    assert often.run()
    assert_equal(weights(seldom), weights(often))


def test_it_learns_and_the_export_summarizes(corpus: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "README.md").write_text("kept")
    changes = {
        "steps": 100,
        "learning_rate": 0.05,
        "source_masking": 0.0,
        "validation_rows": 24,
        "label_smoothing": 0.0,
    }
    trainer = Finetuner(settings(corpus, tmp_path / "run", export=target, num_beams=2, **changes), quiet)
    assert trainer.run()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]

    assert (target / "README.md").read_text() == "kept"
    record = json.loads((target / "training.json").read_text())
    assert record["steps"] == 100
    assert str(tmp_path) not in json.dumps(record)
    assert record["validation"]["rouge1"] == trainer.progress.best["rouge1"] > 30
    generation = GenerationConfig.from_pretrained(target)
    assert (generation.num_beams, generation.length_penalty, generation.max_length) == (2, 0.8, 24)
    assert PegasusForConditionalGeneration.from_pretrained(target, dtype="auto").dtype == torch.bfloat16
    (summary,) = Summarizer(target).summarize(["This package is a game for maps.\nIt also knows stars words."])
    assert summary.status == "ok"
    assert summary.text


def test_a_finished_run_only_exports_again(corpus: Path, tmp_path: Path) -> None:
    first = Finetuner(settings(corpus, tmp_path / "run", steps=3), quiet)
    assert first.run()
    lines: list[str] = []
    again = Finetuner(settings(corpus, tmp_path / "run", steps=3, export=tmp_path / "model"), lines.append)
    assert again.run()
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not [line for line in lines if "validation:" in line]
    assert_equal(weights(again), weights(first))


def test_another_runs_directory_is_refused(corpus: Path, tmp_path: Path) -> None:
    assert Finetuner(settings(corpus, tmp_path, steps=1), quiet).run()
    with pytest.raises(ValueError, match=r"holds another run \(learning_rate was 0\.01, is 0\.02\)"):
        Finetuner(settings(corpus, tmp_path, steps=1, learning_rate=0.02), quiet)


def test_a_bart_directory_is_fine_tuned(corpus: Path, tmp_path: Path) -> None:
    """The family comes from the directory; weights start from its file, not from chance.

    The model has ten ids more than the tokenizer, and generates them before it has learned anything.
    """
    config = BartConfig(
        vocab_size=160,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
    )
    start = BartForConditionalGeneration(config)
    start.save_pretrained(tmp_path / "bart")
    assert Finetuner(settings(corpus, tmp_path / "words", steps=1), quiet).run()  # for its vocabulary
    changes = {"config": None, "model": tmp_path / "bart", "tokenizer": tmp_path / "words" / "best", "dropout": 0.3}
    trainer = Finetuner(settings(corpus, tmp_path / "run", **changes), quiet)
    assert isinstance(trainer.model, BartForConditionalGeneration)
    assert trainer.model.config.dropout == 0.3
    assert torch.equal(trainer.model.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert trainer.run()
    assert load_config(tmp_path / "run" / "best").model_type == "bart"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "give either model"),
        ({"steps": None}, "give epochs, steps or minutes"),
        ({"epochs": 2}, "epochs or steps, not both"),
        ({"label_smoothing": 1.0}, "less than 1"),
        ({"learning_rat": 0.1}, "learning_rat"),
    ],
)
def test_contradictory_settings_are_refused(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(corpus, tmp_path, **changes)


def test_texts_beyond_the_models_positions_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts of 65 tokens exceed the model's 64 positions"):
        Finetuner(settings(corpus, tmp_path, max_source_tokens=65), quiet)


def test_the_schedule_may_end_by_the_clock(corpus: Path, tmp_path: Path) -> None:
    trainer = Finetuner(settings(corpus, tmp_path, steps=None, minutes=0.01), quiet)
    assert trainer.run()
    assert trainer.progress.seconds >= 0.6
    assert trainer.progress.step >= 1


def test_epochs_set_the_number_of_steps(corpus: Path, tmp_path: Path) -> None:
    trainer = Finetuner(settings(corpus, tmp_path, steps=None, epochs=1.5), quiet)
    per_epoch = len(trainer._plan(0))
    assert per_epoch > 1
    assert trainer.total_steps == round(1.5 * per_epoch)
    assert trainer.run()
    assert trainer.progress.epoch == 1


def test_accumulated_gradients_are_those_of_the_whole_batch(corpus: Path, tmp_path: Path) -> None:
    config = {**json.loads((corpus / "config.json").read_text()), "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {"config": tmp_path / "config.json", "source_masking": 0.0, "precision": "fp32", "steps": 4}
    whole = Finetuner(settings(corpus, tmp_path / "whole", **options), quiet)
    parts = Finetuner(settings(corpus, tmp_path / "parts", **options, micro_batch_tokens=150), quiet)
    assert len(parts._parts(parts._plan(0)[0])) > 3
    assert whole.run()
    assert parts.run()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_encoder_learns_to_predict_hidden_tokens(corpus: Path, tmp_path: Path) -> None:
    """The joint loss is the sum of both, and its encoder part falls."""
    options = {"source_masking": 0.3, "mlm_weight": 2.0, "precision": "fp32", "dropout": 0.0, "steps": 60}
    trainer = Finetuner(settings(corpus, tmp_path, **options, learning_rate=0.05), quiet)
    batch, hidden = trainer._mask_sources(collate(trainer.pairs, [0, 1, 2], pad_token_id=0, decoder_start_token_id=0))
    assert hidden is not None
    chosen = hidden != -100
    whole = collate(trainer.pairs, [0, 1, 2], pad_token_id=0, decoder_start_token_id=0)
    assert torch.equal(hidden[chosen], whole.input_ids[chosen])
    assert torch.equal(batch.input_ids[~chosen], whole.input_ids[~chosen])
    assert not set(hidden[chosen].tolist()) & set(trainer.tokenizer.all_special_ids)

    def encoder_loss() -> float:
        trainer.model.eval()
        with torch.no_grad():
            output = trainer.model(batch.input_ids, batch.attention_mask, decoder_input_ids=batch.decoder_input_ids)
            loss = trainer._mlm_loss(output.encoder_last_hidden_state, hidden)
        trainer.model.train()
        return float(loss)

    before = encoder_loss()
    assert trainer.run()
    assert encoder_loss() < before - 0.5


def test_training_ends_when_nothing_gets_better(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 4.0, 4.5, 4.2, 3.0, 2.0])
    monkeypatch.setattr(finetune, "validate", lambda *args, **options: Validation(next(losses), 0.0, 0.0, 0.0))
    trainer = Finetuner(settings(corpus, tmp_path, validate_every=2, patience=2, select_by="loss"), quiet)
    assert trainer.run()
    assert (trainer.progress.step, trainer.progress.best_step) == (8, 4)


def test_the_step_is_that_of_transformers(corpus: Path, tmp_path: Path) -> None:
    """Loss and gradients of one batch, label smoothing included, against its model and its label smoother."""
    from transformers import PegasusForConditionalGeneration as TheirModel
    from transformers.trainer_pt_utils import LabelSmoother

    config = {**json.loads((corpus / "config.json").read_text()), "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {"config": tmp_path / "config.json", "source_masking": 0.0, "precision": "fp32", "clip_norm": 1e9}
    trainer = Finetuner(settings(corpus, tmp_path / "run", **options), quiet)
    trainer.model.save_pretrained(tmp_path / "start")
    theirs = TheirModel.from_pretrained(tmp_path / "start")
    indices = trainer._plan(0)[0]
    batch = collate(trainer.pairs, indices, pad_token_id=0, decoder_start_token_id=0)
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "decoder_input_ids", "labels")}
    expected = LabelSmoother(epsilon=trainer.settings.label_smoothing)(theirs(**inputs), inputs["labels"])
    expected.backward()
    gradients: dict[str, torch.Tensor] = {}

    def keep() -> None:
        gradients.update({name: weight.grad.clone() for name, weight in trainer.model.named_parameters()})

    trainer.optimizer.step = keep  # type: ignore[method-assign]
    loss, _, _ = trainer._step(indices)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    named = dict(theirs.named_parameters())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(corpus: Path, tmp_path: Path) -> None:
    """Without dropout the gradient of a batch is the same however many processes compute it, up to rounding.

    The command line is tested on the way: torchrun, a recipe, options over it.
    """
    config = {**json.loads((corpus / "config.json").read_text()), "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    alone = settings(corpus, tmp_path / "alone", config=tmp_path / "config.json", source_masking=0.0, precision="fp32")
    trainer = Finetuner(alone, quiet)
    assert trainer.run()

    recipe = json.loads(alone.model_dump_json(exclude_none=True))
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "output": "overridden"}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(ROOT / "jobs" / "finetune.py"), "--recipe", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, "--output", str(tmp_path / "pair")], check=True, env=environment, cwd=tmp_path, timeout=300
    )
    together = Finetuner(alone.model_copy(update={"output": tmp_path / "pair"}), quiet)
    assert together.progress.step == trainer.progress.step
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(weights(together)[name], tensor, rtol=1e-3, atol=1e-4)
