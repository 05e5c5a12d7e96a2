"""Test a real server against its OpenAPI document: python -m tests.fuzz.api --help

schemathesis makes the requests, and checks that the document describes every response.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import Server, contract, tint_model

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, help="by default a new one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        (folder / "compact.onnx").write_bytes(tint_model(contract(name="compact"), (20.0, 30.0)))
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = os.environ | {"TOMAU_MODELS": name, "TOMAU_PORT": str(port)}
        tools = Path(sys.executable).parent
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen([tools / "tomau", "serve"], env=environment, stderr=output)
        try:
            Server(process, port, log).wait_until_ready()
            command = [
                tools / "schemathesis",
                "--config-file",
                CONFIGURATION,
                "--no-color",
                "run",
                "--continue-on-failure",
            ]
            command += ["--max-time", str(arguments.seconds)]
            command += [] if arguments.seed is None else ["--seed", str(arguments.seed)]
            command.append(f"http://127.0.0.1:{port}/openapi.json")
            hooks = {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)}
            # It creates a folder in its working directory.
            code = subprocess.run(command, cwd=folder, env=os.environ | hooks, check=False).returncode
        finally:
            process.terminate()
            process.wait(60)
        faults = [line for line in log.read_text().splitlines() if " ERROR " in line or " CRITICAL " in line]
        print(*faults, sep="\n")
        return code or bool(faults)


if __name__ == "__main__":
    sys.exit(main())
