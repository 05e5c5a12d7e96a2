"""Samples, augmentation and streams of batches."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_export.data import batching, sources
from model_export.recipe import Augment, Shards
from service.imaging import color
from tests.conftest import encoded

LAB = batching.SampleSpec("lab")


def photographs(count: int) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    made = {}
    for number in range(count):
        small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        large = cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC)
        made[f"made/{number:03d}.jpg"] = encoded(large, "JPEG", quality=95)
    return made


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "train.tar", photographs(20) | {"README.txt": b"no photograph"})


def test_a_bad_photograph_is_left_out_and_a_bad_collection_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(
        tmp_path / "mixed", photographs(6) | {"made/bad.jpg": b"\xff\xd8\xff no", "made/empty.png": b""}
    )
    stream = batching.Stream(sources.find([folder]), 8, LAB, Augment(), seed=0)
    assert [lightness.shape for lightness, _ in stream.batches(32, 3)] == [(8, 32, 32, 1)] * 3
    assert stream.unreadable == {"made/bad.jpg", "made/empty.png"}
    assert caplog.text.count("left out") == 2
    bad = write_folder(tmp_path / "bad", {f"{number}.jpg": b"no" for number in range(4)})
    with pytest.raises(sources.UnreadablePhotograph, match="4 photographs"):
        next(batching.Stream(sources.find([bad]), 8, LAB, Augment(), seed=0).batches(32, 1))


@pytest.mark.parametrize("space", color.COLOR_SPACES)
def test_a_sample_is_what_the_service_sees(astronaut: np.ndarray, space: color.ColorSpace) -> None:
    lightness, chroma = batching.make_sample(astronaut, 64, batching.SampleSpec(space))
    assert (lightness.shape, chroma.shape) == ((64, 64, 1), (16, 16, 2))
    served = color.split(color.luma_of_rgb(astronaut), space, 64)
    np.testing.assert_allclose(lightness[..., 0], served[0], atol=0.02)
    back = color.merge_rgb(color.luma_of_rgb(astronaut), np.ascontiguousarray(chroma.transpose(2, 0, 1)), space)
    assert np.abs(back.astype(int) - astronaut).mean() < 12


def test_a_stream_shows_each_photograph_once_before_any_again(shard: Path) -> None:
    stream = batching.Stream(sources.find([shard]), 10, LAB, Augment(), seed=3)
    names = [entry.name for _ in range(4) for entry, _ in stream._next_items()]
    assert len(set(names[:20])) == 20
    assert len(set(names[20:])) == 20


def test_a_stream_is_repeatable_and_has_the_right_shapes(shard: Path) -> None:
    def take(seed: int) -> list[batching.Batch]:
        stream = batching.Stream(sources.find([shard]), 4, batching.SampleSpec("hsv"), Augment(degrade=1.0), seed)
        return list(stream.batches(32, 3))

    first, again, other = take(1), take(1), take(2)
    for (lightness, chroma), (same_lightness, same_chroma) in zip(first, again, strict=True):
        assert (lightness.shape, chroma.shape) == ((4, 32, 32, 1), (4, 8, 8, 2))
        assert 0 <= lightness.min() <= lightness.max() <= 1
        np.testing.assert_array_equal(lightness, same_lightness)
        np.testing.assert_array_equal(chroma, same_chroma)
    assert not np.array_equal(first[0][0], other[0][0])


def test_ageing_changes_lightness_and_never_chroma(astronaut: np.ndarray) -> None:
    old = batching.make_augmented_sample(astronaut, 64, LAB, Augment(degrade=1.0), np.random.default_rng(5))
    new = batching.make_augmented_sample(astronaut, 64, LAB, Augment(degrade=0.0), np.random.default_rng(5))
    np.testing.assert_array_equal(old[1], new[1])
    assert np.abs(old[0] - new[0]).mean() > 0.01


def test_the_forms_of_the_tutorials(astronaut: np.ndarray) -> None:
    small = color.square(astronaut, 64)
    for space in color.COLOR_SPACES:
        lightness, chroma = batching.make_sample(astronaut, 64, batching.SampleSpec(space, stride=1, lightness="own"))
        own, true = color.split_rgb(small, space)
        np.testing.assert_array_equal(lightness[..., 0], own)
        np.testing.assert_array_equal(chroma, true)
    gray = batching.make_sample(astronaut, 64, batching.SampleSpec("hsv"))[0]
    value = batching.make_sample(astronaut, 64, batching.SampleSpec("hsv", lightness="own"))[0]
    assert value.mean() > gray.mean() + 0.03, "V is lighter than gray"


def test_shards_are_drawn_one_at_a_time(shard: Path) -> None:
    shards = Shards(count=5, drawn=3, epochs=2)
    stream = batching.Stream(sources.find([shard]), 4, LAB, Augment(), seed=1, shards=shards)
    drawn = [sorted(entry.name for entry, _ in stream._next_items()) for _ in range(40)]
    parts = {tuple(names) for names in drawn}
    assert len(parts) == 3, "of twenty photographs in five parts, only the first three are drawn"
    assert all(len(set(names)) == 4 for names in drawn)
    assert all(drawn[n] == drawn[n + 1] for n in range(0, 40, 2)), "each part twice before the next"


def test_shards_are_the_same_after_a_resume(shard: Path) -> None:
    """Shards depend on the seed only. A stream that begins later continues in the order of one that never stopped."""
    shards = Shards(count=5, drawn=3, epochs=2)

    def drawn(views: int, batches: int) -> list[list[tuple[str, tuple[int, int]]]]:
        stream = batching.Stream(sources.find([shard]), 4, LAB, Augment(), 1, shards=shards, views=views)
        return [[(entry.name, seed) for entry, seed in stream._next_items()] for _ in range(batches)]

    whole = drawn(0, 40)
    for step in (1, 7, 30):
        assert drawn(4 * step, 40 - step) == whole[step:]


def test_a_stream_goes_on_after_a_resume(shard: Path) -> None:
    """No photograph comes again before all others did, and its crop is another one."""
    entries = sources.find([shard])
    whole = list(batching.Stream(entries, 6, LAB, Augment(), 3).batches(32, 5))
    later = list(batching.Stream(entries, 6, LAB, Augment(), 3, views=12).batches(32, 3))
    for (lightness, chroma), (same_lightness, same_chroma) in zip(whole[2:], later, strict=True):
        np.testing.assert_array_equal(lightness, same_lightness)
        np.testing.assert_array_equal(chroma, same_chroma)


def test_a_stage_begins_with_its_first_batch(shard: Path) -> None:
    """Batches decoded ahead for the previous stage are decoded again: the same photographs, in the new size."""
    entries = sources.find([shard])
    sides = iter([32, 32, 64, 64, 64])
    mixed = list(batching.Stream(entries, 4, LAB, Augment(), 3).batches(lambda: next(sides), 5, prefetch=4))
    assert [lightness.shape[1] for lightness, _ in mixed] == [32, 32, 64, 64, 64]
    large = list(batching.Stream(entries, 4, LAB, Augment(), 3).batches(64, 5, prefetch=1))
    for (lightness, _), (same, _) in zip(mixed[2:], large[2:], strict=True):
        np.testing.assert_array_equal(lightness, same)


def test_mirroring_can_be_switched_off(astronaut: np.ndarray) -> None:
    still = Augment(min_crop=1.0, mirror=0.0, degrade=0.0)
    for seed in range(6):
        one = batching.make_augmented_sample(astronaut, 64, LAB, still, np.random.default_rng(seed))
        np.testing.assert_array_equal(one[0], batching.make_sample(astronaut, 64, LAB)[0])
