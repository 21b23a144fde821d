"""TorchServe's package leaves a file open while it is imported; that is its business, not a failure of a test."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    import ts.context  # noqa: F401
