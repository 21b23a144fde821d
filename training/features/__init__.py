"""What the frozen detector sees of each view of an image, kept on disk for the stage that trains masks on it."""
