"""P3D: counts and shapes of METHODS 3, outputs against the official definition in plain 3D convolutions, weights."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.export import export
from stillmotion.models import create_model
from stillmotion.models.checkpoint import WeightsError
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder
from stillmotion.models.p3d import P3dBlock
from stillmotion.models.pretrained import save_pretrained
from stillmotion.tasks import Classification

DEPTHS = {"p3d_63": (3, 4, 6, 3), "p3d_131": (3, 4, 23, 3), "p3d_199": (3, 8, 36, 3)}
TINY = {"width": 4, "view": {"size": 64}}


def tiny(name: str = "p3d_63", **options: object) -> Encoder:
    torch.manual_seed(0)
    encoder = create_model(name, num_classes=3, **{**TINY, **options})  # type: ignore[arg-type]
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training, so that no term vanishes
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
            nn.init.normal_(module.bias, 0, 0.2)
    for key, weight in encoder.named_parameters():
        if key.endswith("conv3.weight"):
            nn.init.kaiming_normal_(weight)
    return encoder.eval()


def blocks(encoder: Encoder) -> list[P3dBlock]:
    return [m for m in encoder.modules() if isinstance(m, P3dBlock)]


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [("p3d_63", 25_132_581, 8.44), ("p3d_131", 47_475_749, 12.90), ("p3d_199", 65_879_589, 18.40)],
)
def test_counts_of_the_published_networks(name: str, params: int, gmacs: float) -> None:
    with torch.device("meta"):
        encoder = create_model(name, num_classes=101)
        cost = count_cost(encoder)
        assert (cost.params, round(cost.gmacs, 2)) == (params, gmacs)
        # The name counts the layers with weights, shortcuts left out: 4 in each P3D block, 3 in each 2D one, stem, fc.
        depths = DEPTHS[name]
        assert f"p3d_{1 + 4 * sum(depths[:3]) + 3 * depths[3] + 1}" == name
        if name == "p3d_199":
            letters = Counter(block.wiring for block in blocks(encoder))
            assert letters == {"A": 16, "B": 16, "C": 15, "": 3}
            convs = [n for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d)]
            assert (len(convs), len([n for n in convs if "downsample" not in n])) == (202, 198)
            encoder.reset_classifier(487)
            assert sum(p.numel() for p in encoder.parameters()) == 66_670_503


@pytest.mark.parametrize("num_frames", [16, 32])
def test_shape_walk(num_frames: int) -> None:
    """METHODS 3.3, by what each layer is given."""
    with torch.device("meta"):
        encoder = create_model("p3d_63", num_classes=101, view={"num_frames": num_frames}).eval()
        shapes = {}
        for name in ("bn1", "layer1", "layer2", "layer3", "layer4"):
            encoder.get_submodule(name).register_forward_hook(
                lambda _m, _a, out, name=name: shapes.update({name: tuple(out.shape)})
            )
        out = encoder(torch.zeros(2, num_frames, 3, 160, 160, dtype=torch.uint8))
    time = {"bn1": 16, "layer1": 8, "layer2": 4, "layer3": 2, "layer4": 1}
    maps = {"bn1": (64, 80), "layer1": (256, 40), "layer2": (512, 20), "layer3": (1024, 10), "layer4": (2048, 5)}
    expected = {n: (2 * time[n] * num_frames // 16, width, size, size) for n, (width, size) in maps.items()}
    assert shapes == expected
    assert (out["embedding"].shape, out["logits"].shape) == ((2, 2048), (2, 101))


class Official:
    """The published network definition, layer by layer in 3D, (N, C, T, H, W); weights by our names."""

    def __init__(self, encoder: Encoder, depths: tuple[int, ...], *, port: bool = False, order: str = "ABC") -> None:
        self.w, self.depths, self.port, self.order = encoder.state_dict(), depths, port, order
        self.seen: dict[str, Tensor] = {}

    def conv(self, x: Tensor, name: str, stride: int = 1, pad: int = 0, *, time: bool = False) -> Tensor:
        weight = self.w[f"{name}.weight"]
        if time:
            return F.conv3d(x, weight[..., None], padding=(1, 0, 0))
        return F.conv3d(x, weight[:, :, None], stride=(1, stride, stride), padding=(0, pad, pad))

    def bn(self, x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            self.w[f"{name}.{key}"].view(1, -1, 1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def block(self, x: Tensor, name: str, letter: str, stride: int) -> Tensor:
        branch1 = self.bn(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1") if (
            f"{name}.downsample.0.weight" in self.w) else x  # fmt: skip
        a = self.bn(self.conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        s = self.bn(self.conv(a, f"{name}.conv2", pad=1), f"{name}.bn2").relu()
        if letter:
            t = self.bn(self.conv(a if letter == "B" else s, f"{name}.conv3", time=True), f"{name}.bn3")
        if letter == "A":
            s = t.relu()
        elif letter == "B":
            s = (s + (t.relu() if self.port else t)).relu()
        elif letter == "C":
            s = s + t.relu() if self.port else (0.5 * s + 0.5 * t).relu()
        return (branch1 + self.bn(self.conv(s, f"{name}.conv4"), f"{name}.bn4")).relu()

    def __call__(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x, "conv1", 2, 3), "bn1").relu()
        if self.port:
            x = F.max_pool3d(x, (2, 3, 3), 2, (0, 1, 1))
        else:
            x = F.max_pool3d(x, (2, 3, 3), 2, 0, ceil_mode=True)
        count = 0
        for stage, depth in enumerate(self.depths, 1):
            for number in range(depth):
                letter = self.order[count % len(self.order)] if stage < 4 else ""
                count += 1
                name = f"layer{stage}.{number}"
                x = self.block(x, name, letter, 2 if number == 0 and stage > 1 else 1)
                self.seen[name] = x
            if stage < 4:
                x = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
        logits = F.linear(x.mean((3, 4)).transpose(1, 2), self.w["fc.weight"], self.w["fc.bias"])
        return logits.mean(1)


@pytest.mark.parametrize(
    ("options", "num_frames", "size"),
    [({}, 16, 64), ({}, 32, 50), ({"variant": "port"}, 16, 64), ({"order": "C"}, 16, 64), ({"order": "ACB"}, 16, 64)],
)
def test_every_layer_gives_what_the_official_definition_gives(
    options: dict[str, str], num_frames: int, size: int
) -> None:
    names = [f"layer{stage}.{number}" for stage, depth in enumerate(DEPTHS["p3d_63"], 1) for number in range(depth)]
    encoder = tiny(taps=names, view={"size": size, "num_frames": num_frames}, **options).double()
    clip = torch.randn(2, num_frames, 3, size, size, dtype=torch.float64)
    official = Official(encoder, DEPTHS["p3d_63"], port=options.get("variant") == "port",
                        order=options.get("order", "ABC"))  # fmt: skip
    with torch.no_grad():
        out, logits = encoder(clip), official(clip.transpose(1, 2))
    for name in names:
        torch.testing.assert_close(
            out[name], official.seen[name], atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(out["logits"], logits, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 16])
def test_any_length_of_clip(num_frames: int) -> None:
    encoder = tiny(view={"size": 48, "num_frames": num_frames})
    assert encoder(torch.zeros(2, num_frames, 3, 48, 48, dtype=torch.uint8))["logits"].shape == (2, 3)


def test_without_t_block_b_is_relu_s_and_block_c_half_of_it() -> None:
    encoder = tiny(order="BC")
    for block, factor in ((encoder.get_submodule("layer1.0"), 1.0), (encoder.get_submodule("layer1.1"), 0.5)):
        assert isinstance(block, P3dBlock)
        for name in ("conv3.weight", "bn3.bias", "bn3.running_mean"):
            block.state_dict()[name].zero_()
        a, s = torch.randn(4, 4, 6, 6), torch.randn(4, 4, 6, 6).relu()
        torch.testing.assert_close(block._wire(a, s, 2), factor * s)


def test_starts() -> None:
    torch.manual_seed(0)
    gauss, centre = (create_model("p3d_63", num_classes=2, width=16, t_init=t) for t in ("gauss", "centre"))
    for encoder in (gauss, centre):
        for block in blocks(encoder)[:13]:
            weight = block.conv3.weight
            if encoder is centre and block.wiring == "A":
                identity = torch.eye(len(weight))
                assert torch.equal(weight[:, :, 1, 0], identity)
                assert not weight[:, :, [0, 2]].any()
            else:
                assert 0.0009 < weight.std() < 0.0011
    frozen = create_model("p3d_63", num_classes=2, width=4, freeze_bn=True).train()
    norms = [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.training for m in norms] == [True] + [False] * (len(norms) - 1)
    assert [m.weight.requires_grad for m in norms] == [True] + [False] * (len(norms) - 1)
    res5 = create_model("p3d_63", num_classes=2, width=4, res5="p3d")
    assert [b.wiring for b in blocks(res5)[-3:]] == ["B", "C", "A"]  # 13 blocks before, it goes on
    flow = create_model("p3d_63", num_classes=2, width=4, view={"kind": "flow"})
    assert flow.state_dict()["conv1.weight"].shape == (4, 2, 7, 7)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"order": "ABD"}, "letters A, B, C wanted"),
        ({"variant": "paper"}, "choose official or port"),
        ({"c_weights": [1]}, "two numbers wanted"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
    ],
)
def test_wrong_options(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        create_model("p3d_63", num_classes=2, **options)  # type: ignore[arg-type]


def port_names(encoder: Encoder) -> dict[str, Tensor]:
    """A checkpoint as the port saves it: its names, 3D kernels, DataParallel's prefix."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        kernel = tensor
        if name.startswith(("layer4.", "fc")):
            name = re.sub(r"(conv|bn)2\.", r"\1_normal.", name)
        elif tensor.ndim == 4:
            kernel = tensor[..., None] if ".conv3." in name else tensor[:, :, None]
        if name.startswith("conv1."):
            name = "conv1_custom.weight"
        state[f"module.{name}"] = kernel.clone()
    return state


def test_weights_of_the_port(tmp_path: Path) -> None:
    source = tiny(variant="port")
    torch.save({"epoch": 3, "state_dict": port_names(source)}, tmp_path / "p3d.pth.tar")
    torch.manual_seed(9)
    encoder = create_model("p3d_63", num_classes=3, variant="port", weights=str(tmp_path / "p3d.pth.tar"), **TINY)  # type: ignore[arg-type]
    assert encoder.weights_report is not None
    assert (encoder.weights_report.missing, encoder.weights_report.left_out) == ((), {})
    for name, tensor in source.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = port_names(tiny())
    state["module.layer1.0.conv2.weight"] = torch.zeros(5, 4, 1, 3, 3)
    state["module.layer9.0.conv1.weight"] = torch.zeros(1)
    del state["module.layer1.1.bn2.weight"]
    torch.save(state, tmp_path / "odd.pth")
    report = create_model("p3d_63", num_classes=3, weights=str(tmp_path / "odd.pth"), **TINY).weights_report  # type: ignore[arg-type]
    assert report is not None
    assert report.left_out == {
        "module.layer1.0.conv2.weight": "shape [5, 4, 1, 3, 3], here [4, 4, 3, 3]",
        "module.layer9.0.conv1.weight": "not in this network",
    }
    assert report.missing == ("layer1.0.conv2.weight", "layer1.1.bn2.weight")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_starts_from_a_2d_resnet(library: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        names = create_model(f"{library}/resnet50", num_classes=1000).published_names()
        shapes = create_model(f"{library}/resnet50", num_classes=1000).state_dict()
    flat = {
        given: torch.randn(shapes[own].shape) for given, own in names.items() if not given.startswith(("net.", "head."))
    }
    torch.save(flat, tmp_path / "resnet50.pth")
    encoder = create_model("p3d_63", num_classes=5, weights=str(tmp_path / "resnet50.pth"))
    report, own = encoder.weights_report, encoder.state_dict()
    assert report is not None
    assert "classifier of 1000 classes, here 5" in report.summary()
    assert report.missing == ()
    assert {name.split(".")[2] for name in report.initialised} == {"conv3", "bn3"}
    assert len(report.initialised) == 13 * 5  # a weight and four of its batch norm in each P3D block
    assert torch.equal(own["layer3.4.conv4.weight"], flat["layer3.4.conv3.weight"])
    assert torch.equal(own["layer4.1.bn4.running_var"], flat["layer4.1.bn3.running_var"])
    assert torch.equal(own["conv1.weight"], flat["conv1.weight"])


def test_official_caffe_blobs(tmp_path: Path) -> None:
    """`LAYER/NUMBER` for each blob; batch norm is slope, bias, mean, variance, (1, C); channels are BGR."""
    source = tiny("p3d_199", width=2)
    letters = {1: "abc", 4: "abc"}
    blobs: dict[str, np.ndarray] = {}
    for name, tensor in source.state_dict().items():
        *path, key = name.split(".")
        if key == "num_batches_tracked":
            continue
        number = {"weight": 0, "bias": 1, "running_mean": 2, "running_var": 3}[key]
        if path == ["fc"]:
            blobs[f"fc_kinetics/{number}"] = tensor.numpy()
            continue
        if len(path) == 1:
            layer = {"conv1": "conv1", "bn1": "bn_conv1"}[path[0]]
        else:
            stage, block = int(path[0][-1]), int(path[1])
            letter = letters[stage][block] if stage in letters else "a" if block == 0 else f"b{block}"
            kind = "bn" if path[2].startswith("bn") or path[2:] == ["downsample", "1"] else "res"
            part = "1" if path[2] == "downsample" else {"1": "2a", "2": "2b", "3": "2b_t", "4": "2c"}[path[2][-1]]
            layer = f"{kind}{stage + 1}{letter}_branch{part}"
        value = tensor
        if tensor.ndim == 1:
            value = tensor[None]
        elif tensor.ndim == 4 and not (len(path) > 1 and path[0] == "layer4"):
            value = tensor[..., None] if layer.endswith("_t") else tensor[:, :, None]
        if layer == "conv1":
            value = value.flip(1)
        blobs[f"{layer}/{number}"] = value.numpy()
    assert "res4b35_branch2b_t/0" in blobs  # the last P3D block of the official network
    np.savez(tmp_path / "p3d.npz", **blobs)
    encoder = create_model("p3d_199", num_classes=3, width=2, weights=str(tmp_path / "p3d.npz"), view={"size": 64})
    report = encoder.weights_report
    assert report is not None
    assert (report.missing, report.left_out) == ((), {})
    for name, tensor in source.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name
    view = encoder.views["clip"]
    np.testing.assert_allclose(np.array(view.mean) * 255, [123, 117, 104])
    assert view.std == (1 / 255,) * 3
    assert encoder.config["view"]["mean"] == view.mean
    flow_view = {"size": 64, "kind": "flow"}
    flow = create_model("p3d_199", num_classes=3, width=2, weights=str(tmp_path / "p3d.npz"), view=flow_view)
    assert (flow.views["clip"].mean, flow.views["clip"].std) == ((0.0,) * 3, (1 / 127,) * 3), "bytes less 128"
    stem = source.state_dict()["conv1.weight"].mean(1)
    assert all(torch.equal(flow.state_dict()["conv1.weight"][:, k], stem) for k in range(2))


@pytest.mark.parametrize("content", ["objects", "truncated"])
def test_bad_npz(content: str, tmp_path: Path) -> None:
    path = tmp_path / "p3d.npz"
    np.savez(path, **{"conv1/0": np.array([object()]) if content == "objects" else np.zeros((8, 8))})  # type: ignore[arg-type]
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"holds code|damaged or no .npz file"):
        create_model("p3d_63", num_classes=3, weights=str(path), **TINY)  # type: ignore[arg-type]


def test_exports(tmp_path: Path) -> None:
    run = save_pretrained(tiny(), Classification(("run", "sit", "turn")), tmp_path / "run")
    assert export(str(run), str(tmp_path / "p3d.onnx")).stat().st_size > 0  # it compares logits at three batch sizes
