"""Read the processor limit of this process."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cpu_quota(cgroups: Path = CGROUPS) -> float | None:
    """Return the number of processors that the container may use, from its control group; None without a limit."""
    try:
        quota, period = (cgroups / "cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        try:  # Version 1 of control groups.
            quota, period = (
                (cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period")
            )
        except OSError:
            return None
    try:
        found = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # Without a limit the file says `max`.
        return None
    return found if found > 0 else None
