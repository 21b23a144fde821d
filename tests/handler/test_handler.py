"""The adapter to TorchServe, with TorchServe's own context and loader."""

import ast
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ts.context import Context, RequestProcessor
from ts.utils.util import PredictionException, list_classes_from_module

import maskx_handler
from maskx_handler import MaskXHandler, choose_device
from tests.served.standin import png, scene, write_standin

REST = {"Host": "127.0.0.1:8080", "body": {"content-type": "image/png"}}
GRPC = {"data": {"content-type": ""}}


def context_of(model_dir: Path, config: dict[str, Any] | None = None, gpu_id: int | None = None) -> Context:
    manifest = {"model": {"serializedFile": "maskx.pt", "modelVersion": "1.0"}}
    return Context("maskx", str(model_dir), manifest, 8, gpu_id, "0.12.0", True, None, config)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_standin(folder / "maskx.pt")
    return folder


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


@pytest.mark.parametrize("headers", [{"host": "a"}, {"HOST": "a"}, {"Accept": "*/*", "Host": "a"}])
def test_rest_is_told_by_its_host_header_in_any_spelling(
    handler: MaskXHandler, context: Context, headers: dict[str, str]
) -> None:
    assert b"error" in handler.handle([{"body": b"?"}], asked_by(context, headers))[0]


def test_headers_that_steer_other_handlers_change_nothing(handler: MaskXHandler, context: Context) -> None:
    request = {"body": png(scene(red=(1, 1, 5, 5)))}
    plain = handler.handle([request], asked_by(context, REST))
    steered = handler.handle([request], asked_by(context, {**REST, "describe": "True", "explain": "True"}))
    assert plain == steered


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


def test_the_modules_of_the_archive_import_nothing_of_the_project_and_only_one_knows_the_server(
    root: Path,
) -> None:
    files = sorted((root / "handler").glob("*.py"))
    own = {file.stem for file in files}
    assert all(name.startswith("maskx_") for name in own)
    allowed = {"torch", "torchvision", "numpy", "PIL", "pycocotools"} | own | set(sys.stdlib_module_names)
    for file in files:
        imported = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
        server = {"ts"} if file.stem == "maskx_handler" else set()
        assert imported <= allowed | server, file.name
    assert "ts" in inspect.getsource(maskx_handler)


def test_the_describe_call_is_told_device_and_precision_and_nobody_else_is(
    handler: MaskXHandler, context: Context
) -> None:
    described = json.loads(handler.handle([{}], asked_by(context, {**REST, "describe": "True"}))[0])
    assert described["device"] == "cpu"
    assert described["precision"] == "float32" and described["precision_asked"] == "auto"
    body = {"body": png(scene())}
    over_rest = handler.handle([body], asked_by(context, {**REST, "describe": "True"}))[0]
    assert "detections" in json.loads(over_rest)
    without_the_header = handler.handle([{}], asked_by(context, REST))[0]
    assert json.loads(without_the_header)["error"]["code"] == 400
    batch = handler.handle([body, body], asked_by(context, {**REST, "describe": "True"}, REST))
    assert ["detections" in json.loads(one) for one in batch] == [True, True]
