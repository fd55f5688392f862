"""What the service says, as JSON; these models are its documentation (`/openapi.json`)."""

from typing import Literal

from pydantic import BaseModel, Field


class Label(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Target(BaseModel):
    """What is said of one of several columns, or a score."""

    value: str | float
    probability: float | None = None
    labels: list[Label] | None = None


class Cost(BaseModel):
    """What an answer took. Other requests may have run beside it."""

    decode_ms: float = Field(description="until the frames were there")
    preprocess_ms: float = Field(description="from frames to what the network sees")
    network_ms: float = Field(description="of the batch that this was in")
    batch: int = Field(description="samples in that batch")
    gmacs: float | None = Field(None, description="1e9 multiply-accumulates of the network for this upload, if known")


class Looked(BaseModel):
    """A frame that the network looked at."""

    time: float = Field(description="seconds; the number of the frame where the upload has no frame rate")
    image: str = Field(description="JPEG as a data URL")
    heat: str | None = Field(None, description="the same frame under what speaks for the first class (Grad-CAM)")


class Series(BaseModel):
    """What the model says over the length of the video, of one column."""

    target: str
    kind: Literal["classes", "score"]
    names: list[str] = Field(description="the classes with the highest peaks; the column, of a score")
    times: list[float] = Field(description="middle of each part of the video, in seconds")
    values: list[list[float]] = Field(description="a row for each name, a value for each time")


class Said(BaseModel):
    """What one network says of an upload."""

    text: str = Field(description="as a person would write it")
    labels: list[Label] | None = Field(None, description="of one set of classes")
    targets: dict[str, Target] | None = Field(None, description="in the place of labels: several columns, or a score")
    frames: int = Field(description="different frames that were read")
    cost: Cost
    looked_at: list[Looked] | None = None


class Answer(Said):
    """What the model says of an upload, and beside it the teacher."""

    path: str = Field(description="the upload's name")
    seconds: float = Field(description="from the whole upload to the answer")
    fault: str | None = Field(None, description="what is wrong with a file that could be read in part")
    bytes: int = Field(description="of the upload")
    num_frames: int
    fps: float | None = None
    timeline: list[Series] | None = None
    teacher: Said | None = None
    notes: list[str] | None = Field(None, description="what was asked for and is not there, and why")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class Network(BaseModel):
    """A network that is served."""

    name: str
    sees: str
    gmacs: float | None = None
    grad_cam: bool


class Model(BaseModel):
    """What is served."""

    version: str
    student: Network
    teacher: Network | None = None
    targets: list[str]
    classes: list[str] = Field(description="where there is one set of them")
    live: Literal["frame", "clip"] = Field(description="what a camera should send")
    clip_seconds: float = Field(description="of a clip, at 30 frames a second")
    max_mib: float
    max_seconds: float
