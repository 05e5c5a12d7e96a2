"""Correct the XMP properties about positions in the picture: faces and other regions, and the sizes of a panorama.

The positions are transformed in the same way as the picture. A property that is not fully understood is removed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from service.formats.geometry import Transform, has_proportions
from service.metadata.xmp_packet import Edit, Name, Node

EXIF_URI = "http://ns.adobe.com/exif/1.0/"
TIFF_URI = "http://ns.adobe.com/tiff/1.0/"
IPTC_URI = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
MWG_URI = "http://www.metadataworkinggroup.com/schemas/regions/"
AREA_URI = "http://ns.adobe.com/xmp/sType/Area#"
SIZE_URI = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
MICROSOFT_URI = "http://ns.microsoft.com/photo/1.2/"
ACDSEE_URI = "http://ns.acdsee.com/regions/"
MECHANIC_URI = "http://ns.camerabits.com/photomechanic/1.0/"
PANORAMA_URI = "http://ns.google.com/photos/1.0/panorama/"

RECTANGLE = ("http://ns.microsoft.com/photo/1.2/t/Region#", "Rectangle")
BOUNDARY, UNIT = (IPTC_URI, "RegionBoundary"), (IPTC_URI, "rbUnit")
# Properties of a panorama: the sides of this picture; horizontal and vertical lengths; horizontal and vertical offsets.
CROPPED = ("CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels")
LENGTHS = (
    ("FullPanoWidthPixels", "LargestValidInteriorRectWidth"),
    ("FullPanoHeightPixels", "LargestValidInteriorRectHeight"),
)
OFFSETS = (
    ("CroppedAreaLeftPixels", "LargestValidInteriorRectLeft"),
    ("CroppedAreaTopPixels", "LargestValidInteriorRectTop"),
)


def edits(properties: list[Node], transform: Transform) -> Iterator[Edit]:
    """Yield the edits that correct the positions in the properties for the output."""
    if transform.is_identity:
        return
    for node in properties:
        if node.name in HANDLERS:
            try:
                yield from list(HANDLERS[node.name](node, transform))
            except ValueError:
                yield node.removed()
    yield from _panorama([node for node in properties if node.name[0] == PANORAMA_URI], transform)


def is_positional(name: Name) -> bool:
    """Return whether a property is about positions in the picture."""
    return name in HANDLERS or name[0] == PANORAMA_URI


def _number(node: Node) -> float:
    """Return the number in a node. Raises ValueError."""
    number = float(node.text) if node.is_plain else math.nan
    if not math.isfinite(number) or abs(number) > 1e9:
        raise ValueError("a number is missing or invalid")
    return number


def _formatted(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _fields(node: Node, uri: str) -> dict[str, Node]:
    """Return the children of a node in a namespace, by local name."""
    return {child.name[1]: child for child in node.children if child.name[0] == uri}


def _text(fields: Mapping[str, Node], name: str, default: str) -> str:
    return fields[name].text.strip() if name in fields else default


def _remove(node: Node, _: Transform) -> Iterator[Edit]:
    yield node.removed()


def _remove_if_reoriented(node: Node, transform: Transform) -> Iterator[Edit]:
    if transform.is_reoriented:
        yield node.removed()


def _remove_if_sides_swapped(node: Node, transform: Transform) -> Iterator[Edit]:
    if transform.swaps_sides or not transform.orientation:
        yield node.removed()


def _mwg(node: Node, transform: Transform) -> Iterator[Edit]:
    """Yield the edits for regions of the Metadata Working Group, whose x and y are the centre of an area."""
    frame, transform = _mwg_frame(node, transform)
    for each in node.walk():
        if each.name == (MWG_URI, "Extensions") and transform.is_reoriented:
            # Extensions of programs contain, for example, the inclination of a face.
            yield each.removed()
        elif each.name == (MWG_URI, "Rotation") and transform.is_mirrored:
            yield each.replaced(_formatted(-_number(each)))
        if sides := _fields(each, SIZE_URI):
            yield from _mwg_size(sides, transform)
        if area := _fields(each, AREA_URI):
            yield from _mwg_area(area, frame, transform)


def _mwg_frame(node: Node, transform: Transform) -> tuple[tuple[float, float], Transform]:
    """Return the size of the picture that the regions refer to, and the transform from that picture.

    Some programs use the upright picture, which the proportions of the size show. Raises ValueError if the size belongs
    to another picture.
    """
    sides = next((found for each in node.walk() if (found := _fields(each, SIZE_URI))), None)
    if sides is None:
        return transform.stored, transform
    if not {"w", "h"} <= sides.keys():
        raise ValueError("a side of the size is missing")
    size = _number(sides["w"]), _number(sides["h"])
    if min(size) <= 0:
        raise ValueError("the size is not positive")
    if has_proportions(size, transform.stored):
        return size, transform
    if has_proportions(size, transform.full):
        return size, replace(transform, orientation=1, upright=transform.full)
    raise ValueError("the size belongs to another picture")


def _mwg_size(sides: Mapping[str, Node], transform: Transform) -> Iterator[Edit]:
    if _text(sides, "unit", "pixel") != "pixel":
        raise ValueError("the size has an unknown unit")
    yield sides["w"].replaced(str(transform.width))
    yield sides["h"].replaced(str(transform.height))


def _mwg_area(area: Mapping[str, Node], frame: tuple[float, float], transform: Transform) -> Iterator[Edit]:
    unit = _text(area, "unit", "normalized")
    if unit not in ("normalized", "pixel") or not {"x", "y"} <= area.keys() or ("w" in area) != ("h" in area):
        raise ValueError("an area has an unknown form")
    if unit == "normalized" and not transform.is_reoriented:
        return
    before, after = ((1.0, 1.0), (1.0, 1.0)) if unit == "normalized" else (frame, (transform.width, transform.height))
    yield from _move(area["x"], area["y"], before, after, transform)
    if "w" in area:
        yield from _resize(area["w"], area["h"], before, after, transform)
    if "d" in area and unit == "pixel":
        upright = frame[1] if transform.swaps_sides else frame[0]
        yield area["d"].replaced(_formatted(_number(area["d"]) * transform.width / upright))


def _move(
    x: Node, y: Node, before: tuple[float, float], after: tuple[float, float], transform: Transform
) -> Iterator[Edit]:
    """Yield the edits of a point. before, after: sides of the stored picture and of the output, in its unit."""
    across, down = transform.map_point(_number(x) / before[0], _number(y) / before[1])
    yield x.replaced(_formatted(across * after[0]))
    yield y.replaced(_formatted(down * after[1]))


def _resize(
    w: Node, h: Node, before: tuple[float, float], after: tuple[float, float], transform: Transform
) -> Iterator[Edit]:
    across, down = transform.map_size(_number(w) / before[0], _number(h) / before[1])
    yield w.replaced(_formatted(across * after[0]))
    yield h.replaced(_formatted(down * after[1]))


def _microsoft(node: Node, transform: Transform) -> Iterator[Edit]:
    """Yield the edits for Microsoft's rectangles: upper left corner, width and height, as shares of the sides."""
    for each in node.walk():
        if each.name == RECTANGLE and transform.is_reoriented:
            x, y, w, h = (float(text) for text in each.text.split(","))
            if not each.is_plain or not all(math.isfinite(value) for value in (x, y, w, h)):
                raise ValueError("a rectangle is invalid")
            corner = _transformed_corner(x, y, w, h, transform)
            yield each.replaced(", ".join(_formatted(value) for value in (*corner, *transform.map_size(w, h))))


def _transformed_corner(x: float, y: float, w: float, h: float, transform: Transform) -> tuple[float, float]:
    """Return the upper left corner of a rectangle in the output. All numbers are shares of the sides."""
    across, down = transform.map_point(x + w / 2, y + h / 2)
    w, h = transform.map_size(w, h)
    return across - w / 2, down - h / 2


def _iptc(node: Node, transform: Transform) -> Iterator[Edit]:
    """Yield the edits for regions of IPTC: rectangles by their upper left corner, circles, and polygons."""
    for boundary in [each for each in node.walk() if each.name == BOUNDARY]:
        boundary_nodes = list(boundary.walk())
        units = [each.text.strip() for each in boundary_nodes if each.name == UNIT]
        if units not in (["relative"], ["pixel"]) or any(each.name == BOUNDARY for each in boundary_nodes[1:]):
            raise ValueError("a region has an unknown form")
        if units == ["pixel"] or transform.is_reoriented:
            yield from _iptc_boundary(boundary_nodes, transform, is_relative=units == ["relative"])


def _iptc_boundary(boundary_nodes: list[Node], transform: Transform, *, is_relative: bool) -> Iterator[Edit]:
    before, after = ((1.0, 1.0), (1.0, 1.0)) if is_relative else (transform.stored, (transform.width, transform.height))
    for each in boundary_nodes:
        found = _fields(each, IPTC_URI)
        if ("rbX" in found) != ("rbY" in found) or ("rbW" in found) != ("rbH" in found):
            raise ValueError("a coordinate is missing")
        if "rbW" in found:
            x, y, w, h = (_number(found[name]) for name in ("rbX", "rbY", "rbW", "rbH"))
            corner = _transformed_corner(x / before[0], y / before[1], w / before[0], h / before[1], transform)
            yield found["rbX"].replaced(_formatted(corner[0] * after[0]))
            yield found["rbY"].replaced(_formatted(corner[1] * after[1]))
            yield from _resize(found["rbW"], found["rbH"], before, after, transform)
        elif "rbX" in found:
            yield from _move(found["rbX"], found["rbY"], before, after, transform)
        if "rbRx" in found:
            # The radius is a share of the width, or pixels.
            factor = transform.stored[0] / transform.full[0] if is_relative else transform.width / transform.full[0]
            yield found["rbRx"].replaced(_formatted(_number(found["rbRx"]) * factor))


def _panorama(nodes: list[Node], transform: Transform) -> Iterator[Edit]:
    """Yield the edits for the sizes of a scaled panorama.

    The properties are removed if the orientation changes, because the projection assumes an upright picture.
    """
    output = transform.width, transform.height
    values = {node.name[1]: _pixels(node) for node in nodes}
    own = values.get(CROPPED[0]) or transform.full[0], values.get(CROPPED[1]) or transform.full[1]
    if transform.is_reoriented or not has_proportions(own, transform.full):
        yield from (node.removed() for node in nodes)
        return
    for side, name in itertools.product((0, 1), values):
        factor = Fraction(output[side], own[side])
        if name == CROPPED[side]:
            number = output[side]
        # Lengths are rounded up and offsets down, so that a part never reaches beyond the whole.
        elif name in LENGTHS[side]:
            number = math.ceil(values[name] * factor)
        elif name in OFFSETS[side]:
            number = math.floor(values[name] * factor)
        else:
            continue
        yield from (node.replaced(str(number)) for node in nodes if node.name[1] == name)


def _pixels(node: Node) -> int:
    """Return the number of pixels in a node; 0 if it is missing or invalid."""
    try:
        return max(0, round(_number(node)))
    except ValueError:
        return 0


HANDLERS: dict[Name, Callable[[Node, Transform], Iterator[Edit]]] = {
    (MWG_URI, "Regions"): _mwg,
    (MICROSOFT_URI, "RegionInfo"): _microsoft,
    (IPTC_URI, "ImageRegion"): _iptc,
    (ACDSEE_URI, "Regions"): _remove_if_reoriented,
    (EXIF_URI, "SubjectArea"): _remove,
    (EXIF_URI, "SubjectLocation"): _remove,
    (EXIF_URI, "FocalPlaneXResolution"): _remove,
    (EXIF_URI, "FocalPlaneYResolution"): _remove,
    (TIFF_URI, "XResolution"): _remove_if_sides_swapped,
    (TIFF_URI, "YResolution"): _remove_if_sides_swapped,
}
HANDLERS |= {(MECHANIC_URI, f"Crop{side}"): _remove_if_reoriented for side in ("Left", "Right", "Top", "Bottom")}
