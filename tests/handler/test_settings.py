"""model-config.yaml, checked where TorchServe would be silent."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from maskx_image import MAX_PIXELS, MAX_SIDE
from maskx_settings import SERVER_KEYS, Limits, read_settings


def test_the_shipped_configuration_is_accepted_and_says_what_the_defaults_are(root: Path) -> None:
    shipped = yaml.safe_load((root / "serve_config" / "model-config.yaml").read_text())
    settings = read_settings(shipped)
    assert settings.device_type == ""
    assert settings.limits == Limits()


def test_the_shipped_limits_on_bytes_stay_below_those_of_the_server(root: Path) -> None:
    lines = (root / "serve_config" / "config.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert Limits().max_answer_bytes < int(properties["max_response_size"])
    assert Limits().max_image_bytes < int(properties["max_request_size"])


def test_no_configuration_gives_the_defaults() -> None:
    assert read_settings(None) == read_settings({})
    assert read_settings(None).limits == Limits(max_pixels=MAX_PIXELS, max_side=MAX_SIDE)


def test_the_own_section_sets_the_limits() -> None:
    limits = read_settings({"deviceType": "cpu", "maskx": {"max_side": 100, "max_images": 1}}).limits
    assert limits == Limits(max_side=100, max_images=1)


def test_who_decodes_is_chosen_by_the_machine_unless_somebody_says_it() -> None:
    assert read_settings({}).decode == "auto"
    assert read_settings({"maskx": {"decode": "gpu"}}).decode == "gpu"


def test_the_engine_is_chosen_by_what_the_archive_brings_unless_somebody_says_it() -> None:
    assert read_settings({}).engine == "auto"
    assert read_settings({"maskx": {"engine": "torchscript"}}).engine == "torchscript"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batchsize": 4}, "unknown key 'batchsize'; did you mean batchSize?"),
        ({"zzz": 1}, "unknown key 'zzz'; known are "),
        ({7: 1}, "unknown key 7"),
        ({"deviceType": "cuda"}, "deviceType is 'cuda'; allowed are cpu, gpu"),
        ({"maxBatchDelay": 0}, "maxBatchDelay is 0; a whole number of at least 1"),
        ({"batchSize": "4"}, "batchSize is '4'"),
        ({"batchSize": True}, "batchSize is True"),
        ({"maskx": {"max_pixel": 1}}, "section maskx: unknown key 'max_pixel'; did you mean max_pixels?"),
        ({"maskx": {"max_pixels": -1}}, "maskx.max_pixels is -1"),
        ({"maskx": {"max_image": 3}}, "unknown key 'max_image'; did you mean max_images?"),
        ({"maskx": {"images_together": 0}}, "maskx.images_together is 0; a whole number of at least 1"),
        ({"maskx": {"decode": "cuda"}}, "maskx.decode is 'cuda'; allowed are auto, cpu, gpu"),
        ({"maskx": {"engine": "onnx"}}, "maskx.engine is 'onnx'; allowed are auto, torchscript, compiled"),
        ({"jobQueueSize": 0}, "jobQueueSize is 0; a whole number of at least 1"),
        ({"maskx": 3}, "maskx is 3; a section"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(config: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(config)


def test_keys_that_only_other_kinds_of_models_use_are_refused() -> None:
    assert not {"continuousBatching", "asyncCommunication", "parallelType"} & SERVER_KEYS
