"""Folders of images: many requests at once, and what is known of them."""
