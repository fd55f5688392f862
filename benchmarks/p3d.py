"""What P3D's separate convolutions cost, and which way of running them is fast.

    python benchmarks/p3d.py [--threads 2] [--batch 4] [--rounds 5] [--compile]

All networks are timed in turn in one run; equal weights give equal outputs (checked). Columns of the paper's Table 1:
parameters, MB, GMACs, clips/s; then GMAC/s, which is what the machine makes of the network, and its ratio to
torchvision's r2plus1d_18.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.memory import keep_memory
from stillmotion.models import create_model
from stillmotion.models.cost import count_cost
from stillmotion.models.encoder import Encoder, prepare
from stillmotion.models.p3d import P3d, P3dBlock


class Plain3d(nn.Module):
    """The same network written with 3D convolutions, (B, C, T, H, W), as the definition has it."""

    def __init__(self, net: P3d, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.net, self.memory_format = net, memory_format

    def conv(self, x: Tensor, layer: nn.Conv2d, *, time: bool = False) -> Tensor:
        if time:
            return F.conv3d(x, layer.weight[..., None], padding=(1, 0, 0))
        (stride, _), (pad, _) = layer.stride, layer.padding  # type: ignore[misc]
        return F.conv3d(x, layer.weight[:, :, None], stride=(1, stride, stride), padding=(0, pad, pad))

    def bn(self, x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training)

    def block(self, x: Tensor, block: P3dBlock) -> Tensor:
        shortcut = x
        if block.downsample is not None:
            shortcut = self.bn(self.conv(x, block.downsample[0]), block.downsample[1])  # type: ignore[index]
        a = F.relu(self.bn(self.conv(x, block.conv1), block.bn1))
        u = F.relu(self.bn(self.conv(a, block.conv2), block.bn2))
        if block.wiring:
            t = self.bn(self.conv(a if block.wiring == "B" else u, block.conv3, time=True), block.bn3)
            s, w = u, block.weights
            u = F.relu(t if block.wiring == "A" else w[0] * s + w[1] * t)
        return F.relu(self.bn(self.conv(u, block.conv4), block.bn4) + shortcut)

    def forward(self, frames: Tensor) -> Tensor:
        net = self.net
        x = prepare(frames, net.views["clip"]).transpose(1, 2).contiguous(memory_format=self.memory_format)
        x = F.relu(self.bn(self.conv(x, net.conv1), net.bn1))
        x = F.max_pool3d(x, (2, 3, 3), 2, ceil_mode=True)
        for number, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            for block in stage:
                x = self.block(x, block)  # type: ignore[arg-type]
            if number < 3:
                x = F.max_pool3d(x, (2, 1, 1), (2, 1, 1))
        assert net.fc is not None
        return net.fc(x.mean((2, 3, 4)))  # type: ignore[no-any-return]


def unfolded(net: P3d) -> P3d:
    """A copy whose layers are looked at, so that no batch norm is folded into the convolution before it."""
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: None)
    return net


def bfloat16(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    def run(frames: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(frames)["logits"].float()

    return run


def logits_of(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    return lambda frames: encoder(frames)["logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    args = parser.parse_args()
    keep_memory()  # as every command does
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    p3d = create_model("p3d_63", num_classes=101)
    assert isinstance(p3d, P3d)
    others = {name: create_model(f"torchvision/{name}", num_classes=101) for name in ("r3d_18", "r2plus1d_18")}
    deep = {name: create_model(name, num_classes=101) for name in ("p3d_131", "p3d_199")}
    frame = create_model("timm/resnet50", num_classes=101)
    if args.compile:
        compiled = copy.deepcopy(p3d)
        compiled.compile()
    ways: dict[str, tuple[Encoder, Callable[[Tensor], Tensor]]] = {
        "p3d_63": (p3d, logits_of(p3d)),
        "p3d_63, 3D convolutions": (p3d, Plain3d(p3d, torch.contiguous_format)),
        "p3d_63, 3D, channels last": (p3d, Plain3d(p3d, torch.channels_last_3d)),
        "p3d_63, norms apart": (p3d, logits_of(unfolded(p3d))),
        "p3d_63, bfloat16": (p3d, bfloat16(p3d)),
        **({"p3d_63, compiled": (compiled, logits_of(compiled))} if args.compile else {}),
        **{name: (net, logits_of(net)) for name, net in (deep | others).items()},
        "resnet50, one frame": (frame, logits_of(frame)),
    }
    measure(ways, args.batch, args.rounds, train=False)
    del ways["p3d_63, norms apart"], ways["p3d_63, bfloat16"]
    for name in deep:
        del ways[name]
    measure(ways, args.batch, args.rounds, train=True)


def measure(
    ways: dict[str, tuple[Encoder, Callable[[Tensor], Tensor]]], batch: int, rounds: int, *, train: bool
) -> None:
    inputs, times = {}, {name: [] for name in ways}  # type: ignore[var-annotated]
    for name, (encoder, run) in ways.items():
        encoder.train(train)
        (view,) = encoder.views.values()
        inputs[name] = torch.randint(0, 256, (batch, view.num_frames, 3, *view.size), dtype=torch.uint8)
        if not train and name.startswith("p3d_63,") and "bfloat16" not in name:
            clip = torch.randint(0, 256, (1, 16, 3, 160, 160), dtype=torch.uint8)
            with torch.no_grad():
                torch.testing.assert_close(run(clip), ways["p3d_63"][1](clip), atol=1e-3, rtol=1e-3)
    for turn in range(rounds + 1):  # the first one warms up
        for name, (encoder, run) in ways.items():
            began = time.perf_counter()
            with torch.set_grad_enabled(train):
                logits = run(inputs[name])
                if train:
                    logits.logsumexp(1).mean().backward()
                    encoder.zero_grad()
            if turn:
                times[name].append(time.perf_counter() - began)
    speed = {}
    for name, (encoder, _) in ways.items():
        gmacs = count_cost(encoder).gmacs * (3 if train else 1)  # a backward pass multiplies twice as much
        speed[name] = gmacs * batch / statistics.median(times[name])
    print(f"\n{'training step' if train else 'evaluation'}, batch {batch}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    print(f"{'':28}{'M params':>10}{'MB':>7}{'GMACs':>8}{'clips/s':>9}{'GMAC/s':>8}{'of r2plus1d':>13}")
    for name, (encoder, _) in ways.items():
        cost = count_cost(encoder)
        print(f"{name:28}{cost.params / 1e6:10.2f}{cost.params * 4 / 2**20:7.0f}{cost.gmacs:8.2f}"
              f"{batch / statistics.median(times[name]):9.2f}{speed[name]:8.1f}"
              f"{speed[name] / speed['r2plus1d_18']:12.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()
