"""Export: a trained network as a file that runs without this package's training dependencies.

`deliver.py` is the order of work, `graph.py` what is exported, `formats.py` the table of formats: a new one is a module
with `write` and `load` and a line there. Nothing here imports torch before something is exported.
"""

from stillmotion.export.deliver import NotDelivered, export

__all__ = ["NotDelivered", "export"]
