"""A backbone with what tests change least about it."""

from model.backbones import Backbone, build_backbone


def build(name: str = "small", **changes: object) -> Backbone:
    """Not pretrained, of 16 channels, batch normalisation, all of it trained."""
    arguments = {"weights": "none", "fpn_channels": 16, "norm": "batch", "trainable_layers": 5, **changes}
    return build_backbone(name=name, **arguments)  # type: ignore[arg-type]
