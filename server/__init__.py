"""TorchServe's configuration, and the commands that start, probe and stop it; imports nothing of the project."""
