"""Properties of XMP that name places of the picture: faces and other regions, and the sizes of a panorama.

What the change of the picture makes untrue is put right. A property that is not fully understood is taken out.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from service.formats.geometry import Reshape, has_proportions
from service.metadata.xmp_packet import Edit, Name, Part

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
# Of a panorama: the sides of this picture, then other lengths and offsets across and down.
CROPPED = ("CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels")
LENGTHS = (
    ("FullPanoWidthPixels", "LargestValidInteriorRectWidth"),
    ("FullPanoHeightPixels", "LargestValidInteriorRectHeight"),
)
OFFSETS = (
    ("CroppedAreaLeftPixels", "LargestValidInteriorRectLeft"),
    ("CroppedAreaTopPixels", "LargestValidInteriorRectTop"),
)


def edits(properties: list[Part], reshape: Reshape) -> Iterator[Edit]:
    """Yield the edits that make what the properties say of places true of the answer."""
    if reshape.is_identity:
        return
    for part in properties:
        if part.name in PLACES:
            try:
                yield from list(PLACES[part.name](part, reshape))
            except ValueError:
                yield part.removed()
    yield from _panorama([part for part in properties if part.name[0] == PANORAMA_URI], reshape)


def is_place(name: Name) -> bool:
    """Return whether a property names places."""
    return name in PLACES or name[0] == PANORAMA_URI


def _number(part: Part) -> float:
    """Return the number that a part says. Raises ValueError."""
    number = float(part.text) if part.is_plain else math.nan
    if not math.isfinite(number) or abs(number) > 1e9:
        raise ValueError("no number")
    return number


def _written(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _fields(part: Part, uri: str) -> dict[str, Part]:
    """Return the direct parts of a namespace by local name."""
    return {child.name[1]: child for child in part.parts if child.name[0] == uri}


def _text(fields: Mapping[str, Part], name: str, default: str) -> str:
    return fields[name].text.strip() if name in fields else default


def _gone(part: Part, _: Reshape) -> Iterator[Edit]:
    yield part.removed()


def _gone_if_turned(part: Part, reshape: Reshape) -> Iterator[Edit]:
    if reshape.is_turned:
        yield part.removed()


def _gone_if_sideways(part: Part, reshape: Reshape) -> Iterator[Edit]:
    if reshape.is_sideways or not reshape.orientation:
        yield part.removed()


def _mwg(part: Part, reshape: Reshape) -> Iterator[Edit]:
    """Regions of the Metadata Working Group: x and y are the middle of an area."""
    frame, reshape = _mwg_frame(part, reshape)
    for each in part.walk():
        if each.name == (MWG_URI, "Extensions") and reshape.is_turned:
            # What programs add says, for example, how a face is inclined.
            yield each.removed()
        elif each.name == (MWG_URI, "Rotation") and reshape.is_mirrored:
            yield each.saying(_written(-_number(each)))
        if sides := _fields(each, SIZE_URI):
            yield from _mwg_size(sides, reshape)
        if area := _fields(each, AREA_URI):
            yield from _mwg_area(area, frame, reshape)


def _mwg_frame(part: Part, reshape: Reshape) -> tuple[tuple[float, float], Reshape]:
    """Return the size of the picture that the regions were made for, and the change from that picture.

    Some programs take the upright picture, and the proportions of its size tell so. Raises ValueError when the size is
    one of another picture.
    """
    sides = next((found for each in part.walk() if (found := _fields(each, SIZE_URI))), None)
    if sides is None:
        return reshape.stored, reshape
    if not {"w", "h"} <= sides.keys():
        raise ValueError("half a size")
    size = _number(sides["w"]), _number(sides["h"])
    if min(size) <= 0:
        raise ValueError("no size")
    if has_proportions(size, reshape.stored):
        return size, reshape
    if has_proportions(size, reshape.full):
        return size, replace(reshape, orientation=1, upright=reshape.full)
    raise ValueError("the size of another picture")


def _mwg_size(sides: Mapping[str, Part], reshape: Reshape) -> Iterator[Edit]:
    if _text(sides, "unit", "pixel") != "pixel":
        raise ValueError("a size of another unit")
    yield sides["w"].saying(str(reshape.width))
    yield sides["h"].saying(str(reshape.height))


def _mwg_area(area: Mapping[str, Part], frame: tuple[float, float], reshape: Reshape) -> Iterator[Edit]:
    unit = _text(area, "unit", "normalized")
    if unit not in ("normalized", "pixel") or not {"x", "y"} <= area.keys() or ("w" in area) != ("h" in area):
        raise ValueError("an area of another kind")
    if unit == "normalized" and not reshape.is_turned:
        return
    before, after = ((1.0, 1.0), (1.0, 1.0)) if unit == "normalized" else (frame, (reshape.width, reshape.height))
    yield from _moved(area["x"], area["y"], before, after, reshape)
    if "w" in area:
        yield from _resized(area["w"], area["h"], before, after, reshape)
    if "d" in area and unit == "pixel":
        upright = frame[1] if reshape.is_sideways else frame[0]
        yield area["d"].saying(_written(_number(area["d"]) * reshape.width / upright))


def _moved(
    x: Part, y: Part, before: tuple[float, float], after: tuple[float, float], reshape: Reshape
) -> Iterator[Edit]:
    """Edits of a point. before, after: the sides of the stored picture and of the answer, in the point's unit."""
    across, down = reshape.point(_number(x) / before[0], _number(y) / before[1])
    yield x.saying(_written(across * after[0]))
    yield y.saying(_written(down * after[1]))


def _resized(
    w: Part, h: Part, before: tuple[float, float], after: tuple[float, float], reshape: Reshape
) -> Iterator[Edit]:
    across, down = reshape.extent(_number(w) / before[0], _number(h) / before[1])
    yield w.saying(_written(across * after[0]))
    yield h.saying(_written(down * after[1]))


def _microsoft(part: Part, reshape: Reshape) -> Iterator[Edit]:
    """Rectangles of Microsoft's: the upper left corner, width and height, as shares of the picture."""
    for each in part.walk():
        if each.name == RECTANGLE and reshape.is_turned:
            x, y, w, h = (float(text) for text in each.text.split(","))
            if not each.is_plain or not all(math.isfinite(value) for value in (x, y, w, h)):
                raise ValueError("no rectangle")
            corner = _turned_corner(x, y, w, h, reshape)
            yield each.saying(", ".join(_written(value) for value in (*corner, *reshape.extent(w, h))))


def _turned_corner(x: float, y: float, w: float, h: float, reshape: Reshape) -> tuple[float, float]:
    """Return the upper left corner of a turned rectangle, all as shares of the picture."""
    across, down = reshape.point(x + w / 2, y + h / 2)
    w, h = reshape.extent(w, h)
    return across - w / 2, down - h / 2


def _iptc(part: Part, reshape: Reshape) -> Iterator[Edit]:
    """Regions of IPTC: rectangles by their upper left corner, circles, and polygons."""
    for boundary in [each for each in part.walk() if each.name == BOUNDARY]:
        inside = list(boundary.walk())
        units = [each.text.strip() for each in inside if each.name == UNIT]
        if units not in (["relative"], ["pixel"]) or any(each.name == BOUNDARY for each in inside[1:]):
            raise ValueError("a region of another kind")
        if units == ["pixel"] or reshape.is_turned:
            yield from _iptc_boundary(inside, reshape, is_relative=units == ["relative"])


def _iptc_boundary(inside: list[Part], reshape: Reshape, *, is_relative: bool) -> Iterator[Edit]:
    before, after = ((1.0, 1.0), (1.0, 1.0)) if is_relative else (reshape.stored, (reshape.width, reshape.height))
    for each in inside:
        found = _fields(each, IPTC_URI)
        if ("rbX" in found) != ("rbY" in found) or ("rbW" in found) != ("rbH" in found):
            raise ValueError("half a place")
        if "rbW" in found:
            x, y, w, h = (_number(found[name]) for name in ("rbX", "rbY", "rbW", "rbH"))
            corner = _turned_corner(x / before[0], y / before[1], w / before[0], h / before[1], reshape)
            yield found["rbX"].saying(_written(corner[0] * after[0]))
            yield found["rbY"].saying(_written(corner[1] * after[1]))
            yield from _resized(found["rbW"], found["rbH"], before, after, reshape)
        elif "rbX" in found:
            yield from _moved(found["rbX"], found["rbY"], before, after, reshape)
        if "rbRx" in found:
            # A share of the width, or pixels.
            factor = reshape.stored[0] / reshape.full[0] if is_relative else reshape.width / reshape.full[0]
            yield found["rbRx"].saying(_written(_number(found["rbRx"]) * factor))


def _panorama(parts: list[Part], reshape: Reshape) -> Iterator[Edit]:
    """The sizes of a scaled panorama. A turned picture is none any more: its projection is an upright one's."""
    answer = reshape.width, reshape.height
    said = {part.name[1]: _whole(part) for part in parts}
    own = said.get(CROPPED[0]) or reshape.full[0], said.get(CROPPED[1]) or reshape.full[1]
    if reshape.is_turned or not has_proportions(own, reshape.full):
        yield from (part.removed() for part in parts)
        return
    for side, name in itertools.product((0, 1), said):
        factor = Fraction(answer[side], own[side])
        if name == CROPPED[side]:
            number = answer[side]
        # Rounded apart, so that an offset and a side never reach beyond the whole.
        elif name in LENGTHS[side]:
            number = math.ceil(said[name] * factor)
        elif name in OFFSETS[side]:
            number = math.floor(said[name] * factor)
        else:
            continue
        yield from (part.saying(str(number)) for part in parts if part.name[1] == name)


def _whole(part: Part) -> int:
    """Return the number of pixels that a part says; 0 when it says none."""
    try:
        return max(0, round(_number(part)))
    except ValueError:
        return 0


PLACES: dict[Name, Callable[[Part, Reshape], Iterator[Edit]]] = {
    (MWG_URI, "Regions"): _mwg,
    (MICROSOFT_URI, "RegionInfo"): _microsoft,
    (IPTC_URI, "ImageRegion"): _iptc,
    (ACDSEE_URI, "Regions"): _gone_if_turned,
    (EXIF_URI, "SubjectArea"): _gone,
    (EXIF_URI, "SubjectLocation"): _gone,
    (EXIF_URI, "FocalPlaneXResolution"): _gone,
    (EXIF_URI, "FocalPlaneYResolution"): _gone,
    (TIFF_URI, "XResolution"): _gone_if_sideways,
    (TIFF_URI, "YResolution"): _gone_if_sideways,
}
PLACES |= {(MECHANIC_URI, f"Crop{side}"): _gone_if_turned for side in ("Left", "Right", "Top", "Bottom")}
