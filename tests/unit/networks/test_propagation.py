"""Propagation of chroma within objects, up to their edges. Slow only because importing Keras takes time."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.recipe import Recipe
from tests.conftest import contract
from tests.training import BINS, saved_run, tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIDE = 16
LEFT = np.s_[:, :, : SIDE // 2]


def halves(left: float, right: float, channels: int = 1) -> NDArray[np.float32]:
    """Return two even fields, [1, SIDE, SIDE, channels]."""
    fields = np.full((1, SIDE, SIDE, channels), right, np.float32)
    fields[LEFT] = left
    return fields


def guided(lightness: NDArray[np.float32], said: NDArray[np.float32] | float = 0.0) -> NDArray[np.float32]:
    from model_export.networks.propagation import Guide

    said = np.broadcast_to(np.float32(said), (1, SIDE, SIDE, np.shape(said)[-1] if np.ndim(said) else 3))
    return np.asarray(Guide("guide")(lightness, said))


def alike(lightness: NDArray[np.float32], keys: NDArray[np.float32], given: float = 0.0) -> NDArray[np.float32]:
    """Return a guide with keys. given: the logarithm of the weight of the non-local mean."""
    said = np.zeros((SIDE, SIDE, 4), np.float32)
    said[..., 3] = given
    return np.concatenate([guided(lightness, said), keys], axis=-1)


def propagated(chroma: NDArray[np.float32], guide: NDArray[np.float32]) -> NDArray[np.float32]:
    from model_export.networks.propagation import propagate

    return np.asarray(propagate(chroma, guide))


def along_by_hand(flow: NDArray[np.float64], guide: NDArray[np.float64]) -> NDArray[np.float64]:
    right, below = guide[..., 0], guide[..., 1].T
    for distances in (right, below):
        lines = flow if distances is right else flow.swapaxes(0, 1)
        new = np.zeros_like(lines)
        for line, i, j in np.ndindex(SIDE, SIDE, SIDE):
            new[line, i] += np.exp(-distances[line, min(i, j) : max(i, j)].sum()) * lines[line, j]
        flow = new if distances is right else new.swapaxes(0, 1)
    return flow


def shared_by_hand(flow: NDArray[np.float64], guide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-local mean of each pixel: that of all blocks of four pixels, weighted by similar keys."""
    given, keys = np.exp(guide[..., 3:4]), guide[..., 4:]
    blocks = [np.s_[i : i + 2, j : j + 2] for i in range(0, SIDE, 2) for j in range(0, SIDE, 2)]
    shared = np.zeros_like(flow)
    for place in np.ndindex(SIDE, SIDE):
        alike = [np.exp(-np.square(keys[b].mean(axis=(0, 1)) - keys[place]).mean() / 0.1) for b in blocks]
        parts = [a * flow[b].mean(axis=(0, 1)) for a, b in zip(alike, blocks, strict=True)]
        shared[place] = sum(parts) / (sum(alike) + 1e-3)
    return given * shared


def by_hand(chroma: NDArray[np.float32], guide: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the same for one photograph, pixel by pixel, from [s, s, 2] and [s, s, 3 or more]."""
    guide = guide.astype(np.float64)
    confidence = np.exp(guide[..., 2:3])
    flow = along_by_hand(np.concatenate([chroma * confidence, confidence], axis=-1), guide)
    if guide.shape[-1] > 3:
        flow = flow + shared_by_hand(flow, guide)
    flow = along_by_hand(flow, guide)
    return np.asarray(flow[..., :2] / flow[..., 2:])


def test_it_is_the_mean_by_nearness_and_confidence() -> None:
    random = np.random.default_rng(0)
    chroma = random.normal(0, 20, (1, SIDE, SIDE, 2)).astype(np.float32)
    guide = guided(random.uniform(0, 0.05, (1, SIDE, SIDE, 1)).astype(np.float32), random.normal(size=(SIDE, SIDE, 3)))
    np.testing.assert_allclose(propagated(chroma, guide)[0], by_hand(chroma[0], guide[0]), atol=1e-3)


def test_steps_of_lightness_are_distances() -> None:
    guide = guided(halves(0.30, 0.34))
    np.testing.assert_allclose(guide[0, :, SIDE // 2 - 1, 0], 0.05 + 2, atol=1e-4)
    np.testing.assert_allclose(guide[0, :, : SIDE // 2 - 1, 0], 0.05, atol=1e-6)
    np.testing.assert_allclose(guide[0, :, :, 1], 0.05, atol=1e-6)
    np.testing.assert_allclose(guided(halves(0.30, 0.34), np.log(2))[..., :2], guide[..., :2] * 2, rtol=1e-5)


def test_color_spreads_within_a_thing_and_not_beyond() -> None:
    chroma = halves(0.0, 0.0, channels=2)
    chroma[:, :, : SIDE // 4] = 40  # half of the left half has faded
    answer = propagated(chroma, guided(halves(0.3, 0.8)))
    assert np.ptp(answer[LEFT]) < 8
    assert np.abs(answer[LEFT].mean() - 20) < 1
    assert np.abs(answer[:, :, SIDE // 2 :]).max() < 0.01


def test_even_chroma_stays() -> None:
    guide = guided(np.random.default_rng(1).uniform(size=(1, SIDE, SIDE, 1)).astype(np.float32))
    np.testing.assert_allclose(propagated(halves(-30, -30, channels=2), guide), -30, rtol=1e-5)


def test_who_is_sure_tells_who_is_not() -> None:
    chroma = halves(40, 0, channels=2)
    said = np.zeros((SIDE, SIDE, 3), np.float32)
    said[:, : SIDE // 2, 2] = 4
    assert propagated(chroma, guided(halves(0.5, 0.5), said)).min() > 30


def test_places_that_look_alike_share_by_likeness() -> None:
    random = np.random.default_rng(2)
    chroma = random.normal(0, 20, (1, SIDE, SIDE, 2)).astype(np.float32)
    said = random.normal(size=(SIDE, SIDE, 4)).astype(np.float32)
    keys = (np.repeat(np.repeat(random.normal(size=(1, 4, 4, 5)), 4, 1), 4, 2) * 0.5).astype(np.float32)
    keys += random.normal(0, 0.1, keys.shape).astype(np.float32)
    guide = np.concatenate([guided(random.uniform(0, 0.1, (1, SIDE, SIDE, 1)).astype(np.float32), said), keys], axis=-1)
    answer = propagated(chroma, guide)
    np.testing.assert_allclose(answer[0], by_hand(chroma[0], guide[0]), atol=2e-3)
    assert np.abs(answer - propagated(chroma, guide[..., :3])).mean() > 0.5


def columns(*values: float) -> NDArray[np.float32]:
    """Return even fields side by side, [1, SIDE, SIDE, 1]."""
    line = np.repeat(np.float32(values), SIDE // len(values))
    return np.broadcast_to(line[np.newaxis, np.newaxis, :, np.newaxis], (1, SIDE, SIDE, 1)).astype(np.float32)


def test_a_hand_has_the_color_of_its_face() -> None:
    lightness = columns(0.6, 0.1, 0.6, 0.9)  # face, wall, hand, sky
    keys = np.concatenate([columns(1, -1, 1, -1), columns(1, 1, 1, -1)], axis=-1)
    chroma = columns(30, 0, 0, -30) * np.ones(2, np.float32)
    apart = propagated(chroma, guided(lightness))
    shared = propagated(chroma, alike(lightness, keys, given=4.0))
    face, wall, hand, sky = (np.s_[0, :, i : i + SIDE // 4] for i in range(0, SIDE, SIDE // 4))
    assert np.abs(apart[hand]).max() < 1
    np.testing.assert_allclose(shared[hand], 15, atol=2)
    np.testing.assert_allclose(shared[face], 15, atol=2)
    np.testing.assert_allclose(shared[wall], 0, atol=1)
    np.testing.assert_allclose(shared[sky], -30, atol=1)


def test_who_looks_like_none_keeps_its_color() -> None:
    keys = np.random.default_rng(3).normal(0, 100, (1, SIDE, SIDE, 8)).astype(np.float32)
    chroma = columns(30, -20) * np.ones(2, np.float32)
    lightness = columns(0.2, 0.8)
    kept = propagated(chroma, guided(lightness))
    np.testing.assert_allclose(propagated(chroma, alike(lightness, keys, given=5.0)), kept, atol=1e-3)


def test_the_loss_measures_what_has_been_propagated() -> None:
    from model_export.networks.losses import BinLossTerms, bin_loss
    from model_export.networks.propagation import propagate

    truth = halves(40, -40, channels=2)
    logits = np.zeros((1, SIDE, SIDE, len(BINS)), np.float32)
    logits[..., (BINS == (40, 40)).all(axis=1)] = halves(30, 0)
    logits[..., (BINS == (-40, -40)).all(axis=1)] = halves(0, 30)
    loss = bin_loss(BINS, 10.0, BinLossTerms(difference=1.0), propagate)
    wall, even = (np.concatenate([logits, guided(halves(0.2, right))], axis=-1) for right in (0.9, 0.2))
    assert float(loss(truth, wall)[0]) + 0.5 < float(loss(truth, even)[0])


def test_a_network_begins_as_the_one_without_whose_answer_is_propagated(tmp_path: Path) -> None:
    from model_export.networks import compact
    from model_export.run import initialization

    without, with_ = tiny(), tiny(propagation=True)
    begun = initialization.load(with_, [saved_run(tmp_path / "run", 1)])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (without, with_)]
    for network, recipe in zip(networks, (without, with_), strict=True):
        initialization.initialize(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 4 * SIDE, 4 * SIDE, 1)).astype(np.float32)
    logits, both = (np.asarray(network(picture)) for network in networks)
    np.testing.assert_allclose(both[..., :5], logits, atol=1e-5)
    places = picture.reshape(1, SIDE, 4, SIDE, 4, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(both[..., 5:], guided(places), atol=1e-4)
    chroma = np.asarray(compact.chroma_layer(without, BINS[:5], 1.5)(logits))
    expected = propagated(chroma, guided(places))
    np.testing.assert_allclose(np.asarray(compact.chroma_layer(with_, BINS[:5], 1.5)(both)), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"more propagates chroma: set network\.propagation"):
        initialization.load(without, [saved_run(tmp_path / "more", 1, propagation=True)])


def test_a_network_may_be_given_keys_and_keeps_as_many(tmp_path: Path) -> None:
    from model_export.networks import compact
    from model_export.run import initialization

    old, new = tiny(propagation=True), tiny(propagation=True, nonlocal_channels=4)
    begun = initialization.load(new, [saved_run(tmp_path / "run", 1, propagation=True)])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (old, new)]
    for network, recipe in zip(networks, (old, new), strict=True):
        initialization.initialize(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 4 * SIDE, 4 * SIDE, 1)).astype(np.float32)
    without, with_ = (np.asarray(network(picture)) for network in networks)
    assert with_.shape[-1] == 5 + 3 + 1 + 4
    np.testing.assert_allclose(with_[..., :8], without, atol=1e-4)
    np.testing.assert_array_equal(with_[..., 8], 0)
    kernels = [compact.build(new, BINS[:5]).get_layer("keys_conv").kernel for _ in range(2)]
    np.testing.assert_array_equal(*kernels)
    for other in (old, tiny(propagation=True, nonlocal_channels=8)):
        with pytest.raises(ValueError, match=r"more has network\.nonlocal_channels = 4"):
            initialization.load(other, [saved_run(tmp_path / "more", 1, propagation=True, nonlocal_channels=4)])
        shutil.rmtree(tmp_path / "more")


@pytest.mark.parametrize(
    ("network", "why"),
    [({"head": "chroma", "propagation": True}, "propagation: only"), ({"nonlocal_channels": 4}, "nonlocal_channels: ")],
)
def test_it_is_for_bins_and_keys_are_for_it(network: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Recipe.model_validate({"name": "x", "network": {"kind": "compact"} | network})


@pytest.mark.parametrize("keys", [0, 4])
def test_the_exported_graph_answers_the_same_and_so_does_its_half(keys: int) -> None:
    import keras
    import onnxruntime as ort

    from model_export.export import export, fp16
    from model_export.networks import compact
    from model_export.weights import checkpoint

    keras.utils.set_random_seed(0)
    bins = BINS[::20]
    recipe = tiny(propagation=True, nonlocal_channels=keys)
    network = compact.build(recipe, bins, 4 * SIDE)
    for name in ("guide_conv", "given_conv") if keys else ("guide_conv",):
        for variable in network.get_layer(name).weights:
            variable.assign(keras.random.normal(variable.shape, seed=1))
    setup = checkpoint.Setup(recipe, bins, [])
    model = export.serving_model(network, setup, 4 * SIDE, 1.5, 0.3)
    proto = export.to_onnx(model, contract(input_size=4 * SIDE))
    pictures = np.random.default_rng(0).uniform(size=(3, 1, 4 * SIDE, 4 * SIDE)).astype(np.float32)
    pictures[0] = 0  # in an even photo everything flows everywhere: the largest sums
    wanted = np.asarray(model(pictures))
    assert np.ptp(wanted[1:], axis=(2, 3)).min() > 0.1
    whole = np.asarray(export.serving_model(network, setup, 4 * SIDE, 1.5)(pictures))
    assert (np.linalg.norm(wanted, axis=1) <= np.linalg.norm(whole, axis=1) + 1e-4).all()
    assert np.abs(wanted - whole).max() > 0.1
    for graph, close in ((proto.SerializeToString(), 0.01), (fp16.emulate_fp16(fp16.to_fp16(proto)), 1.0)):
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"lightness": pictures})[0], wanted, atol=close)
