"""The gRPC service as the wire sees it."""

from pathlib import Path

import pytest

from client.compile_proto import compile_proto
from client.generated import inference_pb2


def test_package_names_and_field_numbers_are_torchserves() -> None:
    """As in the proto file of TorchServe 0.12; a difference in any of these is another service."""
    file = inference_pb2.DESCRIPTOR
    assert file.package == "org.pytorch.serve.grpc.inference"
    service = file.services_by_name["InferenceAPIsService"]
    assert {method.name for method in service.methods} == {"Ping", "Predictions"}
    request = file.message_types_by_name["PredictionsRequest"]
    assert {f.name: f.number for f in request.fields} == {"model_name": 1, "model_version": 2, "input": 3}
    entry = request.fields_by_name["input"].message_type
    assert entry.GetOptions().map_entry
    assert [f.type for f in entry.fields] == [entry.fields[0].TYPE_STRING, entry.fields[0].TYPE_BYTES]
    answer = file.message_types_by_name["PredictionResponse"]
    assert {f.name: (f.number, f.type) for f in answer.fields} == {
        "prediction": (1, entry.fields[0].TYPE_BYTES)
    }


@pytest.mark.parametrize("package", ["client", "maskx_client"])
def test_compiling_writes_both_modules(tmp_path: Path, package: str) -> None:
    compile_proto(tmp_path, package)
    made = tmp_path / package / "generated"
    assert {"__init__.py", "inference_pb2.py", "inference_pb2_grpc.py"} <= {
        file.name for file in made.iterdir()
    }
    assert f"from {package}.generated import inference_pb2" in (made / "inference_pb2_grpc.py").read_text()
