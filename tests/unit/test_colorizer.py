import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service import codec
from service.catalog import Catalog
from service.colorizer import Colorizer, Options
from service.problems import ClientGone, DeadlineExceeded, UnknownModel
from service.settings import Settings
from tests.conftest import decoded, encoded, luma


@pytest.fixture(scope="module")
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(Catalog(settings), settings)


def test_a_gray_jpeg_comes_back_coloured_with_its_own_luma(colorizer: Colorizer, jpeg: bytes) -> None:
    answer = colorizer.colorize(jpeg, Options())
    assert answer.media_type == "image/jpeg"
    assert (answer.model, answer.device) == ("compact/1", "cpu")
    assert list(answer.seconds) == ["decode", "infer", "queue", "merge", "encode"]
    assert np.abs(luma(answer.data) - luma(jpeg)).mean() < 0.5
    rgb = decoded(answer.data).astype(int)
    assert (rgb[..., 0] - rgb[..., 2]).mean() > 20


def test_the_same_photo_gives_the_same_bytes(colorizer: Colorizer, jpeg: bytes) -> None:
    assert colorizer.colorize(jpeg, Options()).data == colorizer.colorize(jpeg, Options()).data


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("model", ["compact", "warm"])
@pytest.mark.parametrize("merge", ["luma", "literal"])
def test_every_format_model_and_merge(colorizer: Colorizer, jpeg: bytes, format_: str, model: str, merge: str) -> None:
    answer = colorizer.colorize(jpeg, Options(format=format_, model=model, merge=merge))  # type: ignore[arg-type]
    rgb = decoded(answer.data).astype(int)
    assert answer.media_type == f"image/{format_}"
    assert rgb.shape[:2] == luma(jpeg).shape
    assert (rgb[..., 0] - rgb[..., 2]).mean() > 20
    if merge == "luma" and format_ != "webp":
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
    """A photo that lies on its side, with a caption."""
    exif = Image.Exif()
    exif[0x010E] = "Grandmother, 1931"
    exif[codec.ORIENTATION_TAG] = 6
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
    assert exif[codec.ORIENTATION_TAG] == 1
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
