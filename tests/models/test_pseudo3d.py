"""Pseudo-3D of 2D networks: identity on still clips, the wirings against plain 3D convolutions, pooling, weights."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from stillmotion.export import export
from stillmotion.models import create_model, list_models
from stillmotion.models.pretrained import save_pretrained
from stillmotion.models.pseudo3d import pseudo3d
from stillmotion.tasks import Classification

SIZE = (64, 64)


def small_vgg() -> nn.Module:
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M", 24, 24, "M", 32, "M", 32, "M"], batch_norm=True)
    net = torchvision.models.VGG(layers, num_classes=5)
    net.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32 * 49, 5))
    return net


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: timm.create_model("resnet10t", num_classes=5),
    "bottleneck": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=16
    ),
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_035", num_classes=5),
    "mobilenetv2_same": lambda: timm.create_model("mobilenetv2_035", num_classes=5, pad_type="same"),
    "mobilenetv3": lambda: torchvision.models.get_model("mobilenet_v3_small", num_classes=5),
    "mobilenetv4": lambda: timm.create_model("mobilenetv4_conv_small_050", num_classes=5),
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=5),
    "regnet": lambda: timm.create_model("regnetx_002", num_classes=5),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=5),
    "vgg": small_vgg,
}


@pytest.mark.parametrize(
    ("family", "wiring"), [*((family, "ABC") for family in FAMILIES), *(("mobilenetv2_same", w) for w in "ABC")]
)
def test_a_still_clip_gives_what_the_2d_network_gives(family: str, wiring: str) -> None:
    torch.manual_seed(0)
    flat = FAMILIES[family]().eval()
    for module in flat.modules():  # statistics of a trained network, not the start's 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    net = pseudo3d(copy.deepcopy(flat), wiring=wiring, time_pool=(2, 3), size=SIZE).eval()
    loaded = net.load_state_dict(flat.state_dict(), strict=False)
    assert loaded.missing_keys
    assert all(".temporal." in name for name in loaded.missing_keys)
    assert not loaded.unexpected_keys
    frames = torch.randn(3, 3, *SIZE)
    with torch.no_grad():
        expected = flat(frames)
        clips = frames[:, None].expand(-1, 5, -1, -1, -1)
        torch.testing.assert_close(net(clips), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(net(frames), expected, atol=1e-5, rtol=1e-4)  # pictures still go in
        moving = torch.randn(3, 5, 3, *SIZE)
        by_frame = torch.stack([flat(moving[:, t]) for t in range(5)], 1).mean(1)
        unpooled = pseudo3d(copy.deepcopy(flat), wiring=wiring, size=SIZE).eval()
        torch.testing.assert_close(unpooled(moving), by_frame, atol=1e-5, rtol=1e-4)  # the start knows no time


@pytest.mark.parametrize("family", ["mobilenetv2", "convnext", "resnet"])
@pytest.mark.parametrize("wiring", ["A", "B", "C"])
def test_a_training_step_moves_the_temporal_weights(family: str, wiring: str) -> None:
    torch.manual_seed(0)
    flat = FAMILIES[family]()
    for name, weight in flat.named_parameters():
        if weight.ndim == 1 and not name.endswith("bias"):  # some start their residual branches at 0
            nn.init.ones_(weight)
    net = pseudo3d(flat, wiring=wiring, size=SIZE).train()
    clip = torch.randn(2, 4, 3, *SIZE)
    optimiser = torch.optim.SGD(net.parameters(), 1e-2)
    temporal = {n: p for n, p in net.named_parameters() if n.endswith("temporal.conv.weight")}
    before = {n: p.detach().clone() for n, p in temporal.items()}
    F.cross_entropy(net(clip), torch.tensor([0, 3])).backward()
    optimiser.step()
    unmoved = [n for n, p in temporal.items() if torch.equal(p, before[n])]
    assert temporal
    assert not unmoved
    net.eval()
    with torch.no_grad():  # now the order of the frames matters
        assert not torch.allclose(net(clip), net(clip.flip(1)), atol=1e-7)


class OneConv(nn.Module):
    """A stem and one convolution, without anything else."""

    def __init__(self, groups: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4, 1, bias=False)
        self.conv = nn.Conv2d(4, 8, 3, stride, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.stem(x))


@pytest.mark.parametrize("wiring", ["A", "B", "C"])
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 2), (2, 2)])
def test_wirings_are_the_3d_convolutions_of_the_paper(wiring: str, groups: int, stride: int) -> None:
    torch.manual_seed(0)
    net = pseudo3d(OneConv(groups, stride), wiring=wiring, size=(32, 32)).eval()
    temporal = net.get_submodule("conv.temporal")
    weight = temporal.get_parameter("conv.weight")
    nn.init.normal_(weight)
    clip = torch.randn(2, 5, 3, 32, 32)
    with torch.no_grad():
        given = net(clip)
        # Slow reference: 3D convolutions on (B, C, T, H, W).
        conv = net.get_submodule("conv")
        x = F.conv3d(
            clip.transpose(1, 2), net.get_parameter("stem.weight")[:, :, None], stride=(1, 4, 4), padding=(0, 1, 1)
        )
        s = F.conv3d(x, conv.weight[:, :, None], conv.bias, (1, stride, stride), (0, 1, 1), 1, groups)  # type: ignore[arg-type, index]
        over_time = weight[..., None]  # (D, C, 3, 1, 1)
        depthwise = groups == 4
        if wiring == "A":
            expected = F.conv3d(s, over_time, padding=(1, 0, 0), groups=8 if depthwise else groups)
        elif wiring == "B":
            expected = s + F.conv3d(x, over_time, stride=(1, stride, stride), padding=(1, 0, 0), groups=groups)
        else:
            inner = F.relu(s / (1 + 1e-5) ** 0.5)
            expected = s + F.conv3d(inner, over_time, padding=(1, 0, 0), groups=8 if depthwise else groups)
    torch.testing.assert_close(given, expected.mean(2), atol=1e-5, rtol=1e-4)


def test_letters_go_round_and_only_chosen_stages_get_them() -> None:
    net = pseudo3d(timm.create_model("mobilenetv2_035"), wiring="ABC", stages=(3, 4), size=SIZE)
    letters = "".join(m.wiring for n, m in net.named_modules() if n.endswith(".temporal"))
    assert letters == "ABCABCABCA"  # 3 + 4 + 3 blocks at strides 8 and 16
    places = [n for n, _ in net.named_modules() if n.endswith(".temporal")]
    assert places[0].startswith("blocks.2.0.")
    assert places[-1].startswith("blocks.4.2.")


def test_time_pool_halves_the_clip_by_maxima() -> None:
    torch.manual_seed(0)
    net = pseudo3d(small_vgg(), wiring="", time_pool=(2,), size=SIZE).eval()
    flat = small_vgg().eval()
    flat.load_state_dict(net.state_dict())
    clip = torch.randn(1, 3, 3, *SIZE)
    stages = flat.get_submodule("features")
    layers = list(stages.children())  # type: ignore[arg-type]
    third_pool = [i for i, m in enumerate(layers) if isinstance(m, nn.MaxPool2d)][2]
    with torch.no_grad():
        maps = nn.Sequential(*layers[:third_pool])(clip[0])
        pooled = torch.stack([torch.maximum(maps[0], maps[1]), maps[2]])  # the odd frame stays alone
        rest = nn.Sequential(*layers[third_pool:])(pooled)
        expected = flat.get_submodule("classifier")(flat.get_submodule("avgpool")(rest)).mean(0, keepdim=True)
        torch.testing.assert_close(net(clip), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"wiring": "AD"}, "'D' is none of A, B, C"),
        ({"stages": (9,)}, "no spatial convolution there; this network has some in"),
        ({"time_pool": (7,)}, "nothing reduces the maps after stage 7"),
    ],
)
def test_wrong_settings(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pseudo3d(timm.create_model("mobilenetv2_035"), size=SIZE, **settings)  # type: ignore[arg-type]


def test_by_name_with_weights_of_the_2d_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    flat = timm.create_model("mobilenetv2_035", num_classes=7).eval()
    save_file(flat.state_dict(), tmp_path / "flat.safetensors")
    encoder = create_model(
        "pseudo3d/mobilenetv2_035", num_classes=3, weights=str(tmp_path / "flat.safetensors"), wiring="AC",
        taps=["blocks.4"], view={"size": 64, "num_frames": 4},
    ).eval()  # fmt: skip
    report = encoder.weights_report
    assert report is not None
    assert not report.missing
    assert "classifier of 7 classes, here 3" in report.summary()
    assert len(report.initialised) == 16 + 8 * 4  # 16 convolutions in time, 8 of them with a batch norm
    frames = torch.randint(0, 256, (2, 1, 3, 64, 64), dtype=torch.uint8)
    own = create_model("timm/mobilenetv2_035", num_classes=7, taps=["blocks.4"], view={"size": 64}).eval()
    own.load_state_dict({f"net.{k}": v for k, v in flat.state_dict().items()})
    with torch.no_grad():
        still, picture = encoder(frames.expand(-1, 4, -1, -1, -1)), own(frames)
    torch.testing.assert_close(still["embedding"], picture["embedding"], atol=1e-4, rtol=1e-4)
    assert still["blocks.4"].shape == (2, 32, 4, 4, 4)  # (B, C, T, H, W)
    torch.testing.assert_close(still["blocks.4"][:, :, 2], picture["blocks.4"], atol=1e-4, rtol=1e-4)
    again = create_model(**encoder.config)
    again.load_state_dict(encoder.state_dict())
    assert create_model("pseudo3d/torchvision/mobilenet_v3_small", num_classes=2, wiring="B").embedding_dim == 1024


def test_a_copy_counts_its_own_frames() -> None:
    torch.manual_seed(0)
    encoder = create_model("pseudo3d/mobilenetv2_035", num_classes=2, time_pool=[2], view={"size": 64}).eval()
    for name, weight in encoder.named_parameters():
        if name.endswith("temporal.conv.weight"):
            nn.init.normal_(weight, std=0.3)
    other = copy.deepcopy(encoder)
    clips = torch.randn(2, 6, 3, *SIZE)
    with torch.no_grad():
        expected = encoder(clips)["logits"]
        encoder(clips[:, :2])
        torch.testing.assert_close(other(clips)["logits"], expected)


def test_as_a_student_that_sees_clips() -> None:
    backbone = {"name": "pseudo3d/vgg11_bn", "view": {"size": 64, "num_frames": 2}}
    with torch.device("meta"):
        student = create_model("hallucinating", num_classes=2, backbone=backbone, hallucinated_dim=8)
        out = student(torch.zeros(1, 2, 3, 64, 64))
    assert (out["logits"].shape, out["hallucinated"].shape) == ((1, 2), (1, 8))


@pytest.mark.parametrize("name", ["pseudo3d/resnet3d_10", "pseudo3d/torchvision/r3d_18", "pseudo3d/no_such"])
def test_names_that_are_no_2d_network(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown model|sees clips already"):
        create_model(name, num_classes=2)


def test_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"wiring": "ABC", "time_pool": [3], "view": {"size": 64, "num_frames": 4}}
    encoder = create_model("pseudo3d/mobilenetv2_035", num_classes=2, **options)  # type: ignore[arg-type]
    for name, weight in encoder.named_parameters():
        if name.endswith("temporal.conv.weight"):
            nn.init.normal_(weight, std=0.3)
    run = save_pretrained(encoder.eval(), Classification(("run", "sit")), tmp_path / "run")
    assert export(str(run), str(tmp_path / "clip.onnx")).stat().st_size > 0  # it compares logits at three batch sizes


def test_is_listed() -> None:
    (found,) = list_models("pseudo3d/mobilenetv2_100")
    (flat,) = list_models("timm/mobilenetv2_100")
    assert (found.kind, found.num_frames, found.size, found.licence) == ("video", 16, (224, 224), flat.licence)
    assert found.params is not None
    assert flat.params is not None
    # Of the 17 depthwise convolutions one stands at half the picture's size; 3 weights a channel for the other ones,
    # and scale and shift for every third, a C.
    channels = [96, 144, 144, 192, 192, 192, *[384] * 4, *[576] * 3, *[960] * 3]
    assert found.params - flat.params == 3 * sum(channels) + 2 * sum(channels[2::3])
