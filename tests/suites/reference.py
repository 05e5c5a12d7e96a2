"""The worker that decodes a file with decoders that the service does not use for it, and compares the outputs."""

import io
import itertools
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms, ImageFile

from tests.suites.worker import serve

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
ORIENTATION = 0x0112
SRGB_GAMMA = 2.2

Picture = np.ndarray  # float32, [H, W, 2]: luma and alpha, 0..255
SIGNATURES = {
    b"\xff\xd8": "jpeg",
    b"\x89PNG": "png",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"RIFF": "webp",
}
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# TIFF's kinds of alpha channels; BMP's compression types that have bit masks.
PREMULTIPLIED, STRAIGHT = 1, 2
BIT_FIELDS, ALPHA_BIT_FIELDS = 3, 6
# A directory may refer to itself, so the loop needs a limit.
MOST_PAGES = 10


def main() -> None:
    """Serve questions {path, answer}: return `facts` of the file, and the difference to each decoder's output."""
    warnings.simplefilter("ignore")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    pillow_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None
    serve(lambda question: _compare(Path(question["path"]), Path(question["answer"])))


def _compare(path: Path, answer: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found = facts(data) | {"kind": _kind(data) or path.suffix.lower().lstrip(".")}
    pictures = dict(_pictures(data))
    found["decoded_by"] = sorted(pictures)
    if answer.exists():
        pixels = _opencv(answer.read_bytes())
        assert pixels is not None
        ours = _luma_and_alpha(pixels)
        found["differences"] = {name: difference(ours, picture) for name, picture in pictures.items()}
        found["size"] = [ours.shape[1], ours.shape[0]]
    return found


def difference(ours: Picture, other: Picture) -> dict[str, Any]:
    """Return the mean and largest difference of visible luma, and that of alpha, in 0..255; or the other's size."""
    if ours.shape != other.shape:
        return {"size": [other.shape[1], other.shape[0]]}
    seen = (ours[..., 1] > 0) & (other[..., 1] > 0)
    luma = np.abs(ours[..., 0] - other[..., 0])[seen]
    alpha = np.abs(ours[..., 1] - other[..., 1])
    mean, worst = (float(luma.mean()), float(np.percentile(luma, 99))) if luma.size else (0.0, 0.0)
    return {"luma": round(mean, 2), "luma99": round(worst, 2), "alpha": round(float(alpha.mean()), 2)}


def facts(data: bytes) -> dict[str, Any]:
    """Return what independent readers report about a file."""
    return {
        "pillow": _attempt(_by_pillow, data),
        "tiff": _attempt(_by_tifffile, data),
        "jpeg": _attempt(_jpeg_frame, data),
        "bmp": _attempt(_bmp_header, data),
        "is_deep": _is_deep(data),
        "has_frames": (data[:4] == b"\x89PNG" and b"acTL" in data) or (data[:4] == b"RIFF" and b"ANIM" in data[:100]),
    }


def _is_deep(data: bytes) -> bool:
    """Return whether a PNG or a TIFF has 16 bits per channel."""
    if data[:4] == b"\x89PNG":
        return data[24:25] == b"\x10"
    tiff = _attempt(_by_tifffile, data)
    return bool(tiff) and tiff.get("bitspersample") == 16


def _kind(data: bytes) -> str | None:
    """Return the format; None if the service does not accept it."""
    brands = {b"heic": "heic", b"heix": "heic", b"mif1": "heic", b"hevc": "heic", b"avif": "avif", b"avis": "avif"}
    if data[4:8] == b"ftyp":
        return brands.get(data[8:12])
    return next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)


def _attempt(read: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return read(data)
    except Exception as error:  # noqa: BLE001 - third-party decoders on damaged files
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def _by_pillow(data: bytes) -> dict[str, Any]:
    """Return the header, and the error of the first frame's pixels if they do not decode."""
    with warnings.catch_warnings(record=True):
        image = _opened(data)
        found: dict[str, Any] = {"format": image.format, "mode": image.mode, "size": image.size}
        found["frames"] = getattr(image, "n_frames", 1)
        found["icc"] = image.info.get("icc_profile") is not None
        try:
            image.load()
        except Exception as error:  # noqa: BLE001 - any error means damage
            found["damage"] = f"{type(error).__name__}: {error}"[:200]
    return found


def _by_tifffile(data: bytes) -> dict[str, Any] | None:
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        found = {"pages": sum(not page.is_reduced for page in itertools.islice(file.pages, MOST_PAGES))}
        for name in ("bitspersample", "sampleformat", "compression", "photometric", "samplesperpixel", "planarconfig"):
            found[name] = int(getattr(page, name))
        found["size"] = [page.imagewidth, page.imagelength]
        found["fillorder"] = int(page.fillorder)
        found["extrasamples"] = [int(kind) for kind in page.extrasamples]
        bits = page.tags.get("BitsPerSample")
        found["bits"] = list(np.atleast_1d(bits.value)) if bits is not None else [1]
        found["bits"] = [int(one) for one in found["bits"]]
        return found


def _jpeg_frame(data: bytes) -> dict[str, Any] | None:
    """Return the type of the first frame, and its bits per channel."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 < len(data):
        if data[at] != 0xFF or data[at + 1] in (0xFF, 0):
            at += 1
            continue
        marker = data[at + 1]
        if marker in FRAMES:
            return {"frame": marker, "bits": data[at + 4]}
        at += 2 if 0xD0 <= marker <= 0xD9 else 2 + int.from_bytes(data[at + 2 : at + 4])
    return {}


def _bmp_header(data: bytes) -> dict[str, Any] | None:
    """Return the fields of a header of at least 40 bytes."""
    if data[:2] != b"BM" or len(data) < 54:
        return None
    header, width, height = struct.unpack_from("<Iii", data, 14)
    (bits, compression) = struct.unpack_from("<HI", data, 28)
    return {"header": header, "size": [abs(width), abs(height)], "bits": bits, "compression": compression}


def _pictures(data: bytes) -> Iterator[tuple[str, Picture]]:
    header = _attempt(_header, data)
    orientation, icc, gamma = header if isinstance(header, tuple) else (1, None, None)
    is_tiff = data[:2] in (b"II", b"MM")
    # OpenCV and Pillow rotate TIFFs themselves.
    turns = {"opencv": not is_tiff, "tifffile": True, "pillow": not is_tiff, "masks": False}
    tiff = _attempt(_by_tifffile, data) or {}
    decoders = {"opencv": _opencv, "tifffile": _tifffile, "pillow": _pillow, "masks": _masks}
    for name, decode in decoders.items():
        try:
            pixels = decode(data)
        except Exception:  # noqa: BLE001 - this decoder does not support the file
            continue
        if pixels is not None:
            picture = _luma_and_alpha(_managed(pixels, icc, gamma))
            if tiff and not {PREMULTIPLIED, STRAIGHT} & set(tiff.get("extrasamples", ())):
                picture[..., 1] = 255  # a fourth channel that nothing calls alpha
            yield name, _upright(picture, orientation if turns[name] else 1)


def _opened(data: bytes) -> Image.Image:
    """Return an image that is not decoded yet. Without a hint, libheif would open some AVIF files."""
    is_avif = data[4:8] == b"ftyp" and (b"avif" in data[8:64] or b"avis" in data[8:64])
    return Image.open(io.BytesIO(data), formats=("AVIF",) if is_avif else None)


def _header(data: bytes) -> tuple[int, bytes | None, float | None]:
    """Return orientation, profile and gamma, as far as Pillow reports them."""
    image = _opened(data)
    gamma = image.info.get("gamma") if image.format == "PNG" and "srgb" not in image.info else None
    if image.format == "HEIF":  # libheif turns the pixels itself
        return 1, image.info.get("icc_profile"), None
    if image.format == "AVIF":
        # Here Pillow reports the file's own transformations. `getexif` would also read XMP.
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return int(exif.get(ORIENTATION, 1)), image.info.get("icc_profile"), None
    orientation = _attempt(lambda _: int(image.getexif().get(ORIENTATION, 1)), data)
    return orientation if isinstance(orientation, int) else 1, image.info.get("icc_profile"), gamma


def _opencv(data: bytes) -> np.ndarray | None:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype not in (np.uint8, np.uint16):
        return None
    if decoded.ndim == 2:
        return np.dstack([decoded, *_clear_gray(data, decoded)])
    return decoded[..., (2, 1, 0, 3)[: decoded.shape[2]]]


def _clear_gray(data: bytes, gray: np.ndarray) -> list[np.ndarray]:
    """Return the alpha of a gray PNG with one transparent value, which OpenCV ignores."""
    at = data.find(b"tRNS")
    if data[:4] != b"\x89PNG" or data[25] or at < 0:
        return []
    most = np.iinfo(gray.dtype).max
    levels = 2 ** data[24]
    clear = int.from_bytes(data[at + 4 : at + 6]) % levels * most // (levels - 1)
    return [np.where(gray == clear, 0, most).astype(gray.dtype)]


def _tifffile(data: bytes) -> np.ndarray | None:
    if data[:2] not in (b"II", b"MM"):
        return None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        kinds = tifffile.PHOTOMETRIC
        if page.photometric == kinds.PALETTE:
            return (np.moveaxis(page.colormap[:, pixels], 0, -1) >> 8).astype(np.uint8)
        if page.photometric not in (kinds.MINISBLACK, kinds.MINISWHITE, kinds.RGB) or pixels.dtype.kind not in "bu":
            return None
        if pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(pixels, 0, -1)
        if page.bitspersample not in (8, 16):
            pixels = (pixels.astype(float) * (255 / (2**page.bitspersample - 1))).round().astype(np.uint8)
        if page.photometric == kinds.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        if pixels.ndim == 2:
            return pixels[..., np.newaxis]
        extra = [int(kind) for kind in page.extrasamples]
        has_alpha = extra[:1] in ([PREMULTIPLIED], [STRAIGHT])
        pixels = pixels[..., : pixels.shape[2] - len(extra) + has_alpha]
        return _straight(pixels) if extra[:1] == [PREMULTIPLIED] else pixels


def _straight(pixels: np.ndarray) -> np.ndarray:
    """Return straight colours from premultiplied ones; alpha is the last channel."""
    most = np.iinfo(pixels.dtype).max
    colours = pixels[..., :-1].astype(float) * most / np.maximum(pixels[..., -1:], 1)
    return np.concatenate([colours.round().clip(0, most).astype(pixels.dtype), pixels[..., -1:]], axis=2)


def _masks(data: bytes) -> np.ndarray | None:
    """Return a BMP with bit masks per channel, which neither OpenCV nor Pillow supports fully."""
    header = _bmp_header(data)
    if header is None or header["compression"] not in (BIT_FIELDS, ALPHA_BIT_FIELDS):
        return None
    (start,), (height,) = struct.unpack_from("<I", data, 10), struct.unpack_from("<i", data, 22)
    width, rows = header["size"]
    stride = (width * header["bits"] + 31) // 32 * 4
    lines = np.frombuffer(data, np.uint8, stride * rows, start).reshape(rows, stride)
    words = np.ascontiguousarray(lines).view(f"<u{header['bits'] // 8}")[:, :width].astype(np.uint32)
    has_alpha = header["header"] >= 56 or header["compression"] == ALPHA_BIT_FIELDS
    masks = struct.unpack_from(f"<{3 + has_alpha}I", data, 54)
    channels = [(words & mask) / mask * 255 for mask in masks if mask]
    picture = np.dstack(channels).round().astype(np.uint8)
    return picture[::-1] if height > 0 else picture


def _pillow(data: bytes) -> np.ndarray:
    """Return Pillow's pixels, as far as a damaged file has them."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image = _opened(data)
        if image.format == "JPEG" and image.mode == "RGB":
            image.draft("L", image.size)  # its Y plane, as it is stored
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535).astype(np.uint16)[..., np.newaxis]
        clear = image.info.get("transparency")
        return deep if clear is None else np.dstack([deep, np.where(deep == clear, 0, 65535).astype(np.uint16)])
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        return np.asarray(_to_srgb(image, image.info["icc_profile"]))
    if image.mode == "La" or image.has_transparency_data:
        return np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
    pixels = np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return ImageCms.profileToProfile(image, source, target, renderingIntent=intent, outputMode="RGB", flags=flags)


def _managed(pixels: np.ndarray, icc: bytes | None, gamma: float | None) -> np.ndarray:
    """Return pixels, [H, W, 1 to 4], after applying a profile, for 8 bits, or a PNG's gamma."""
    colours = pixels[..., : 1 if pixels.shape[2] < 3 else 3]
    if (colours == colours[..., :1]).all():
        colours = colours[..., :1]  # OpenCV knows no gray with alpha, and a gray profile no RGB
    if icc is not None and pixels.dtype == np.uint8:
        image = Image.fromarray(colours[..., 0] if colours.shape[2] == 1 else np.ascontiguousarray(colours))
        try:
            colours = np.asarray(_to_srgb(image, icc))
        except (OSError, ImageCms.PyCMSError):  # of another kind, or damaged
            return pixels
    elif icc is None and gamma:
        most = np.iinfo(pixels.dtype).max
        colours = (most * (colours / most) ** (1 / (gamma * SRGB_GAMMA))).round().astype(pixels.dtype)
    else:
        return pixels
    alpha = pixels[..., -1:] if pixels.shape[2] in (2, 4) else pixels[..., :0]
    return np.concatenate([colours, alpha], axis=2)


def _luma_and_alpha(pixels: np.ndarray) -> Picture:
    """Return [H, W, 2] of pixels, [H, W, 1 to 4], of 8 or 16 bits."""
    scaled = pixels.astype(np.float32) * np.float32(255 / np.iinfo(pixels.dtype).max)
    luma = scaled[..., 0] if pixels.shape[2] < 3 else scaled[..., :3] @ LUMA
    return np.stack(
        [luma, scaled[..., -1] if pixels.shape[2] in (2, 4) else np.full(luma.shape, 255, np.float32)], axis=-1
    )


def _upright(picture: Picture, orientation: int) -> Picture:
    """Turn as EXIF says."""
    if orientation not in range(2, 9):
        return picture
    if orientation in (5, 6, 7, 8):
        picture = picture.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return picture


if __name__ == "__main__":
    main()
