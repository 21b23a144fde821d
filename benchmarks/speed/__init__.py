"""Time and memory of one request, beside torchvision and the machine's own limit."""
