"""The student of HalluciNet: a backbone, a branch that guesses the teacher's feature, and their fusion."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillmotion.models.adapters import ImageEncoder
from stillmotion.models.encoder import Encoder, check_choice, check_moment_wise

Fusion = Literal["concat", "none", "direct"]
Tap = Literal["embedding", "pool5", "fc7"]

POOL5_DIM = 512 * 7 * 7
FC_DIM = 4096


class VggPool5(ImageEncoder):
    """The convolutional part of a VGG; `embedding` is its last pooling, flattened: 512x7x7 = 25,088.

    Args:
        vgg: A VGG of timm or torchvision; its `features` are used, not copied, its fully connected layers dropped.
    """

    def __init__(self, vgg: ImageEncoder) -> None:
        super().__init__()
        features = vgg.get_submodule("net.features")
        self.features = features
        self.views, self.stack = vgg.views, vgg.stack
        self.embedding_dim, self.num_classes = POOL5_DIM, 0
        self.config, self.weights_report = vgg.config, vgg.weights_report
        self.watch(self, vgg.taps)

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.features(x)
        if maps.shape[-2:] != (7, 7):  # a frame smaller than 224 or larger than 255: as torchvision's VGG does
            maps = nn.functional.adaptive_avg_pool2d(maps, 7)
        return {"embedding": maps.flatten(1)}


class HallucinatingStudent(Encoder):
    """Sees what its backbone sees, and hallucinates the feature of a video teacher.

    x = backbone's embedding; `hallucinated` = ReLU(Linear(x)); the classes are read from both, or from one of them.
    With VGG's `pool5` the class branch has a hidden layer of 4096, ReLU and dropout, otherwise it is one Linear.

    Args:
        backbone: Taken over, its classifier dropped.
        num_classes: Width of the logits.
        hallucinated_dim: Width of the teacher's feature.
        fuse: What the classes are read from: `concat` [x, hallucinated], `none` x, `direct` hallucinated.
        relu: Whether a ReLU ends the branch.
        tap: What x is. None: `pool5` for a VGG (flattened), otherwise `embedding`; `fc7` is VGG's `embedding`, 4096.
        dropout: In the class branch of `pool5`.
        init_fc6: `imagenet` starts the class branch's hidden layer, where it reads x, from VGG's own fc6.

    Raises:
        ValueError: Settings that do not fit together.
    """

    classifier_layer = "classifier"
    class_dim: int

    def __init__(
        self,
        backbone: Encoder,
        *,
        num_classes: int,
        hallucinated_dim: int,
        fuse: Fusion = "concat",
        relu: bool = True,
        tap: Tap | None = None,
        dropout: float = 0.5,
        init_fc6: Literal["imagenet"] | None = None,
    ) -> None:
        super().__init__()
        check_moment_wise(backbone)
        is_vgg = "/vgg" in backbone.config["name"] and isinstance(backbone, ImageEncoder)
        is_vgg = is_vgg and not isinstance(backbone, VggPool5)
        self.tap: Tap = _resolve_tap(tap, backbone, is_vgg=is_vgg)
        check_choice("fuse", fuse, Fusion)
        fc6 = _read_fc6(backbone, self.tap, fuse, init_fc6)
        if backbone.num_classes:
            backbone.reset_classifier(0)
        self.backbone = backbone
        if self.tap == "pool5":
            assert isinstance(backbone, ImageEncoder), "a VGG"
            self.backbone = VggPool5(backbone)
        self.views, self.taps = self.backbone.views, self.backbone.taps
        self.fuse, self.num_classes, self.hallucinated_dim = fuse, num_classes, hallucinated_dim
        self.embedding_dim = self.backbone.embedding_dim
        self.weights_report = backbone.weights_report
        branch = nn.Linear(self.embedding_dim, hallucinated_dim)
        self.hallucinator = nn.Sequential(branch, nn.ReLU()) if relu else nn.Sequential(branch)
        class_dim = {"concat": self.embedding_dim + hallucinated_dim, "none": self.embedding_dim}
        self.hidden: nn.Sequential | None = None
        self.class_dim = class_dim.get(fuse, hallucinated_dim)
        if self.tap == "pool5":
            self.hidden = nn.Sequential(nn.Linear(self.class_dim, FC_DIM), nn.ReLU(), nn.Dropout(dropout))
            self.class_dim = FC_DIM
            if fc6 is not None:
                _start_from_fc6(self.hidden, fc6)
        self.classifier = nn.Linear(self.class_dim, num_classes) if num_classes else None
        self.config = {
            "name": "hallucinating",
            "num_classes": num_classes,
            "backbone": {**backbone.config, "num_classes": 0},
            "hallucinated_dim": hallucinated_dim,
            "fuse": fuse,
            "relu": relu,
            "tap": self.tap,
            "dropout": dropout,
        }

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.backbone.forward_views(*inputs)
        x = outputs["embedding"]
        hallucinated = self.hallucinator(x)
        outputs = {**outputs, "hallucinated": hallucinated}
        if self.classifier is None:
            return outputs
        return {**outputs, "logits": self.classifier(self.class_features(outputs))}

    def class_features(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """What the classes are read from, (B, class_dim), of this network's outputs."""
        x, hallucinated = outputs["embedding"], outputs["hallucinated"]
        fused = {"none": x, "direct": hallucinated}.get(self.fuse)
        if fused is None:
            fused = torch.cat([x, hallucinated], 1)
        return fused if self.hidden is None else self.hidden(fused)

    def part_of(self, view: str) -> nn.Module:
        return self.backbone.part_of(view)


def _resolve_tap(tap: Tap | None, backbone: Encoder, *, is_vgg: bool) -> Tap:
    if tap is None:
        return "pool5" if is_vgg else "embedding"
    check_choice("tap", tap, Tap)
    if tap != "embedding" and not is_vgg:
        raise ValueError(f"tap={tap!r} is for a VGG; {backbone.config['name']} has tap='embedding'")
    return tap


def _read_fc6(backbone: Encoder, tap: Tap, fuse: Fusion, init: str | None) -> tuple[Tensor, Tensor] | None:
    """Weight (4096, 25088) and bias of a VGG's first fully connected layer, before it is dropped."""
    if init is None:
        return None
    if init != "imagenet":
        raise ValueError(f"init_fc6={init!r}: choose imagenet, or leave it out")
    if tap != "pool5" or fuse == "direct":
        raise ValueError("init_fc6 needs a VGG with tap='pool5' and a class branch that reads x (fuse concat or none)")
    if backbone.weights_report is None:
        raise ValueError("init_fc6='imagenet' needs a backbone with weights; pass weights=default or a file")
    state: dict[str, Any] = backbone.state_dict()
    for name in ("net.pre_logits.fc1", "net.classifier.0"):  # timm, torchvision
        if f"{name}.weight" in state:
            return state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
    raise ValueError(f"{backbone.config['name']}: no fc6 found to start from")


@torch.no_grad()
def _start_from_fc6(hidden: nn.Sequential, fc6: tuple[Tensor, Tensor]) -> None:
    linear = hidden[0]
    assert isinstance(linear, nn.Linear)
    linear.weight[:, :POOL5_DIM].copy_(fc6[0])
    linear.bias.copy_(fc6[1])
