"""Small valid files of every kind that may be uploaded, as a start for fuzzers."""

import io
from collections.abc import Iterator

import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

SIDE = 40
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg"'
    b' xmlns:m="http://www.metadataworkinggroup.com/schemas/regions/" xmlns:a="http://ns.adobe.com/xmp/sType/Area#"'
    b' xmlns:g="http://ns.google.com/photos/1.0/panorama/" g:FullPanoWidthPixels="90">'
    b'<m:Regions><m:Area a:x="0.2" a:y="0.3" a:w="0.1" a:h="0.1"/></m:Regions></rdf:Description></rdf:RDF>'
    b"</x:xmpmeta>"
)


def picture() -> np.ndarray:
    """Return a small colour image, uint8 RGB, with odd sides."""
    down, across = np.indices((SIDE + 1, SIDE + 3))
    return np.stack([4 * down, 5 * across, 3 * (down + across)], axis=-1).astype(np.uint8)


def exif() -> bytes:
    """Return an Exif block with a caption, an orientation and subdirectories."""
    block = Image.Exif()
    block[0x010E], block[0x0112], block[0x0131] = "A caption", 6, "A scanner"
    block.get_ifd(0x8769)[0x9003] = "1931:05:04 10:00:00"
    block.get_ifd(0x8825)[0x0001] = "N"
    return block.tobytes()


def files() -> Iterator[tuple[str, bytes]]:
    """Yield names and contents."""
    rgb = picture()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        image = Image.fromarray(rgb).convert(mode)
        for format_ in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF"):
            stream = io.BytesIO()
            try:
                image.save(stream, format_)
            except (OSError, ValueError, KeyError):  # some formats lack this mode
                continue
            yield f"{mode}.{format_.lower()}", stream.getvalue()
    yield from _jpegs(rgb, profile)
    yield from _rich(rgb, profile)
    yield from _tiffs(rgb)
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(rgb)).save(stream, quality=80, exif=exif())
    yield "rgb.heic", stream.getvalue()


def _jpegs(rgb: np.ndarray, profile: bytes) -> Iterator[tuple[str, bytes]]:
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            stream = io.BytesIO()
            rich = {"exif": exif(), "xmp": XMP, "comment": b"words", "icc_profile": profile, "dpi": (300, 300)}
            Image.fromarray(rgb).save(stream, "JPEG", subsampling=subsampling, progressive=progressive, **rich)
            yield f"{subsampling}{progressive}.jpeg", stream.getvalue()


def _rich(rgb: np.ndarray, profile: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield files with all the metadata that their format supports."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "words")
    text.add_text("Packed", "words" * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    for name, options in (
        ("PNG", {"pnginfo": text, "dpi": (300, 300)}),
        ("WEBP", {"xmp": XMP, "lossless": True}),
        ("AVIF", {"xmp": XMP}),
    ):
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, name, exif=exif(), icc_profile=profile, **options)
        yield f"rich.{name.lower()}", stream.getvalue()


def _tiffs(rgb: np.ndarray) -> Iterator[tuple[str, bytes]]:
    deep = rgb.astype(np.uint16) * 257
    for name, pixels in (("8", rgb), ("16", deep), ("gray16", deep[..., 0].copy())):
        for order in "<>":
            for compression in (None, "zlib"):
                stream = io.BytesIO()
                tifffile.imwrite(
                    stream, pixels, byteorder=order, compression=compression, predictor=compression is not None,
                    resolution=(300, 300), description="A caption", extratags=[(0x2BC, 1, len(XMP), XMP, True)],
                )  # fmt: skip
                yield f"{name}{order}{compression}.tiff", stream.getvalue()
