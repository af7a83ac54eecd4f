"""Start a training run: in this process, or in several of a Ray cluster."""

from __future__ import annotations

import torch

from pegasus_batch.pipeline.cluster import ray_session, termination_unwinds
from pegasus_batch.training.finetune import Finetuner
from pegasus_batch.training.parallel import PATIENCE
from pegasus_batch.training.settings import FinetuneSettings


def train(settings: FinetuneSettings) -> bool:
    """Carry out a run; returns whether it reached its end, False if it was stopped and can be continued.

    With ``settings.workers`` Ray Train starts as many processes on the cluster, one GPU each if the device is "cuda";
    they share every batch. The paths of the settings must be the same directories on every machine. A worker that dies
    is replaced and all go on from the last state; so does the same command after the death of this process.
    """
    if settings.workers is None:
        return Finetuner(settings).run()
    on_gpu = torch.device(settings.device).type == "cuda"
    absolute = {name: value.resolve() for name, value in settings if hasattr(value, "resolve")}
    with ray_session(shows_workers=True), termination_unwinds():
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        trainer = TorchTrainer(
            _train_share,
            train_loop_config={"settings": settings.model_copy(update=absolute).model_dump_json()},
            scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=on_gpu),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(settings.output.resolve()),
                failure_config=FailureConfig(max_failures=3),
            ),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=int(PATIENCE.total_seconds())),
        )
        trainer.fit()
    return True


def _train_share(config: dict[str, str]) -> None:
    """Run in each worker: the same loop as alone, on a share of every batch."""
    Finetuner(FinetuneSettings.model_validate_json(config["settings"])).run()
