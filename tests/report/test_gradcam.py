"""Grad-CAM against its analytic form: of a linear layer on averaged maps it is the maps weighed by its weights."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.report.gradcam import blend, grad_cam, to_bytes

VIEW = {"size": 64}


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def enlarged(heat: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """(N, T', h, w) -> (N, T, H, W)."""
    return np.asarray(nn.functional.interpolate(heat[:, None], size, mode="trilinear")[:, 0])


def maps_of(encoder: Encoder, layer: str, x: Tensor) -> Tensor:
    """What a layer gives, read by a hook of its own."""
    kept: list[Tensor] = []
    hook = encoder.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out.detach()))
    with torch.no_grad():
        encoder.eval()(x)
    hook.remove()
    return kept[-1]


def by_hand(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum over channels, place by place: a loop, up to a factor. Maps (M, C, ...), weights (C,)."""
    total = torch.zeros(maps.shape[0], *maps.shape[2:])
    for k in range(maps.shape[1]):
        total += weights[k] * maps[:, k]
    return total.clamp(min=0)


def same_but_for_scale(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert wanted.max() > 0
    np.testing.assert_allclose(found / found.max(), wanted / wanted.max(), atol=1e-4)


@pytest.mark.parametrize("output", [0, 3])
def test_of_one_frame(output: int) -> None:
    torch.manual_seed(0)
    encoder = create_model("torchvision/resnet18", num_classes=5, view=VIEW)
    x = noise(1, 1, 3, 64, 64)
    found = grad_cam(encoder, {"frames": x}, output)
    weights = encoder.get_submodule("head").weight.detach()[output]
    wanted = by_hand(maps_of(encoder, "net.layer4", x[0][None]), weights)
    assert found.shape == (1, 1, 64, 64)
    same_but_for_scale(found, enlarged(wanted[:, None], (1, 64, 64)))


def test_of_a_clip_seen_by_a_3d_network() -> None:
    torch.manual_seed(0)
    encoder = create_model("resnet3d_10", num_classes=5, width=4, view={"size": 64, "num_frames": 16})
    x = noise(1, 16, 3, 64, 64)
    with torch.no_grad():
        best = int(encoder.eval()(x)["logits"].argmax())
    found = grad_cam(encoder, {"clip": x})
    linear = [m for m in encoder.modules() if isinstance(m, nn.Linear)][-1]
    wanted = by_hand(maps_of(encoder, "layer4", x), linear.weight.detach()[best])
    assert wanted.ndim == 4
    assert found.shape == (1, 16, 64, 64)
    same_but_for_scale(found, enlarged(wanted, (16, 64, 64)))


def test_frames_seen_one_by_one_have_their_own_heat() -> None:
    torch.manual_seed(0)
    encoder = create_model("torchvision/resnet18", num_classes=5, view={"size": 64, "num_frames": 3})
    x = noise(1, 3, 3, 64, 64)
    maps = maps_of(encoder, "net.layer4", x)
    wanted = by_hand(maps, encoder.get_submodule("head").weight.detach()[1])
    same_but_for_scale(grad_cam(encoder, {"frames": x}, 1), enlarged(wanted[None], (3, 64, 64)))


def test_of_a_sequence_a_moment_without_weight_is_cold() -> None:
    torch.manual_seed(0)
    backbone = {"name": "torchvision/resnet18", "view": VIEW}
    encoder = create_model("sequence", num_classes=3, backbone=backbone, aggregate="lstm", view={"num_moments": 4})
    found = grad_cam(encoder, {"frames": noise(4, 1, 3, 64, 64)}, 2)
    assert found.shape == (4, 1, 64, 64)
    assert (found.reshape(4, -1).max(1) > 0).any()

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, -1]

    encoder.aggregate_moments = Last()
    encoder.classifier = nn.Linear(512, 3)
    found = grad_cam(encoder, {"frames": noise(4, 1, 3, 64, 64)}, 2)
    assert not found[:3].any()
    assert found[3].any()


def test_of_a_student_with_a_branch() -> None:
    """Both ways from the maps to the class count: W_x + W_h J, where J is the branch's derivative."""
    torch.manual_seed(0)
    backbone = {"name": "torchvision/resnet18", "view": VIEW}
    encoder = create_model("hallucinating", num_classes=3, backbone=backbone, hallucinated_dim=7, relu=False)
    x = noise(1, 1, 3, 64, 64)
    found = grad_cam(encoder, {"frames": x}, 1)
    classifier, branch = (encoder.get_submodule(n).weight.detach() for n in ("classifier", "hallucinator.0"))
    weights = classifier[1, :512] + classifier[1, 512:] @ branch
    wanted = by_hand(maps_of(encoder, "backbone.net.layer4", x[0][None]), weights)
    same_but_for_scale(found, enlarged(wanted[:, None], (1, 64, 64)))


def test_of_two_streams_each_view_has_its_own() -> None:
    torch.manual_seed(0)
    streams: dict[str, Any] = {
        "appearance": {"name": "torchvision/resnet18", "view": VIEW},
        "motion": {"name": "torchvision/resnet18", "view": {**VIEW, "kind": "flow", "num_frames": 3}},
    }
    encoder = create_model("two_stream", num_classes=3, connect="none", **streams)
    inputs = {"appearance": noise(1, 1, 3, 64, 64), "motion": noise(1, 3, 2, 64, 64)}
    weights = encoder.get_submodule("classifiers.fusion").weight.detach()[0]
    for view, own, fields in (("appearance", weights[:512], 1), ("motion", weights[512:], 3)):
        layer = encoder.get_submodule(f"{view}.net.layer4")
        kept: list[Tensor] = []
        hook = layer.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out.detach()))
        with torch.no_grad():
            encoder.eval()(*inputs.values())
        hook.remove()
        found = grad_cam(encoder, inputs, 0, view=view)
        assert found.shape == (1, fields, 64, 64)
        same_but_for_scale(found, enlarged(by_hand(kept[-1], own)[:, None], (fields, 64, 64)))


def test_maps_with_channels_last() -> None:
    torch.manual_seed(0)
    encoder = create_model("timm/swin_tiny_patch4_window7_224", num_classes=3, view={"size": 224})
    x = noise(1, 1, 3, 224, 224)
    found = grad_cam(encoder, {"frames": x}, 0)
    norm = maps_of(encoder, "net.norm", x[0][None])
    weights = encoder.get_submodule("net.head.fc").weight.detach()[0]
    same_but_for_scale(found, enlarged(by_hand(norm.movedim(-1, 1), weights)[:, None], (1, 224, 224)))


def test_a_transformer_of_tokens_is_refused_and_left_as_it_was() -> None:
    encoder = create_model("timm/test_vit", num_classes=3)
    size = next(iter(encoder.views.values())).size
    with pytest.raises(ValueError, match="no maps"):
        grad_cam(encoder, {"frames": noise(1, 1, 3, *size)})
    assert not any(m._forward_hooks for m in encoder.modules())


def test_without_classes_nothing_speaks_for_one() -> None:
    encoder = create_model("torchvision/resnet18", num_classes=0, view=VIEW)
    with pytest.raises(ValueError, match="no classes"):
        grad_cam(encoder, {"frames": noise(1, 1, 3, 64, 64)})


def test_a_frame_is_covered_where_it_is_hot() -> None:
    frame = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((8, 8), np.uint8)
    heat[:, 6:] = 255
    covered = blend(frame, heat)
    assert covered.shape == frame.shape
    # 90 % of the frame and 10 % of the coldest colour, (0, 0, 3) in RGB; 40 % and 60 % of the hottest, (252, 255, 164).
    np.testing.assert_allclose(covered[0, 0], [90, 90, 90], atol=1)
    np.testing.assert_allclose(covered[0, 7], [191, 193, 138], atol=2)
    assert to_bytes(np.zeros((2, 2), np.float32)).tolist() == [[0, 0], [0, 0]]
