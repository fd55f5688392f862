"""The report of an export, as its JSON file has it and as a person reads it. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillmotion.export.deliver import report_path


def read_report(path: Path) -> dict[str, Any]:
    """The report that lies beside an exported file."""
    report: dict[str, Any] = json.loads(report_path(path).read_text(encoding="utf-8"))
    return report


def report_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table: the network beside its file."""
    rows = [[f"largest difference, {what}", "", f"{found['absolute']:.2g}"]
            for what, found in report["parity"]["largest_difference"].items()]  # fmt: skip
    if accuracy := report.get("accuracy"):
        for metric, value in accuracy["torch"].items():
            rows.append([metric, f"{value:.4f}", f"{accuracy['file'][metric]:.4f}"])
        rows.append(["agreement", "", "" if accuracy["agreement"] is None else f"{accuracy['agreement']:.4f}"])
        rows.append(["ms a sample, without reading", *(f"{report['ms'][name]:.2f}" for name in ("torch", "file"))])
    if geometry := report.get("geometry"):
        rows.append(["resized pixels that differ", "", f"{geometry['share_that_differs']:.2g}"])
    rows.append(["MB", "", f"{report['bytes'] / 1e6:.2f}"])
    return [f"compared on {report['frames']}", "network", report["file"]], rows
