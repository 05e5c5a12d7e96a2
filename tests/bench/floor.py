"""Measure the floor, which is the cost of a photo's stages alone: python -m tests.bench.floor --help

This file calls OpenCV, simplejpeg and ONNX Runtime directly, so that a slower service does not raise its own floor.

`planes` is tomau's route. The luma plane is decoded, kept, and encoded as it is. Colour is computed at half size in
float32: with 8 bits, its mean CIEDE2000 to the reference would exceed 1.

`pixels` is the peers' route: colour pixels at full size, in 8 bits. If there are as many threads as cores, each thread
has its own photos. The floor then includes the cost of shared memory and caches. Prints JSON: the number of images, and
CPU milliseconds per image.
"""

import argparse
import ctypes
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import simplejpeg

QUALITY = 90
# With this size, the temporary arrays fit the CPU cache.
STRIP_PIXELS = 16_384
SIDE = 224
# The L* of each gray level.
GRAYS = np.arange(256, dtype=np.float32).reshape(1, 256) / 255
LIGHTNESS = np.ascontiguousarray(cv2.cvtColor(cv2.merge([GRAYS] * 3), cv2.COLOR_RGB2Lab)[0, :, 0])


def load(model: Path) -> ort.InferenceSession:
    """Return a session with one thread, because photos run in parallel."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])


def predict(session: ort.InferenceSession, gray: np.ndarray) -> np.ndarray:
    """Return a* and b*, float32 [2, s, s], of a luma plane."""
    height, width = gray.shape
    if min(height, width) >= 4 * SIDE:
        gray = cv2.resize(gray, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lightness = LIGHTNESS[small] / np.float32(100)
    chroma: np.ndarray = session.run(None, {"lightness": lightness[np.newaxis, np.newaxis]})[0][0]
    return chroma


def planes(data: bytes, session: ort.InferenceSession) -> bytes:
    luma = simplejpeg.decode_jpeg(data, "GRAY")[..., 0]
    half = cv2.resize(luma, ((luma.shape[1] + 1) // 2, (luma.shape[0] + 1) // 2), interpolation=cv2.INTER_AREA)
    height, width = half.shape
    chroma = predict(session, half if min(height, width) >= 2 * SIDE else luma)
    a, b = (cv2.resize(channel, (width, height)) for channel in chroma)
    cb, cr = np.empty_like(half), np.empty_like(half)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(top, top + rows)
        lab = cv2.merge([cv2.LUT(half[strip], LIGHTNESS), a[strip], b[strip]])
        differences = cv2.cvtColor(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), cv2.COLOR_RGB2YCrCb)
        _, cr[strip], cb[strip] = cv2.split(cv2.convertScaleAbs(differences, alpha=255, beta=0.5))
    return bytes(simplejpeg.encode_jpeg_yuv_planes(luma, cb, cr, QUALITY))


def pixels(data: bytes, session: ort.InferenceSession) -> bytes:
    bgr = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    lightness = cv2.extractChannel(cv2.cvtColor(bgr, cv2.COLOR_BGR2Lab), 0)
    a, b = np.clip(np.rint(predict(session, cv2.extractChannel(bgr, 1)) + 128), 0, 255).astype(np.uint8)
    size = (bgr.shape[1], bgr.shape[0])
    lab = cv2.merge([lightness, cv2.resize(a, size), cv2.resize(b, size)])
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(lab, cv2.COLOR_Lab2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


ROUTES: dict[str, Callable[[bytes, ort.InferenceSession], bytes]] = {"planes": planes, "pixels": pixels}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("route", choices=ROUTES)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    # Freed memory is kept (<malloc.h>: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD), because no stage should pay for new pages.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 1 << 30)
        mallopt(-1, 1 << 28)
    route, session = ROUTES[arguments.route], load(arguments.model)
    photos = [path.read_bytes() for path in arguments.photos]
    done = [0] * arguments.threads

    def work(number: int, until: float) -> None:
        while not done[number] or time.monotonic() < until or done[number] % len(photos):
            route(photos[done[number] % len(photos)], session)
            done[number] += 1

    work(0, 0)
    done[0] = 0
    started, end = time.process_time(), time.monotonic() + arguments.seconds
    threads = [threading.Thread(target=work, args=(number, end)) for number in range(arguments.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"images": sum(done), "cpu_ms": 1000 * (time.process_time() - started) / sum(done)}))


if __name__ == "__main__":
    main()
