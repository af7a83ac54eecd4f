"""Training: pairs in, a model directory out. Plain PyTorch; imports models and tokenization, never the reverse."""
