"""Starts, watches, changes and stops TorchServe on this machine; imports nothing else of the project."""
