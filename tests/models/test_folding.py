"""Batch norms folded into convolutions: same values, never stale, invisible."""

import copy

import pytest
import torch
from torch import Tensor, nn

from stillmotion.models import create_model
from stillmotion.models.folding import conv_norm
from stillmotion.models.p3d import P3d


@pytest.fixture
def parts() -> tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    norm(torch.randn(8, 4, 5, 5) * 3 + 1)  # statistics worth folding
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return conv.eval(), norm.eval(), torch.randn(2, 3, 7, 7)


def test_one_convolution_gives_the_values_of_both(parts: tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]) -> None:
    conv, norm, x = parts
    calls: list[str] = []
    norm.forward = lambda y: calls.append("norm") or nn.BatchNorm2d.forward(norm, y)  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad():
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)))
    assert calls == ["norm"], "the folded run does not go through the norm"
    assert conv_norm(conv, norm, x).requires_grad, "with gradients nothing is folded"
    assert list(conv.state_dict()) == ["weight"]


def test_changed_weights_are_folded_again(parts: tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]) -> None:
    conv, norm, x = parts
    with torch.no_grad():
        before = conv_norm(conv, norm, x)
        conv.weight.mul_(2.0)
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)))
        norm.load_state_dict({**norm.state_dict(), "running_var": torch.full((4,), 9.0)})
        torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)))
        conv.to(torch.float64), norm.to(torch.float64)
        torch.testing.assert_close(conv_norm(conv, norm, x.double()), norm(conv(x.double())))
    assert not torch.allclose(before, norm(conv(x.double())).float())


def test_training_between_two_evaluations() -> None:
    torch.manual_seed(0)
    net = create_model("p3d_63", num_classes=3, width=8, view={"num_frames": 4, "size": [32, 32]})
    assert isinstance(net, P3d)
    clip = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    for _ in range(2):
        net.eval()
        slow = net(clip)["logits"]  # with gradients: norms as they are
        with torch.no_grad():
            torch.testing.assert_close(net(clip)["logits"], slow.detach(), atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(copy.deepcopy(net)(clip)["logits"], slow.detach(), atol=1e-3, rtol=1e-3)
        net.train()
        with torch.no_grad():
            net(clip)  # moves the statistics
        for parameter in net.parameters():
            parameter.data.mul_(1.01)  # leaves no trace in the version


def test_other_weights_for_one_call(parts: tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]) -> None:
    conv, norm, x = parts

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: Tensor) -> Tensor:
            return conv_norm(self.conv, self.norm, x)

    both = Both()
    with torch.no_grad():
        before = both(x)
        doubled = torch.func.functional_call(both, {"conv.weight": conv.weight * 2.0}, x)
        torch.testing.assert_close(doubled, norm(2.0 * conv(x)))
        meta = {name: tensor.to("meta") for name, tensor in both.state_dict().items()}
        assert torch.func.functional_call(both, meta, x.to("meta")).is_meta
        torch.testing.assert_close(both(x), before)


def test_layers_that_are_looked_at_are_not_folded_away() -> None:
    view = {"num_frames": 4, "size": [32, 32]}
    net = create_model("p3d_63", num_classes=3, width=8, view=view, taps=["layer1.0.conv1", "layer1.0.bn3"]).eval()
    clip = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    slow = net(clip)
    with torch.no_grad():
        fast = net(clip)
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value.detach(), atol=1e-3, rtol=1e-3)
