"""Energy that the processor says it takes: Linux's powercap interface (RAPL of Intel and AMD)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """Counters of the processor's packages, everything that runs on them included.

    Args:
        counters: Each file that counts microjoules, and the number after which it starts again.
    """

    counters: Mapping[Path, int] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path = POWERCAP) -> "Meter | None":
        """The meter of this machine; None if it has none that may be read (mostly, root alone may)."""
        found = {}
        try:
            for zone in sorted(folder.glob("*-rapl:*")):
                if (zone / "name").read_text().startswith("package"):  # others are parts of one, or the whole machine
                    (zone / "energy_uj").read_text()
                    found[zone / "energy_uj"] = int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            return None
        return cls(found) if found else None

    def read(self) -> dict[Path, int]:
        """What the counters show now, for `joules`."""
        return {path: int(path.read_text()) for path in self.counters}

    def joules(self, before: Mapping[Path, int], after: Mapping[Path, int]) -> float:
        """Energy between two readings that are less than a turn of the counters (minutes) apart."""
        spent = 0
        for path, span in self.counters.items():
            step = after[path] - before[path]
            spent += step if step >= 0 else step + span
        return spent / 1e6
