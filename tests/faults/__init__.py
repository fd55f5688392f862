"""What is promised when something goes wrong: `pytest -m faults`; see docs/faults.md."""
