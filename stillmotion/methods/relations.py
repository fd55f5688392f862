"""Relations inside a feature map, and how far those of two networks are apart (METHODS 4.4).

The loss of the paper on internal relationships is not published; these are our reading of it and the alternatives.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def relation_loss(student: Tensor, teacher: Tensor, relation: str = "gram") -> Tensor:
    """Squared distance between the relations in two maps, mean over the samples, in float32.

    With F the map of a sample as a matrix of C channels and M positions (of time and space):

    - `gram`: G = F F^T / (C M) (Johnson et al., arXiv:1603.08155); sum of (G_s - G_t)^2.
    - `gram_cosine`: rows of F of length 1, so that scale does not matter; mean of (G_s - G_t)^2 over C x C.
    - `position`: columns of F of length 1; mean of (F^T F of s - of t)^2 over M x M.
    - `sample`: whole maps of length 1, as rows of one matrix; mean over N x N pairs of samples (Tung & Mori,
      arXiv:1907.09682).

    Args:
        student: (B, C, ...).
        teacher: (B, C', ...); receives no gradient. `gram` and `gram_cosine` want C' = C, `position` as many positions,
            `sample` neither.
        relation: Which.

    Returns:
        Scalar; 0 for equal maps.

    Raises:
        ValueError: There is no such relation, or the maps do not fit.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])  # one sample, two channels, two positions
        >>> relation_loss(maps, torch.zeros_like(maps))  # F F^T = [[5, 2], [2, 1]], divided by 4: (25 + 4 + 4 + 1) / 16
        tensor(2.1250)
    """
    if relation not in RELATIONS:
        raise ValueError(f"relation={relation!r}: choose one of {', '.join(RELATIONS)}")
    with torch.autocast(student.device.type, enabled=False):  # differences of large numbers
        return RELATIONS[relation](student.flatten(2).float(), teacher.detach().flatten(2).float())


def _gram(s: Tensor, t: Tensor) -> Tensor:
    _same(s, t, 1, "gram", "channels")
    return _distance(s / (s.shape[1] * s.shape[2]) ** 0.5, t / (t.shape[1] * t.shape[2]) ** 0.5).mean()


def _gram_cosine(s: Tensor, t: Tensor) -> Tensor:
    _same(s, t, 1, "gram_cosine", "channels")
    return _distance(F.normalize(s, dim=2), F.normalize(t, dim=2)).mean() / s.shape[1] ** 2


def _position(s: Tensor, t: Tensor) -> Tensor:
    _same(s, t, 2, "position", "positions")
    s, t = F.normalize(s, dim=1).transpose(1, 2), F.normalize(t, dim=1).transpose(1, 2)
    return _distance(s, t).mean() / s.shape[1] ** 2


def _sample(s: Tensor, t: Tensor) -> Tensor:
    s, t = F.normalize(s.flatten(1), dim=1), F.normalize(t.flatten(1), dim=1)
    return (s @ s.T - t @ t.T).square().mean()


RELATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gram": _gram,
    "gram_cosine": _gram_cosine,
    "position": _position,
    "sample": _sample,
}


def _distance(s: Tensor, t: Tensor) -> Tensor:
    """||S S^T - T T^T||^2 of each sample, (B, C, M) and (B, C, M') -> (B,), in no more memory than needed.

    C x C matrices of 2048 channels are 16 MiB a sample. ||S S^T||^2 = ||S^T S||^2 and <S S^T, T T^T> = ||S^T T||^2, so
    that where there are fewer positions than channels, M x M matrices do.
    """
    if s.shape[1] <= max(s.shape[2], t.shape[2]):
        return (s @ s.transpose(1, 2) - t @ t.transpose(1, 2)).square().sum((1, 2))
    parts = (s.transpose(1, 2) @ s, s.transpose(1, 2) @ t, t.transpose(1, 2) @ t)
    own, both, other = (part.square().sum((1, 2)) for part in parts)
    return (own - 2.0 * both + other).clamp(min=0.0)  # rounding


def _same(s: Tensor, t: Tensor, axis: int, relation: str, what: str) -> None:
    if s.shape[axis] != t.shape[axis]:
        raise ValueError(
            f"relation={relation} compares {what}: the student's map has {s.shape[axis]}, the teacher's "
            f"{t.shape[axis]}; name layers that agree, or take relation=sample"
        )
