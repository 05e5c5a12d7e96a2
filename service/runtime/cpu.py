"""Processor cores that this process may use."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cpu_quota(cgroups: Path = CGROUPS) -> float | None:
    """Processors' worth of time that this process's container may take, as it sees it itself; None without a limit."""
    try:
        quota, period = (cgroups / "cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        try:  # version 1 of control groups
            quota, period = (
                (cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period")
            )
        except OSError:
            return None
    try:
        found = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # no limit is the word `max`
        return None
    return found if found > 0 else None
