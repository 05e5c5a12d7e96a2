"""A training recipe: every hyper-parameter of a run, read from TOML."""

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.color import ColorSpace

Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Network(_Table):
    """The compact network. The defaults are 5 million parameters, 1.3 GMAC at 224 pixels."""

    widths: tuple[int, int, int, int, int] = Field(
        (32, 48, 96, 192, 288), description="channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input"
    )
    blocks: tuple[int, int, int, int] = Field((1, 2, 2, 1), description="residual blocks at 1/4 .. 1/32")
    context: int = Field(384, description="hidden units of the global-context branch")
    bin_size: float = Field(10.0, gt=0, description="pitch of the chroma bins: Lab units, or 0..1 for hsv")


class Augment(_Table):
    """What is done to a photograph before it is learnt from. Probabilities are per photograph."""

    min_crop: Share = Field(0.75, description="least share of each side that a crop keeps")
    degrade: Share = Field(0.3, description="probability that the lightness is made to look old")


class Optimizer(_Table):
    """AdamW with a cosine schedule and an average of the weights."""

    learning_rate: float = Field(2e-3, gt=0, description="at its peak, after the warm-up")
    warm_up: Share = Field(0.03, description="share of the run in which the learning rate rises")
    weight_decay: float = Field(0.02, ge=0)
    average: Share = Field(0.999, description="momentum of the weight average, per step")
    batch: int = Field(64, gt=0, description="photographs a step")


class Stage(_Table):
    """A part of the curriculum."""

    until: Share = Field(description="share of the run at which the stage ends")
    side: int = Field(gt=0, multiple_of=32, description="side of the square network input, pixels")


class Recipe(_Table):
    """A whole run. Views are photographs seen, repetitions counted."""

    name: str
    color_space: ColorSpace = "lab"
    views: int = Field(600_000, gt=0, description="length of the run; a time budget may end it sooner")
    seed: int = 0
    validate_on: int = Field(500, gt=0, description="photographs split off the training data")
    chroma_statistics: float = Field(
        0.0, ge=0, description="weight of the L1 on each photo's mean chroma and its spread, per bin"
    )
    curriculum: tuple[Stage, ...] = (Stage(until=0.45, side=96), Stage(until=1.0, side=128))
    network: Network = Network()
    augment: Augment = Augment()
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _curriculum_is_whole(self) -> Self:
        ends = [stage.until for stage in self.curriculum]
        if not ends or ends != sorted(ends) or ends[-1] != 1:
            raise ValueError("curriculum: `until` must rise and end at 1.0")
        return self

    def side(self, progress: float) -> int:
        """Side of the network input at a progress of 0..1."""
        return next(s.side for s in self.curriculum if progress < s.until or s is self.curriculum[-1])


def load(path: Path) -> Recipe:
    """Reads a recipe; raises `pydantic.ValidationError` naming a field that is unknown or out of range."""
    return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
