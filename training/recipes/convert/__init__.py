"""Weights of others made checkpoints of this project: torchvision's, detectron2's, Detectron's, the paper's own."""
