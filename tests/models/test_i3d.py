"""I3D: parameters and cost by hand, TensorFlow's padding by a slow reference, names of both published conversions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models import create_model
from stillmotion.models.checkpoint import WeightsError
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder
from stillmotion.models.i3d import pad_same

TINY: dict[str, Any] = {"width": 8, "view": {"size": 64, "num_frames": 16}}

# The table of Inception-v1 (Szegedy et al. 2015): input, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 (here 3x3), pool proj.
INCEPTION = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}
POSITIONS = {"3": 32 * 28 * 28, "4": 16 * 14 * 14, "5": 8 * 7 * 7}


def tiny(name: str = "i3d_rgb", num_classes: int = 3, **options: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = create_model(name, num_classes=num_classes, **{**TINY, **options})
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm3d):  # as after training
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.normal_(module.bias, 0, 0.2)
    return encoder.eval()


@pytest.mark.parametrize(("name", "channels", "known"), [("i3d_rgb", 3, 12_287_264), ("i3d_flow", 2, 12_265_312)])
def test_parameters_and_cost_counted_by_hand(name: str, channels: int, known: int) -> None:
    stem = {  # weights, batch norm, positions at 64x224x224
        "1a": (343 * channels * 64, 64, 32 * 112 * 112),
        "2b": (64 * 64, 64, 32 * 56 * 56),
        "2c": (27 * 64 * 192, 192, 32 * 56 * 56),
    }
    params = sum(weights + 2 * norm for weights, norm, _ in stem.values())
    macs = sum(weights * positions for weights, _, positions in stem.values())
    for module, (dim, b0, b1a, b1b, b2a, b2b, b3b) in INCEPTION.items():
        weights = dim * (b0 + b1a + b2a + b3b) + 27 * (b1a * b1b + b2a * b2b)
        params += weights + 2 * (b0 + b1a + b1b + b2a + b2b + b3b)
        macs += weights * POSITIONS[module[0]]
    assert params == known
    with torch.device("meta"):
        encoder = create_model(name, num_classes=0)
        cost = count_cost(encoder)
        assert cost.params == params
        assert cost.gmacs == pytest.approx(macs / 1e9)
        encoder.reset_classifier(400)
        assert sum(p.numel() for p in encoder.parameters()) == params + 1025 * 400
    (view,) = encoder.views.values()
    # Colours are brought to [-1, 1]; flow is, by its bound.
    mean, std = ((0.5,) * 3, (0.5,) * 3) if channels == 3 else ((0.0,) * 3, (1.0,) * 3)
    assert (view.size, view.num_frames, view.fps, view.mean, view.std) == ((224, 224), 64, 25, mean, std)
    assert (view.kind, encoder.embedding_dim) == ("flow" if channels == 2 else "rgb", 1024)


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 1), (1, 2)])
def test_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """SAME: output i covers the inputs from i * stride - before on; the smaller half of the padding is before."""
    count = math.ceil(size / stride)
    total = max((count - 1) * stride + kernel - size, 0)
    row = torch.arange(1.0, size + 1)
    expected = [
        sum(float(row[i]) for i in range(start, start + kernel) if 0 <= i < size)
        for start in range(-(total // 2), count * stride - total // 2, stride)
    ]
    padded = pad_same(row.view(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1))
    sums = F.conv3d(padded, torch.ones(1, 1, kernel, 1, 1), stride=(stride, 1, 1)).flatten()
    assert sums.tolist() == expected


class Published:
    """The published network, layer by layer, by the names of piergiaj's conversion."""

    def __init__(self, encoder: Encoder) -> None:
        self.w = encoder.state_dict()

    def same(self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
        sides = []
        for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
            total = max(k - (size % s or s), 0)
            sides += [total // 2, total - total // 2]
        return F.pad(x, sides, value=value)

    def unit(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.w[f"{name}.conv3d.weight"]
        x = F.conv3d(self.same(x, tuple(weight.shape[2:]), (stride,) * 3, 0.0), weight, stride=stride)
        mean, var, scale, shift = (
            self.w[f"{name}.bn.{key}"].view(1, -1, 1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 0.001).sqrt() * scale + shift).relu()

    def pool(self, x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(self.same(x, kernel, stride, float("-inf")), kernel, stride)

    def mixed(self, x: Tensor, name: str) -> Tensor:
        return torch.cat(
            [
                self.unit(x, f"{name}.b0"),
                self.unit(self.unit(x, f"{name}.b1a"), f"{name}.b1b"),
                self.unit(self.unit(x, f"{name}.b2a"), f"{name}.b2b"),
                self.unit(self.pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b"),
            ],
            1,
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(self.unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = self.pool(self.unit(self.unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        for module in INCEPTION:
            if module == "4b":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            elif module == "5b":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            x = self.mixed(x, f"Mixed_{module}")
        x = F.avg_pool3d(x, (2, *x.shape[3:]), 1)
        logits = F.conv3d(x, self.w["logits.conv3d.weight"], self.w["logits.conv3d.bias"])
        return x.mean((2, 3, 4)), logits.squeeze(3).squeeze(3).mean(2)


@torch.no_grad()
@pytest.mark.parametrize(("num_frames", "size"), [(24, 64), (21, 75)])
def test_outputs_are_the_published_ones(num_frames: int, size: int) -> None:
    encoder = tiny(view={"size": size, "num_frames": num_frames}).double()
    clip = torch.randn(2, num_frames, 3, size, size, dtype=torch.float64)
    outputs = encoder(clip)
    embedding, logits = Published(encoder)(clip.transpose(1, 2))
    torch.testing.assert_close(outputs["embedding"], embedding, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(outputs["logits"], logits, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_uint8_becomes_minus_one_to_one_and_flow_has_two_channels() -> None:
    encoder = tiny(taps=["Mixed_5c"])
    frames = torch.randint(0, 256, (1, 16, 3, 64, 64), dtype=torch.uint8)
    outputs = encoder(frames)
    torch.testing.assert_close(outputs["logits"], encoder(frames / 127.5 - 1)["logits"], atol=1e-4, rtol=1e-4)
    assert outputs["Mixed_5c"].shape == (1, 128, 2, 2, 2)
    assert (outputs["embedding"] >= 0).all()
    flow = tiny("i3d_flow")
    assert flow.state_dict()["Conv3d_1a_7x7.conv3d.weight"].shape == (8, 2, 7, 7, 7)
    assert flow(torch.zeros(2, 16, 2, 64, 64))["logits"].shape == (2, 3)
    short = tiny(view={"size": 32, "num_frames": 1})
    assert short(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))["logits"].shape == (1, 3)


def hassony2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the other conversion, from a table of its own."""
    branches = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1"}
    branches["b3b"] = "branch_3.1"
    renamed = {}
    for name, value in state.items():
        layer, *rest = name.split(".")
        rest = [{"bn": "batch3d", **branches}.get(part, part) for part in rest]
        layer = "conv3d_0c_1x1" if layer == "logits" else layer.lower()
        renamed[".".join([layer, *rest])] = value
    return renamed


@pytest.mark.parametrize("conversion", ["piergiaj", "hassony2"])
@pytest.mark.parametrize("name", ["i3d_rgb", "i3d_flow"])
def test_published_weights_load(conversion: str, name: str, tmp_path: Path) -> None:
    theirs = tiny(name, 400).state_dict()
    state = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}  # as of 2017
    published = state if conversion == "piergiaj" else hassony2(state)
    examples = {
        "piergiaj": ("Conv3d_1a_7x7.conv3d.weight", "Mixed_3b.b1a.bn.running_var", "logits.conv3d.bias"),
        "hassony2": ("conv3d_1a_7x7.conv3d.weight", "mixed_3b.branch_1.0.batch3d.running_var",
                     "conv3d_0c_1x1.conv3d.bias", "mixed_5c.branch_3.1.conv3d.weight"),
    }  # fmt: skip
    assert set(examples[conversion]) <= set(published)
    torch.save(published, tmp_path / "model.pth")
    torch.manual_seed(9)
    encoder = create_model(name, num_classes=400, weights=str(tmp_path / "model.pth"), **TINY)
    assert encoder.weights_report is not None
    assert (encoder.weights_report.left_out, encoder.weights_report.missing) == ({}, ())
    for key, value in state.items():
        assert torch.equal(encoder.state_dict()[key], value), key
    ours = create_model(name, num_classes=2, weights=str(tmp_path / "model.pth"), **TINY)
    assert ours.weights_report is not None
    assert ours.weights_report.classifier == "classifier of 400 classes, here 2"
    assert ours.weights_report.missing == ()


def test_bad_weights_are_one_line(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), path := tmp_path / "i3d.pt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"i3d\.pt: damaged or no PyTorch checkpoint") as caught:
        tiny(weights=str(path))
    assert "\n" not in str(caught.value)
    torch.save({k: v for k, v in tiny("i3d_flow").state_dict().items() if "1a_7x7.conv" in k}, path)
    with pytest.raises(WeightsError, match=r"nothing fits i3d_rgb; .*\[8, 2, 7, 7, 7\]"):
        tiny(weights=str(path))


@torch.no_grad()
def test_config_rebuilds_and_classifier_comes_and_goes() -> None:
    encoder = tiny(dropout=0.2)
    frames = torch.randint(0, 256, (1, 16, 3, 64, 64), dtype=torch.uint8)
    embedding = encoder(frames)["embedding"]
    encoder.reset_classifier(0)
    outputs = encoder(frames)
    assert set(outputs) == {"embedding"}
    torch.testing.assert_close(outputs["embedding"], embedding)
    encoder.reset_classifier(4)
    rebuilt = create_model(**encoder.config)
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt.eval()(frames)["logits"], encoder.eval()(frames)["logits"])
    with pytest.raises(ValueError, match=r"^i3d_rgb: width=2: needs at least 4"):
        create_model("i3d_rgb", num_classes=2, width=2)
