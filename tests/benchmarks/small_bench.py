"""A small calibrated network of the bench, both sides: ResNet-50-FPN at 96 pixels, few proposals and classes."""

from dataclasses import dataclass
from pathlib import Path

from torchvision.models.detection import MaskRCNN

from benchmarks.pictures import photograph
from benchmarks.speed.calibration import Reached, calibrate
from benchmarks.speed.network import (
    class_names,
    config_of_size,
    with_as_many_pairs,
    with_weights_of,
    write_served,
)
from benchmarks.speed.peer import build_peer, decode_to_float, pixels_of
from model.inference import Inference

CLASSES = 12
PROPOSALS = 120
PAIRS = 90
MIN_SIZE, MAX_SIZE = 96, 160
WIDTH, HEIGHT = 160, 96
"""Of the picture: the network's own size, so that neither side resizes."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """peer and ours have the same weights; served and pairs_ours are of ours with its own background logit."""

    picture: bytes
    file: str
    """Where the picture lies."""
    peer: MaskRCNN
    reached: Reached
    ours: Inference
    served: Path
    pairs_ours: int


def make_bench(folder: Path) -> Bench:
    """The same numbers each time."""
    picture = photograph(WIDTH, HEIGHT, seed=1)
    peer = build_peer(CLASSES, min_size=MIN_SIZE, max_size=MAX_SIZE)
    peer.rpn._post_nms_top_n["testing"] = PROPOSALS
    reached = calibrate(peer, decode_to_float(picture), pairs=PAIRS)
    ours, served = (
        fewer_proposals(with_weights_of(peer, config_of_size(MIN_SIZE, MAX_SIZE))) for _ in range(2)
    )
    pairs_ours = with_as_many_pairs(served, pixels_of(picture), PAIRS)
    path = folder / "maskx.pt"
    write_served(served, class_names(CLASSES), config_of_size(MIN_SIZE, MAX_SIZE), path)
    file = folder / "picture.jpg"
    file.write_bytes(picture)
    return Bench(
        picture=picture,
        file=str(file),
        peer=peer,
        reached=reached,
        ours=ours,
        served=path,
        pairs_ours=pairs_ours,
    )


def fewer_proposals(network: Inference) -> Inference:
    """The same, with as many proposals as the small peer keeps."""
    network.rpn._post_nms_top_n["testing"] = PROPOSALS
    return network
