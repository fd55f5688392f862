"""3D ResNets against METHODS 1.1: parameters, cost, shapes, and the names of the published weights."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stillmotion.models.cost import count_cost
from stillmotion.models.factory import create_model
from stillmotion.models.resnext3d import PadShortcut

LAYERS = ["maxpool", "layer1", "layer2", "layer3", "layer4"]


def num_params(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnext3d_101_has_the_published_parameters_and_cost() -> None:
    with torch.device("meta"):
        encoder = create_model("resnext3d_101", num_classes=0)
        assert num_params(encoder) == 47_521_216
        assert num_params(create_model("resnext3d_101", num_classes=400)) == 47_521_216 + 2049 * 400
    cost = count_cost(encoder)
    assert cost.params == 47_521_216
    assert cost.gmacs == pytest.approx(9.57, abs=0.005)


@pytest.mark.parametrize(
    ("num_frames", "size", "shapes"),
    [
        (16, 112, [(64, 8, 28, 28), (256, 8, 28, 28), (512, 4, 14, 14), (1024, 2, 7, 7), (2048, 1, 4, 4)]),
        (64, 112, [(64, 32, 28, 28), (256, 32, 28, 28), (512, 16, 14, 14), (1024, 8, 7, 7), (2048, 4, 4, 4)]),
        (5, 96, [(64, 3, 24, 24), (256, 3, 24, 24), (512, 2, 12, 12), (1024, 1, 6, 6), (2048, 1, 3, 3)]),
    ],
)
def test_resnext3d_101_shape_walk(num_frames: int, size: int, shapes: list[tuple[int, ...]]) -> None:
    with torch.device("meta"):
        encoder = create_model("resnext3d_101", num_classes=7, taps=LAYERS)
        outputs = encoder(torch.zeros(1, num_frames, 3, size, size))
    assert [tuple(outputs[layer].shape[1:]) for layer in LAYERS] == shapes
    assert outputs["embedding"].shape == (1, 2048)
    assert outputs["logits"].shape == (1, 7)


@pytest.mark.parametrize(("num_frames", "size"), [(16, 112), (64, 64), (32, 96)])
def test_embedding_is_the_published_pooling_after_relu(num_frames: int, size: int) -> None:
    encoder = create_model("resnet3d_10", num_classes=2, width=2, taps=["layer4"]).eval()
    with torch.no_grad():
        outputs = encoder(torch.randn(2, num_frames, 3, size, size))
    pool = (math.ceil(num_frames / 16), math.ceil(size / 32), math.ceil(size / 32))
    torch.testing.assert_close(outputs["embedding"], F.avg_pool3d(outputs["layer4"], pool, stride=1).flatten(1))
    assert (outputs["embedding"] >= 0).all()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet3d_18", {"layer1.0.conv1.weight": (64, 64, 3, 3, 3), "layer4.1.bn2.running_var": (512,)}),
        ("resnet3d_34", {"layer3.5.conv2.weight": (256, 256, 3, 3, 3), "layer2.0.downsample.1.bias": (128,)}),
        ("resnet3d_50", {"layer1.0.downsample.0.weight": (256, 64, 1, 1, 1), "fc.weight": (400, 2048)}),
        ("resnext3d_50", {"layer3.5.conv2.weight": (512, 16, 3, 3, 3), "fc.weight": (400, 2048)}),
        ("resnext3d_101", {"layer3.22.conv2.weight": (512, 16, 3, 3, 3), "conv1.weight": (64, 3, 7, 7, 7)}),
        ("resnext3d_152", {"layer2.7.conv3.weight": (512, 256, 1, 1, 1), "layer3.35.bn3.weight": (1024,)}),
    ],
)
def test_layers_are_named_as_in_the_published_weights(name: str, published: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        state = create_model(name, num_classes=400).state_dict()
    assert {k: tuple(state[k].shape) for k in published} == published


@pytest.mark.parametrize(
    ("name", "depths", "out_dims", "mid_dims", "groups"),
    [
        ("resnet3d_10", (1, 1, 1, 1), (64, 128, 256, 512), None, 1),
        ("resnet3d_34", (3, 4, 6, 3), (64, 128, 256, 512), None, 1),
        ("resnet3d_50", (3, 4, 6, 3), (256, 512, 1024, 2048), (64, 128, 256, 512), 1),
        ("resnext3d_152", (3, 8, 36, 3), (256, 512, 1024, 2048), (128, 256, 512, 1024), 32),
    ],
)
def test_parameters_counted_by_hand(
    name: str, depths: tuple[int, ...], out_dims: tuple[int, ...], mid_dims: tuple[int, ...] | None, groups: int
) -> None:
    total, before = 3 * 64 * 7**3 + 2 * 64, 64
    for stage, (depth, out) in enumerate(zip(depths, out_dims, strict=True)):
        for block in range(depth):
            if mid_dims is None:
                total += before * out * 27 + out * out * 27 + 4 * out
            else:
                mid = mid_dims[stage]
                total += before * mid + mid * (mid // groups) * 27 + mid * out + 4 * mid + 2 * out
            if block == 0 and (stage > 0 or before != out):
                total += before * out + 2 * out
            before = out
    with torch.device("meta"):
        assert num_params(create_model(name, num_classes=0)) == total


def test_pad_shortcut_is_published_type_a() -> None:
    x = torch.randn(2, 3, 4, 6, 6)
    pooled = F.avg_pool3d(x, kernel_size=1, stride=2)
    expected = torch.cat([pooled, torch.zeros(2, 5, *pooled.shape[2:])], 1)
    torch.testing.assert_close(PadShortcut((2, 2, 2), 5)(x), expected)


def test_small_teacher_for_a_cpu() -> None:
    taps = ["conv1", "layer4"]
    small = create_model(
        "resnet3d_10", num_classes=6, width=16, stem_pool=False, time_strides=(1, 2, 1, 1), dropout=0.5, taps=taps
    )
    outputs = small(torch.zeros(1, 8, 3, 56, 56))
    assert outputs["conv1"].shape == (1, 16, 8, 28, 28)
    assert outputs["layer4"].shape == (1, 128, 4, 4, 4)
    assert small.embedding_dim == 128


@pytest.mark.parametrize(
    "options",
    [{"stem_stride": [2, 2]}, {"time_strides": [1]}, {"shortcut": "C"}, {"bogus": 1}, {"width": "wide"}],
)
def test_wrong_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^resnet3d_10: .*") as caught:
        create_model("resnet3d_10", num_classes=2, **options)
    assert "\n" not in str(caught.value)
