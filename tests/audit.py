"""Asks the advisory database about every locked dependency of the service: python -m tests.audit

Where the database can't be reached nothing is known, and that is said; it is no failure.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCKS = ("serve-cpu", "serve-gpu")
TIMEOUT_S = 300


def audit(lock: Path) -> list[dict[str, object]] | None:
    """What is known of each dependency; None when there was no answer."""
    command = [Path(sys.executable).with_name("pip-audit"), "--disable-pip", "--require-hashes", "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--requirement", lock], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        found: list[dict[str, object]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return found


def main() -> int:
    vulnerable = 0
    for name in LOCKS:
        found = audit(Path("requirements") / f"{name}.lock")
        known = [one for one in found or () if "skip_reason" not in one]
        if not known:
            print(f"{name}: SKIPPED, the advisory database can't be reached")
            continue
        for one in known:
            for fault in one["vulns"]:  # type: ignore[attr-defined]
                print(f"{name}: {one['name']} {one['version']}: {fault['id']}, mended in {fault['fix_versions']}")
                vulnerable += 1
        print(f"{name}: {len(known)} of {len(found or ())} dependencies asked about")
    return bool(vulnerable)


if __name__ == "__main__":
    sys.exit(main())
