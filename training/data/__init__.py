"""COCO files and images, as training and evaluation read them."""
