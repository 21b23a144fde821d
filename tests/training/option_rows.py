"""Every option of the method, in as few trainings of a tiny network as have each value of each once.

A row is what changes from `BASE`, in the form of the command line. {shapes} and {figures} are drawn sets, {words} is a
file of word vectors. A new option needs a value in a row here, or its own test in `ELSEWHERE`; and a line in
docs/training.md.
"""

from tests.training.tiny_set import SMALLEST

BASE = [
    "data.train_images={shapes}/train",
    "data.train_annotations={shapes}/train.json",
    "data.val_images={shapes}/val",
    "data.val_annotations={shapes}/val.json",
    "data.mask_classes={shapes}/mask_classes.txt",
    *SMALLEST,
    "output.log_every=5",
    "optimiser.learning_rate=1e-3",
    "model.rpn.post_nms_train=40",
    "model.rpn.pre_nms_test=60",
    "model.rpn.post_nms_test=20",
    "model.box.rois_per_image=16",
    "teacher.weight=0",
    "model.mask.roi_size=8",
    "schedule.batch_size=2",
    "schedule.warmup_steps=2",
    "schedule.detector_steps=10",
    "schedule.mask_steps=10",
]
"""On training/presets/shapes.toml: 20 steps, stage by stage; large networks make 2."""

END_TO_END = ["schedule.end_to_end_steps=20", "schedule.detector_steps=0", "schedule.mask_steps=0"]
PAPER = ["model.transfer.normalise=false", "model.transfer.residual=false"]
PROPOSALS = ["model.mask.train_on=proposals", "model.mask.jitter=0"]
SPECIFIC = ["model.transfer.kind=class_specific", "data.mask_classes=all"]
SGD = ["optimiser.name=sgd", "optimiser.learning_rate=0.005"]
CAM = ["model.box.head=conv", "model.mask.prior=cam"]
FIGURES = [
    "data.train_images={figures}/train",
    "data.train_annotations={figures}/train.json",
    "data.val_images={figures}/val",
    "data.val_annotations={figures}/val.json",
    "data.mask_classes=all",
    "model.keypoints.width=8",
    "model.keypoints.convolutions=1",
    "model.keypoints.roi_size=7",
]
LARGE = ["schedule.detector_steps=1", "schedule.mask_steps=1", "output.log_every=1"]
"""For large networks: a step of each stage."""
HELD = [*LARGE, "model.backbone.trainable_layers=0"]
"""For deep backbones, which are passed through and not trained."""

ROWS: dict[str, list[str]] = {
    "the preset": [],
    "exact Mask^X, end to end, SGD": [
        *END_TO_END, *PAPER, *PROPOSALS, *SGD, "model.transfer.input=cls+box", "model.transfer.layers=2",
        "model.transfer.init=fan_out", "schedule.decay=multi_step", "model.rpn.spacing=stride", "model.rpn.straddle=0",
        "model.rpn.images_together=2", "model.box.init=xavier", "model.box.smooth_l1_beta=1", "optimiser.bias_rate=2",
        "data.skip_empty=true", "data.crowd_as_objects=true",
        "data.names=lenient", "data.decode_first=true",
    ],
    "T of 3 layers with ReLU on box, no stop-gradient, colours": [
        *END_TO_END, *PAPER, "model.transfer.input=box", "model.transfer.layers=3", "model.transfer.activation=relu",
        "model.transfer.stop_gradient=false", "schedule.decay=none", "augment.brightness=0.2", "augment.contrast=0.2",
        "augment.saturation=0.2", "augment.hue=0.1", "augment.on_device=true",
    ],
    "class-agnostic with the official MLP, bfloat16": [
        *PROPOSALS, "model.transfer.kind=class_agnostic", "model.mask.mlp=official", "precision=bfloat16",
        "channels_last=true", "model.mask.stage_rois=set_a", "model.rpn.post_nms_frozen=30",
    ],
    "random rows, dropout and noise, ResNet-18, automatic precision": [
        "model.backbone.name=resnet18", "model.backbone.norm=frozen", "model.transfer.input=random",
        "model.transfer.random_rows=word", "model.transfer.vector_width=6", "model.transfer.dropout=0.2",
        "model.transfer.noise=0.1", "model.mask.mlp=none", "precision=auto",
    ],
    "words, and a threshold of set B": [
        *PAPER, "model.transfer.input=words", "model.transfer.word_vectors={words}", "model.transfer.vector_width=4",
        "model.transfer.mask_threshold=0.4",
    ],
    "class-specific masks under a softmax, MLP head": [
        *SPECIFIC, "model.mask.loss=softmax", "model.mask.head=mlp", "model.mask.mlp=none",
    ],
    "class-specific masks, 8 convolutions, end to end": [*END_TO_END, *SPECIFIC, "model.mask.convolutions=8"],
    "hourglass-20 with the prior, box losses and a teacher": [
        *CAM, "model.mask.head=hourglass20", "box_losses.projection=1", "box_losses.pairwise=1", "teacher.weight=0.5",
        "teacher.warmup_steps=2",
    ],
    "hourglass-52 on jittered boxes, in parts": [
        *LARGE, "model.mask.head=hourglass52", "model.mask.roi_size=32", "model.mask.jitter=0.1",
        "schedule.accumulate=2",
    ],
    "the prior end to end with box losses and a teacher": [
        *END_TO_END, *CAM, *PROPOSALS, "box_losses.projection=1", "box_losses.pairwise=1", "teacher.weight=0.5",
        "teacher.warmup_steps=2",
    ],
    "torchvision's second detectors: ResNet-34, conv_fc, deeper RPN, unaligned": [
        "model.backbone.name=resnet34", "model.backbone.norm=frozen", "model.box.head=conv_fc",
        "model.rpn.convolutions=2", "model.box.aligned=false", "model.input.rounding=down",
    ],
    "C4: masks on conv5": [
        *END_TO_END, "model.backbone.norm=frozen", "model.box.head=res5", "model.box.roi_size=4", "model.box.width=192",
        "model.mask.head=res5", "model.mask.roi_size=4",
    ],
    "EfficientNet-Lite0, bicubic RoIAlign, several scales, one to a step": [
        *LARGE, "model.backbone.name=efficientnet_lite0", "model.backbone.norm=frozen", "model.box.pooling=bicubic",
        "model.mask.pooling=bicubic", "augment.min_sizes=[48, 64]", "augment.min_sizes_per=step",
    ],
    "ResNet-50 with SyncBN, RoIPool, large-scale jitter": [
        *LARGE, "model.backbone.name=resnet50", "model.backbone.norm=sync", "model.box.pooling=roi_pool",
        "model.mask.pooling=roi_pool", "augment.scale_jitter=[0.5, 2.0]",
    ],
    "ResNet-101, several scales": [
        *HELD, "model.backbone.name=resnet101", "model.backbone.norm=frozen", "augment.min_sizes=[48, 64]",
        "model.backbone.stride_in=1x1", "model.rpn.anchors=detectron", "model.box.inclusive=true",
    ],
    "ResNeXt-101 32x8d": [
        *HELD, "model.backbone.name=resnext101_32x8d", "model.backbone.norm=frozen", "model.rpn.anchors=exact",
    ],
    "ResNeXt-101 64x4d": [*HELD, "model.backbone.name=resnext101_64x4d", "model.backbone.norm=frozen"],
    "group norm, focal losses": [
        "model.backbone.norm=group", "model.rpn.loss=focal", "model.box.loss=focal", "model.input.pixels=detectron",
    ],
    "keypoints of the set's own": [
        *END_TO_END, *FIGURES, "model.keypoints.layout=own", "model.keypoints.names={keypoints}",
        'model.keypoints.classes=["figure"]',
    ],
    "COCO's keypoints": [
        *FIGURES, "data.train_annotations={figures}/coco.json", "data.val_annotations=", "model.keypoints.layout=coco",
        'model.keypoints.classes=["figure"]',
    ],
}  # fmt: skip

ELSEWHERE: dict[str, str] = {
    "augment.swapped_classes": "tests/training/data/test_sides.py::"
    "test_a_training_with_pairs_goes_through_and_says_no_hint",
    "augment.views": "tests/training/features/test_kept.py::"
    "test_masks_learn_the_same_to_the_last_bit_from_kept_features",
    "data.features": "tests/training/features/test_kept.py::"
    "test_masks_learn_the_same_to_the_last_bit_from_kept_features",
    "device=auto": "tests/training/test_train.py::test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error",
    "device=cuda": "tests/training/test_train.py::test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error",
    "output.tensorboard=true": "tests/training/test_train.py::test_tensorboard_gets_the_figures_of_the_log",
    "model.transfer.kept_mean=true": "tests/model/masks/test_weight_transfer.py::"
    "test_a_kept_mean_gives_the_masks_of_before_whatever_classes_come",
    "model.transfer.kept_rows=true": "tests/model/masks/test_weight_transfer.py::"
    "test_classes_with_kept_rows_have_these_and_t_speaks_for_the_others",
    "schedule.classes_steps": "tests/training/test_start.py::test_steps_for_new_classes_want_a_start",
    "data.start_from": "tests/training/test_start.py::"
    "test_a_training_starts_from_a_checkpoint_and_goes_on_without_it",
    "data.detector_from": "tests/training/test_train.py::test_a_finished_detector_is_taken_from_another_run",
}
"""What is no training of a row, key or key=value, and its own test."""

AMOUNTS = (
    "data.train_", "data.val_", "data.workers", "output.", "validate_transfer.", "loss_weights.", "optimiser.",
    "seed", "threads", "schedule.batch_size", "schedule.warmup_", "schedule.milestones", "schedule.gamma",
    "schedule.final", "model.input.", "model.backbone.fpn_channels", "model.rpn.", "model.box.",
    "model.mask.sampling_ratio", "model.keypoints.", "augment.horizontal_flip", "box_losses.", "teacher.",
)  # fmt: skip
"""Keys of places, sizes, rates and weights, which every training has. What chooses among words, or is true or false,
is an option whatever its key."""
