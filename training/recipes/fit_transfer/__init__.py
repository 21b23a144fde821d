"""T in closed form (Sec. 3.2) for a finished class-specific Mask R-CNN: its classes are pairs (w_det, w_seg)."""
