"""The section of a comparison about what its rows started from: trainings on tables of their own."""

from pathlib import Path

from stillmotion.plan import Plan
from stillmotion.results import Row, make_row, markdown_table
from stillmotion.run import Run


def stage_rows(plan: Plan) -> list[Row]:
    """Results of the rows with a table of their own, on their own test split; only of those that are finished."""
    rows = []
    for name in plan.stages:
        runs = [Run(plan.run_folder(trial)) for trial in plan.stage_trials() if trial.row == name]
        found = [run.results()[0]["metrics"] for run in runs if run.finished]
        if found:
            shared = [metric for metric in found[0] if all(metric in metrics for metrics in found)]
            rows.append(make_row(name, {m: [metrics[m]["mean"] for metrics in found] for m in shared}))
    return rows


def stages_section(plan: Plan, rows: list[Row]) -> str:
    """Markdown; empty without such rows."""
    if not rows:
        return ""
    shown = [f"`{name}` on `{Path(fold.table.source).name}`" for name, fold in plan.stages.items()]
    told = "Trained before, each on a table of its own and told of that table's test split: " + ", ".join(shown) + "."
    return "\n".join(["## Stages before", "", told, "", markdown_table(rows)])
