"""What a model wants to see of a sample (`View`) and what is random about it (`Draw`).

The ground floor: plain data, no imports from the package and none but the standard library.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args, get_origin

Kind = Literal["rgb", "difference", "flow", "feature"]
Moment = Literal["centre", "first", "last", "uniform", "random", "keyframe", "spaced"]
Clip = Literal["start", "middle", "end", "whole"]
End = Literal["repeat", "shift", "hallucinet"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "random"]
FlowMethod = Literal["dis", "tvl1", "farneback", "raft_small", "raft_large"]
Box = tuple[float, float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEAST_SIDE = 144
"""Pixels of the shorter side of a picture for people, where the view's geometry allows another size."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Optical flow as a view sees it.

    Args:
        method: dis, tvl1, farneback; raft_small, raft_large only from a store (`stillmotion flow`).
        step: Frames of the video between the two frames of a flow field.
        bound: Pixels of the view (after its resample) beyond which motion is cut off; the network sees motion in units
            of it, -1 to 1. 20 is that of the papers, whose pictures are 256 pixels high; small views need less.
        relative: Count `bound` in how far the pixels of the clip move on average (root mean square over its fields)
            instead, so that distance and speed of what is filmed do not matter. 6 or so is enough then.
        stretch: Stretch dark videos over the whole range of grey before.
    """

    method: FlowMethod = "dis"
    step: int = 1
    bound: float = 20.0
    relative: bool = False
    stretch: bool = False

    def __post_init__(self) -> None:
        if self.method not in get_args(FlowMethod):
            raise ValueError(f"view.flow.method={self.method!r}: choose one of {', '.join(get_args(FlowMethod))}")
        if self.step < 1:
            raise ValueError(f"view.flow.step={self.step}: must be at least 1")
        if self.bound <= 0.0:
            raise ValueError(f"view.flow.bound={self.bound}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class View:
    """What one model wants to see of a sample: `num_moments` moments, `num_frames` frames at each.

    The loader delivers uint8 frames (N, T, C, H, W) at `size`, N = `num_shown`; the model itself normalises them with
    `mean` and `std` (units of 0..1). One frame is N = 1, T = 1; a 16-frame clip N = 1, T = 16; a video-level test with
    25 frames N = 25, T = 1; six frames for an LSTM N = 6, T = 1, and their teacher's clips N = 6, T = 16.

    Args:
        kind: `rgb`; `difference` (RGB frames whose consecutive differences the model takes: T frames give T - 1);
            `flow` (T fields of optical flow, computed while reading or read from a store; two channels, u and v);
            `feature` (a row that was stored before, named by `source`).
        size: Height and width in pixels.
        num_frames: T, frames at each moment.
        stride: Distance in frames between two frames of a clip; 0 repeats the moment's frame (a clip without motion).
        fps: Rate in frames a second at which the clip is sampled; None takes the video's own frames.
        num_moments: N, moments of the sample that are seen.
        moment: Where the moments lie among the n frames of the sample. `centre` is frame floor(n/2), the sample's
            anchor; `first`, `last`; `uniform` divides the sample in N parts and takes their middles; `random` is
            drawn (one point, or one in each of N parts) and becomes `centre`/`uniform` where nothing is random;
            `keyframe` is the keyframe nearest to the anchor, decoded alone; `spaced` are `spacing` frames apart.
        spacing, lead, jitter: Of `spaced` moments: frames from one to the next; frames from the first one to the
            sample's end (None: the first is the sample's first frame); and by how many frames at most a draw shifts
            all of them, either way. They count frames at the rate `fps` where there is one. 16, 103 and 3 with six
            moments are the official rule of MTL-AQA (METHODS 2.4).
        outside: Read frames beyond the sample's range where its video goes on; the end rule is for the video's ends.
        clip: Whether the moment is the clip's `start` (HalluciNet), `middle` or `end`. `whole` has no moment: one frame
            out of each of T equal parts of the sample, its middle or, if moments are `random`, at a drawn point (Wang
            et al., arXiv:1608.00859); stride, rate and end rule do not count; N clips lie side by side in the parts.
        end: Frames asked for beyond the sample's ends: `repeat` the last (first) frame; `shift` the clip inside
            (then repeat if it is too long still); `hallucinet` is the official HalluciNet rule: the clip starts at
            n - num_frames - 1 as soon as moment + num_frames >= n (METHODS 2.5).
        resize: None applies the draw's box and flip, in one resample to `size`. Otherwise the view has its own
            geometry: resize to (height, width), or the shorter side to an int, then centre crop `size`; the draw's
            box and flip are ignored.
        num_crops: Crops of `size` of every frame, for views with their own geometry: 1 the centre; 3 the two ends and
            the centre of the longer side; 5 the corners and the centre; 10 these and their mirror images. Each counts
            as a moment of its own.
        interpolation: Filter of the resample; `random` draws one for each frame (official HalluciNet code).
        gamma: Exponent on values in 0..1 before mean and std; below 1 it lifts dark videos. Not for flow.
        mean, std: Normalisation of the three channels in units of 0..1; of the first two for flow, in units of its
            bound, where ImageNet's (the default) means 0 and 1.
        flow: For `flow`: how it is computed.
        source: For `feature`: the folder of the feature store.
        field: For `feature`: which stored array, `embedding` or `logits`.
    """

    kind: Kind = "rgb"
    size: tuple[int, int] = (224, 224)
    num_frames: int = 1
    stride: int = 1
    fps: float | None = None
    num_moments: int = 1
    moment: Moment = "centre"
    spacing: int = 1
    lead: int | None = None
    jitter: int = 0
    outside: bool = False
    clip: Clip = "start"
    end: End = "repeat"
    resize: tuple[int, int] | int | None = None
    num_crops: Literal[1, 3, 5, 10] = 1
    interpolation: Interpolation = "bilinear"
    gamma: float = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    flow: FlowConfig = FlowConfig()
    source: str | None = None
    field: str = "embedding"

    def __post_init__(self) -> None:
        for field in fields(self):  # lists come from YAML and JSON
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(
                    f"view.{field.name}={value!r}: choose one of {', '.join(map(str, get_args(field.type)))}"
                )
        if isinstance(self.flow, Mapping):
            known = {field.name for field in fields(FlowConfig)}
            if unknown := sorted(set(self.flow) - known):
                raise ValueError(f"unknown view setting flow.{unknown[0]}; known: {', '.join(sorted(known))}")
            object.__setattr__(self, "flow", FlowConfig(**self.flow))
        if self.kind == "flow" and (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            object.__setattr__(self, "mean", (0.0, 0.0, 0.0))
            object.__setattr__(self, "std", (1.0, 1.0, 1.0))
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        least_of = {"num_frames": 1, "stride": 0, "num_moments": 1, "spacing": 1, "lead": 1, "jitter": 0}
        for name, least in least_of.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"view.{name}={getattr(self, name)}: must be at least {least}")
        if self.num_crops > 1 and self.resize is None:
            raise ValueError(f"view.num_crops={self.num_crops}: needs resize=, of which the crops are parts")
        if self.fps is not None and self.fps <= 0.0:
            raise ValueError(f"view.fps={self.fps}: must be above 0, or null for the video's own frames")
        if self.gamma <= 0.0:
            raise ValueError(f"view.gamma={self.gamma}: must be above 0")
        if self.kind == "difference" and self.num_frames < 2:
            raise ValueError("view.kind='difference' needs num_frames of at least 2")
        if self.kind == "feature" and not self.source:
            raise ValueError("view.kind='feature' needs source=, the folder that `stillmotion extract` wrote")

    @property
    def num_shown(self) -> int:
        """N of the loader's frames: moments times crops."""
        return self.num_moments * self.num_crops

    @property
    def channels(self) -> int:
        """Of its frames: 2 for flow (u, v), 3 otherwise."""
        return 2 if self.kind == "flow" else 3

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `View.from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads what `to_dict` gave; unknown keys are refused."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"unknown view setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**data)


def visible(view: View) -> View:
    """The frames of a view as colours, large enough to look at where its geometry does not depend on its size."""
    size = view.size
    if view.resize is None and min(size) < LEAST_SIDE:
        factor = -(-LEAST_SIDE // min(size))
        size = (factor * size[0], factor * size[1])
    return replace(view, kind="rgb", size=size)


def shown_view(views: Mapping[str, View]) -> str:
    """The view whose frames are shown: the first that sees colours, or the first."""
    return next((name for name, view in views.items() if view.kind == "rgb"), next(iter(views)))


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How much of a draw is random. The default takes nothing at random but time.

    Args:
        min_area: Smallest share of the picture that a box covers (1.0: always the whole picture).
        max_ratio: Largest change of the aspect ratio, as a factor (1.0: none).
        flip: Probability of a horizontal flip.
    """

    min_area: float = 1.0
    max_ratio: float = 1.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.min_area <= 1.0:
            raise ValueError(f"augment.min_area={self.min_area}: must be in (0, 1]")
        if self.max_ratio < 1.0:
            raise ValueError(f"augment.max_ratio={self.max_ratio}: must be at least 1")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"augment.flip={self.flip}: must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is random about one showing of a sample, the same for all its views, models and workers.

    Args:
        time: In [0, 1): where a `random` moment lies, and the `jitter` of `spaced` ones. None: nothing is random,
            moments take their middles.
        box: top, left, height, width in [0, 1] of the upright picture.
        flip: Mirror left and right.
        filters: Seed of further choices (`interpolation="random"`).
    """

    time: float | None = None
    box: Box = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    filters: int = 0

    @classmethod
    def of(cls, seed: int, sample: str, number: int, augment: Augment) -> Self:
        """The draw `number` of a sample: a pure function of its arguments, on every machine.

        Args:
            seed: Seed of the run.
            sample: Identity of the sample (`Sample.id`).
            number: Which showing (the epoch, or the epoch modulo the number of cached draws).
            augment: How much is random.

        Example:
            >>> Draw.of(0, "a.mp4", 3, Augment(flip=0.5)) == Draw.of(0, "a.mp4", 3, Augment(flip=0.5))
            True
        """
        rng = random.Random(f"{seed}/{sample}/{number}")
        time, area, ratio, top, left, flip = (rng.random() for _ in range(6))
        area = augment.min_area + (1.0 - augment.min_area) * area
        factor = augment.max_ratio ** (2.0 * ratio - 1.0)
        height, width = min(1.0, (area / factor) ** 0.5), min(1.0, (area * factor) ** 0.5)
        box = ((1.0 - height) * top, (1.0 - width) * left, height, width)
        return cls(time=time, box=box, flip=flip < augment.flip, filters=rng.getrandbits(32))


NO_DRAW = Draw()
"""Nothing random: evaluation, prediction."""
