"""Every fuzzer, one after another, each for some seconds: python -m tests.fuzz --seconds 40"""

import argparse
import subprocess
import sys

FUZZERS = ("decoder", "upload", "api")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=40, help="for each of them")
    arguments = parser.parse_args()
    codes = {}
    for name in FUZZERS:
        command = [sys.executable, "-m", f"tests.fuzz.{name}", "--seconds", str(arguments.seconds)]
        codes[name] = subprocess.run(command, check=False).returncode
    for name, code in codes.items():
        print(f"{name}: {'nothing found' if code == 0 else f'FOUND SOMETHING (exit code {code})'}")
    return max(codes.values(), key=abs)


if __name__ == "__main__":
    sys.exit(main())
