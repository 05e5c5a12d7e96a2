"""Bodies of JSON responses, as Pydantic models for the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, Field


class ProblemDocument(BaseModel):
    """An RFC 9457 problem."""

    type: str = Field(examples=["urn:tomau:problem:invalid_option"])
    title: str = Field(examples=["An option is invalid"])
    status: int = Field(examples=[422])
    code: str = Field(description="stable; what a program should look at", examples=["invalid_option"])
    detail: str = Field(examples=["strength: Input should be less than or equal to 2"])
    instance: str = Field(description="the request, by the id that the service's log has")
    field: str | None = Field(None, description="what the problem is about", examples=["strength"])
    limit: float | None = Field(None, description="the limit that was passed", examples=[2])


class ModelInfo(BaseModel):
    """A served model."""

    name: str
    version: str
    color_space: Literal["lab", "hsv"]
    input_size: int = Field(description="side of the square model input, pixels")
    sha256: str = Field(description="of the ONNX file")
    license: str
    data: str = Field(description="what it was trained on")
    device: Literal["cpu", "cuda"]
    default: bool


class Models(BaseModel):
    """The catalogue."""

    models: list[ModelInfo]


class Ready(BaseModel):
    """The service is ready."""

    status: Literal["ready"] = "ready"
    device: Literal["cpu", "cuda"] = Field(description="the device really in use")
    models: list[str]


class Live(BaseModel):
    """The process is up."""

    status: Literal["alive"] = "alive"
