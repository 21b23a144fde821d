"""Which mask to trust for an object that has a box alone: judged where the truth is known, never by set B's own."""
