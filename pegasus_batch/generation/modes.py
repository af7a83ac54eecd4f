"""Which choice carries out a set of options: a fast one wherever that can, else one that asks more of PyTorch and Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.candidates import CandidateBeamChoice
from pegasus_batch.generation.choice import BeamChoice, GreedyChoice
from pegasus_batch.generation.constraints import ConstrainedBeamChoice
from pegasus_batch.generation.groups import GroupBeamChoice
from pegasus_batch.generation.processors import EditPlanner
from pegasus_batch.generation.recording import Recorder
from pegasus_batch.generation.rows import RowChoice
from pegasus_batch.generation.steering import Steering

Choice = GreedyChoice | BeamChoice | GroupBeamChoice


def make_choice(
    options: GenerationConfig,
    callbacks: Callbacks,
    source_ids: Sequence[Sequence[int]],
    prompt_length: int,
    planner: EditPlanner,
    recorder: Recorder | None,
    device: torch.device,
) -> Choice:
    """Return what chooses the tokens of a search; ValueError where options and callbacks contradict each other."""
    beams = options.num_beams > 1
    if callbacks.constraints and (not beams or options.num_beam_groups > 1 or options.do_sample):
        raise ValueError("constraints need num_beams above 1, and neither num_beam_groups nor do_sample")
    if callbacks.streamer is not None and beams:
        raise ValueError(f"a streamer gets tokens that stay: set num_beams=1, it is {options.num_beams}")
    steering = Steering(options, callbacks, source_ids, planner, recorder)
    size = (options, prompt_length, planner.max_length, device)
    if has_own_pools(options, callbacks):
        return (GroupBeamChoice if options.num_beam_groups > 1 else ConstrainedBeamChoice)(*size, steering)
    if options.do_sample or callbacks.logits_processor or steering.rules or callbacks.streamer is not None:
        return (CandidateBeamChoice if beams else RowChoice)(*size, steering)
    return (BeamChoice if beams else GreedyChoice)(*size)


def has_own_pools(options: GenerationConfig, callbacks: Callbacks) -> bool:
    """Tell whether the pools are those of groups and constraints, whose rows transformers pads otherwise."""
    return options.num_beam_groups > 1 or options.force_words_ids is not None or bool(callbacks.constraints)
