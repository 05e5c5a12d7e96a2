"""Pydantic models of the JSON responses, for the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, Field


class ProblemDocument(BaseModel):
    """An error response (RFC 9457)."""

    type: str = Field(examples=["urn:tomau:problem:invalid_option"])
    title: str = Field(examples=["An option is invalid"])
    status: int = Field(examples=[422])
    code: str = Field(description="Kind of the error. Stable, for programs.", examples=["invalid_option"])
    detail: str = Field(examples=["strength: Input should be less than or equal to 2"])
    instance: str = Field(description="The request id, as the service's log has it.")
    field: str | None = Field(None, description="The option or form field that is wrong.", examples=["strength"])
    limit: float | None = Field(None, description="The limit that was exceeded.", examples=[2])


class ModelInfo(BaseModel):
    """A model that the service has loaded."""

    name: str
    version: str
    color_space: Literal["lab", "hsv"]
    input_size: int = Field(description="Side of the square input of the model, in pixels.")
    sha256: str = Field(description="SHA-256 of the ONNX file.")
    license: str
    data: str = Field(description="The data that the model was trained on.")
    device: Literal["cpu", "cuda"]
    default: bool = Field(description="Whether requests that name no model use this one.")


class Models(BaseModel):
    """All models of the service."""

    models: list[ModelInfo]


class Ready(BaseModel):
    """The service is ready."""

    status: Literal["ready"] = "ready"
    device: Literal["cpu", "cuda"] = Field(description="The device that the models run on.")
    models: list[str]


class Live(BaseModel):
    """The process is up."""

    status: Literal["alive"] = "alive"
