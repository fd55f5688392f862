"""`stillmotion aslan`: do two videos show the same action? (Kliper-Gross, Hassner, Wolf, TPAMI 2012; METHODS 3.5)

Ten folds of pairs; the actions of a fold stand in no other. Similarities of the two videos' features are the input of a
linear SVM, which is trained on nine folds.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.sets.aslan import Pair, read_pairs
from stillmotion.files import csv_text, write_atomic
from stillmotion.protocols.feature_file import VideoFeatures, read_features
from stillmotion.protocols.pooling import l2_normalise
from stillmotion.results import Row, make_row, write_results

Normalise = Literal["standard", "l2"]
Numbers = NDArray[np.floating]

SIMILARITIES = (
    "dot", "root_dot", "bhattacharyya", "root_bhattacharyya", "cosine", "intersection", "jaccard",
    "euclidean", "hellinger", "chi_square", "city_block", "kullback_leibler",
)  # fmt: skip
TINY = 1e-12


def similarities(a: Numbers, b: Numbers) -> Numbers:
    """Twelve similarities and distances of pairs of histograms.

    C3D and P3D take the twelve of the ASLAN baseline (Table 3 there, `calc_sim.m`). We could open neither, so this list
    is our reading: seven similarities and five distances that are usual for histograms. Products: Σab, √Σab, Σ√a√b,
    √Σ√a√b, cosine; overlaps: Σmin, Σmin/Σmax; distances: Euclidean, Hellinger √Σ(√a-√b)², χ² Σ(a-b)²/(a+b), Σ|a-b|,
    Σ(a-b)(ln a - ln b) of the rows scaled to sum 1 (the Kullback-Leibler divergence both ways; zeros count as 1e-12).

    Args:
        a, b: Features of the first and of the second videos, (P, D), not negative.

    Returns:
        (P, 12), in the order of `SIMILARITIES`. What would be 0/0 is 0.

    Raises:
        ValueError: A feature is negative.

    Example:
        >>> x = np.array([[0.5, 0.5]], np.float32)
        >>> same = similarities(x, x)[0].round(4).tolist()
        >>> dict(zip(SIMILARITIES, same, strict=True))["jaccard"], same[-5:]
        (1.0, [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    if (least := min(float(a.min()), float(b.min()))) < 0.0:
        raise ValueError(
            f"a feature is {least:.3g}, and the similarities are for histograms; take a layer behind a ReLU"
        )
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    roots = np.sqrt(a), np.sqrt(b)
    p, q = (np.maximum(_ratio(x, x.sum(1, keepdims=True)), TINY) for x in (a, b))
    dot, roots_dot = (a * b).sum(1), (roots[0] * roots[1]).sum(1)
    shared, joint = np.minimum(a, b).sum(1), np.maximum(a, b).sum(1)
    columns = (
        dot,
        np.sqrt(dot),
        roots_dot,
        np.sqrt(roots_dot),
        _ratio(dot, np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)),
        shared,
        _ratio(shared, joint),
        np.linalg.norm(a - b, axis=1),
        np.linalg.norm(roots[0] - roots[1], axis=1),
        _ratio((a - b) ** 2, a + b).sum(1),
        np.abs(a - b).sum(1),
        ((p - q) * np.log(p / q)).sum(1),
    )
    return np.stack(columns, axis=1)


def _ratio(top: Numbers, bottom: Numbers) -> Numbers:
    """Quotient, 0 where the divisor is 0."""
    return np.asarray(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0.0))


def aslan(
    features: str | Path | VideoFeatures,
    pairs: str | Path,
    *,
    output: str | Path | None = None,
    taps: Sequence[str] | None = None,
    c: float = 1.0,
    normalise: Normalise = "standard",
) -> Row:
    """Runs the protocol: fold by fold, trained on all others.

    Features are averaged over clips and divided by their length, tap by tap, as in C3D.

    Args:
        features: What `stillmotion features` wrote: in the paper the taps prob, pool5, res5c and res4b, 48 values.
        pairs: `View2.mat`, or a CSV with the columns first, second, same (0 or 1) and fold. A video is named by its id
            in the features, or by its file name without suffix (0001).
        output: Folder for results.json (and CSV, Markdown, PNG) and pairs.csv. None writes nothing.
        taps: Which of the file's features; None takes all.
        c: Cost of a mistake; the papers do not state it.
        normalise: `standard` gives each of the values mean 0 and variance 1 over the training folds, as C3D says;
            `l2` divides the values of a pair by their length, as P3D is reported to do.

    Returns:
        A row with `accuracy` and `auc`, each the mean over folds, and their standard errors `accuracy_se` and `auc_se`.
        Pairs of which a video has no features are left out, and counted as `pairs_left_out`.

    Raises:
        ValueError: A wrong setting or file, negative features, a fold without pairs of both kinds.
    """
    found = (features if isinstance(features, VideoFeatures) else read_features(features)).videos()
    names = [found.pick(tap) for tap in taps] if taps is not None else list(found.arrays)
    listed = read_pairs(Path(pairs))
    places = _places(found.ids)
    used = [p for p in listed if p.first in places and p.second in places]
    if not used:
        raise ValueError(f"{found.source}: has no features of any pair of {pairs}, such as {listed[0].first}")
    first, second = ([places[getattr(p, side)] for p in used] for side in ("first", "second"))
    blocks = []
    for tap in names:
        x = l2_normalise(found.arrays[tap])
        try:
            blocks.append(similarities(x[first], x[second]))
        except ValueError as error:
            raise ValueError(f"{found.source}: {tap}: {error}") from None
    scores, folds = _cross_validate(np.concatenate(blocks, axis=1), used, str(pairs), c, normalise)
    metrics: dict[str, float] = {}
    for name in ("accuracy", "auc"):
        values = np.array([fold[name] for fold in folds])
        metrics |= {name: float(values.mean()), f"{name}_se": float(values.std(ddof=1) / np.sqrt(len(values)))}
    if left_out := len(listed) - len(used):
        metrics["pairs_left_out"] = float(left_out)
    row = make_row(f"{Path(found.source).stem}/aslan", {k: [v] for k, v in metrics.items()})
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        lines = (
            (p.first, p.second, int(p.same), p.fold, f"{s:.6g}", int(s > 0)) for p, s in zip(used, scores, strict=True)
        )
        head = ("first", "second", "same", "fold", "score", "predicted")
        write_atomic(folder / "pairs.csv", csv_text(head, lines))
        settings = {"taps": names, "c": c, "normalise": normalise, "similarities": list(SIMILARITIES)}
        write_results(folder, [row], extra={"settings": settings, "folds": folds})
    return row


def _places(ids: Sequence[str]) -> dict[str, int]:
    """Row by id, and by file name without suffix where that is one video's alone."""
    counts = Counter(Path(name).stem for name in ids)
    short = {Path(name).stem: i for i, name in enumerate(ids) if counts[Path(name).stem] == 1}
    return short | {name: i for i, name in enumerate(ids)}


def _cross_validate(
    x: NDArray[np.float64], pairs: Sequence[Pair], source: str, c: float, normalise: Normalise
) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
    """Decision value of every pair by the classifier that did not see its fold, and how each fold went."""
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler
    from sklearn.svm import LinearSVC

    if normalise not in ("standard", "l2"):
        raise ValueError(f"normalise={normalise!r}: choose standard or l2")
    y = np.array([p.same for p in pairs])
    fold_of = np.array([p.fold for p in pairs])
    numbers = sorted(set(fold_of.tolist()))
    if len(numbers) < 2:
        raise ValueError(f"{source}: all pairs are in fold {numbers[0]}; give two folds or more")
    scores, notes = np.zeros(len(pairs)), []
    for number in numbers:
        test = fold_of == number
        for what, rows in (("pairs", test), ("pairs outside", ~test)):
            if len(set(y[rows].tolist())) < 2:
                raise ValueError(
                    f"{source}: the {what} of fold {number} are all of one kind; it needs same and not same"
                )
        scale = StandardScaler() if normalise == "standard" else Normalizer()
        model = make_pipeline(scale, LinearSVC(C=c, random_state=0, max_iter=10_000)).fit(x[~test], y[~test])
        scores[test] = model.decision_function(x[test])
        right = float(((scores[test] > 0) == y[test]).mean())
        auc = float(roc_auc_score(y[test], scores[test]))
        notes.append({"fold": int(number), "pairs": int(test.sum()), "accuracy": right, "auc": auc})
    return scores, notes
