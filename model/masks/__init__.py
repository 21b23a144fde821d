"""Masks: the head, the weight transfer function, run lengths, what boxes alone teach."""
