"""Training recipes: every hyper-parameter of a training run, read from a TOML file."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.imaging.color import ColorSpace

Fraction = Annotated[float, Field(ge=0, le=1)]
# At 1 the moving average would never change.
Momentum = Annotated[float, Field(ge=0, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compact(_Table):
    """The settings of our own network. The defaults give 8 million parameters and 1.7 GMAC at 224 pixels."""

    kind: Literal["compact"] = "compact"
    widths: tuple[int, int, int, int, int] = Field(
        (32, 48, 96, 192, 288), description="channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input size"
    )
    blocks: tuple[int, int, int, int] = Field((1, 2, 4, 2), description="residual blocks at 1/4, 1/8, 1/16 and 1/32")
    context: int = Field(384, description="hidden units of the global-context branch")
    propagation: bool = Field(
        default=False, description="spread chroma along even lightness, up to edges; needs head = bins"
    )
    nonlocal_channels: int = Field(
        0, ge=0, description="channels of the keys by which similar pixels share chroma; needs propagation"
    )
    backbone: Literal["", "efficientnet-lite0"] = Field(
        "", description="an ImageNet classifier whose features are added to those of the encoder"
    )
    learning_blocks: int = Field(
        0, ge=0, le=16, description="number of the backbone's last blocks that are trained; the others stay frozen"
    )
    head: Literal["bins", "chroma"] = Field(
        "bins", description="predict a distribution over chroma bins, or chroma itself"
    )
    bin_size: float = Field(10.0, gt=0, description="distance between chroma bins, in Lab units; in 0..1 for hsv")


class ResNet50FCN(_Table):
    """The settings of the first tutorial's network, which has 34 million parameters."""

    kind: Literal["resnet50_fcn"]
    hue: Literal["number", "vector"] = Field(
        "number", description="predict H and S as OpenCV's bytes, or (S cos H, S sin H)"
    )


class UNet(_Table):
    """The settings of the second tutorial's generator: 54 million parameters, or an 18-layer residual encoder."""

    kind: Literal["unet_gan"]
    encoder: Literal["plain", "resnet18"] = "plain"
    adversarial_from: Fraction = Field(1.0, description="fraction of the run after which adversarial training begins")
    l1_weight: float = Field(100.0, ge=0, description="weight of the L1 loss relative to the adversarial loss")
    adversarial_rate: float = Field(
        2e-4, gt=0, description="learning rate of generator and discriminator in adversarial training"
    )


Network = Annotated[Compact | ResNet50FCN | UNet, Field(discriminator="kind")]


class Augment(_Table):
    """Data augmentation. Probabilities are per photograph."""

    min_crop: Fraction = Field(0.75, description="minimum fraction of each side that a crop keeps")
    mirror: Fraction = Field(0.5, description="probability of a horizontal flip")
    degrade: Fraction = Field(0.3, description="probability that the lightness is degraded like an old print")


class Filtering(_Table):
    """The criteria that leave photographs out. `model_export.data.filtering` describes the measurements."""

    enabled: bool = Field(default=True, description="false uses all photographs, without looking at them")
    min_side: int = Field(64, ge=1, description="minimum short side, in pixels")
    min_chroma: float = Field(
        0.5, ge=0, description="minimum chroma that lightness does not explain, in Lab units; 0 keeps gray photographs"
    )
    keep_duplicates: bool = Field(
        default=False, description="keep photographs that look like an earlier one, or like its mirror image"
    )


class Optimizer(_Table):
    """Optimizer and learning-rate schedule. The defaults are those of our own recipes."""

    kind: Literal["adamw", "adam", "rmsprop"] = "adamw"
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate, after the warm-up")
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: Fraction = Field(0.03, description="fraction of the run in which the learning rate rises")
    weight_decay: float = Field(0.02, ge=0, description="weight decay of adamw")
    beta_1: Momentum = Field(0.9, description="first-moment decay of adam and adamw")
    average: Momentum = Field(0.999, description="momentum of the weight average, per step; 0 disables averaging")
    batch: int = Field(64, gt=0, description="batch size: photographs per step")


class Stage(_Table):
    """A stage of the curriculum: an input size that is used for a part of the run."""

    until: Fraction = Field(description="fraction of the run at which the stage ends")
    side: int = Field(gt=0, multiple_of=32, description="side of the square network input, in pixels")


class Shards(_Table):
    """The sampling order of the first tutorial: a few epochs on one randomly drawn shard, then on another."""

    count: int = Field(10, gt=1, description="number of equal shards of the training data")
    drawn: int = Field(8, gt=0, description="number of shards, counted from the first, that are drawn from")
    epochs: int = Field(5, gt=0, description="epochs on a shard before the next is drawn")


class Recipe(_Table):
    """The hyper-parameters of a training run. A view is one photograph in one step; repetitions count."""

    name: str
    color_space: ColorSpace = "lab"
    lightness: Literal["luma", "own"] = Field(
        "luma", description="network input: lightness of the luma, as in the service, or true lightness of the colours"
    )
    best_by: Literal["validation", "training", "last"] = Field(
        "validation", description="the loss that selects the best weights; `last` takes the newest weights"
    )
    shards: Shards | None = Field(
        None, description="train on one shard at a time; without it, each epoch covers all photographs"
    )
    views: int = Field(600_000, gt=0, description="length of the run in views; a time budget may end it earlier")
    seed: int = 0
    validate_on: int = Field(
        500, gt=0, description="number of photographs held out of the training data for validation"
    )
    chroma_statistics: float = Field(
        0.0, ge=0, description="weight of the L1 loss on each photograph's chroma statistics, per bin"
    )
    difference: float = Field(
        0.0, ge=0, description="weight of the CIE94 difference of the expected chroma, per bin; needs bins in lab"
    )
    steps: float = Field(
        0.0, ge=0, description="weight of the error of chroma differences between pixels, per bin; needs bins in lab"
    )
    evenness: float = Field(
        0.0,
        ge=0,
        description="weight of chroma differences between pixels of one true colour, per bin; needs bins in lab",
    )
    gain: float = Field(
        1.0, gt=0, description="factor of the expected chroma in the chroma, difference, steps and evenness losses"
    )
    curriculum: tuple[Stage, ...] = (Stage(until=0.45, side=96), Stage(until=1.0, side=128))
    network: Network = Compact()
    sources: tuple[str, ...] = Field((), description="train on these collections only; empty for all")
    sift: Filtering = Filtering()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _curriculum_is_whole(self) -> Self:
        ends = [stage.until for stage in self.curriculum]
        if not ends or ends != sorted(ends) or ends[-1] != 1:
            raise ValueError("curriculum: `until` must rise from stage to stage and end at 1.0")
        return self

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        kind = self.network.kind
        spaces = {"resnet50_fcn": "hsv", "unet_gan": "lab"}
        if kind in spaces and self.color_space != spaces[kind]:
            raise ValueError(f"color_space: {kind} predicts {spaces[kind]}; set color_space to it")
        if kind != "compact" and self.chroma_statistics:
            raise ValueError(f"chroma_statistics: has no effect on {kind}; leave it out")
        has_bins = isinstance(self.network, Compact) and self.network.head == "bins"
        if isinstance(self.network, Compact) and self.network.propagation and not has_bins:
            raise ValueError("propagation: only for a network with head = bins")
        if isinstance(self.network, Compact) and self.network.nonlocal_channels and not self.network.propagation:
            raise ValueError("nonlocal_channels: only for a network with propagation = true")
        for term in ("difference", "steps", "evenness"):
            if getattr(self, term) and not (has_bins and self.color_space == "lab"):
                raise ValueError(f"{term}: only for a network with head = bins and color_space = lab")
        least = 256 if isinstance(self.network, UNet) and self.network.encoder == "plain" else 32
        if any(stage.side % least for stage in self.curriculum):
            raise ValueError(f"curriculum: the sides for this network must be multiples of {least}")
        return self

    def side(self, progress: float) -> int:
        """Return the side of the network input, in pixels, at a progress of 0..1."""
        return next(s.side for s in self.curriculum if progress < s.until or s is self.curriculum[-1])


def load(path: Path) -> Recipe:
    """Read a recipe. Raises pydantic.ValidationError, which names the fields that are unknown or out of range."""
    return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
