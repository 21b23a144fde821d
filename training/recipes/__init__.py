"""Trainings in several steps, and checkpoints made of others."""
