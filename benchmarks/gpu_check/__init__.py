"""`make gpu-check`: whether all of it works on a GPU, and how fast; one command without a network, in 8 minutes.

    python -m benchmarks.gpu_check [--minutes 8] [--checkpoint build/train/checkpoint.pt] [--out FOLDER]

The most important comes first, and each result is written as soon as it is there. A part that fails or takes too long
costs only itself. Without a GPU it is a short form on the CPU, which shows that every part runs, and says so.
"""
