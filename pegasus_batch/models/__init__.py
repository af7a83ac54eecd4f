"""Pegasus and BART as torch modules: forward passes, losses, generate."""
