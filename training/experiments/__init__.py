"""Grids of trainings and what they are compared by."""
