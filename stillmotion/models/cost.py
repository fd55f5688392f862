"""What a network costs: parameters and multiply-accumulates."""

from typing import NamedTuple

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from stillmotion.models.encoder import Encoder


class Cost(NamedTuple):
    """Size of a network and of one run of it.

    Args:
        params: Parameters, those of the classifier included.
        gmacs: 1e9 multiply-accumulates for one moment of its views; for all of them where the network joins them.
            Only matrix products and convolutions count.
    """

    params: int
    gmacs: float


def count_cost(encoder: Encoder) -> Cost:
    """Counts without computing: shapes alone are followed, whatever device the network is on.

    Example:
        >>> from stillmotion.models.factory import create_model
        >>> encoder = create_model("resnet3d_10", num_classes=4, width=8, view={"size": 32})
        >>> cost = count_cost(encoder)
        >>> cost.params, round(cost.gmacs, 4)
        (233084, 0.0367)
    """
    params = sum(p.numel() for p in encoder.parameters())
    if not params:
        return Cost(0, 0.0)
    shapes = {name: tensor.to("meta") for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers())}
    inputs = [torch.zeros(shape, device="meta", dtype=torch.uint8) for shape in encoder.input_shapes(1)]
    modes = [(module, module.training) for module in encoder.modules()]  # a frozen part may be in eval() alone
    encoder.eval()
    try:
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            functional_call(encoder, shapes, tuple(inputs))
    finally:
        for module, training in modes:
            module.training = training
    return Cost(params, counter.get_total_flops() / 2e9)  # two operations are one multiply-accumulate


def count_video_cost(encoder: Encoder) -> Cost:
    """As `count_cost`, for all moments and crops of a video, joined by the network or averaged behind it."""
    moments = 1 if encoder.joins_moments else max(view.num_shown for view in encoder.views.values())
    counted = count_cost(encoder)
    return Cost(counted.params, counted.gmacs * moments)
