"""Chroma that flows within a thing, and not over its edges. Slow only because Keras takes its time to be imported."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.recipe import Recipe
from tests.conftest import contract
from tests.unit.test_learning import BINS, saved_run, tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIDE = 16
LEFT = np.s_[:, :, : SIDE // 2]


def halves(left: float, right: float, channels: int = 1) -> NDArray[np.float32]:
    """Two even fields, [1, SIDE, SIDE, channels]."""
    fields = np.full((1, SIDE, SIDE, channels), right, np.float32)
    fields[LEFT] = left
    return fields


def guided(lightness: NDArray[np.float32], said: NDArray[np.float32] | float = 0.0) -> NDArray[np.float32]:
    from model_export.networks.propagation import Guide

    said = np.broadcast_to(np.float32(said), (1, SIDE, SIDE, 3)).astype(np.float32)
    return np.asarray(Guide("guide")(lightness, said))


def propagated(chroma: NDArray[np.float32], guide: NDArray[np.float32]) -> NDArray[np.float32]:
    from model_export.networks.propagation import propagate

    return np.asarray(propagate(chroma, guide))


def by_hand(chroma: NDArray[np.float32], guide: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same, place by place, of one photo: [s, s, 2] and [s, s, 3]."""
    right, below, confidence = np.moveaxis(guide.astype(np.float64), -1, 0)
    flow = np.concatenate([chroma * np.exp(confidence)[..., np.newaxis], np.exp(confidence)[..., np.newaxis]], axis=-1)
    for _ in range(2):
        for distances in (right, below.T):
            lines = flow if distances is right else flow.swapaxes(0, 1)
            new = np.zeros_like(lines)
            for line, i, j in np.ndindex(SIDE, SIDE, SIDE):
                new[line, i] += np.exp(-distances[line, min(i, j) : max(i, j)].sum()) * lines[line, j]
            flow = new if distances is right else new.swapaxes(0, 1)
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


def test_the_loss_measures_what_has_been_propagated() -> None:
    from model_export.losses import bin_loss
    from model_export.networks.propagation import propagate

    truth = halves(40, -40, channels=2)
    logits = np.zeros((1, SIDE, SIDE, len(BINS)), np.float32)
    logits[..., (BINS == (40, 40)).all(axis=1)] = halves(30, 0)
    logits[..., (BINS == (-40, -40)).all(axis=1)] = halves(0, 30)
    loss = bin_loss(BINS, 10.0, 0.0, difference=1.0, propagate=propagate)
    wall, even = (np.concatenate([logits, guided(halves(0.2, right))], axis=-1) for right in (0.9, 0.2))
    assert float(loss(truth, wall)[0]) + 0.5 < float(loss(truth, even)[0])


def test_a_network_begins_as_the_one_without_whose_answer_is_propagated(tmp_path: Path) -> None:
    from model_export import train
    from model_export.beginning import begin_with
    from model_export.networks import compact

    without, with_ = tiny(), tiny(propagation=True)
    begun = train.start(with_, [saved_run(tmp_path / "run", 1)])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (without, with_)]
    for network, recipe in zip(networks, (without, with_), strict=True):
        begin_with(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 4 * SIDE, 4 * SIDE, 1)).astype(np.float32)
    logits, both = (np.asarray(network(picture)) for network in networks)
    np.testing.assert_allclose(both[..., :5], logits, atol=1e-5)
    places = picture.reshape(1, SIDE, 4, SIDE, 4, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(both[..., 5:], guided(places), atol=1e-4)
    chroma = np.asarray(compact.chroma(without, BINS[:5], 1.5)(logits))
    expected = propagated(chroma, guided(places))
    np.testing.assert_allclose(np.asarray(compact.chroma(with_, BINS[:5], 1.5)(both)), expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"more propagates chroma, and only a recipe with network\.propagation"):
        train.start(without, [saved_run(tmp_path / "more", 1, propagation=True)])


def test_it_is_for_bins() -> None:
    with pytest.raises(ValueError, match="propagation"):
        Recipe.model_validate({"name": "x", "network": {"kind": "compact", "head": "chroma", "propagation": True}})


def test_the_exported_graph_answers_the_same_and_so_does_its_half() -> None:
    import keras
    import onnxruntime as ort

    from model_export import checkpoint, export, half
    from model_export.networks import compact

    keras.utils.set_random_seed(0)
    bins = BINS[::20]
    network = compact.build(tiny(propagation=True), bins, 4 * SIDE)
    for variable in network.get_layer("guide_conv").weights:
        variable.assign(keras.random.normal(variable.shape, seed=1))
    setup = checkpoint.Setup(tiny(propagation=True), bins, [])
    model = export.serving_model(network, setup, 4 * SIDE, 1.5)
    proto = export.to_onnx(model, contract(input_size=4 * SIDE))
    pictures = np.random.default_rng(0).uniform(size=(3, 1, 4 * SIDE, 4 * SIDE)).astype(np.float32)
    pictures[0] = 0  # in an even photo everything flows everywhere: the largest sums
    wanted = np.asarray(model(pictures))
    assert np.ptp(wanted[1:], axis=(2, 3)).min() > 0.1
    for graph, close in ((proto.SerializeToString(), 0.01), (half.emulated(half.halve(proto)), 1.0)):
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"lightness": pictures})[0], wanted, atol=close)
