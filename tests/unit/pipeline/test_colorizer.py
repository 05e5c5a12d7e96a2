import io
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from service.errors import ClientGone, ColorPhoto, DeadlineExceeded, UnknownModel, UnsupportedType
from service.formats import tiff_tags
from service.formats.registry import FORMATS
from service.imaging import color, decoding
from service.inference.executor import CpuExecutor
from service.inference.registry import ModelRegistry
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.conftest import decoded, encoded, luma
from tests.waiting import WAIT_S, until


@pytest.fixture(scope="module")
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(ModelRegistry(settings), settings)


def test_a_gray_jpeg_comes_back_coloured_with_its_own_luma(colorizer: Colorizer, jpeg: bytes) -> None:
    answer = colorizer.colorize(jpeg, Options())
    assert answer.media_type == "image/jpeg"
    assert (answer.model, answer.device) == ("compact/1", "cpu")
    assert list(answer.seconds) == ["decode", "infer", "queue", "merge", "encode"]
    assert np.abs(luma(answer.data) - luma(jpeg)).mean() < 0.5
    rgb = decoded(answer.data).astype(int)
    assert (rgb[..., 0] - rgb[..., 2]).mean() > 20


def test_only_a_photo_that_is_alone_is_spread(models: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(models=models, device="cpu")
    colorizer = Colorizer(ModelRegistry(settings), settings)
    batcher = colorizer.models.get(None).batcher
    predict, alone = batcher.predict, []
    both = threading.Barrier(2)

    def predicted(*given: object, **options: object) -> object:
        alone.append(options["alone"])
        return predict(*given, **options)  # type: ignore[arg-type]

    def together(*given: object) -> np.ndarray:
        both.wait(WAIT_S)
        answer = color_split(*given)  # type: ignore[arg-type]
        both.wait(WAIT_S)
        return answer

    monkeypatch.setattr(batcher, "predict", predicted)
    single = colorizer.colorize(jpeg, Options()).data
    assert alone == [True]
    color_split = color.split
    monkeypatch.setattr(color, "split", together)
    with ThreadPoolExecutor(2) as pool:
        pair = list(pool.map(lambda _: colorizer.colorize(jpeg, Options()).data, range(2)))
    assert alone[1] is False
    assert pair == [single, single]
    monkeypatch.undo()
    with pytest.raises(UnsupportedType):
        colorizer.colorize(b"no photo", Options())
    assert colorizer._inside == 0


def test_a_photo_is_finished_before_the_next_is_begun(
    models: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each thread would have a decoded photo that waits in memory."""
    monkeypatch.setattr(Settings, "cores", 1)
    settings = Settings(models=models, device="cpu")
    colorizer = Colorizer(ModelRegistry(settings), settings)
    stages: list[str] = []
    predicts, door = threading.Event(), threading.Event()

    def spy(place: object, name: str, call: Callable[[], object]) -> None:
        original = getattr(place, name)

        def also(*arguments: object, **options: object) -> object:
            call()
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, also)

    spy(decoding, "decode", lambda: stages.append("decode"))
    spy(color, "merge_planes", lambda: stages.append("merge"))
    spy(CpuExecutor, "predict", lambda: (predicts.set(), door.wait(WAIT_S)))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(colorizer.colorize, jpeg, Options())
        assert predicts.wait(WAIT_S)
        with colorizer._cores.acquire_to_start():
            second = pool.submit(colorizer.colorize, jpeg, Options())
            until(lambda: len(colorizer._cores._starting) == 1)
            door.set()
            until(lambda: len(colorizer._cores._continuing) == 1)
        assert first.result(WAIT_S).data == second.result(WAIT_S).data
    assert stages == ["decode", "merge"] * 2


def test_the_same_photo_gives_the_same_bytes(colorizer: Colorizer, jpeg: bytes) -> None:
    assert colorizer.colorize(jpeg, Options()).data == colorizer.colorize(jpeg, Options()).data


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("model", ["compact", "warm"])
@pytest.mark.parametrize("merge", ["luma", "literal"])
def test_every_format_model_and_merge(colorizer: Colorizer, jpeg: bytes, format_: str, model: str, merge: str) -> None:
    answer = colorizer.colorize(jpeg, Options(format=format_, model=model, merge=merge))  # type: ignore[arg-type]
    rgb = decoded(answer.data).astype(int)
    assert answer.media_type == f"image/{format_}"
    assert rgb.shape[:2] == luma(jpeg).shape
    assert (rgb[..., 0] - rgb[..., 2]).mean() > 20
    if merge == "luma" and format_ not in ("webp", "avif"):
        assert np.abs(luma(answer.data) - luma(jpeg)).mean() < 1


def test_strength_scales_the_colour(colorizer: Colorizer, jpeg: bytes) -> None:
    def spread(strength: float) -> float:
        rgb = decoded(colorizer.colorize(jpeg, Options(strength=strength, format="png")).data).astype(int)
        return float((rgb.max(axis=-1) - rgb.min(axis=-1)).mean())

    assert spread(0) == 0
    assert 0.3 * spread(1) < spread(0.5) < 0.7 * spread(1)
    assert spread(2) > 1.2 * spread(1)


def test_alpha_comes_back_untouched(colorizer: Colorizer, gray: np.ndarray) -> None:
    alpha = np.resize(np.arange(256, dtype=np.uint8), gray.shape)
    answer = colorizer.colorize(encoded(np.dstack([gray, alpha]), "PNG"), Options())
    image = np.asarray(Image.open(io.BytesIO(answer.data)))
    np.testing.assert_array_equal(image[..., 3], alpha)


def described(gray: np.ndarray, format_: str) -> bytes:
    """Return a photo that lies on its side, with a caption."""
    exif = Image.Exif()
    exif[0x010E] = "Grandmother, 1931"
    exif[tiff_tags.ORIENTATION] = 6
    return encoded(gray, format_, exif=exif, dpi=(300, 300))


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("answer_format", ["jpeg", "png", "webp"])
def test_a_caption_comes_back_with_a_note_and_upright(
    colorizer: Colorizer, gray: np.ndarray, source: str, answer_format: str
) -> None:
    data = colorizer.colorize(described(gray, source), Options(format=answer_format, max_side=120)).data  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(data))
    assert image.size == (80, 120)
    exif = image.getexif()
    assert exif[0x010E] == "Grandmother, 1931"
    assert exif[tiff_tags.ORIENTATION] == 1
    assert exif[0x0131] == "tomau, synthetic colours by compact 1"
    assert data.count(b"compositeWithTrainedAlgorithmicMedia") == 1
    image.load()


def test_metadata_is_stripped_on_request_and_the_note_stays(colorizer: Colorizer, gray: np.ndarray) -> None:
    upload = described(gray, "JPEG")
    data = colorizer.colorize(upload, Options(metadata="strip")).data
    assert b"Grandmother" in upload
    assert b"Grandmother" not in data
    assert b"compositeWithTrainedAlgorithmicMedia" in data
    np.testing.assert_array_equal(luma(data), luma(colorizer.colorize(upload, Options()).data))


def test_max_side_shrinks_the_answer(colorizer: Colorizer, jpeg: bytes) -> None:
    assert decoded(colorizer.colorize(jpeg, Options(max_side=100)).data).shape == (66, 100, 3)


def test_quality_is_taken(colorizer: Colorizer, jpeg: bytes) -> None:
    sizes = [len(colorizer.colorize(jpeg, Options(quality=quality)).data) for quality in (20, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 3 < sizes[2]


def test_it_stops_when_time_is_up_or_nobody_waits(colorizer: Colorizer, jpeg: bytes) -> None:
    with pytest.raises(DeadlineExceeded):
        colorizer.colorize(jpeg, Options(), deadline=time.monotonic() - 1)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(ClientGone):
        colorizer.colorize(jpeg, Options(), cancelled=cancelled)
    with pytest.raises(UnknownModel):
        colorizer.colorize(jpeg, Options(model="nobody"))
    assert colorizer.colorize(jpeg, Options()).data


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (1000, 200), (17, 31)])
def test_shapes(colorizer: Colorizer, shape: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for format_ in ("JPEG", "PNG"):
        assert decoded(colorizer.colorize(encoded(plane, format_), Options()).data).shape == (*shape, 3)


@pytest.fixture(scope="module")
def scan(gray: np.ndarray) -> np.ndarray:
    """Return a gray photograph of 16 bits that uses the lower eight bits too: uint16 [333, 501]."""
    return (gray.astype(np.uint16) << 8) + np.random.default_rng(5).integers(0, 256, gray.shape).astype(np.uint16)


@pytest.mark.parametrize("merge", ["luma", "literal"])
@pytest.mark.parametrize("model", ["compact", "warm"])
@pytest.mark.parametrize("format_", ["png", "tiff"])
def test_a_deep_scan_comes_back_deep(
    colorizer: Colorizer, scan: np.ndarray, format_: str, model: str, merge: str
) -> None:
    source = cv2.imencode(".png", scan)[1].tobytes()
    answer = colorizer.colorize(source, Options(format=format_, model=model, merge=merge))  # type: ignore[arg-type]
    bgr = cv2.imdecode(np.frombuffer(answer.data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (bgr.dtype, bgr.shape) == (np.uint16, (*scan.shape, 3))
    assert (bgr[..., 2].astype(int) - bgr[..., 0]).mean() > 20 * 257
    if merge == "luma":
        assert np.abs(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY).astype(int) - scan).max() <= 1


def test_a_deep_scan_is_coloured_as_its_upper_eight_bits(colorizer: Colorizer, scan: np.ndarray) -> None:
    deep = colorizer.colorize(cv2.imencode(".png", scan)[1].tobytes(), Options()).data
    shallow = colorizer.colorize(encoded((scan >> 8).astype(np.uint8), "PNG"), Options()).data
    bgr = cv2.imdecode(np.frombuffer(deep, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.abs((bgr[..., ::-1] / 257) - decoded(shallow)).mean() < 1.5


@pytest.mark.parametrize("format_", ["jpeg", "webp", "avif"])
def test_a_deep_scan_fits_into_eight_bits(colorizer: Colorizer, scan: np.ndarray, format_: str) -> None:
    source = cv2.imencode(".tiff", scan)[1].tobytes()
    answer = colorizer.colorize(source, Options(format=format_, quality=95))  # type: ignore[arg-type]
    assert np.abs(luma(answer.data) - scan / 257).mean() < 2.5


def test_a_photo_in_colour_is_kept_recoloured_or_rejected(colorizer: Colorizer, astronaut: np.ndarray) -> None:
    data = encoded(astronaut, "JPEG", quality=95)
    kept = colorizer.colorize(data, Options(if_color="keep"))
    assert (kept.data, kept.media_type, kept.tone) == (data, "image/jpeg", "color")
    assert (kept.model, kept.device) == (None, None)
    with pytest.raises(ColorPhoto) as caught:
        colorizer.colorize(data, Options(if_color="reject"))
    assert caught.value.field == "if_color"
    recolored = colorizer.colorize(data, Options(if_color="recolor"))
    assert (recolored.model, recolored.tone) == ("compact/1", "color")
    unlooked = colorizer.colorize(data, Options())
    assert (unlooked.tone, unlooked.data) == (None, recolored.data)


@pytest.mark.parametrize("if_color", ["keep", "reject", "recolor"])
def test_gray_and_toned_photos_are_coloured_all_the_same(colorizer: Colorizer, jpeg: bytes, if_color: str) -> None:
    sepia = np.clip(decoded(jpeg) * np.array([1.1, 0.98, 0.76]), 0, 255).astype(np.uint8)
    options = Options(if_color=if_color)  # type: ignore[arg-type]
    for data, tone in ((jpeg, "gray"), (encoded(sepia, "PNG"), "toned")):
        answer = colorizer.colorize(data, options)
        assert (answer.model, answer.tone) == ("compact/1", tone)


@pytest.mark.parametrize(
    "change",
    [{"format": "png"}, {"max_side": 100}, {"quality": 60}, {"metadata": "strip"}],
    ids=lambda change: next(iter(change)),
)
def test_a_change_to_a_kept_photo_leaves_its_colours(
    colorizer: Colorizer, astronaut: np.ndarray, change: dict[str, str]
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a caption"
    exif[0x0112] = 6
    data = encoded(astronaut, "JPEG", quality=95, exif=exif)
    answer = colorizer.colorize(data, Options.model_validate({"if_color": "keep", **change}))
    assert (answer.model, answer.tone) == (None, "color")
    rgb = decoded(answer.data)
    upright = cv2.resize(np.rot90(decoded(data), -1), rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(rgb.astype(int) - upright).mean() < 5
    found = Image.open(io.BytesIO(answer.data)).getexif()
    assert found.get(0x010E) == (None if "metadata" in change else "a caption")
    assert found.get(0x0112, 1) == 1
    # It has its own colours, so that no note may call them synthetic.
    assert b"compositeWithTrainedAlgorithmicMedia" not in answer.data


def test_what_changes_nothing_keeps_the_very_bytes(colorizer: Colorizer, astronaut: np.ndarray) -> None:
    data = encoded(astronaut, "PNG")
    for options in (Options(if_color="keep", format="png"), Options(if_color="keep", max_side=5000)):
        assert colorizer.colorize(data, options).data == data


def gray_profile(gamma: float) -> bytes:
    """Return a minimal gray ICC profile of version 2 with a gamma curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    start = 128 + 4 + 2 * 12
    entries = b"wtpt" + struct.pack(">II", start, len(white)) + b"kTRC" + struct.pack(">II", start + 20, len(curve))
    body = struct.pack(">I", 2) + entries + white + curve
    head = struct.pack(">I4xI4s4s4s12x4s", 128 + len(body), 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0") + body


def srgb_of(linear: np.ndarray) -> np.ndarray:
    """Return sRGB levels, 0..255, of linear light, 0..1, by IEC 61966-2-1."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF"])
def test_the_answer_to_a_photo_with_a_profile_is_srgb(colorizer: Colorizer, gray: np.ndarray, format_: str) -> None:
    options = {"quality": 98} if format_ == "JPEG" else {}
    source = encoded(gray, format_, icc_profile=gray_profile(1.4), **options)
    answer = colorizer.colorize(source, Options(format="png", strength=0)).data
    expected = srgb_of((gray / 255) ** 1.4)
    assert np.abs(luma(answer) - expected).mean() < 1
    assert "icc_profile" not in Image.open(io.BytesIO(answer)).info


def test_a_pngs_gamma_counts_where_it_has_no_profile(colorizer: Colorizer, gray: np.ndarray) -> None:
    png = encoded(gray, "PNG")
    gama = struct.pack(">I4sI", 4, b"gAMA", 100_000)
    chunk = gama + struct.pack(">I", zlib.crc32(gama[4:]))
    answer = colorizer.colorize(png[:33] + chunk + png[33:], Options(strength=0)).data
    assert np.abs(luma(answer) - srgb_of(gray / 255)).max() <= 1


def test_a_large_profile_is_no_reason_to_refuse_a_png(colorizer: Colorizer, gray: np.ndarray) -> None:
    noise = np.random.default_rng(0).bytes(2 << 20)
    assert colorizer.colorize(encoded(gray, "PNG", icc_profile=noise), Options()).media_type == "image/png"
