"""Boxes: proposals, the box head, suppression, pooling."""
