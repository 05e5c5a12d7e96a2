"""Run every fuzzer, one after another, for a number of seconds: python -m tests.fuzz --seconds 40 --seed 1"""

import argparse
import subprocess
import sys

FUZZERS = ("decoder", "upload", "api")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=40, help="for each of them")
    parser.add_argument("--seed", type=int, help="go the same way as every run with that seed; by default a new one")
    arguments = parser.parse_args()
    flags = ["--seconds", str(arguments.seconds)]
    flags += [] if arguments.seed is None else ["--seed", str(arguments.seed)]
    codes = {}
    for name in FUZZERS:
        codes[name] = subprocess.run([sys.executable, "-m", f"tests.fuzz.{name}", *flags], check=False).returncode
    for name, code in codes.items():
        print(f"{name}: {'nothing found' if code == 0 else f'FOUND SOMETHING (exit code {code})'}")
    return max(codes.values(), key=abs)


if __name__ == "__main__":
    sys.exit(main())
