"""The adapter to TorchServe, with TorchServe's own context and loader."""

import gc
import gzip
import json
import logging
import queue
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.protocol.otf_message_handler import retrieve_msg
from ts.utils.util import PredictionException, list_classes_from_module

import maskx_handler
from maskx_answer import LEAST_COMPRESSED
from maskx_handler import MaskXHandler, end_after_answering
from maskx_metrics import KINDS
from maskx_served import choose_device
from tests.served.standin import DEVICE_FAULT, plain, png, scene

REST = {"Host": "127.0.0.1:8080", "body": {"content-type": "image/png"}}
GRPC = {"data": {"content-type": ""}}


def context_of(
    model_dir: Path, config: dict[str, Any] | None = None, gpu_id: int | None = None, metrics: Any = None
) -> Context:
    manifest = {"model": {"serializedFile": "maskx.pt", "modelVersion": "1.0"}}
    return Context("maskx", str(model_dir), manifest, 8, gpu_id, "0.12.0", True, metrics, config)


@pytest.fixture
def model_dir(standin: Path) -> Path:
    return standin.parent


@pytest.fixture
def context(model_dir: Path) -> Context:
    return context_of(model_dir, {"deviceType": "cpu"})


@pytest.fixture
def handler(context: Context) -> MaskXHandler:
    handler = MaskXHandler()
    handler.initialize(context)
    return handler


def asked_by(context: Context, *headers: dict[str, Any]) -> Context:
    context.request_processor = [RequestProcessor(dict(one)) for one in headers]
    return context


def test_torchserve_finds_exactly_one_class_and_no_function_to_call() -> None:
    assert list_classes_from_module(maskx_handler) == [MaskXHandler]
    assert not hasattr(maskx_handler, "handle")
    assert MaskXHandler.__mro__[1:] == (object,)


def test_answers_are_bytes_in_order_with_a_content_type_and_a_status_each(
    handler: MaskXHandler, context: Context
) -> None:
    asked_by(context, REST, REST, GRPC)
    answers = handler.handle(
        [{"body": png(scene(width=41))}, {"body": b"?"}, {"data": png(scene(width=42))}], context
    )
    assert [type(answer) for answer in answers] == [bytes] * 3
    assert [context.get_response_status(i)[0] for i in range(3)] == [200, 400, 200]
    assert {context.get_response_content_type(i) for i in range(3)} == {"application/json"}
    assert json.loads(answers[0])["image"]["width"] == 41 and json.loads(answers[2])["image"]["width"] == 42
    assert json.loads(answers[1])["error"]["code"] == 400


def test_a_bad_request_alone_over_grpc_is_raised_for_a_true_status_with_the_body_as_text(
    handler: MaskXHandler, context: Context
) -> None:
    over_rest = handler.handle([{"body": b"?"}], asked_by(context, REST))[0]
    with pytest.raises(PredictionException) as raised:
        handler.handle([{"data": b"?"}], asked_by(context, GRPC))
    assert raised.value.error_code == 400
    assert raised.value.message.encode() == over_rest


def test_a_bad_request_over_grpc_never_costs_its_batch_the_answers(
    handler: MaskXHandler, context: Context
) -> None:
    answers = handler.handle([{"data": b"?"}, {"data": png(scene())}], asked_by(context, GRPC, GRPC))
    assert [b"error" in answer for answer in answers] == [True, False]


def test_answers_of_grpc_alone_say_that_a_stream_ends_with_them(
    handler: MaskXHandler, context: Context
) -> None:
    """Without it TorchServe 0.12 ends the worker on StreamPredictions; over REST it would drop the answer's head."""
    image = png(scene())
    requests = [{"data": image}, {"body": image}, {"data": b"?"}]
    handler.handle(requests, asked_by(context, GRPC, REST, GRPC))
    said = [context.get_response_headers(i).get("ts_stream_next") for i in range(3)]
    assert said == ["false", None, "false"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "a"},
        {"HOST": "a"},
        {"Accept": "*/*", "Host": "a"},
        {"content-length": "1"},
        {"Content-Length": "0"},
    ],
)
def test_rest_is_told_by_its_host_or_length_header_in_any_spelling(
    handler: MaskXHandler, context: Context, headers: dict[str, str]
) -> None:
    assert b"error" in handler.handle([{"body": b"?"}], asked_by(context, headers))[0]


def test_a_field_of_grpc_called_host_makes_no_rest_of_it(handler: MaskXHandler, context: Context) -> None:
    fields = {"data": {"content-type": ""}, "host": {"content-type": ""}}
    with pytest.raises(PredictionException, match="unknown parameter 'host'"):
        handler.handle([{"data": png(scene()), "host": b"a"}], asked_by(context, fields))


def test_the_type_of_an_error_stands_in_a_header_for_the_proxy(
    handler: MaskXHandler, context: Context
) -> None:
    handler.handle([{"body": b"?"}, {"body": png(scene())}], asked_by(context, REST, REST))
    assert context.get_response_headers(0)["x-error-type"] == "InvalidImage"
    assert "x-error-type" not in context.get_response_headers(1)


def test_a_misspelt_key_of_the_configuration_stops_the_load(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="did you mean batchSize?"):
        MaskXHandler().initialize(context_of(model_dir, {"batch_size": 4}))


def test_a_gpu_that_was_asked_for_and_is_not_there_stops_the_load(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="TorchServe found no GPU"):
        MaskXHandler().initialize(context_of(model_dir, {"deviceType": "gpu"}))
    with pytest.raises(ValueError, match="assigned GPU 0, but PyTorch cannot use"):
        MaskXHandler().initialize(context_of(model_dir, {}, gpu_id=0))


def test_the_device_is_the_one_asked_for_or_an_error() -> None:
    assert choose_device("", None, cuda=False) == torch.device("cpu")
    assert choose_device("cpu", None, cuda=True) == torch.device("cpu")
    assert choose_device("cpu", 0, cuda=True) == torch.device("cpu")
    assert choose_device("", 1, cuda=True) == torch.device("cuda:1")
    assert choose_device("gpu", 0, cuda=True) == torch.device("cuda:0")
    with pytest.raises(ValueError, match="would serve on the CPU"):
        choose_device("", None, cuda=True)


def test_an_answer_is_compressed_where_the_client_accepts_it_and_it_is_long(
    handler: MaskXHandler, context: Context
) -> None:
    pixels = np.full((60, 60, 3), 0, np.uint8)
    pixels[::2, ::2, 0] = 255  # 900 objects of one pixel each: a long run-length string
    long = {"body": png(pixels), "score_threshold": b"0.1"}
    short = {"body": png(scene())}
    accepting = {**REST, "accept-Encoding": "br, gzip;q=0.5"}
    asked_by(context, REST, accepting, accepting, GRPC)
    plain_body, packed, small, over_grpc = handler.handle([long, long, short, long], context)
    assert gzip.decompress(packed) == plain_body == over_grpc and len(plain_body) > LEAST_COMPRESSED
    assert len(packed) < len(plain_body) / 2
    encodings = [context.get_response_headers(i).get("content-encoding") for i in range(4)]
    assert encodings == [None, "gzip", None, None]
    assert context.get_response_headers(1)["vary"] == "accept-encoding"
    assert json.loads(small)["detections"] == []


def test_only_a_proper_traceparent_goes_back_and_nothing_that_could_end_the_worker(
    handler: MaskXHandler, context: Context
) -> None:
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    hostile = [f"{good}\r\nset-cookie: a", f"{good}\n", "\u00e9" * 55, good.upper(), "", f" {good}"]
    asked_by(
        context, *({**REST, "TraceParent": value, "x-request-id": "a\r\nb"} for value in [good, *hostile])
    )
    handler.handle([{"body": png(scene())}] * 7, context)
    headers = [context.get_response_headers(i) for i in range(7)]
    assert headers[0] == {"content-type": "application/json", "traceparent": good}
    assert headers[1:] == [{"content-type": "application/json"}] * 6


def test_parameters_may_stand_in_headers_of_rest_and_never_come_from_what_grpc_has_in_their_place(
    handler: MaskXHandler, context: Context
) -> None:
    image = png(scene(red=(1, 1, 5, 5), blue=(20, 10, 6, 6)))
    asked_by(context, {**REST, "Max-Detections": "1"}, {**GRPC, "max_detections": {"content-type": ""}})
    over_rest, over_grpc = handler.handle([{"body": image}, {"data": image, "max_detections": b"1"}], context)
    assert over_rest == over_grpc and len(json.loads(over_rest)["detections"]) == 1


def test_a_lost_device_ends_the_process_after_everybody_was_answered(
    handler: MaskXHandler, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskx_handler, "LAST_RESORT", 3600.0)
    ours, torchserves = socket.socketpair()
    with ours, torchserves:
        context.cl_socket = ours
        asked_by(context, REST, REST)
        handler.handle([{"body": png(plain(DEVICE_FAULT))}, {"body": png(scene())}], context)
        assert [context.get_response_status(i)[0] for i in range(2)] == [503, 503]
        ours.sendall(b"the answers")
        assert torchserves.recv(100) == b"the answers"
        with pytest.raises(SystemExit):
            retrieve_msg(ours)  # where TorchServe's worker waits for the next batch
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()


def test_a_process_that_does_not_end_by_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskx_handler, "LAST_RESORT", 0.01)
    ended: queue.Queue[int] = queue.Queue()
    ours, torchserves = socket.socketpair()
    with ours, torchserves:
        end_after_answering(SimpleNamespace(cl_socket=ours), ended.put)
        assert ended.get(timeout=60) == 1


@pytest.fixture
def emitted(caplog: pytest.LogCaptureFixture) -> Callable[[], dict[str, tuple[str, str]]]:
    """What the worker's output says to TorchServe since the last call: metric -> (value, labels)."""
    caplog.set_level(logging.INFO)

    def take() -> dict[str, tuple[str, str]]:
        found = {}
        for record in caplog.records:
            match = re.fullmatch(r"\[METRICS\](\w+)\.\w+:([0-9.e-]+)\|#(.*?)\|#type:.*", record.getMessage())
            if match:
                found[match[1]] = (match[2], match[3])
        caplog.clear()
        return found

    return take


def cache_of(path: Path) -> MetricsCacheYamlImpl:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TorchServe's own reader leaves the file open
        cache = MetricsCacheYamlImpl(str(path))
        gc.collect()
    cache.initialize_cache()
    return cache


def test_a_batch_is_told_to_torchserve_by_the_names_that_metrics_yaml_declares(
    model_dir: Path,
    root: Path,
    emitted: Callable[[], dict[str, tuple[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maskx_handler, "MEMORY_EVERY", 3600.0)
    context = context_of(
        model_dir, {"deviceType": "cpu"}, metrics=cache_of(root / "serve_config" / "metrics.yaml")
    )
    handler = MaskXHandler()
    handler.initialize(context)
    assert emitted() == {}  # not of the warm-up
    asked_by(context, {**REST, "x-request-start": f"t={time.time() - 100:.3f}"}, GRPC, GRPC)
    image = png(scene(red=(1, 1, 5, 5), blue=(20, 10, 6, 6)))
    handler.handle([{"body": image}, {"data": image}, {"data": b"?"}], context)
    told = emitted()
    assert told.keys() == KINDS.keys()
    ours = "ModelName:maskx,Level:Model"
    assert told["maskx_batch_size"] == ("3", ours)
    assert told["maskx_detections_total"] == ("4", ours)
    assert told["maskx_images_total"] == ("3", ours)
    assert told["maskx_errors_total"] == ("1", f"Type:InvalidImage,{ours}")
    assert told["maskx_requests_total"] == ("1", f"Protocol:grpc,Code:400,{ours}")  # the last of three lines
    assert 99 < float(told["maskx_queue_seconds"][0]) < 200
    assert told["maskx_device_memory_bytes"][1] == f"Device:cpu,{ours}"
    handler.handle([{"data": image}], asked_by(context, GRPC))
    assert emitted().keys() == KINDS.keys() - {
        "maskx_errors_total", "maskx_queue_seconds", "maskx_device_memory_bytes",
    }  # fmt: skip


def test_metrics_that_are_not_declared_are_not_told_and_nothing_else_changes(
    model_dir: Path, tmp_path: Path, emitted: Callable[[], dict[str, tuple[str, str]]]
) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text(yaml.safe_dump({"model_metrics": {"counter": [
        {"name": "maskx_images_total", "unit": "count", "dimensions": ["ModelName", "Level"]}
    ]}}))  # fmt: skip
    context = context_of(model_dir, {"deviceType": "cpu"}, metrics=cache_of(path))
    handler = MaskXHandler()
    handler.initialize(context)
    assert "detections" in json.loads(handler.handle([{"data": png(scene())}], asked_by(context, GRPC))[0])
    assert emitted().keys() == {"maskx_images_total"}


def test_the_shipped_metrics_yaml_declares_each_metric_as_what_it_is_and_times_in_seconds(root: Path) -> None:
    declared = yaml.safe_load((root / "serve_config" / "metrics.yaml").read_text())["model_metrics"]
    kinds = {
        one["name"]: kind
        for kind, ones in declared.items()
        for one in ones
        if one["name"].startswith("maskx_")
    }
    assert kinds == KINDS
    for one in (one for ones in declared.values() for one in ones):
        assert one["dimensions"][-2:] == ["ModelName", "Level"]
        assert (one["unit"] == "s") == one["name"].endswith("_seconds")


def test_only_one_module_of_the_archive_knows_the_server(root: Path) -> None:
    modules = (root / "handler").glob("*.py")
    knowing = [file.stem for file in modules if re.search(r"^\s*(from|import) ts\b", file.read_text(), re.M)]
    assert knowing == ["maskx_handler"]


def test_the_describe_call_is_told_device_and_precision_and_nobody_else_is(
    handler: MaskXHandler, context: Context
) -> None:
    described = json.loads(handler.handle([{}], asked_by(context, {**REST, "describe": "True"}))[0])
    assert described["device"] == "cpu"
    assert described["precision"] == "float32" and described["precision_asked"] == "auto"
    assert described["fusers"] == "off" and described["decode"] == {"asked": "auto", "by": "cpu"}
    assert described["limits"]["max_images"] == 8 and described["limits"]["max_detections"] == 1000
    assert described["mask_formats"] == ["rle", "polygon", "png", "none"]
    body = {"body": png(scene(red=(1, 1, 5, 5)))}
    steered = handler.handle([body], asked_by(context, {**REST, "describe": "True", "explain": "True"}))
    assert steered == handler.handle([body], asked_by(context, REST))
    without_the_header = handler.handle([{}], asked_by(context, REST))[0]
    assert json.loads(without_the_header)["error"]["code"] == 400
    batch = handler.handle([body, body], asked_by(context, {**REST, "describe": "True"}, REST))
    assert ["detections" in json.loads(one) for one in batch] == [True, True]
