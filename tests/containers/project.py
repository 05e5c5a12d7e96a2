"""The compose project under test, and a client for it."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx

from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
PHOTO_APP = ROOT / "docker" / "photo-app"


def photo_app() -> ModuleType:
    """Return docker/photo-app/post.py as a module: the documented client is the tested one."""
    spec = importlib.util.spec_from_file_location("post", PHOTO_APP / "post.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def docker(*arguments: str, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run docker. The error has its output if it fails."""
    ended = subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and ended.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {ended.stdout}{ended.stderr}")
    return ended


def images() -> list[str]:
    """Return the images of the project under test."""
    return docker("compose", "--profile", "gateway", "--profile", "monitoring", "config", "--images").stdout.split()


class Project:
    """docker-compose.yml with gateway and monitoring, on ports of its own."""

    def __init__(self) -> None:
        ports = {name: free_port() for name in ("COLORIZE", "GATEWAY", "PROMETHEUS")}
        os.environ |= {f"{name}_PORT": str(port) for name, port in ports.items()}
        self.service, self.gateway, self.prometheus = (f"http://127.0.0.1:{port}" for port in ports.values())

    def compose(self, *arguments: str, files: Sequence[str] = (), **options: Any) -> str:
        """Return the standard output of a compose command for the project."""
        given = [part for file in files for part in ("-f", file)]
        return docker(
            "compose", *given, "--profile", "gateway", "--profile", "monitoring", *arguments, **options
        ).stdout

    def container(self, service: str = "colorize") -> str:
        return self.compose("ps", "--all", "--quiet", service).strip()

    def facts(self, service: str = "colorize") -> dict[str, Any]:
        """Return what the engine reports about a service's container."""
        return json.loads(docker("inspect", self.container(service)).stdout)[0]

    def python(self, code: str, service: str = "colorize", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python inside a service's container."""
        return docker("exec", self.container(service), "python3", "-c", code, **options)

    def kill(self) -> None:
        """End the service's process as a crash would. After `docker kill`, the engine would not restart it."""
        os.kill(self.facts()["State"]["Pid"], signal.SIGKILL)

    def wait_until_ready(self, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.service}/readyz", timeout=1).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise TimeoutError(self.compose("logs", "--tail", "50"))
