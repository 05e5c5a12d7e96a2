"""A FastAPI app as a good engineer writes it in an afternoon: one upload, one `run`, one response.

These choices were made:

- A `def` endpoint: it runs in Starlette's thread pool, so the event loop stays free while OpenCV and ONNX Runtime
  work without Python's lock. The pool keeps its default of 40 threads.
- Cores are divided: with W workers, OpenCV and ONNX Runtime get cores / W threads each. A single worker then uses the
  whole machine for one client, and two workers don't compete for cores.
- uvicorn with uvloop and httptools, its fastest parts, and without an access log.

BENCH_MODEL is the ONNX file, BENCH_THREADS the number of threads per worker.
"""

import os
from pathlib import Path

import cv2
import numpy as np
from fastapi import FastAPI, Response, UploadFile

from tests.bench.peers import pipeline

threads = int(os.environ["BENCH_THREADS"])
cv2.setNumThreads(threads)
session = pipeline.load(Path(os.environ["BENCH_MODEL"]), threads)
pipeline.predict(session, np.zeros((1, 1, pipeline.SIDE, pipeline.SIDE), np.float32))
app = FastAPI()


@app.post("/colorize")
def colorize(file: UploadFile) -> Response:
    bgr, lightness = pipeline.decode(file.file.read())
    chroma = pipeline.predict(session, lightness[np.newaxis])
    return Response(pipeline.encode(bgr, chroma[0]), media_type="image/jpeg")


@app.get("/health")
def health() -> str:
    return "ok"
