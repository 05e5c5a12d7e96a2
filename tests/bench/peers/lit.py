"""Serve the same pipeline with LitServe: python -m tests.bench.peers.lit MODEL PORT

These choices were made:

- One worker process per core, as its documentation recommends for a CPU, with one thread each. One HTTP process per
  worker, which is its default. Its queue over ZeroMQ, which it recommends for many requests per second.
- The upload is declared as FastAPI's `bytes`. An UploadFile above 1 MB is a file on disk, which can't go through its
  queue to another process.
- No batches by default. Its documentation recommends them for hardware that benefits. A CPU core does not: the first
  worker would take all waiting photos while the others are idle. `--batch 8` turns them on.
- Responses are not compressed, because the benchmark's client does not ask for it.
"""

import argparse
import os
from pathlib import Path
from typing import Annotated, Any

import cv2
import litserve as ls
import numpy as np
from fastapi import File, Response

from tests.bench.peers import pipeline
from tests.bench.peers.pipeline import Bytes, Floats

Photo = Annotated[bytes, File(alias="file")]
One = tuple[Bytes, Floats]


class Single(ls.LitAPI):  # type: ignore[misc]
    """A LitServe API that colours one photo at a time."""

    def __init__(self, model: Path, **options: Any) -> None:
        super().__init__(api_path="/colorize", **options)
        self.model = model

    def setup(self, device: str) -> None:
        """Load and warm up the model; LitServe calls it in each worker."""
        cv2.setNumThreads(1)
        self.session = pipeline.load(self.model, 1)
        pipeline.predict(self.session, np.zeros((1, 1, pipeline.SIDE, pipeline.SIDE), np.float32))

    def decode_request(self, request: Photo) -> Any:
        return pipeline.decode(request)

    def predict(self, x: Any) -> Any:
        bgr, lightness = x
        return bgr, pipeline.predict(self.session, lightness[np.newaxis])[0]

    def encode_response(self, output: Any) -> Response:
        return Response(pipeline.encode(*output), media_type="image/jpeg")


class Batched(Single):
    """A LitServe API that colours all waiting photos as one batch."""

    def batch(self, inputs: list[One]) -> tuple[list[Bytes], Floats]:
        return [bgr for bgr, _ in inputs], np.stack([lightness for _, lightness in inputs])

    def predict(self, x: Any) -> Any:
        photos, lightness = x
        return photos, pipeline.predict(self.session, lightness)

    def unbatch(self, output: tuple[list[Bytes], Floats]) -> list[One]:
        return list(zip(*output, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    api = Single(arguments.model) if arguments.batch == 1 else Batched(arguments.model, max_batch_size=arguments.batch)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=cores, fast_queue=True)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    main()
