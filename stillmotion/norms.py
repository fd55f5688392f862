"""Batch norms over the batch of all processes while a network is trained, and back to its own when it is delivered."""

from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from stillmotion.methods.base import Method

OWN = "_norms_of_its_own"


def join_norms(method: Method) -> None:
    """Has the batch norms of everything that learns see the batch of all processes (SyncBatchNorm).

    Fixed norms stay as they are: they see no batch.
    """
    for role, encoder in method.encoders.items():
        if role in method.frozen:
            continue
        own = {
            name: module
            for name, module in encoder.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        # timm's knows norms that are fused with an activation.
        convert_sync_batchnorm(encoder)  # type: ignore[no-untyped-call]
        for name, module in own.items():
            if any(module is fixed for fixed in method.fixed_norms):
                _put(encoder, name, module)
        setattr(encoder, OWN, {n: [m] for n, m in own.items() if encoder.get_submodule(n) is not m})


def own_norms(network: nn.Module) -> None:
    """Undoes `join_norms`, keeping what was learned."""
    for name, (module,) in getattr(network, OWN, {}).items():
        module.load_state_dict(network.get_submodule(name).state_dict())
        module.to(next(network.parameters()).device)
        _put(network, name, module)
    setattr(network, OWN, {})


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
