"""Images/s of training beside torchvision's reference step."""
