"""Runs maskx.pt where there is no project: imports torch and torchvision, nothing else.

`verify` starts it with `python -I` in an empty folder: fresh_process.py MODEL INPUTS OUTPUTS. INPUTS holds the number
of threads, whether batched or not, and a list of argument tuples, OUTPUTS is what the file answered, both written by
`torch.save`.
"""

import sys

import torch
import torchvision  # noqa: F401  registers the operators roi_align and nms


def fusers_off() -> None:
    """Keeps TorchScript from compiling kernels by what it has seen, as whoever serves the file does (maskx_engine).

    On a GPU its fusers compile for every new shape, and fail for bfloat16 tensors without elements.
    """
    for name in (
        "_jit_set_texpr_fuser_enabled",
        "_jit_override_can_fuse_on_gpu",
        "_jit_override_can_fuse_on_cpu",
        "_jit_override_can_fuse_on_cpu_legacy",
    ):
        if hasattr(torch._C, name):
            getattr(torch._C, name)(False)
    torch.jit.set_fusion_strategy([("STATIC", 0)])


def main() -> None:
    """Load, answer, and save the answers with the names of all modules that were imported."""
    model_path, inputs_path, outputs_path = sys.argv[1:]
    fusers_off()
    inputs = torch.load(inputs_path, weights_only=True)
    torch.set_num_threads(inputs["threads"])
    model = torch.jit.load(model_path, map_location="cpu")
    answers = []
    with torch.inference_mode():
        for model.batched, case in inputs["cases"]:
            answers.append(model(*case))
    modules = sorted({name.split(".")[0] for name in sys.modules})
    torch.save({"answers": answers, "modules": modules}, outputs_path)


if __name__ == "__main__":
    main()
