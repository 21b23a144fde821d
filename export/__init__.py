"""Checkpoint -> TorchScript (weight transfer baked, run lengths inside), verified -> model archive."""
