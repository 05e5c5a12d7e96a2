"""Options of a request to colour a photo."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.formats.registry import Format


class Options(BaseModel):
    """What a caller may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(
        None, description="a name from `GET /models`; by default the one marked there", examples=["compact"]
    )
    format: Format | None = Field(
        None,
        description="format of the answer; by default what `Accept` alone asks for, else that of the upload where it is"
        " one of these and not AVIF, which is slow, else JPEG (PNG for a photo with alpha)",
        examples=["png"],
    )
    quality: int | None = Field(
        None,
        ge=1,
        le=100,
        description="of a JPEG, WebP or AVIF answer; by default a JPEG's own, at least 85, else 92",
        examples=[90],
    )
    strength: float = Field(
        1.0, ge=0, le=2, description="scales the colour: 0 is gray, 1 the model's own", examples=[1.3]
    )
    max_side: int | None = Field(
        None, ge=1, description="shrinks the answer to this longer side, pixels", examples=[1600]
    )
    if_color: Literal["recolor", "keep", "reject"] | None = Field(
        None,
        description="what becomes of a photo that is in colour already: `recolor` colours it anew, `keep` answers it as"
        " it came, `reject` is a 422; photos in one tone, as sepia, count as black-and-white. When given, the header"
        " `X-Tomau-Input` says what the photo was; by default nobody looks, which is quicker, and all are coloured",
    )
    metadata: Literal["keep", "strip"] = Field(
        "keep",
        description="`keep` carries captions, dates, places and the like over; `strip` drops them. That the colours are"
        " synthetic is noted either way",
    )
    merge: Literal["luma", "literal"] = Field(
        "luma", description="`luma` keeps the photo's luma exactly; `literal` converts L*ab or HSV to RGB"
    )
