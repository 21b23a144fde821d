"""Results -> CVAT's XML 1.1, "CVAT for images", as its documentation has it.

A mask is the run lengths of its window, row by row, background first. The parts of one object are polygons of one
group. `score`, `transferred` and `mask_source` are attributes; CVAT keeps them where the task's labels have attributes
of these names.
"""

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from maskx_draw import Window

from .shapes import Picture, Results, Shape


def write_cvat(results: Results, path: Path) -> None:
    """Writes the file that CVAT's "upload annotations" takes."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    ET.SubElement(task, "name").text = "maskx"
    ET.SubElement(task, "size").text = str(len(results.images))
    ET.SubElement(task, "mode").text = "annotation"
    labels = ET.SubElement(task, "labels")
    for name in results.categories.values():
        _label(labels, name)
    for index, picture in enumerate(results.pictures()):
        _image(root, index, picture)
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def cvat_runs(window: Window) -> list[int]:
    """Run lengths of the window's pixels, row by row, of background and mask by turns; the first may be 0."""
    flat = np.concatenate([[False], window.pixels.ravel()])
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [window.pixels.size]])
    return [int(run) for run in np.diff(edges)]


def _label(labels: ET.Element, name: str) -> None:
    label = ET.SubElement(labels, "label")
    ET.SubElement(label, "name").text = name
    attributes = ET.SubElement(label, "attributes")
    for attribute, kind, default in (
        ("score", "text", ""),
        ("transferred", "checkbox", "false"),
        ("mask_source", "text", ""),
    ):
        one = ET.SubElement(attributes, "attribute")
        ET.SubElement(one, "name").text = attribute
        ET.SubElement(one, "mutable").text = "False"
        ET.SubElement(one, "input_type").text = kind
        ET.SubElement(one, "default_value").text = default
        ET.SubElement(one, "values").text = default


def _image(root: ET.Element, index: int, picture: Picture) -> None:
    size = {"width": str(picture.width), "height": str(picture.height)}
    image = ET.SubElement(root, "image", {"id": str(index), "name": picture.file_name, **size})
    # the largest lies lowest, so that no small object is under a large one
    order = sorted(picture.shapes, key=lambda shape: -_area(shape))
    for z, shape in enumerate(order):
        _shape(image, z, shape)


def _area(shape: Shape) -> float:
    left, top, right, bottom = shape.box
    return (right - left) * (bottom - top)


def _shape(image: ET.Element, z: int, shape: Shape) -> None:
    common = {"label": shape.category, "source": "auto", "occluded": "0", "z_order": str(z)}
    elements = []
    if shape.window is not None:
        rows, columns = shape.window.pixels.shape
        mask = {"rle": ", ".join(str(run) for run in cvat_runs(shape.window))}
        mask |= {"left": str(shape.window.left), "top": str(shape.window.top)}
        mask |= {"width": str(columns), "height": str(rows)}
        elements.append(ET.SubElement(image, "mask", {**common, **mask}))
    elif shape.polygons:
        group = {"group_id": str(z + 1)} if len(shape.polygons) > 1 else {}
        for part in shape.polygons:
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(part[::2], part[1::2], strict=True))
            elements.append(ET.SubElement(image, "polygon", {**common, "points": points, **group}))
    else:
        corners = zip(("xtl", "ytl", "xbr", "ybr"), shape.box, strict=True)
        box = {name: f"{side:.2f}" for name, side in corners}
        elements.append(ET.SubElement(image, "box", {**common, **box}))
    for element in elements:
        ET.SubElement(element, "attribute", {"name": "score"}).text = f"{shape.score:.4f}"
        ET.SubElement(element, "attribute", {"name": "transferred"}).text = str(shape.transferred).lower()
        if shape.mask_source:
            ET.SubElement(element, "attribute", {"name": "mask_source"}).text = shape.mask_source
