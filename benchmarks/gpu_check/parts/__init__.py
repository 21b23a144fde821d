"""The parts of `make gpu-check`, a module each; `measure` is what `benchmarks.gpu_check.one_part` calls."""
