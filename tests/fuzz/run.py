"""The entry point of the fuzzers: it runs one for a number of seconds."""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris


def run(
    test: Callable[[bytes], None], seeds: Iterable[tuple[str, bytes]], *, largest: int, name: str, **options: object
) -> None:
    """Run a fuzzer. It does not return: libFuzzer ends the process, with 0 if nothing was found.

    seeds: valid inputs. With --corpus, inputs that reached new code are kept there for the next run.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: a new one")
    parser.add_argument("--corpus", type=Path, help="a folder; by default a temporary one")
    parser.add_argument("--found", type=Path, default=Path.cwd(), help="folder for the inputs that failed")
    parser.add_argument("again", type=Path, nargs="*", help="inputs to try again, and nothing else")
    arguments = parser.parse_args()
    arguments.found.mkdir(parents=True, exist_ok=True)
    flags = [f"-artifact_prefix={arguments.found}/", "-timeout=10", "-rss_limit_mb=2048", f"-max_len={largest}"]
    flags.append(f"-seed={arguments.seed}")
    if arguments.again:
        flags += map(str, arguments.again)
    else:
        folder = arguments.corpus or Path(tempfile.mkdtemp())
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in seeds:
            (folder / file).write_bytes(data)
        flags += [f"-max_total_time={arguments.seconds}", "-print_final_stats=1", str(folder)]
    atheris.Setup([name, *flags], test, **options)
    atheris.Fuzz()
