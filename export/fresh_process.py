"""Runs maskx.pt where there is no project: imports torch and torchvision, nothing else, and is itself not imported.

`verify` starts it with `python -I` in an empty folder: fresh_process.py MODEL INPUTS OUTPUTS. INPUTS holds the number
of threads, whether batched or not, and a list of argument tuples, OUTPUTS is what the file answered, both written by
`torch.save`.
"""

import sys

import torch
import torchvision  # noqa: F401  registers the operators roi_align and nms


def main() -> None:
    """Load, answer, and save the answers with the names of all modules that were imported."""
    model_path, inputs_path, outputs_path = sys.argv[1:]
    # As whoever serves the file does (maskx_engine): nothing is compiled, and a method is optimised in its first run.
    torch._C._jit_set_texpr_fuser_enabled(False)
    torch.jit.set_fusion_strategy([("STATIC", 0)])
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
