"""The schemas of requests and answers, in JSON Schema 2020-12 as OpenAPI 3.1 has it.

handler/README.md tells them in words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from maskx_errors import KINDS
from maskx_parameters import FORMS, Parameters

Schema = dict[str, Any]

BASE64: Schema = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "An image file in base64, of the standard alphabet or of addresses; a data URL is taken too.",
}


def reference(name: str) -> Schema:
    """A schema by its name in `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def of_object(
    properties: Mapping[str, Schema],
    *,
    required: Sequence[str] = (),
    description: str = "",
    more: bool = False,
) -> Schema:
    """An object of these properties; others are allowed with `more` alone."""
    told = {"description": description} if description else {}
    needed = {"required": list(required)} if required else {}
    return {
        "type": "object",
        **told,
        "properties": dict(properties),
        **needed,
        **({} if more else {"additionalProperties": False}),
    }


def parameters(defaults: Parameters | None) -> dict[str, Schema]:
    """The schema of each parameter, with its default where the model is known."""
    return {
        form.name: {**form.schema, "description": form.meaning, **_default(form.name, defaults)}
        for form in FORMS
    }


def _default(name: str, defaults: Parameters | None) -> Schema:
    value = None if defaults is None else getattr(defaults, name, None)
    return {} if value is None else {"default": value}


def request_schemas(defaults: Parameters | None, *, max_images: int) -> dict[str, Schema]:
    """The schemas of bodies by name."""
    wishes = parameters(defaults)
    of_v2 = of_object(
        {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"const": "BYTES"},
            "data": {"type": "array", "items": BASE64},
            "parameters": reference("Parameters"),
        },
        required=["name", "datatype", "data"],
        more=True,
    )
    one = of_object({"image": BASE64, **wishes}, required=["image"], description="One image.")
    either: Schema = {"oneOf": [BASE64, reference("OneImage")]}
    images: Schema = {"type": "array", "minItems": 1, "maxItems": max_images, "items": either}
    rows: Schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": max_images,
        "items": {"oneOf": [BASE64, of_object({"b64": BASE64, **wishes}, required=["b64"])]},
    }
    return {
        "Parameters": of_object(wishes),
        "OneImage": one,
        "SeveralImages": of_object(
            {"images": images, **wishes},
            required=["images"],
            description="Several images; what stands beside one goes before what stands beside all.",
        ),
        "V1Request": of_object(
            {"instances": rows, "parameters": reference("Parameters")}, required=["instances"], more=True
        ),
        "V2Request": of_object(
            {
                "id": {"type": "string"},
                "parameters": reference("Parameters"),
                "inputs": {"type": "array", "minItems": 1, "items": of_v2},
                "outputs": {"type": "array", "items": of_object({"name": {"type": "string"}}, more=True)},
            },
            required=["inputs"],
        ),
        "Form": of_object(
            {"data": {"type": "string", "contentMediaType": "application/octet-stream"}, **wishes},
            required=["data"],
            description="An image as `data`; several as `data_1`, `data_2`, ... in the order of their numbers.",
            more=True,
        ),
    }


def answer_schemas() -> dict[str, Schema]:
    """The schemas of answers by name."""
    number, whole = {"type": "number"}, {"type": "integer", "minimum": 0}
    size = {"type": "array", "items": whole, "minItems": 2, "maxItems": 2}
    box = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    run_lengths = of_object(
        {"size": {**size, "description": "Height, width."}, "counts": {"type": "string"}},
        required=["size", "counts"],
        description="COCO's compressed run lengths (`rle`).",
    )
    polygons = {
        "type": "array",
        "items": {"type": "array", "items": number, "minItems": 6},
        "description": "Outlines x, y, x, y, ... (`polygon`).",
    }
    picture = of_object(
        {"png": {**BASE64, "description": "A picture of 1 bit of the mask in its window."}, "bbox": box},
        required=["png", "bbox"],
        description="`png`.",
    )
    detection = of_object(
        {
            "category_id": {"type": "integer"},
            "category": {"type": "string"},
            "bbox": {**box, "description": "x, y, width, height in pixels of the upright image."},
            "score": {**number, "minimum": 0, "maximum": 1},
            "area": {**number, "description": "Pixels of the mask; of the box where there is no mask."},
            "mask_supervised": {
                "type": "boolean",
                "description": "Whether the class had masks in training (set A); false: its masks are transferred.",
            },
            "mask_source": {
                "enum": ["masks", "some_masks", "taught", "boxes"],
                "description": "What the class's masks were learned from; absent where the archive does not say it.",
            },
            "segmentation": {"oneOf": [run_lengths, polygons, picture]},
            "keypoints": {
                "type": "array",
                "items": number,
                "description": "x, y, score of each, of a model with keypoints.",
            },
        },
        required=["category_id", "category", "bbox", "score", "area", "mask_supervised"],
        more=True,
    )
    image = of_object({"height": whole, "width": whole}, required=["height", "width"])
    model = of_object(
        {"name": {"type": "string"}, "version": {"type": "string"}}, required=["name", "version"]
    )
    content = {"image": image, "detections": {"type": "array", "items": reference("Detection")}}
    results = {"type": "array", "items": {"oneOf": [reference("Result"), reference("Error")]}}
    output = of_object(
        {
            "name": {"const": "detections"},
            "datatype": {"const": "BYTES"},
            "shape": {"type": "array", "items": whole},
            "data": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Each the JSON of a Result or an Error, as text.",
            },
        },
        required=["name", "datatype", "shape", "data"],
    )
    return {
        "Detection": detection,
        "Result": of_object(content, required=["image", "detections"]),
        "Answer": of_object({"model": model, **content}, required=["model", "image", "detections"]),
        "Answers": of_object({"model": model, "results": results}, required=["model", "results"]),
        "V1Answer": of_object({"predictions": results}, required=["predictions"]),
        "V2Answer": of_object(
            {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": {"type": "array", "items": output},
            },
            required=["model_name", "model_version", "outputs"],
        ),
        "Error": error_schema(),
    }


def error_schema() -> Schema:
    """Of every error; the types are those of the handler, and of what stands in front of it."""
    types = ", ".join(kind.name for kind in KINDS)
    inside = of_object(
        {
            "code": {"type": "integer", "minimum": 400, "maximum": 599},
            "type": {"type": "string", "description": f"Of the handler: {types}."},
            "message": {"type": "string", "description": "What was seen, what is allowed, what to do."},
        },
        required=["code", "type", "message"],
    )
    return of_object({"error": inside}, required=["error"])
