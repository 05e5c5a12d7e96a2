"""Options of a request to colour a photo, for HTTP and for the command line."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.formats.registry import Format


class Options(BaseModel):
    """The options that a caller may set. HTTP and the command line show the descriptions of the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(None, description="Name of the model to use.", examples=["compact"])
    format: Format | None = Field(
        None,
        description="Format of the output. By default it is the format of the photo. AVIF is never the default, because"
        " it is slow. If the photo's format can't be written, the default is JPEG, or PNG for a photo with alpha.",
        examples=["png"],
    )
    quality: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Quality of a JPEG, WebP or AVIF output. By default it is the quality of a JPEG photo, but at least"
        " 85, and 92 for all other photos.",
        examples=[90],
    )
    strength: float = Field(
        1.0,
        ge=0,
        le=2,
        description="Factor that the colour is multiplied by: 0 gives gray, 1 the model's own colours.",
        examples=[1.3],
    )
    max_side: int | None = Field(
        None, ge=1, description="Shrink the output to this length of its longer side, in pixels.", examples=[1600]
    )
    if_color: Literal["recolor", "keep", "reject"] | None = Field(
        None,
        description="What to do with a photo that is already in colour. `recolor` colours it again, `keep` returns it"
        " unchanged, and `reject` refuses it. A photo in one tone, such as sepia, counts as black-and-white. By default"
        " the service does not check, which is faster, and colours every photo.",
    )
    metadata: Literal["keep", "strip"] = Field(
        "keep",
        description="`keep` copies captions, dates, locations and other metadata to the output, `strip` drops them."
        " With either value the output is marked as having synthetic colours.",
    )
    merge: Literal["luma", "literal"] = Field(
        "luma",
        description="`luma` keeps the photo's luma exactly; `literal` converts the Lab or HSV result to RGB.",
    )
