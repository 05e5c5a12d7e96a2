"""Ask the advisory database about every locked dependency of the service: python -m tests.audit

If the database can't be reached, the result is unknown. This is printed, and is not a failure.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCKS = ("serve-cpu", "serve-gpu")
TIMEOUT_S = 300


def audit(lock: Path) -> list[dict[str, object]] | None:
    """Return the known advisories of each dependency; None if the database did not respond."""
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
                print(f"{name}: {one['name']} {one['version']}: {fault['id']}, fixed in {fault['fix_versions']}")
                vulnerable += 1
        print(f"{name}: {len(known)} of {len(found or ())} dependencies checked")
    return bool(vulnerable)


if __name__ == "__main__":
    sys.exit(main())
