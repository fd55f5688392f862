"""Small networks and batches for the tests of methods."""

from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.models.encoder import Encoder
from stillmotion.tasks import Classification
from stillmotion.view import View

TASK = Classification(("a", "b", "c"))


class Tiny(Encoder):
    """Two convolutions with a batch norm between them, mean over time; `middle` is a tap of 6 channels."""

    def __init__(self, view: View, *, width: int = 5, num_classes: int = 3, taps: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.views = {"frames": view}
        self.embedding_dim, self.num_classes, self.taps = width, num_classes, taps
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.classifier = nn.Conv2d(6, width, 3), nn.Linear(width, num_classes)
        self.config: dict[str, Any] = {"name": "tiny"}

    def reset_classifier(self, num_classes: int) -> None:
        assert num_classes == 0
        self.num_classes = 0

    def classifier_names(self) -> set[str]:
        return {"classifier.weight", "classifier.bias"} if self.num_classes else set()

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        (clip,) = inputs
        size, frames = clip.shape[:2]
        middle = self.norm(self.first(clip.flatten(0, 1)))
        embedding = self.second(middle.relu()).relu().mean((2, 3)).unflatten(0, (size, frames)).mean(1)
        outputs = {"embedding": embedding}
        if self.num_classes:
            outputs["logits"] = self.classifier(embedding)
        if self.taps:
            outputs["middle"] = middle.unflatten(0, (size, frames)).transpose(1, 2)  # (B, 6, T, H, W)
        return outputs


def student_backbone(**options: Any) -> Tiny:
    """Sees one frame of 8 x 8."""
    return Tiny(View(size=(8, 8)), **options)


def video_teacher(**options: Any) -> Tiny:
    """Sees four frames of 8 x 8; its feature is 7 wide."""
    return Tiny(View(size=(8, 8), num_frames=4), **{"width": 7, **options})


def random_batch(size: int = 4, *, moments: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """What the loader gives for the two networks."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (size, moments, 4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return {
        "student/frames": frames[:, :, :1],
        "teacher/frames": frames,
        "target": torch.arange(size) % 3,
        "index": torch.arange(size) + 10,
    }
