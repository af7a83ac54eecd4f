"""Fine-tune a Pegasus or BART, or train a small one from nothing, on pairs of documents and summaries."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pegasus_batch.evaluation.rouge import first_sentence
from pegasus_batch.training.loading import build_model, export_model, load_or_train_tokenizer, save_directory
from pegasus_batch.training.loss import smoothed_cross_entropy
from pegasus_batch.training.masked_tokens import mask_tokens, ordinary_ids
from pegasus_batch.training.pairs import IGNORED, Batch, TextPairs, collate, encode_pairs, plan_batches, read_pairs
from pegasus_batch.training.parallel import Group
from pegasus_batch.training.record import RunRecord
from pegasus_batch.training.schedule import WeightAverage, rate_factor
from pegasus_batch.training.settings import FinetuneSettings, check_continuation
from pegasus_batch.training.validate import Validation, validate

STATE_FILE = "state.pt"


@dataclasses.dataclass
class Progress:
    """Where a run stands: all that is not a tensor. ``position`` counts the batches of this epoch that are done."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    validated_step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)


class Finetuner:
    """One training run, in one process or in as many as torchrun starts.

    The constructor loads everything and, where ``output`` holds the state of the same run, continues it: on the same
    machine a run that was stopped and resumed computes bit for bit what an unbroken one does (unless ``minutes`` sets
    the schedule). Raises ValueError when ``output`` holds another run.
    """

    def __init__(self, settings: FinetuneSettings, report: Callable[[str], None] = print) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.group = Group(self.device)
        self.report = report if self.group.leads else _silent
        self.autocast_dtype = _autocast_dtype(settings.precision, self.device)
        settings.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)

        columns = (settings.document_column, settings.summary_column)
        train_texts = read_pairs(settings.train, *columns, drop_duplicates=True)
        if self.group.leads:
            load_or_train_tokenizer(settings, train_texts)
        self.group.broadcast([0.0])  # the others read the vocabulary that rank 0 has written
        self.tokenizer = load_or_train_tokenizer(settings, train_texts)
        self.model = build_model(settings, self.tokenizer).to(self.device).train()
        limits = (settings.max_source_tokens, settings.max_target_tokens)
        self.pairs = encode_pairs(train_texts, self.tokenizer, *limits)
        # A small network finds out late, or never, that words can be copied; with the first sentence as target it takes
        # minutes, and the summaries then build on it.
        leads = TextPairs(train_texts.documents, [first_sentence(text) for text in train_texts.documents])
        self.lead_pairs = encode_pairs(leads, self.tokenizer, *limits) if settings.lead_steps else self.pairs
        self.lengths = [len(source) for source in self.pairs.sources]
        self.ordinary_ids = ordinary_ids(self.tokenizer)
        if settings.source_masking and self.tokenizer.mask_token_id is None:
            raise ValueError("source_masking needs a tokenizer with a mask token: set it to 0")
        self.validation_texts = read_pairs(settings.validation, *columns)
        self.validation_pairs = encode_pairs(self.validation_texts, self.tokenizer, *limits)

        parameters = list(self.model.parameters())
        self.optimizer = _optimizer(parameters, settings)
        self.average = WeightAverage(parameters, settings.average_decay)
        self.progress = Progress()
        self.total_steps = settings.steps
        if settings.epochs is not None:
            self.total_steps = max(1, round(settings.epochs * len(self._plan(0))))
        self._stop = False
        if self.group.rank:
            torch.manual_seed(
                settings.seed + 1_000_003 * self.group.rank
            )  # the weights are drawn; now dropout must differ
        self._load_state()
        self.record = None
        if self.group.leads:
            self.record = RunRecord(settings.output, self.progress.step, settings.tensorboard)
        n_parameters = sum(parameter.numel() for parameter in parameters)
        self.report(
            f"{n_parameters:,} parameters, {len(self.pairs):,} training pairs, "
            f"{len(self.validation_pairs):,} for validation, "
            f"{'by the clock' if self.total_steps is None else f'{self.total_steps:,} steps'}, "
            f"{self.autocast_dtype or torch.float32} on {self.device}, from step {self.progress.step:,}"
        )

    def run(self) -> bool:
        """Train to the end of the schedule, or until SIGTERM or SIGINT; returns whether the end was reached.

        Either way the state is on disk afterwards. At the end the weights are validated once more and, where the
        settings say so, the best ones exported.
        """
        settings, progress = self.settings, self.progress
        window = _Window()
        with self._signals():
            while not self._ends():
                for indices in self._plan(progress.epoch)[progress.position :]:
                    started = time.perf_counter()
                    window.add(*self._step(indices))
                    progress.step += 1
                    progress.position += 1
                    if progress.step % settings.validate_every == 0:
                        self._validate()
                    progress.seconds += time.perf_counter() - started
                    if progress.step % settings.log_every == 0:
                        self._log(window)
                        window = _Window()
                    if progress.step % settings.checkpoint_every == 0:
                        self._save_state()
                    if self._ends():
                        break
                else:
                    progress.epoch, progress.position = progress.epoch + 1, 0
            finished = self._finished()
            if finished and progress.validated_step != progress.step:
                self._validate()
            self._save_state()
        if not finished:
            self.report(f"stopped at step {progress.step:,}; run the same command again to continue")
            return False
        self.report(f"best at step {progress.best_step:,}: {_describe(progress.best)}")
        if settings.export is not None and self.group.leads:
            record = {"steps": progress.step, "best_step": progress.best_step, "validation": progress.best}
            record["minutes"] = round(progress.seconds / 60, 1)
            export_model(settings, record, settings.export)
            self.report(f"exported to {settings.export}")
        return True

    def _plan(self, epoch: int) -> list[np.ndarray]:
        return plan_batches(self.lengths, self.settings.batch_tokens, seed=(self.settings.seed, epoch))

    def _fraction(self) -> float:
        """Return how much of the schedule is behind, 0 to 1: the furthest of steps and time."""
        done = [0.0]
        if self.total_steps is not None:
            done.append(self.progress.step / self.total_steps)
        if self.settings.minutes is not None:
            done.append(self.progress.seconds / (60 * self.settings.minutes))
        return max(done)

    def _finished(self) -> bool:
        settings, progress = self.settings, self.progress
        if settings.patience is not None and progress.validated_step:
            stale = (progress.validated_step - progress.best_step) // settings.validate_every
            if stale >= settings.patience:
                return True
        return self._fraction() >= 1.0

    def _ends(self) -> bool:
        """Decide for all processes whether to go on, and tell them rank 0's clock and best step."""
        progress = self.progress
        (stop,) = self.group.sum_numbers([float(self._stop)])
        self._stop = stop > 0
        progress.seconds, best_step = self.group.broadcast([progress.seconds, float(progress.best_step)])
        progress.best_step = int(best_step)
        return self._stop or self._finished()

    def _rate(self) -> float:
        settings = self.settings
        factor = rate_factor(
            self.progress.step, self._fraction(), warmup_steps=settings.warmup_steps, decay=settings.decay
        )
        return settings.learning_rate * factor

    def _step(self, indices: np.ndarray) -> tuple[float, float, int]:
        """Update the weights from one batch.

        Returns this process's part of the batch's mean loss and of its mean negative log-likelihood, and the source
        tokens of the whole batch.
        """
        config = self.model.config
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pairs = self.lead_pairs if self.progress.step < self.settings.lead_steps else self.pairs
        n_labels = sum(len(pairs.targets[i]) for i in indices)
        n_tokens = sum(self.lengths[i] for i in indices)
        loss_part = nll_part = 0.0
        for part in self._parts(self.group.share(indices)):
            batch = collate(
                pairs,
                part,
                pad_token_id=config.pad_token_id,
                decoder_start_token_id=config.decoder_start_token_id,
            )
            batch, hidden = self._mask_sources(batch)
            batch = batch.to(self.device)
            with self._forward_context():
                output = self.model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    decoder_input_ids=batch.decoder_input_ids,
                    use_cache=False,
                )
                loss, nll = smoothed_cross_entropy(output.logits, batch.labels, self.settings.label_smoothing)
                loss = loss * (sum(len(pairs.targets[i]) for i in part) / n_labels)
                if self.settings.mlm_weight and hidden is not None:
                    share = sum(self.lengths[i] for i in part) / n_tokens
                    mlm = self._mlm_loss(output.encoder_last_hidden_state, hidden.to(self.device))
                    loss = loss + self.settings.mlm_weight * share * mlm
            loss.backward()
            loss_part += float(loss.detach())
            nll_part += float(nll) * sum(len(pairs.targets[i]) for i in part) / n_labels
        self.group.sum_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return loss_part, nll_part, n_tokens

    def _parts(self, indices: np.ndarray) -> list[np.ndarray]:
        """Cut this process's share of a batch into what is computed at once."""
        at_once = self.settings.micro_batch_tokens
        if at_once is None or not len(indices):
            return [indices] if len(indices) else []
        tokens = max(self.lengths[i] for i in indices) * len(indices)
        return np.array_split(indices, min(len(indices), math.ceil(tokens / at_once)))

    @contextlib.contextmanager
    def _forward_context(self) -> Iterator[None]:
        """Choose the forward pass's precision and attention."""
        with contextlib.ExitStack() as stack:
            if self.device.type == "cpu":
                # At these lengths the fused CPU kernel's backward pass takes longer than three plain matrix products.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.autocast_dtype is not None:
                stack.enter_context(torch.autocast(self.device.type, dtype=self.autocast_dtype))
            yield

    def _mask_sources(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Hide a random share of the source tokens; returns the labels of what is hidden [B, S], None where nothing is."""
        share = self.settings.source_masking
        if not share:
            return batch, None
        assert self.tokenizer.mask_token_id is not None
        drawn = int(torch.randint(2**62, ()))  # of the generator that a continued run restores
        random = np.random.default_rng(drawn)
        rows = [
            mask_tokens(ids, self.ordinary_ids, self.tokenizer.mask_token_id, random, share=share)
            for ids in batch.input_ids.numpy()
        ]
        ids, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True))
        return dataclasses.replace(batch, input_ids=ids), labels

    def _mlm_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, a scalar, of the hidden tokens under the encoder's states [B, S, D].

        The output layer is the token embedding, as in the decoder. Zero where nothing is hidden.
        """
        hidden = labels != IGNORED
        if not hidden.any():
            return states.new_zeros(())
        logits = F.linear(states[hidden], self.model.get_input_embeddings().weight)
        return F.cross_entropy(logits.float(), labels[hidden])

    def _validate(self) -> None:
        """Measure the averaged weights, in rank 0, and keep them if they are the best so far."""
        settings, progress = self.settings, self.progress
        progress.validated_step = progress.step
        if not self.group.leads:
            return
        self.average.swap()
        try:
            measured: Validation = validate(
                self.model,
                self.tokenizer,
                self.validation_texts,
                self.validation_pairs,
                batch_tokens=settings.batch_tokens,
                n_summaries=settings.validation_rows or len(self.validation_texts),
                max_new_tokens=settings.max_target_tokens - 1,
            )
            score = measured.score(settings.select_by)
            better = score > progress.best_score
            if better:
                progress.best_score, progress.best_step = score, progress.step
                progress.best = dataclasses.asdict(measured)
                save_directory(self.model, self.tokenizer, settings.output / "best")
        finally:
            self.average.swap()
        values = dataclasses.asdict(measured)
        assert self.record is not None
        self.record.write(progress.step, {"validation": values, "best": better})
        self.record.draw()
        self.report(f"step {progress.step:,} validation: {_describe(values)}{' (best)' if better else ''}")

    def _log(self, window: _Window) -> None:
        progress = self.progress
        loss, nll, speed = window.means()
        loss, nll = self.group.sum_numbers([loss, nll])
        fraction = self._fraction()
        left = progress.seconds * (1 - fraction) / fraction if fraction else math.inf
        values = {
            "epoch": progress.epoch,
            "loss": round(loss, 4),
            "nll": round(nll, 4),
            "rate": self._rate(),
            "tokens_per_second": round(speed),
            "minutes": round(progress.seconds / 60, 2),
            "minutes_left": round(left / 60, 1) if math.isfinite(left) else None,
        }
        if self.record is not None:
            self.record.write(progress.step, values)
        shown = {"step": progress.step, **values}
        self.report("  ".join(f"{name} {value:,.4g}" for name, value in shown.items() if value is not None))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {progress.step}: lower learning_rate or use precision fp32"
            )

    def _save_state(self) -> None:
        """Write everything that a resumed run needs; a crash in between leaves the former state whole."""
        path = self.settings.output / STATE_FILE
        state = {
            "settings": self.settings.model_dump_json(),
            "progress": dataclasses.asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "random": self.group.gather(torch.get_rng_state()),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        if not self.group.leads:
            return
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _load_state(self) -> None:
        path = self.settings.output / STATE_FILE
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        check_continuation(state["settings"], self.settings)
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        if self.group.rank < len(state["random"]):
            torch.set_rng_state(state["random"][self.group.rank])
        if "random_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into a stop after the present step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            self._stop = True

        former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


class _Window:
    """Sums between two log lines."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.n_steps = self.n_tokens = 0
        self.loss = self.nll = 0.0

    def add(self, loss: float, nll: float, n_tokens: int) -> None:
        self.n_steps += 1
        self.loss += loss
        self.nll += nll
        self.n_tokens += n_tokens

    def means(self) -> tuple[float, float, float]:
        """Return the mean loss, the mean negative log-likelihood and the source tokens per second."""
        seconds = time.perf_counter() - self.started
        return self.loss / self.n_steps, self.nll / self.n_steps, self.n_tokens / seconds


def _silent(line: str) -> None:
    """Say nothing: what the processes other than rank 0 report with."""


def _describe(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _optimizer(parameters: list[nn.Parameter], settings: FinetuneSettings) -> torch.optim.Optimizer:
    rate, weight_decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        # The second moment over 50 steps, as is usual for transformers: their gradients grow suddenly.
        return torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.98), eps=1e-9, weight_decay=weight_decay, fused=True
        )
    # A mean loss has gradients whose squares lie below the default floor (float32's epsilon), which would then stand in
    # for the variance; the floor is only there against division by zero.
    return torch.optim.Adafactor(parameters, lr=rate, eps=(1e-15, 1e-3), weight_decay=weight_decay)


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type that autocast computes in, or None for float32 throughout."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    features = torch.cpu.get_capabilities()
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else None
