"""C3D against METHODS 1.3: parameters, cost, outputs by a plain reference, and the names of the published weights."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillmotion.models import create_model
from stillmotion.models.checkpoint import WeightsError
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder

TINY: dict[str, Any] = {"width": 2, "view": {"size": 32, "num_frames": 16}}
CONVS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")


def tiny(num_classes: int = 3, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return create_model("c3d", num_classes=num_classes, **{**TINY, **options}).eval()


def test_published_parameters_cost_and_shapes() -> None:
    dims = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convs = sum(27 * a * b + b for a, b in pairwise(dims))
    with torch.device("meta"):
        encoder = create_model("c3d", num_classes=487, taps=["pool5"])
        cost = count_cost(encoder)
        assert cost.params == convs + (8192 + 1) * 4096 + (4096 + 1) * 4096 + 4097 * 487
        assert round(cost.gmacs, 1) == 38.5
        outputs = encoder(torch.zeros(2, 16, 3, 112, 112, dtype=torch.uint8))
    assert outputs["pool5"].shape == (2, 512, 1, 4, 4)
    assert (outputs["embedding"].shape, outputs["logits"].shape) == ((2, 4096), (2, 487))


def reference(w: dict[str, Tensor], clip: Tensor) -> tuple[Tensor, Tensor]:
    """The published network on (B, C, T, H, W), channels BGR: fc6 after its ReLU, and the scores."""
    pools = {"conv1": (1, 2, 2), "conv2": 2, "conv3b": 2, "conv4b": 2}
    x = clip
    for name in CONVS:
        x = F.conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1).relu()
        if name in pools:
            x = F.max_pool3d(x, pools[name], pools[name])
    x = F.max_pool3d(F.pad(x, (1, 1, 1, 1), value=float("-inf")), 2, 2).flatten(1)
    fc6 = F.linear(x, w["fc6.weight"], w["fc6.bias"]).relu()
    fc7 = F.linear(fc6, w["fc7.weight"], w["fc7.bias"]).relu()
    return fc6, F.linear(fc7, w["fc8.weight"], w["fc8.bias"])


@torch.no_grad()
def test_outputs_and_normalisation_are_the_published_ones() -> None:
    """Values 0..255 minus the means of the Sports-1M mean file, blue before red."""
    encoder = tiny()
    frames = torch.randint(0, 256, (2, 16, 3, 32, 32), dtype=torch.uint8)
    bgr = frames.float().flip(2) - torch.tensor([90.25, 97.66, 101.41]).view(3, 1, 1)
    embedding, logits = reference(encoder.state_dict(), bgr.transpose(1, 2))
    outputs = encoder(frames)
    torch.testing.assert_close(outputs["embedding"], embedding, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(outputs["logits"], logits, atol=1e-3, rtol=1e-4)
    rgb = tiny(channels="rgb")
    torch.testing.assert_close(rgb(frames.flip(2).float())["logits"], encoder(frames.float())["logits"])


def test_published_weights_load(tmp_path: Path) -> None:
    theirs = {name: torch.randn_like(value) for name, value in tiny(487).state_dict().items()}
    layers = [*CONVS, "fc6", "fc7", "fc8"]
    assert set(theirs) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    torch.save(theirs, tmp_path / "c3d.pickle")
    encoder = tiny(487, weights=str(tmp_path / "c3d.pickle"))
    assert encoder.weights_report is not None
    assert (encoder.weights_report.left_out, encoder.weights_report.missing) == ({}, ())
    for name, value in theirs.items():
        assert torch.equal(encoder.state_dict()[name], value), name
    ours = tiny(3, weights=str(tmp_path / "c3d.pickle"))
    assert ours.weights_report is not None
    assert "classifier of 487 classes, here 3: left out" in ours.weights_report.summary()
    assert torch.equal(ours.state_dict()["fc7.weight"], theirs["fc7.weight"])


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), path := tmp_path / "c3d.pth")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"c3d\.pth: damaged or no PyTorch checkpoint") as caught:
        tiny(weights=str(path))
    assert "\n" not in str(caught.value)
    torch.save({"blocks.0.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(WeightsError, match=r"c3d\.pth: nothing fits c3d"):
        tiny(weights=str(path))


@torch.no_grad()
def test_classifier_comes_and_goes() -> None:
    encoder, frames = tiny(), torch.zeros(1, 16, 3, 32, 32, dtype=torch.uint8)
    embedding, fc7 = encoder(frames)["embedding"], encoder.state_dict()["fc7.weight"]
    encoder.reset_classifier(5)
    assert torch.equal(encoder.state_dict()["fc7.weight"], fc7)
    assert encoder(frames)["logits"].shape == (1, 5)
    encoder.reset_classifier(0)
    assert not any(name.startswith(("fc7", "fc8")) for name in encoder.state_dict())
    outputs = encoder(frames)
    assert set(outputs) == {"embedding"}
    torch.testing.assert_close(outputs["embedding"], embedding)
    encoder.reset_classifier(2)
    rebuilt = create_model(**encoder.config)
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt.eval()(frames)["logits"], encoder.eval()(frames)["logits"])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"channels": "grb"}, "choose bgr or rgb"),
        ({"view": {"num_frames": 8}}, "needs at least 16 frames of 16x16; the view gives 8 of 112x112"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^c3d: .*{complaint}") as caught:
        create_model("c3d", num_classes=2, **{"width": 2, **options})
    assert "\n" not in str(caught.value)
