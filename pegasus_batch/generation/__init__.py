"""What ``generate`` means: which tokens are searched, scored and returned."""

from pegasus_batch.generation.choice import Hypothesis
from pegasus_batch.generation.processors import EditPlanner, Edits
from pegasus_batch.generation.search import Search, generate, pad_sequences
from pegasus_batch.generation.stepwise import Decoder

__all__ = ["Decoder", "EditPlanner", "Edits", "Hypothesis", "Search", "generate", "pad_sequences"]
