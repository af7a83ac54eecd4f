"""What ``generate`` means: which tokens are searched, scored and returned."""

from pegasus_batch.generation.processors import EditPlanner, Edits
from pegasus_batch.generation.search import Decoder, Hypothesis, generate, pad_sequences

__all__ = ["Decoder", "EditPlanner", "Edits", "Hypothesis", "generate", "pad_sequences"]
