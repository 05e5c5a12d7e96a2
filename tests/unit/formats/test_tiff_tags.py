"""Tests that the TIFF and EXIF tags have the same numbers as in Pillow and tifffile."""

import re

import pytest
import tifffile
from PIL import ExifTags, TiffTags

from service.formats import tiff_tags

CONSTANTS = {name: value for name, value in vars(tiff_tags).items() if isinstance(value, int)}
TYPES = ("BYTE", "ASCII", "SHORT", "LONG", "RATIONAL", "SBYTE", "UNDEFINED", "SSHORT", "SLONG", "SRATIONAL", "FLOAT")
TYPES += ("DOUBLE", "IFD", "LONG8", "SLONG8", "IFD8", "UTF8")
UNITS = ("NO_UNIT", "INCH", "CENTIMETRE")
TAGS = {name: value for name, value in CONSTANTS.items() if name not in (*TYPES, *UNITS)}
# Tags that have other names in Pillow's tables.
OTHER_NAMES = {
    "IPTC_NAA": "IptcNaaInfo",
    "ICC_PROFILE": "ICCProfile",
    "JPEG_INTERCHANGE_FORMAT": "JpegIFOffset",
    "JPEG_INTERCHANGE_FORMAT_LENGTH": "JpegIFByteCount",
    "EXIF_IFD": "ExifOffset",
    "GPS_IFD": "GPSInfo",
    "INTEROPERABILITY_IFD": "ExifInteroperabilityOffset",
    "INTEROPERABILITY_INDEX": "InteropIndex",
    "PHOTOGRAPHIC_SENSITIVITY": "ISOSpeedRatings",
    "PIXEL_X_DIMENSION": "ExifImageWidth",
    "PIXEL_Y_DIMENSION": "ExifImageHeight",
    "SUB_SEC_TIME": "SubsecTime",
    "SUB_SEC_TIME_ORIGINAL": "SubsecTimeOriginal",
    "SUB_SEC_TIME_DIGITIZED": "SubsecTimeDigitized",
}


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@pytest.mark.parametrize("name", TAGS)
def test_a_tag_has_the_number_that_other_projects_know_by_its_name(name: str) -> None:
    number = TAGS[name]
    interoperability = {0x0001: "InteropIndex", 0x1001: "RelatedImageWidth", 0x1002: "RelatedImageLength"}
    tables = ({tag.value: tag.name for tag in ExifTags.Base}, interoperability)
    names = {plain(table[number]) for table in tables if number in table}
    names.add(plain(TiffTags.lookup(number).name))
    names |= {plain(known) for known in tifffile.TIFF.TAGS.getall(number, ())}
    assert plain(OTHER_NAMES.get(name, name)) in names


def test_tags_are_different() -> None:
    assert len(set(TAGS.values())) == len(TAGS)


@pytest.mark.parametrize("name", TYPES)
def test_a_type_has_the_number_that_pillow_gives_it(name: str) -> None:
    number = CONSTANTS[name]
    assert number in tiff_tags.TYPE_SIZES
    known = {"SBYTE": "SIGNED_BYTE", "SSHORT": "SIGNED_SHORT", "SLONG": "SIGNED_LONG", "SRATIONAL": "SIGNED_RATIONAL"}
    pillow = getattr(TiffTags, known.get(name, name), None)
    assert pillow in (None, number)
