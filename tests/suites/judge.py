"""The verdict on the service's result for a file, compared with what independent readers report about the file."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.settings import Settings

# Levels, of 255. Decoders differ by one or two, in rounding and in scaling 5 bits to 8.
MAX_LUMA = 3.0
MAX_ALPHA = 1.0
# Limits for one file; all files of these suites are small.
MAX_CPU_S = 10.0
MAX_MEMORY = 1 << 30
TAKEN = {"JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "BMP", "GIF"}

Answers = dict[str, Any]
Check = Callable[[Answers, re.Match[str]], bool]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a file as a text for the table, and the errors in it, if any."""

    kind: str
    outcome: str
    wrong: tuple[str, ...]


def judge(ours: Answers, other: Answers) -> Verdict:
    """Return the verdict on one file. ours: from the colouring worker. other: from the reference worker."""
    kind = _kind(other)
    if "died" in ours:
        return Verdict(kind, "the process died", (f"the process died: {ours['died']}",))
    wrong = [*_costs(ours)]
    if ours["status"] == 200:
        wrong += _differences(other)
        return Verdict(kind, "coloured", tuple(wrong))
    detail = str(ours["detail"])
    if ours["status"] >= 500:
        wrong.append(f"{ours['status']}: {detail}")
    elif "died" not in other and (claim := _false_claim(ours, other)):
        wrong.append(f"{ours['status']} {detail!r}: {claim}")
    return Verdict(kind, f"{ours['status']}: {_general(detail)}", tuple(wrong))


def _kind(other: Answers) -> str:
    return str(other.get("kind", "?"))


def _costs(ours: Answers) -> list[str]:
    found = []
    if ours["cpu"] > MAX_CPU_S:
        found.append(f"it took {ours['cpu']:.0f} s of a processor")
    if ours["grown"] > MAX_MEMORY:
        found.append(f"it took {ours['grown'] / 2**20:.0f} MiB")
    if ours["stderr"]:
        found.append(f"a library wrote to standard error: {ours['stderr'].splitlines()[0][:80]}")
    return found


def _differences(other: Answers) -> list[str]:
    """Return how the output differs from all independent decoders; empty if one agrees."""
    if "died" in other:
        return [f"the reference died: {other['died']}"]
    differences: dict[str, dict[str, Any]] = other["differences"]
    witnesses = {name: one for name, one in differences.items() if name != _own(other)} or differences
    if not witnesses:
        return ["coloured, though no other decoder reads it"]
    if any(_agrees(one) for one in witnesses.values()):
        return []
    return [f"{name}: {_words(one, other['size'])}" for name, one in witnesses.items()]


def _own(other: Answers) -> str | None:
    """Return the decoder that the service itself uses for such a file: it is not independent."""
    if other["kind"] in ("jpeg", "heic"):
        return None
    return "opencv" if other["is_deep"] else "pillow"


def _agrees(difference: dict[str, Any]) -> bool:
    return "size" not in difference and difference["luma"] <= MAX_LUMA and difference["alpha"] <= MAX_ALPHA


def _words(difference: dict[str, Any], size: list[int]) -> str:
    if "size" in difference:
        return "x".join(map(str, difference["size"])) + " pixels, not " + "x".join(map(str, size))
    return f"luma {difference['luma']} and alpha {difference['alpha']} levels off"


def _general(detail: str) -> str:
    """Return the detail without the parts that are specific to this file."""
    detail = re.sub(r"damaged or cut short \(.*\)", "damaged or cut short", detail, flags=re.DOTALL)
    return re.sub(r"\d[\d,./]*", "N", detail)


def _false_claim(ours: Answers, other: Answers) -> str | None:
    """Return what is not true about a refusal; None if it is right."""
    detail, status = str(ours["detail"]), ours["status"]
    if status == 400:
        if re.search("unsupported|not supported|not implemented", detail, re.IGNORECASE):
            return "an unsupported file is not damaged"
        return _undamaged(other)
    for pattern, check in REASONS:
        if found := re.search(pattern, detail):
            return None if check(other, found) else "this reason is wrong"
    return "this reason is unknown: review it, and add it to tests/suites/judge.py"


def _undamaged(other: Answers) -> str | None:
    """Return which decoder reads a file that was reported as damaged; None if none does."""
    pillow = other["pillow"]
    if "error" not in pillow and "damage" not in pillow:
        return "Pillow finds no damage"
    # Other decoders return the undamaged part without a warning.
    others = [name for name in other["decoded_by"] if name != "pillow"]
    if others and "pillow" not in other["decoded_by"]:
        return f"{' and '.join(others)} can decode it"
    return None


def _says(reader: str, name: str, *values: int) -> Check:
    """Return a check whether a reader reports one of these values, or else the number in the text."""

    def is_said(other: Answers, found: re.Match[str]) -> bool:
        return (other[reader] or {}).get(name) in (values or (int(found.group(1)),))

    return is_said


def _is_other_type(other: Answers, _: re.Match[str]) -> bool:
    return other["pillow"].get("format") not in TAKEN


def _is_animated(other: Answers, _: re.Match[str]) -> bool:
    return other["pillow"].get("frames", 1) > 1 or bool(other["has_frames"])


def _has_bits(other: Answers, found: re.Match[str]) -> bool:
    bits = [int(number) for number in found.group(1).split("/")]
    tiff = other["tiff"] or {}
    frame = (other["jpeg"] or {}).get("bits")
    return bits[0] == frame or bits == tiff.get("bits", [])[: len(bits)] or bits[0] == tiff.get("bitspersample")


def _is_large(other: Answers, found: re.Match[str]) -> bool:
    sizes = [(other[reader] or {}).get("size", (0, 0)) for reader in ("pillow", "tiff", "bmp")]
    limit = Settings()
    return any(width * height > limit.max_pixels or max(width, height) > limit.max_side for width, height in sizes)


def _is_a(*kinds: str) -> Check:
    """Return a check of the format alone. No reader here reports more; the texts were reviewed by hand."""
    return lambda other, _: other["kind"] in kinds


def _is_unread(other: Answers, _: re.Match[str]) -> bool:
    return not set(other["decoded_by"]) - {_own(other)}


# The reasons for refusing an undamaged file, each with its check. The first matching one counts.
REASONS: tuple[tuple[str, Check], ...] = (
    (r"is not a .* image$", _is_other_type),
    (r"animated|several images", _is_animated),
    (r"several pages", lambda other, _: (other["tiff"] or {}).get("pages", 1) > 1),
    (
        r"BMP with (?:run-length|compression of type|a JPEG|a PNG)",
        lambda other, _: (other["bmp"] or {}).get("compression", 0) > 0,
    ),
    (r"BMP with a header of (\d+) bytes", _says("bmp", "header")),
    (r"BMP with (\d+) bits", _says("bmp", "bits")),
    (r"BMP with gaps", _says("bmp", "compression", 3, 6)),
    (r"has (?:signed|floating-point|complex) samples", _says("tiff", "sampleformat", 2, 3, 5, 6)),
    (r"has (\d+(?:/\d+)*) bits", _has_bits),
    (r"has a colour space \((\d+)", _says("tiff", "photometric")),
    (r"has a compression \((\d+)", _says("tiff", "compression")),
    (r"bits in reverse", _says("tiff", "fillorder", 2)),
    (r"holds its channels one after another", _says("tiff", "planarconfig", 2)),
    (r"lossless or hierarchical", lambda other, _: (other["jpeg"] or {}).get("frame") not in (0xC0, 0xC1, 0xC2)),
    (r"has (\d+) x (\d+) pixels; at most|a side of (\d+)|has more than [\d,]+ pixels", _is_large),
    (r"file is not supported|critical chunk|CgBI", _is_unread),
    (r"camera's raw data|thumbnail|mask|inks|predictor|sparse|strips|tiles|has \d+ channels|BigTIFF", _is_a("tiff")),
    (r"sampling factors|scans|components", _is_a("jpeg", "tiff")),
    (r"overlays|primary image|derived|coded as|property|turned or cropped", _is_a("heic", "avif")),
    (
        r"may have at most [\d,]+: |in all its scans, tiles and frames",
        _is_a("jpeg", "png", "gif", "tiff", "webp", "bmp", "heic", "avif"),
    ),
)
