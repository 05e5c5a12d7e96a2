"""Read how a TIFF page stores its samples, and refuse the kinds of pages that can't be decoded correctly."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from service.errors import UnreadableImage, UnsupportedType
from service.formats import tiff_reader, tiff_tags

PLANES, REVERSED, CMYK_INKS = 2, 2, 1
NO_PREDICTOR, HORIZONTAL = 1, 2
PREMULTIPLIED, ALPHA = 1, 2
MAX_BITS = 16
# Sample sizes that libtiff's predictor supports, too.
PREDICTABLE_BITS = (8, 16)
# More than any camera or scanner writes. Each channel takes time.
MAX_CHANNELS = tiff_reader.MAX_NUMBERS
# Values of SampleFormat that are refused. 1 is unsigned, and 4 is undefined.
FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


class Kind(IntEnum):
    """The supported values of PhotometricInterpretation."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    CMYK = 5
    YCBCR = 6


COLORS = {
    Kind.WHITE_IS_ZERO: 1,
    Kind.BLACK_IS_ZERO: 1,
    Kind.PALETTE: 1,
    Kind.RGB: 3,
    Kind.YCBCR: 3,
    Kind.CMYK: 4,
}
OTHER_KINDS = {
    4: "a transparency mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a camera's raw data",
    32844: "LogL",
    32845: "LogLuv",
    34892: "a camera's raw data",
}

NONE, JPEG = 1, 7
FAXES = (2, 3, 4)
# LZW, Deflate (two numbers), LZMA and Zstandard, which may have a predictor.
PREDICTABLE = (5, 8, 32946, 34925, 50000)
PACKBITS = 32773
COMPRESSIONS = (NONE, JPEG, *FAXES, *PREDICTABLE, PACKBITS)
OTHER_COMPRESSIONS = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT",
    32771: "CCITT RLE with words",
    32809: "ThunderScan",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI Log",
    34677: "SGI Log",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """The storage of a page's pixels: sides, samples and compression.

    width, height: pixels. bits: per sample. channels: colours first, then extra channels. alpha: number of the channel
    that is declared as alpha, or None; other extra channels are ignored. is_planar: each channel is stored separately.
    has_predictor: samples are differences from their left neighbour. is_reversed: the lowest bit is first.
    """

    width: int
    height: int
    kind: Kind
    bits: int
    channels: int
    alpha: int | None
    is_premultiplied: bool
    is_planar: bool
    compression: int
    has_predictor: bool
    is_reversed: bool

    @property
    def colors(self) -> int:
        """The number of colour channels."""
        return COLORS[self.kind]

    @property
    def planes(self) -> list[int]:
        """The numbers of the planes to decode: those of the colours and of alpha."""
        if not self.is_planar:
            return [0]
        return list(range(self.colors)) + ([] if self.alpha is None else [self.alpha])


def picture_of(page: tiff_reader.Page) -> Picture:
    """Return how the page stores its pixels.

    Raises UnsupportedType, and UnreadableImage if a page has fewer channels than its colours need.
    """
    told = _kind(page)
    for objection in _unsupported(page, told):
        raise UnsupportedType(f"the TIFF {objection}", field="file")
    kind, channels, compression = Kind(told or 0), _channels(page), page.number(tiff_tags.COMPRESSION, NONE)
    if channels < COLORS[kind]:
        raise UnreadableImage(
            f"the TIFF is damaged: it declares {kind.name} colours, but has {channels} channels", field="file"
        )
    extras = page.numbers(tiff_tags.EXTRA_SAMPLES)[: channels - COLORS[kind]]
    alpha = next((number for number, extra in enumerate(extras) if extra in (PREMULTIPLIED, ALPHA)), None)
    return Picture(
        width=page.number(tiff_tags.IMAGE_WIDTH, 0),
        height=page.number(tiff_tags.IMAGE_LENGTH, 0),
        kind=kind,
        bits=page.number(tiff_tags.BITS_PER_SAMPLE, 1),
        channels=channels,
        alpha=None if alpha is None else COLORS[kind] + alpha,
        is_premultiplied=alpha is not None and extras[alpha] == PREMULTIPLIED,
        is_planar=_is_planar(page),
        compression=compression,
        has_predictor=compression in PREDICTABLE and page.number(tiff_tags.PREDICTOR, NO_PREDICTOR) == HORIZONTAL,
        is_reversed=page.number(tiff_tags.FILL_ORDER, 1) == REVERSED and compression != JPEG,
    )


def _channels(page: tiff_reader.Page) -> int:
    """Return the number of channels."""
    # Some writers omit SamplesPerPixel. Then the number of BitsPerSample values gives it.
    return page.number(tiff_tags.SAMPLES_PER_PIXEL, page.count(tiff_tags.BITS_PER_SAMPLE) or 1)


def _is_planar(page: tiff_reader.Page) -> bool:
    """Return whether each channel is stored separately."""
    return page.number(tiff_tags.PLANAR_CONFIGURATION, 1) == PLANES and _channels(page) > 1


def _kind(page: tiff_reader.Page) -> int | None:
    """Return the page's PhotometricInterpretation. If it is missing, guess as libtiff does; None without a guess."""
    if page.count(tiff_tags.PHOTOMETRIC_INTERPRETATION):
        return page.number(tiff_tags.PHOTOMETRIC_INTERPRETATION, Kind.BLACK_IS_ZERO)
    match _channels(page) - page.count(tiff_tags.EXTRA_SAMPLES):
        case 1 | 2 if page.count(tiff_tags.COLOR_MAP):
            return Kind.PALETTE
        case 1 | 2:
            return Kind.WHITE_IS_ZERO if page.number(tiff_tags.COMPRESSION, NONE) in FAXES else Kind.BLACK_IS_ZERO
        case 3:
            return Kind.RGB
        case _:
            return None


def _unsupported(page: tiff_reader.Page, kind: int | None) -> Iterator[str]:
    """Yield the reasons why a page is not supported, as the end of a sentence that begins with "the TIFF"."""
    channels, compression = _channels(page), page.number(tiff_tags.COMPRESSION, NONE)
    bits = page.numbers(tiff_tags.BITS_PER_SAMPLE) or [1]
    if kind is None:
        yield f"does not declare the colours of its {channels} channels (PhotometricInterpretation)"
    elif kind not in COLORS:
        yield f"has a colour space ({kind}{_named(OTHER_KINDS, kind)}) that is not supported; save it as RGB or gray"
    if compression not in COMPRESSIONS:
        name = _named(OTHER_COMPRESSIONS, compression)
        yield f"has a compression ({compression}{name}) that is not supported; save it with LZW"
    strange = [FORMATS[value] for value in page.numbers(tiff_tags.SAMPLE_FORMAT) if value in FORMATS]
    if strange:
        yield f"has {strange[0]} samples; save it with unsigned integers"
    if len(set(bits)) > 1 or not 1 <= bits[0] <= MAX_BITS:
        yield f"has {'/'.join(map(str, bits[:5]))} bits a channel; 1 to {MAX_BITS}, the same for all, are supported"
    if not 1 <= channels <= MAX_CHANNELS:
        yield f"has {channels} channels; 1 to {MAX_CHANNELS} are supported"
    yield from _unsupported_combinations(page, kind, channels, bits[0], compression)


def _unsupported_combinations(
    page: tiff_reader.Page, kind: int | None, channels: int, bits: int, compression: int
) -> Iterator[str]:
    """Yield the combinations of supported tags that are not supported together."""
    predictor = page.number(tiff_tags.PREDICTOR, NO_PREDICTOR)
    mixed = channels if not _is_planar(page) else 1
    if kind == Kind.YCBCR and (channels > COLORS[Kind.YCBCR] or _is_planar(page) or bits != 8):
        yield f"has YCbCr colours in {bits} bits, with extra channels, or in separate planes; save it as RGB"
    if kind == Kind.CMYK and page.number(tiff_tags.INK_SET, CMYK_INKS) != CMYK_INKS:
        yield "has inks other than CMYK; save it as CMYK or RGB"
    if compression == JPEG and (bits != 8 or mixed not in (1, 3, 4)):
        yield f"has {mixed} channels of {bits} bits compressed as JPEG ({JPEG})"
    if compression in FAXES and (bits != 1 or mixed != 1):
        yield f"has {mixed} channels of {bits} bits compressed as a fax ({compression})"
    if compression in PREDICTABLE and predictor not in (0, NO_PREDICTOR):
        if predictor != HORIZONTAL:
            yield f"has a predictor ({predictor}) that is not for integers"
        if bits not in PREDICTABLE_BITS:
            yield f"has a predictor ({predictor}) for {bits} bits"


def _named(names: dict[int, str], number: int) -> str:
    """Return the name of a number with a comma before it, or nothing."""
    return f", {names[number]}" if number in names else ""
