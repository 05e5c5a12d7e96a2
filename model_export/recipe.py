"""A training recipe: every hyper-parameter of a run, read from TOML."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.imaging.color import ColorSpace

Share = Annotated[float, Field(ge=0, le=1)]
# At 1 nothing would ever be learnt.
Momentum = Annotated[float, Field(ge=0, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compact(_Table):
    """Our network. The defaults are 8 million parameters, 1.7 GMAC at 224 pixels."""

    kind: Literal["compact"] = "compact"
    widths: tuple[int, int, int, int, int] = Field(
        (32, 48, 96, 192, 288), description="channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input"
    )
    blocks: tuple[int, int, int, int] = Field((1, 2, 4, 2), description="residual blocks at 1/4 .. 1/32")
    context: int = Field(384, description="hidden units of the global-context branch")
    propagation: bool = Field(False, description="chroma flows along even lightness and stops at edges; with bins only")
    nonlocal_channels: int = Field(
        0, ge=0, description="keys by which places that look alike share chroma; with propagation only"
    )
    backbone: Literal["", "efficientnet-lite0"] = Field(
        "", description="a classifier of photographs whose features join those of the network's own encoder"
    )
    learning_blocks: int = Field(
        0, ge=0, le=16, description="the backbone's last blocks that learn too; the others stay as they were"
    )
    head: Literal["bins", "chroma"] = Field("bins", description="a distribution over chroma bins, or chroma itself")
    bin_size: float = Field(10.0, gt=0, description="pitch of the chroma bins: Lab units, or 0..1 for hsv")


class ResNet50FCN(_Table):
    """The first tutorial's network: 34 million parameters."""

    kind: Literal["resnet50_fcn"]
    hue: Literal["number", "vector"] = Field("number", description="H and S in OpenCV's bytes, or (S cos H, S sin H)")


class UNet(_Table):
    """The second tutorial's generator: 54 million parameters, or a residual encoder of 18 layers under it."""

    kind: Literal["unet_gan"]
    encoder: Literal["plain", "resnet18"] = "plain"
    adversarial_from: Share = Field(1.0, description="share of the run from which on the discriminator takes part")
    l1_weight: float = Field(100.0, ge=0, description="of the L1 beside the discriminator's verdict")
    adversarial_rate: float = Field(2e-4, gt=0, description="learning rate of both from then on")


Network = Annotated[Compact | ResNet50FCN | UNet, Field(discriminator="kind")]


class Augment(_Table):
    """What is done to a photograph before it is learnt from. Probabilities are per photograph."""

    min_crop: Share = Field(0.75, description="least share of each side that a crop keeps")
    mirror: Share = Field(0.5, description="probability that left and right are exchanged")
    degrade: Share = Field(0.3, description="probability that the lightness is made to look old")


class Filtering(_Table):
    """Which photographs are fit to learn from; see sift.py for what is measured."""

    enabled: bool = Field(True, description="false trusts the data: nothing is looked at, nothing left out")
    min_side: int = Field(64, ge=1, description="least short side, pixels")
    min_chroma: float = Field(
        0.5, ge=0, description="least chroma that a photograph's tones don't explain, Lab units; 0 keeps gray ones"
    )
    keep_duplicates: bool = Field(False, description="those that look like one before them, or like its mirror image")


class Optimizer(_Table):
    """How weights are changed. The defaults are those of our own recipes."""

    kind: Literal["adamw", "adam", "rmsprop"] = "adamw"
    learning_rate: float = Field(2e-3, gt=0, description="at its peak, after the warm-up")
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: Share = Field(0.03, description="share of the run in which the learning rate rises")
    weight_decay: float = Field(0.02, ge=0, description="of adamw")
    beta_1: Momentum = Field(0.9, description="of adam and adamw")
    average: Momentum = Field(
        0.999, description="momentum of the weight average, per step; 0 takes the weights as they are"
    )
    batch: int = Field(64, gt=0, description="photographs a step")


class Stage(_Table):
    """A part of the curriculum."""

    until: Share = Field(description="share of the run at which the stage ends")
    side: int = Field(gt=0, multiple_of=32, description="side of the square network input, pixels")


class Shards(_Table):
    """The first tutorial's order: the data in parts, some rounds on one part drawn at random, then on another."""

    count: int = Field(10, gt=1, description="equal parts of the training data")
    drawn: int = Field(8, gt=0, description="the first so many are ever drawn")
    epochs: int = Field(5, gt=0, description="times a part is gone through before the next is drawn")


class Recipe(_Table):
    """A whole run. Views are photographs seen, repetitions counted."""

    name: str
    color_space: ColorSpace = "lab"
    lightness: Literal["luma", "own"] = Field(
        "luma", description="what the network is shown: the lightness of the luma, as in service, or the colour's own"
    )
    best_by: Literal["validation", "training", "last"] = Field(
        "validation", description="the loss that chooses the best weights; or the last ones are taken for the best"
    )
    shards: Shards | None = Field(None, description="a part at a time; all photographs once before any again if absent")
    views: int = Field(600_000, gt=0, description="length of the run; a time budget may end it sooner")
    seed: int = 0
    validate_on: int = Field(500, gt=0, description="photographs split off the training data")
    chroma_statistics: float = Field(0.0, ge=0, description="weight of the L1 on each photo's mean chroma, per bin")
    difference: float = Field(
        0.0, ge=0, description="weight of the CIE94 difference of the mean of the bins' distribution, per bin; lab only"
    )
    steps: float = Field(
        0.0, ge=0, description="weight of the error of its steps from place to place, per bin; lab only"
    )
    evenness: float = Field(
        0.0,
        ge=0,
        description="weight of what places lack or have too much of the colour of their like, per bin; lab only",
    )
    gain: float = Field(
        1.0, gt=0, description="what the mean of the bins' distribution is multiplied with before these look at it"
    )
    curriculum: tuple[Stage, ...] = (Stage(until=0.45, side=96), Stage(until=1.0, side=128))
    network: Network = Compact()
    sources: tuple[str, ...] = Field((), description="only photographs of these collections; empty for all")
    sift: Filtering = Filtering()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _curriculum_is_whole(self) -> Self:
        ends = [stage.until for stage in self.curriculum]
        if not ends or ends != sorted(ends) or ends[-1] != 1:
            raise ValueError("curriculum: `until` must rise and end at 1.0")
        return self

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        kind = self.network.kind
        spaces = {"resnet50_fcn": "hsv", "unet_gan": "lab"}
        if kind in spaces and self.color_space != spaces[kind]:
            raise ValueError(f"color_space: {kind} answers {spaces[kind]}")
        if kind != "compact" and self.chroma_statistics:
            raise ValueError(f"chroma_statistics: not for {kind}")
        has_bins = isinstance(self.network, Compact) and self.network.head == "bins"
        if isinstance(self.network, Compact) and self.network.propagation and not has_bins:
            raise ValueError("propagation: only for a network with bins")
        if isinstance(self.network, Compact) and self.network.nonlocal_channels and not self.network.propagation:
            raise ValueError("nonlocal_channels: only for a network with propagation")
        for term in ("difference", "steps", "evenness"):
            if getattr(self, term) and not (has_bins and self.color_space == "lab"):
                raise ValueError(f"{term}: only for a network with bins in lab")
        least = 256 if isinstance(self.network, UNet) and self.network.encoder == "plain" else 32
        if any(stage.side % least for stage in self.curriculum):
            raise ValueError(f"curriculum: the sides for this network are multiples of {least}")
        return self

    def side(self, progress: float) -> int:
        """Side of the network input at a progress of 0..1."""
        return next(s.side for s in self.curriculum if progress < s.until or s is self.curriculum[-1])


def load(path: Path) -> Recipe:
    """Reads a recipe; raises `pydantic.ValidationError` naming a field that is unknown or out of range."""
    return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
