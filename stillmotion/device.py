"""Which device computes. Imports torch only when it is asked."""


def pick_device(device: str) -> str:
    """The device of this name; `auto` is an accelerator, or the CPU.

    Raises:
        ValueError: There is no such device.

    Example:
        >>> pick_device("cpu")
        'cpu'
    """
    import torch

    if device == "auto":
        return str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device}: not here ({str(error).splitlines()[0]}); use auto or cpu") from None
    return device
