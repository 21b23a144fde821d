"""The files of a set's images: found under near names, and what happens where they break during a training."""
