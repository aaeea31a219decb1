"""Checkpoints with random weights, of any size, written tensor by tensor."""
