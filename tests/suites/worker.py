"""A guarded process that answers one question after another. If it dies, that is the answer."""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 6 << 30  # bytes of address space
# Limits of one question. The wall time ends a process that only sleeps.
CPU_S = 60.0
WALL_S = 900.0


class Worker:
    """A client of `python -m MODULE`, which calls `serve`. It restarts the process after its death."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer, or {"died": how}. `stderr`: what was written to standard error during the question."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], WALL_S)[0]:
            process.kill()
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"died": self._end(process)}
        return answer | {"stderr": self._said()}

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        self._process = None
        process.communicate()  # this closes its pipes
        status = process.returncode
        if status == -signal.SIGPROF:
            return f"more than {CPU_S:g} s of a processor"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _said(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        # The worker's file descriptor shares its position.
        self._errors.seek(0)
        self._errors.truncate()
        return text

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"{self._module} does not start: {self._said()}")
        return self._process

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._errors.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer the questions on standard input until it ends, each with `cpu` seconds and bytes `grown`.

    What libraries print to standard output goes to standard error. SIGPROF ends the process if a question takes more
    than CPU_S, even if a library holds a lock.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # this resets the high-water mark
        before, began = _memory("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        found = answer(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        cost = {"cpu": round(time.process_time() - began, 3), "grown": _memory("VmHWM") - before}
        print(json.dumps(found | cost), file=answers, flush=True)


def _memory(name: str) -> int:
    """Return the memory in bytes, as reported by the kernel."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) * 1024
