"""Average precision, and sheets of predictions."""
