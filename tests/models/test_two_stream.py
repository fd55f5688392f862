"""Two streams against METHODS 5.2: stages, connections one by one, and what they start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from stillmotion.config import ModelConfig
from stillmotion.export import export
from stillmotion.models import create_model
from stillmotion.models.adapters import ImageEncoder, TorchvisionImage
from stillmotion.models.chain import Chain
from stillmotion.models.checkpoint import WeightsReport
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import load_model
from stillmotion.models.pretrained import load_pretrained, save_pretrained
from stillmotion.models.two_stream import TwoStream
from stillmotion.tasks import Classification
from stillmotion.view import View

TASK = Classification(("a", "b", "c"))
WIDTHS = (32, 48, 192, 96)  # of timm's test_resnet
FLOW: dict[str, Any] = {"kind": "flow", "num_frames": 3, "size": 64}


def shake(net: nn.Module) -> None:
    """Statistics and scales of a trained network, not the start's 0 and 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, spread in ((module.running_mean, 0.1), (module.bias, 0.1)):
                nn.init.normal_(tensor, 0.0, spread)  # type: ignore[arg-type]
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]


def stream(name: str = "timm/test_resnet", *, seed: int = 0, trained: bool = True, **options: Any) -> Encoder:
    torch.manual_seed(seed)
    net = create_model(name, num_classes=3, **{"view": {"size": 64}, **options}).eval()
    shake(net)
    if trained:
        net.weights_report = WeightsReport(source="run", copied=tuple(net.state_dict()), left_out={})
    return net


def make(**options: Any) -> TwoStream:
    return TwoStream(stream(seed=1), stream(seed=2, view=FLOW), num_classes=3, **options).eval()


def inputs(size: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (size, 1, 3, 64, 64), (size, 3, 2, 64, 64)
    frames, flow = (torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes)
    return frames, flow


def small_vgg() -> Encoder:
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M", 24, 24, "M", 32, "M", 32, "M"], batch_norm=True)
    net = torchvision.models.VGG(layers, num_classes=5)
    net.classifier = nn.Sequential(nn.Linear(32 * 49, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 5))
    return TorchvisionImage(net, View(size=(64, 64)), num_classes=5)


FAMILIES: dict[str, tuple[Callable[[], Encoder] | str, list[int]]] = {
    "resnet": ("timm/test_resnet", list(WIDTHS)),
    "resnet of torchvision": ("torchvision/resnet18", [64, 128, 256, 512]),
    "mobilenetv2": ("timm/mobilenetv2_035", [8, 16, 32, 1280]),
    "mobilenetv3": ("timm/mobilenetv3_small_050", [8, 16, 24, 288]),
    "mobilenetv3 of torchvision": ("torchvision/mobilenet_v3_small", [16, 24, 48, 576]),
    "efficientnet": ("timm/test_efficientnet", [24, 32, 48, 256]),
    "regnet": ("timm/regnetx_002", [24, 56, 152, 368]),
    "convnext": ("timm/test_convnext", [24, 32, 48, 64]),
    "vgg": (small_vgg, [24, 32, 32, 32]),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_stages_in_a_row_are_the_network(family: str) -> None:
    torch.manual_seed(0)
    net, widths = FAMILIES[family]
    encoder = create_model(net, num_classes=5) if isinstance(net, str) else net()
    shake(encoder)
    chain = Chain(encoder.eval())
    assert chain.widths == widths
    assert isinstance(encoder, ImageEncoder)
    x = maps = torch.randn(2, 3, 96, 128)
    for number, reduction in enumerate((4, 8, 16, 32)):
        maps = chain.stage(number, maps)
        assert maps.shape == (2, widths[number], 96 // reduction, 128 // reduction)
    found, expected = chain.embed(maps), encoder.forward_net(x)["embedding"]
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=1e-4)


def test_networks_that_are_no_chain_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timm/test_vit: its layers are no chain, one after the other; take a ResNet"):
        Chain(create_model("timm/test_vit", num_classes=2))
    with pytest.raises(ValueError, match=r"resnet3d_10: its layers cannot be taken apart; take a ResNet"):
        Chain(create_model("resnet3d_10", num_classes=2, width=4))
    shifted = create_model("timm/test_resnet", num_classes=2)
    shifted.net.forward_features = lambda x, old=shifted.net.forward_features: old(x) + 1.0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no chain"):
        Chain(shifted)


def test_taking_apart_leaves_a_network_as_it_was() -> None:
    encoder = create_model("timm/test_resnet", num_classes=2, taps=["layer3"]).train()
    encoder.get_submodule("net.layer1").eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    Chain(encoder)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)), "no random number of the caller's was drawn"
    assert encoder.training
    assert not encoder.get_submodule("net.layer1").training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("connect", ["none", "sum", "concat", "mul"])
@torch.no_grad()
def test_at_the_start_it_is_two_networks(connect: Any) -> None:
    """METHODS 12.9."""
    frames, flow = inputs()
    alone = stream(seed=1)(frames), stream(seed=2, view=FLOW)(flow)
    out = make(connect=connect)(frames, flow)
    torch.testing.assert_close(out["embedding"], torch.cat([x["embedding"] for x in alone], 1))
    torch.testing.assert_close(out["logits_appearance"], alone[0]["logits"])
    torch.testing.assert_close(out["logits_motion"], alone[1]["logits"])
    torch.testing.assert_close(out["logits_mean"], (alone[0]["logits"] + alone[1]["logits"]) / 2)


def slow(net: TwoStream, frames: Tensor, flow: Tensor, *, connect: str, joined: dict[str, set[str]]) -> list[Tensor]:
    """Embeddings by METHODS 5.2, from the networks' layers by name; `joined` has the pairs "jk" of each receiver."""
    state = {name: value.double() for name, value in net.state_dict().items()}
    nets = [net.appearance.get_submodule("net").double(), net.motion.get_submodule("net").double()]
    mean, std = torch.tensor(net.views["appearance"].mean), torch.tensor(net.views["appearance"].std)
    x = [((frames[:, 0] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)).double(),
         ((flow.double() - 128) / 127).flatten(1, 2)]  # fmt: skip
    x = [n.maxpool(n.act1(n.bn1(n.conv1(y)))) for n, y in zip(nets, x, strict=True)]  # type: ignore[operator]
    raw: list[list[Tensor]] = [[], []]
    for k in (1, 2, 3, 4):
        for s in (0, 1):
            raw[s].append(nets[s].get_submodule(f"layer{k}")(x[s]))
        for s, receiver in enumerate(("appearance", "motion")):
            total = torch.zeros_like(raw[s][-1])
            for j in (1, 2, 3, 4):
                if f"{j}{k}" not in joined.get(receiver, ()):
                    continue
                name = f"connections.{receiver}.{j}_{k}."
                pooled = F.avg_pool2d(raw[1 - s][j - 1], 2 ** (k - j))
                y = torch.einsum("oi,bihw->bohw", state[name + "0.weight"][:, :, 0, 0], pooled)
                scale, shift, m, v = (state[name + "1." + n].view(-1, 1, 1)
                                      for n in ("weight", "bias", "running_mean", "running_var"))  # fmt: skip
                total += (y - m) / (v + 1e-5).sqrt() * scale + shift
            own = raw[s][-1]
            if connect == "concat" and any(pair.endswith(str(k)) for pair in joined.get(receiver, ())):
                own = torch.einsum("oi,bihw->bohw", state[f"own.{receiver}.{k}.weight"][:, :, 0, 0], own)
            x[s] = own * (1 + total) if connect == "mul" else own + total
    return [y.mean((2, 3)) for y in x]


DENSE = {"11", "12", "22", "13", "23", "33", "14", "24", "34", "44"}
SAME = {"11", "22", "33", "44"}
GRID: list[tuple[dict[str, Any], dict[str, set[str]]]] = [
    ({"connect": "sum"}, {"appearance": DENSE, "motion": DENSE}),
    ({"connect": "concat"}, {"appearance": DENSE, "motion": DENSE}),
    ({"connect": "mul"}, {"appearance": DENSE, "motion": DENSE}),
    ({"connect": "sum", "direction": "m2a"}, {"appearance": DENSE}),
    ({"connect": "concat", "direction": "a2m", "stages": [2, 4]}, {"motion": {"22", "24", "44"}}),
    ({"connect": "sum", "density": "adjacent"}, dict.fromkeys(("appearance", "motion"), SAME)),
    ({"connect": "mul", "density": "adjacent", "direction": "m2a", "stages": [1, 3]}, {"appearance": {"11", "33"}}),
    ({"connect": "sum", "stages": [4]}, {"appearance": {"44"}, "motion": {"44"}}),
    ({"connect": "none"}, {}),
]


@pytest.mark.parametrize(("options", "joined"), GRID, ids=[" ".join(map(str, g[0].values())) for g in GRID])
@torch.no_grad()
def test_connections_are_those_of_the_formula(options: dict[str, Any], joined: dict[str, set[str]]) -> None:
    net = make(**options)
    extra = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in make(connect="none").parameters())
    by_hand = 0
    for pairs in joined.values():
        for j, k in sorted(pairs):
            given, taken = WIDTHS[int(j) - 1], WIDTHS[int(k) - 1]
            by_hand += given * taken + 2 * taken
        if options["connect"] == "concat":
            by_hand += sum(WIDTHS[int(k) - 1] ** 2 for k in {pair[1] for pair in pairs})
    assert extra == by_hand
    names = {(n.split(".")[1], n.split(".")[2].replace("_", "")) for n in net.state_dict() if "connections" in n}
    assert names == {(receiver, pair) for receiver, pairs in joined.items() for pair in pairs}
    torch.manual_seed(5)
    shake(net.connections)
    for conv in net.own.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight += 0.1 * torch.randn_like(conv.weight)
    frames, flow = inputs()
    embedding = net(frames, flow)["embedding"]
    expected = torch.cat(slow(net, frames, flow, connect=options["connect"], joined=joined), 1)
    torch.testing.assert_close(embedding.double(), expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_concatenation_with_identity_is_the_sum() -> None:
    """METHODS 12.10, with connections that say something."""
    torch.manual_seed(0)
    one, other = make(connect="sum"), make(connect="concat")
    shake(one.connections)
    other.connections.load_state_dict(one.connections.state_dict())
    a, b = one(*inputs())["embedding"], other(*inputs())["embedding"]
    torch.testing.assert_close(a, b)
    assert (a - make()(*inputs())["embedding"]).abs().max() > 0.1


def test_every_parameter_learns() -> None:
    """Or several processes could not train it together."""
    for connect in ("none", "sum", "concat", "mul"):
        net = make(connect=connect, dropout=0.5).train()
        out = net(*inputs(4))
        (out["logits"].square() + out["logits_mean"].square()).sum().backward()
        assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_sizes_that_do_not_divide_meet() -> None:
    """112 is reduced to 28, 14, 7, 4: pooling 7 to 4 is no average over pairs."""
    net = TwoStream(stream(view={"size": 112}), stream(view={"size": 112}), num_classes=3)
    assert net(*[torch.zeros(2, 1, 3, 112, 112, dtype=torch.uint8)] * 2)["logits"].shape == (2, 3)


def test_classifiers_start_from_trained_streams_only() -> None:
    trained, fresh = stream(seed=1), stream(seed=2, trained=False)
    weight = trained.state_dict()["net.fc.weight"].clone()
    net = TwoStream(trained, fresh, num_classes=3)
    assert torch.equal(net.classifiers["appearance"].weight, weight)  # type: ignore[arg-type]
    assert not any(name.startswith(("appearance.net.fc", "motion.net.fc")) for name in net.state_dict())
    assert net.weights_report is not None
    assert net.weights_report.classifier, "its logits mean nothing yet"
    other = TwoStream(stream(seed=1), stream(seed=2), num_classes=4)
    assert other.classifiers["appearance"].weight.shape == (4, 96)  # type: ignore[union-attr]


def test_dropout_takes_the_place_of_the_streams_own() -> None:
    def streams() -> list[Encoder]:
        return [stream(drop_rate=0.5), stream("torchvision/mobilenet_v3_small")]

    kept, replaced = TwoStream(*streams(), num_classes=3), TwoStream(*streams(), num_classes=3, dropout=0.7)
    for net, expected in ((kept, {0.0, 0.2}), (replaced, {0.0, 0.7})):
        found = {m.p for n, m in net.named_modules() if isinstance(m, nn.Dropout) and "features" not in n}
        assert found == expected
    assert (kept.appearance.net.drop_rate, replaced.appearance.net.drop_rate) == (0.5, 0.0)  # type: ignore[union-attr]


def test_moments_of_all_logits_are_joined() -> None:
    net = make()
    frames, flow = inputs(6)
    batch = {"student/appearance": frames.unflatten(0, (2, 3)), "student/motion": flow.unflatten(0, (2, 3))}
    with torch.no_grad():
        joined, each = net.from_batch(batch, "student"), net(frames, flow)
    for name in ("logits", *net.further_logits):
        torch.testing.assert_close(joined[f"moment_{name}"].flatten(0, 1), each[name])
        torch.testing.assert_close(joined[name], each[name].unflatten(0, (2, 3)).mean(1))
    assert joined["embedding"].shape == (2, 3, 192)


def test_it_is_rebuilt_from_its_config_and_folder(tmp_path: Path) -> None:
    net = make(connect="concat", stages=[2, 3], direction="a2m", density="adjacent", dropout=0.3)
    shake(net)
    again = create_model(**net.config)
    again.load_state_dict(net.state_dict())
    save_pretrained(net, TASK, tmp_path / "run")
    loaded, task, _ = load_pretrained(tmp_path / "run", view={"num_moments": 2, "moment": "uniform"})
    assert task == TASK
    assert {view.num_moments for view in loaded.views.values()} == {2}
    with torch.no_grad():
        expected = net(*inputs())
        for other in (again.eval(), loaded):
            torch.testing.assert_close(other(*inputs()), expected)
    assert loaded.config["stages"] == [2, 3]
    assert count_cost(loaded) == count_cost(net)
    four = load_model(ModelConfig(name=str(tmp_path / "run")), num_classes=4)
    assert four(*inputs())["logits_motion"].shape == (2, 4)
    assert four.weights_report is not None
    assert four.weights_report.classifier == "classifier of 3 classes, here 4"


def test_streams_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name with weights from a file, and by run folder, whose classifier is kept for the same classes only."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    rgb = stream(seed=1)
    save_pretrained(rgb, TASK, tmp_path / "rgb")
    settings: dict[str, Any] = {
        "appearance": {"name": "$RUNS/rgb"},
        "motion": {"name": "timm/test_resnet", "weights": "$RUNS/rgb/model.safetensors",
                   "options": {"stack": True}, "view": {"size": 64, "num_frames": 4}},
        "direction": "m2a",
    }  # fmt: skip
    config = ModelConfig(name="two_stream", options=settings, view={"moment": "first"})
    net = load_model(config, num_classes=3, class_names=TASK.class_names)
    state = rgb.state_dict()
    assert torch.equal(net.get_parameter("classifiers.appearance.weight"), state["net.fc.weight"])
    assert torch.equal(net.get_parameter("classifiers.motion.weight"), state["net.fc.weight"])
    stem = net.get_parameter("motion.net.conv1.0.weight")
    torch.testing.assert_close(stem, state["net.conv1.0.weight"].repeat(1, 4, 1, 1) / 4)
    assert {view.moment for view in net.views.values()} == {"first"}
    others = load_model(config, num_classes=3, class_names=("x", "y", "z"))
    assert not torch.equal(others.get_parameter("classifiers.appearance.weight"), state["net.fc.weight"])


def test_taps_are_named_by_their_stream(tmp_path: Path) -> None:
    save_pretrained(make(), TASK, tmp_path / "run")
    net, _, _ = load_pretrained(tmp_path / "run", taps=["appearance.layer4", "motion.layer2"])
    assert net.taps == ("appearance.layer4", "motion.layer2")
    out = net(*inputs())
    assert (out["appearance.layer4"].shape, out["motion.layer2"].shape) == ((2, 96, 2, 2), (2, 48, 8, 8))
    with pytest.raises(ValueError, match="unknown tap 'layer4'; name a stream and its layer"):
        load_pretrained(tmp_path / "run", taps=["layer4"])


def test_export_of_a_stream_of_differences(tmp_path: Path) -> None:
    motion = stream(view={"size": 64, "kind": "difference", "num_frames": 3}, stack=True)
    net = TwoStream(stream(), motion, num_classes=3)
    shake(net.connections)
    save_pretrained(net, TASK, tmp_path / "run")
    assert export(str(tmp_path / "run"), str(tmp_path / "net.onnx")).exists()  # its own check compares the logits
    save_pretrained(make(), TASK, tmp_path / "flow")
    assert export(str(tmp_path / "flow"), str(tmp_path / "flow.onnx")).exists()


SMALL = {"name": "timm/test_resnet", "view": {"size": 64}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"connect": "add"}, "connect='add': choose one of none, sum, concat, mul"),
    ({"direction": "up"}, "direction='up': choose one of m2a, a2m, both"),
    ({"density": "thick"}, "density='thick': choose one of adjacent, dense"),
    ({"stages": [0, 1]}, "stages=[0, 1]: give some of [1, 2, 3, 4], each once"),
    ({"stages": []}, "stages=[]: give some of [1, 2, 3, 4], each once; connect=none connects none"),
    ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
    ({"conect": "sum"}, "two_stream: "),
    ({"motion": None}, "two_stream needs motion={name: ...}, the network of this stream"),
    ({"motion": {"name": "timm/test_resnet", "view": {"size": 96}}}, "give both views the same size"),
    ({"motion": {"name": "timm/test_resnet", "options": {"output_stride": 16}, "view": {"size": 64}}},
     "the maps of the appearance stream are 16x16, 8x8, 4x4, 2x2, those of the motion stream 16x16, 8x8, 4x4"),
    ({"motion": {**SMALL, "view": {"size": 64, "num_frames": 4}}},
     "timm/test_resnet: sees 4 frames one by one, not as one picture; set options.stack=true"),
    ({"motion": {**SMALL, "view": {"size": 64, "num_moments": 2}}},
     "the appearance stream has view.num_moments=1, the motion stream 2: give both the same"),
    ({"motion": {"name": "timm/test_vit"}}, "timm/test_vit: its layers are no chain"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[w[1][:40] for w in WRONG])
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        create_model("two_stream", num_classes=3, **{"appearance": SMALL, "motion": SMALL, **options})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
