"""Results: schema, files, and the paired bootstrap against numbers computed by hand and by a slow loop."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from stillmotion.results import format_cost, make_row, paired_bootstrap, read_results, write_results

COST = {"params": 2_230_000, "gmacs": 0.31, "ms_per_video": 4.2, "frames": 1}


def test_row_has_mean_and_sample_deviation() -> None:
    row = make_row("plain", {"top1": [0.2, 0.4, 0.9]}, COST)
    assert row["metrics"]["top1"]["mean"] == pytest.approx(0.5)
    # deviations -0.3, -0.1, 0.4: squares 0.09 + 0.01 + 0.16 = 0.26, over 2
    assert row["metrics"]["top1"]["std"] == pytest.approx(0.13**0.5)
    assert row["cost"] == COST


def test_one_value_has_no_spread_and_nan_is_null() -> None:
    assert make_row("a", {"top1": [0.5]})["metrics"]["top1"] == {"mean": 0.5, "std": None, "values": [0.5]}
    bad = make_row("a", {"hallucinated_r2": [0.5, float("nan")]}, {"gmacs": float("inf")})
    assert bad["metrics"]["hallucinated_r2"] == {"mean": None, "std": None, "values": [0.5, None]}
    assert bad["cost"] == {"params": None, "gmacs": None, "ms_per_video": None, "frames": None}


def test_numpy_numbers_become_plain_ones() -> None:
    row = make_row("a", {"top1": [np.float32(0.5)]}, {"params": np.int64(7)})
    assert json.loads(json.dumps(row))["cost"]["params"] == 7


def test_unknown_cost_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 'a': unknown cost 'watts'; known: params"):
        make_row("a", {"top1": [1.0]}, {"watts": 3})


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    rows = [
        make_row("plain", {"top1": [0.5, 0.6, 0.7], "hallucinated_r2": [0.1, 0.2, 0.3]}, COST),
        make_row("majority", {"top1": [0.25]}, {"frames": 0}),
    ]
    path = write_results(tmp_path / "out", rows, extra={"table": "abc"}, sections=["## More", "text"])
    assert read_results(path) == read_results(tmp_path / "out") == rows
    assert json.loads(path.read_text())["table"] == "abc"
    cells = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert float(cells[0]["top1_mean"]) == pytest.approx(0.6)
    assert cells[1]["top1_std"] == ""
    assert cells[1]["gmacs"] == ""
    text = (tmp_path / "out/results.md").read_text()
    assert "| plain | 60.0 ± 10.0 | 0.200 ± 0.100 | 2.23 M | 0.310 | 4.2 | 1 |" in text
    assert "| majority | 25.0 | – | – | – | – | 0 |" in text
    assert text.endswith("## More\n\ntext\n")
    assert (tmp_path / "out/results.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"results.{s}" for s in ("csv", "json", "md", "png")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "not JSON"),
        ("[]", "no results"),
        ('{"rows": [{"name": "a"}]}', r"row 1: expected an object with name, metrics and cost"),
        ('{"rows": [{"name": "a", "metrics": {"top1": 0.5}}]}', r"row 1 \(a\): metric 'top1' is not mean"),
        ('{"rows": [{"name": "a", "metrics": {}, "cost": {"gmacs": "x"}}]}', "cost is not an object of numbers"),
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_results(tmp_path)
    assert str(tmp_path / "results.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_results(tmp_path)


def test_costs_read_well() -> None:
    assert format_cost("params", 47_521_216) == "47.52 M"
    assert format_cost("params", 606) == "606"
    assert format_cost("gmacs", 9.7) == "9.7"
    assert [format_cost("ms_per_video", v) for v in (0.0, 0.1234, 4.2, 123.456, 1234.5)] == [
        "0", "0.123", "4.2", "123", "1234"]  # fmt: skip
    assert format_cost("frames", None) == "–"


def test_bootstrap_by_hand() -> None:
    # Two groups: x with one sample and difference 1, y with three and 0. Mean 1/4. Of the resamples a quarter is xx
    # (1), a half xy (1/4), a quarter yy (0): the 2.5 % and 97.5 % quantiles are 0 and 1.
    result = paired_bootstrap([[1, 1, 0, 1]], [[0, 1, 0, 1]], ["x", "y", "y", "y"])
    assert (result.mean, result.low, result.high, result.num_groups) == (0.25, 0.0, 1.0, 2)
    assert not result.excludes_zero
    assert str(result) == "+25.0 points [+0.0, +100.0] 95 % paired bootstrap over 2 test groups, 1 seed"


def test_bootstrap_averages_seeds_first() -> None:
    # Averaged over its two seeds, a is right half the time on both samples; b, with one seed, on none.
    result = paired_bootstrap([[1, 0], [0, 1]], [[0, 0]], [None, None])
    assert (result.mean, result.low, result.high) == (0.5, 0.5, 0.5)
    assert result.num_seeds == (2, 1)
    assert result.excludes_zero
    assert "2 and 1 seeds averaged" in str(result)


def test_bootstrap_matches_a_slow_loop() -> None:
    rng = np.random.default_rng(5)
    groups = [None if i % 7 == 0 else f"g{i % 11}" for i in range(60)]
    a, b = rng.random((3, 60)) < 0.7, rng.random((3, 60)) < 0.5
    result = paired_bootstrap(a, b, groups, num=4000)

    parts: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        parts.setdefault(group or f"own {i}", []).append(i)
    draw = random.Random(1)
    means = []
    for _ in range(4000):
        picked = [i for part in draw.choices(list(parts.values()), k=len(parts)) for i in part]
        means.append(a[:, picked].mean() - b[:, picked].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert result.num_groups == len(parts) == 20
    assert result.mean == pytest.approx(a.mean() - b.mean())
    assert result.low == pytest.approx(low, abs=0.01)
    assert result.high == pytest.approx(high, abs=0.01)
    assert paired_bootstrap(a, b, groups, num=4000) == result  # the seed decides


def test_bootstrap_of_one_group_has_no_interval() -> None:
    result = paired_bootstrap([[1, 1]], [[0, 1]], ["x", "x"])
    assert (result.mean, result.low, result.high) == (0.5, None, None)
    assert "no interval" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["excludes_zero"] is False


def test_bootstrap_refuses_unpaired_samples() -> None:
    with pytest.raises(ValueError, match="pair the same samples"):
        paired_bootstrap([[1, 1]], [[0]], ["x", "x"])
