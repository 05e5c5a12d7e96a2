"""Tests that regions in XMP move with the picture when it is turned upright or made smaller."""

import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from service.formats.geometry import Transform
from service.metadata import xmp
from tests.samples.packets import every, full_name, names, packet

ORIENTATIONS = pytest.mark.parametrize("orientation", range(1, 9))
# The stored picture, and a face in it: its left, upper, right and lower edge, pixels.
SIZE = WIDTH, HEIGHT = 160, 120
FACE = LEFT, TOP, RIGHT, BOTTOM = 16, 24, 64, 84
X, Y, W, H = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2, RIGHT - LEFT, BOTTOM - TOP
SHARES = [X / WIDTH, Y / HEIGHT, W / WIDTH, H / HEIGHT]

DIMENSIONS = f'<mwg-rs:AppliedToDimensions stDim:w="{WIDTH}" stDim:h="{HEIGHT}" stDim:unit="pixel"/>'
AS_ELEMENTS = "".join(f"<stArea:{name}>{value}</stArea:{name}>" for name, value in zip("xywh", SHARES, strict=True))
AS_ATTRIBUTES = " ".join(f'stArea:{name}="{value}"' for name, value in zip("xywh", SHARES, strict=True))
AREAS = {
    "attributes": f"<mwg-rs:Area {AS_ATTRIBUTES} stArea:unit='normalized'/>",
    "elements": f'<mwg-rs:Area rdf:parseType="Resource">{AS_ELEMENTS}</mwg-rs:Area>',
    "a description": f"<mwg-rs:Area><rdf:Description>\n{AS_ELEMENTS}<stArea:unit>normalized</stArea:unit>"
    "</rdf:Description></mwg-rs:Area>",
    "pixels": f"<mwg-rs:Area stArea:x='{X}' stArea:y='{Y}' stArea:w='{W}' stArea:h='{H}' stArea:unit='pixel'/>",
}
RECTANGLE = f"{LEFT / WIDTH}, {TOP / HEIGHT}, {W / WIDTH}, {H / HEIGHT}"


def regions(area: str, dimensions: str = DIMENSIONS, more: str = "") -> str:
    return (
        f'<mwg-rs:Regions rdf:parseType="Resource">{dimensions}<mwg-rs:RegionList><rdf:Bag><rdf:li>'
        f'<rdf:Description mwg-rs:Name="Anna" mwg-rs:Type="Face">{area}{more}</rdf:Description></rdf:li></rdf:Bag>'
        "</mwg-rs:RegionList></mwg-rs:Regions>"
    )


def microsoft(rectangle: str) -> str:
    return (
        '<MP:RegionInfo rdf:parseType="Resource"><MPRI:Regions><rdf:Bag>'
        f'<rdf:li MPReg:Rectangle="{rectangle}" MPReg:PersonDisplayName="Anna"/>'
        '<rdf:li MPReg:PersonDisplayName="Ben, somewhere"/></rdf:Bag></MPRI:Regions></MP:RegionInfo>'
    )


def boundary(unit: str, fields: str) -> str:
    return (
        '<Iptc4xmpExt:ImageRegion><rdf:Bag><rdf:li rdf:parseType="Resource">'
        '<Iptc4xmpExt:Name><rdf:Alt><rdf:li xml:lang="x-default">Anna</rdf:li></rdf:Alt></Iptc4xmpExt:Name>'
        f'<Iptc4xmpExt:RegionBoundary rdf:parseType="Resource"><Iptc4xmpExt:rbUnit>{unit}</Iptc4xmpExt:rbUnit>{fields}'
        "</Iptc4xmpExt:RegionBoundary></rdf:li></rdf:Bag></Iptc4xmpExt:ImageRegion>"
    )


def iptc_fields(**values: float) -> str:
    return "".join(f"<Iptc4xmpExt:{name}>{value}</Iptc4xmpExt:{name}>" for name, value in values.items())


RECTANGLES = {
    "relative": boundary("relative", iptc_fields(rbX=LEFT / WIDTH, rbY=TOP / HEIGHT, rbW=W / WIDTH, rbH=H / HEIGHT)),
    "pixel": boundary("pixel", iptc_fields(rbX=LEFT, rbY=TOP, rbW=W, rbH=H)),
}


def transform_of(orientation: int, scale: float = 1) -> Transform:
    full = (HEIGHT, WIDTH) if orientation >= 5 else SIZE
    return Transform(round(full[0] * scale), round(full[1] * scale), orientation, full)


def face_in(orientation: int) -> tuple[int, int, int, int]:
    """Return the edges of the face in the upright picture, as Pillow turns it."""
    stored = Image.new("L", SIZE)
    stored.paste(255, FACE)
    stored.getexif()[0x112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=stored.getexif())
    found = ImageOps.exif_transpose(Image.open(buffer)).getbbox()
    assert found is not None
    return found


def corrected(data: bytes, transform: Transform) -> bytes:
    changed = xmp.corrected(data, transform, "compact", "1")
    assert changed is not None
    return changed


def area_of(data: bytes) -> list[float]:
    return [float(every(data, f"stArea:{name}")[0]) for name in "xywh"]


@ORIENTATIONS
@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("form", AREAS)
def test_a_face_of_the_metadata_working_group(orientation: int, scale: float, form: str) -> None:
    transform = transform_of(orientation, scale)
    changed = corrected(packet("<xmp:Label>red</xmp:Label>", regions(AREAS[form])), transform)
    left, top, right, bottom = face_in(orientation)
    expected = np.array([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)]) / 2
    full = np.tile(transform.full, 2)
    expected = expected * scale if form == "pixels" else expected / full
    assert area_of(changed) == pytest.approx(list(expected), abs=1e-5)
    assert every(changed, "stDim:w") == [str(transform.width)]
    assert every(changed, "stDim:h") == [str(transform.height)]
    assert every(changed, "mwg-rs:Name") == ["Anna"]


@ORIENTATIONS
def test_a_face_of_microsofts(orientation: int) -> None:
    changed = corrected(packet(microsoft(RECTANGLE)), transform_of(orientation, 0.5))
    x, y, w, h = (float(value) for value in every(changed, "MPReg:Rectangle")[0].split(","))
    width, height = transform_of(orientation).full
    edges = (x * width, y * height, (x + w) * width, (y + h) * height)
    assert edges == pytest.approx(face_in(orientation), abs=1e-3)
    assert every(changed, "MPReg:PersonDisplayName") == ["Anna", "Ben, somewhere"]


@ORIENTATIONS
@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("unit", RECTANGLES)
def test_a_rectangle_of_iptc(orientation: int, scale: float, unit: str) -> None:
    changed = corrected(packet(RECTANGLES[unit]), transform_of(orientation, scale))
    x, y, w, h = (float(every(changed, f"Iptc4xmpExt:rb{name}")[0]) for name in "XYWH")
    width, height = transform_of(orientation).full if unit == "relative" else (1 / scale, 1 / scale)
    edges = (x * width, y * height, (x + w) * width, (y + h) * height)
    assert edges == pytest.approx(face_in(orientation), abs=1e-3)


@ORIENTATIONS
@pytest.mark.parametrize("unit", ["relative", "pixel"])
def test_a_polygon_and_a_circle_of_iptc(orientation: int, unit: str) -> None:
    width, height = SIZE if unit == "relative" else (1, 1)
    corners = [(LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM)]
    vertices = "".join(
        f'<rdf:li rdf:parseType="Resource">{iptc_fields(rbX=x / width, rbY=y / height)}</rdf:li>' for x, y in corners
    )
    polygon = boundary(unit, f"<Iptc4xmpExt:rbVertices><rdf:Seq>{vertices}</rdf:Seq></Iptc4xmpExt:rbVertices>")
    circle = boundary(unit, iptc_fields(rbX=X / width, rbY=Y / height, rbRx=20 / width))
    transform = transform_of(orientation, 0.5)
    sides = transform.full if unit == "relative" else (2, 2)
    left, top, right, bottom = face_in(orientation)
    changed = corrected(packet(polygon), transform)
    xs = [float(value) * sides[0] for value in every(changed, "Iptc4xmpExt:rbX")]
    ys = [float(value) * sides[1] for value in every(changed, "Iptc4xmpExt:rbY")]
    assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx((left, top, right, bottom), abs=1e-3)
    assert len(xs) == 3
    changed = corrected(packet(circle), transform)
    assert float(every(changed, "Iptc4xmpExt:rbX")[0]) * sides[0] == pytest.approx((left + right) / 2, abs=1e-3)
    assert float(every(changed, "Iptc4xmpExt:rbRx")[0]) * sides[0] == pytest.approx(20, abs=1e-3)


def test_regions_of_an_upright_photo_stay_as_they_are() -> None:
    whole = [regions(AREAS["attributes"]), microsoft(RECTANGLE), RECTANGLES["pixel"], RECTANGLES["relative"]]
    changed = corrected(packet(*whole), transform_of(1))
    for each in whole:
        assert each.encode() in changed


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_regions_that_were_made_for_the_upright_photo_are_not_turned(orientation: int) -> None:
    upright = DIMENSIONS.replace(f'w="{WIDTH}"', f'w="{HEIGHT}"').replace(f'h="{HEIGHT}"', f'h="{WIDTH}"')
    changed = corrected(packet(regions(AREAS["attributes"], upright)), transform_of(orientation, 0.5))
    assert area_of(changed) == pytest.approx(SHARES)
    assert every(changed, "stDim:w") == [str(HEIGHT // 2)]


def test_a_circle_and_a_point_of_the_metadata_working_group() -> None:
    circle = '<mwg-rs:Area stArea:x="40" stArea:y="54" stArea:d="30" stArea:unit="pixel"/>'
    changed = corrected(packet(regions(circle)), transform_of(6, 0.5))
    assert [every(changed, f"stArea:{name}") for name in "xyd"] == [["33"], ["20"], ["15"]]
    point = '<mwg-rs:Area stArea:x="0.25" stArea:y="0.5" stArea:unit="normalized"/>'
    changed = corrected(packet(regions(point)), transform_of(3))
    assert [every(changed, f"stArea:{name}") for name in "xy"] == [["0.75"], ["0.5"]]


@ORIENTATIONS
def test_the_inclination_of_a_face(orientation: int) -> None:
    more = '<mwg-rs:Rotation>0.25</mwg-rs:Rotation><mwg-rs:Extensions rdf:parseType="Resource">'
    more += "<apple-fi:AngleInfoRoll>270</apple-fi:AngleInfoRoll></mwg-rs:Extensions>"
    changed = corrected(packet(regions(AREAS["elements"], more=more)), transform_of(orientation))
    assert every(changed, "mwg-rs:Rotation") == ["-0.25" if orientation in (2, 4, 5, 7) else "0.25"]
    assert every(changed, "apple-fi:AngleInfoRoll") == (["270"] if orientation == 1 else [])


STRANGE = {
    "unit": regions(AREAS["attributes"].replace("normalized", "inch")),
    "no y": regions(AREAS["attributes"].replace("stArea:y", "stArea:z")),
    "no h": regions(AREAS["attributes"].replace("stArea:h", "stArea:z")),
    "no number": regions(AREAS["attributes"].replace('stArea:x="0.25"', 'stArea:x="1/4"')),
    "infinite": regions(AREAS["attributes"].replace('stArea:x="0.25"', 'stArea:x="inf"')),
    "qualified": regions(
        '<mwg-rs:Area rdf:parseType="Resource"><stArea:x rdf:parseType="Resource"><rdf:value>0.25</rdf:value>'
        "</stArea:x><stArea:y>0.5</stArea:y></mwg-rs:Area>"
    ),
    "another picture's size": regions(AREAS["attributes"], DIMENSIONS.replace('w="160"', 'w="320"')),
    "half a size": regions(AREAS["attributes"], DIMENSIONS.replace("stDim:w", "stDim:v")),
    "a size in inches": regions(AREAS["attributes"], DIMENSIONS.replace("pixel", "inch")),
    "no rectangle": microsoft("0.1, 0.2, 0.3"),
    "a rectangle without an end": microsoft("0.1, 0.2, 0.3, nan"),
    "a boundary's unit": boundary("metre", iptc_fields(rbX=1, rbY=1)),
    "no unit": boundary("", iptc_fields(rbX=1, rbY=1)),
    "half a place": boundary("pixel", iptc_fields(rbX=1)),
    "half a rectangle": boundary("pixel", iptc_fields(rbX=1, rbY=1, rbW=1)),
    "a boundary in another": boundary(
        "pixel", '<Iptc4xmpExt:RegionBoundary rdf:parseType="Resource"></Iptc4xmpExt:RegionBoundary>'
    ),
    "acdsee": '<acdsee-rs:Regions rdf:parseType="Resource"><acdsee-rs:RegionList/></acdsee-rs:Regions>',
}


@pytest.mark.parametrize("form", STRANGE)
def test_regions_that_are_not_understood_are_left_out(form: str) -> None:
    changed = corrected(packet("<xmp:Label>red</xmp:Label>", STRANGE[form]), transform_of(6))
    assert every(changed, "xmp:Label") == ["red"]
    gone = {full_name(name) for name in ("mwg-rs:Regions", "MP:RegionInfo", "Iptc4xmpExt:ImageRegion")}
    assert not (gone | {full_name("acdsee-rs:Regions")}) & set(names(changed))


def test_regions_with_other_prefixes() -> None:
    other = {"mwg-rs": "r", "stArea": "a", "stDim": "d", "MP": "m", "MPReg": "n", "MPRI": "o"}
    data = packet(regions(AREAS["attributes"]), microsoft(RECTANGLE), prefixes=other)
    assert b"mwg-rs:" not in data
    changed = corrected(data, transform_of(6))
    assert area_of(changed) == pytest.approx([0.55, 0.25, 0.5, 0.3])
    assert every(changed, "MPReg:Rectangle") == ["0.3, 0.1, 0.5, 0.3"]


def test_regions_of_a_cropped_photo_are_left_out() -> None:
    changed = corrected(packet(regions(AREAS["attributes"]), microsoft(RECTANGLE)), Transform(*SIZE, orientation=0))
    assert b"Anna" not in changed


PANORAMA = {
    "CroppedAreaImageWidthPixels": WIDTH,
    "CroppedAreaImageHeightPixels": HEIGHT,
    "FullPanoWidthPixels": 333,
    "FullPanoHeightPixels": 167,
    "CroppedAreaLeftPixels": 51,
    "CroppedAreaTopPixels": 23,
    "LargestValidInteriorRectWidth": 100,
    "LargestValidInteriorRectLeft": 3,
    "InitialViewHeadingDegrees": 210,
}
POSES = 'GPano:ProjectionType="equirectangular" GPano:UsePanoramaViewer="True"'


@pytest.mark.parametrize("as_attributes", [False, True])
@pytest.mark.parametrize("side", [159, 80, 50, 7])
def test_a_panorama_that_is_made_smaller(as_attributes: bool, side: int) -> None:
    attributes = " ".join(f'GPano:{name}="{value}"' for name, value in PANORAMA.items()) if as_attributes else ""
    elements = "" if as_attributes else "".join(f"<GPano:{n}>{v}</GPano:{n}>" for n, v in PANORAMA.items())
    height = round(HEIGHT * side / WIDTH)
    changed = corrected(packet(elements, attributes=f"{POSES} {attributes}"), Transform(side, height, 1, SIZE))
    found = {name: int(every(changed, f"GPano:{name}")[0]) for name in PANORAMA}
    assert (found["CroppedAreaImageWidthPixels"], found["CroppedAreaImageHeightPixels"]) == (side, height)
    assert found["FullPanoWidthPixels"] == pytest.approx(333 * side / WIDTH, abs=1)
    assert found["CroppedAreaLeftPixels"] + side <= found["FullPanoWidthPixels"]
    assert found["CroppedAreaTopPixels"] + height <= found["FullPanoHeightPixels"]
    assert found["InitialViewHeadingDegrees"] == 210
    assert every(changed, "GPano:ProjectionType") == ["equirectangular"]


def test_a_whole_sphere_stays_one() -> None:
    sizes = "".join(
        f'GPano:{name}WidthPixels="4000" GPano:{name}HeightPixels="2000" ' for name in ("CroppedAreaImage", "FullPano")
    )
    changed = corrected(packet(attributes=POSES + " " + sizes), Transform(77, 38, 1, (4000, 2000)))
    assert every(changed, "GPano:FullPanoWidthPixels") == every(changed, "GPano:CroppedAreaImageWidthPixels") == ["77"]
    assert every(changed, "GPano:FullPanoHeightPixels") == ["38"]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_panorama_is_none(orientation: int) -> None:
    changed = corrected(packet(attributes=POSES), transform_of(orientation))
    assert b"GPano:" not in changed.replace(b"xmlns:GPano", b"")


def test_a_panorama_of_other_proportions_is_none_once_it_is_scaled() -> None:
    attributes = POSES + ' GPano:CroppedAreaImageWidthPixels="160" GPano:CroppedAreaImageHeightPixels="90"'
    assert every(corrected(packet(attributes=attributes), transform_of(1)), "GPano:UsePanoramaViewer") == ["True"]
    assert not every(corrected(packet(attributes=attributes), transform_of(1, 0.5)), "GPano:UsePanoramaViewer")


PLACES = (
    "<exif:SubjectArea><rdf:Seq><rdf:li>3</rdf:li><rdf:li>4</rdf:li></rdf:Seq></exif:SubjectArea>"
    "<exif:FocalPlaneXResolution>3000/1</exif:FocalPlaneXResolution>"
)


@pytest.mark.parametrize(("orientation", "scale"), [(1, 1), (1, 0.5), (6, 1), (3, 1)])
def test_other_places_in_xmp(orientation: int, scale: float) -> None:
    attributes = 'tiff:XResolution="300/1" tiff:YResolution="200/1" photomechanic:CropLeft="0.1"'
    changed = corrected(packet(PLACES, attributes=attributes), transform_of(orientation, scale))
    same = orientation == 1 and scale == 1
    assert bool(every(changed, "exif:SubjectArea")) == same
    assert bool(every(changed, "exif:FocalPlaneXResolution")) == same
    assert every(changed, "tiff:XResolution") == ([] if orientation == 6 else ["300/1"])
    assert every(changed, "photomechanic:CropLeft") == (["0.1"] if orientation == 1 else [])


WHOLE = packet(
    regions(AREAS["pixels"]),
    microsoft(RECTANGLE),
    RECTANGLES["pixel"],
    PLACES,
    attributes=POSES + ' GPano:FullPanoWidthPixels="320" tiff:Orientation="6"',
)
TEXTS = st.sampled_from(
    [b"<", b">", b"/", b'"', b"-1", b"1e999", b"nan", b"", b"0", b" ", b"pixel", b"<!-- -->", b"&lt;"]
)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE)), TEXTS, st.integers(0, 6)), max_size=4),
    orientation=st.integers(0, 8),
    scale=st.sampled_from([1, 0.5, 0.01]),
)
def test_a_packet_of_places_is_well_formed_whatever_came(
    changes: list[tuple[int, bytes, int]], orientation: int, scale: float
) -> None:
    data = WHOLE
    for place, new, removed in changes:
        data = data[:place] + new + data[place + removed :]
    changed = xmp.corrected(data, transform_of(orientation, scale), "compact", "1")
    if changed is not None:
        ET.fromstring(changed.decode())
        assert every(changed, "Iptc4xmpExt:DigitalSourceType")
        # A second pass over the output, which is upright and not scaled, changes no position.
        again = xmp.corrected(changed, Transform(10, 10), "compact", "1")
        assert again is not None
        assert every(again, "stArea:x") == every(changed, "stArea:x")
