"""The pipeline of all peers: colour pixels in, colour pixels out, as in most such services.

It uses OpenCV's fast functions, not a tutorial's code. Full-size conversions run on 8 bits, because float32 takes twice
as long at 12 megapixels. Only the model's small input is float. Chroma is enlarged in 8 bits, and nothing is computed
twice. The JPEG has the quality of the source, and OpenCV's default 4:2:0.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

QUALITY = 90
SIDE = 224

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def load(model: Path, threads: int) -> ort.InferenceSession:
    """Return a session with that number of threads per `run`. Idle threads sleep instead of spinning.

    Spinning, ONNX Runtime's default, is faster on a machine that serves one client, but expensive on a busy one.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def decode(data: bytes) -> tuple[Bytes, Floats]:
    """Return the photo as BGR, uint8 [H, W, 3], and the model's input, L*/100, float32 [1, S, S]."""
    bgr = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    height, width = bgr.shape[:2]
    # OpenCV halves an image fastest. The slower second resize then has a quarter of the pixels.
    is_large = min(height, width) >= 4 * SIDE
    larger = cv2.resize(bgr, (width // 2, height // 2), interpolation=cv2.INTER_AREA) if is_large else bgr
    small = cv2.resize(larger, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lightness = cv2.cvtColor(small, cv2.COLOR_BGR2Lab)[..., 0] / 100
    return bgr, np.asarray(lightness, np.float32)[np.newaxis]


def predict(session: ort.InferenceSession, lightness: Floats) -> Floats:
    """Return chroma, float32 [N, 2, s, s], of N inputs, float32 [N, 1, S, S]."""
    (chroma,) = session.run(None, {"lightness": lightness})
    return np.asarray(chroma, np.float32)


def encode(bgr: Bytes, chroma: Floats) -> bytes:
    """Return the photo as a JPEG, with its own L* and the chroma, float32 [2, s, s]."""
    size = (bgr.shape[1], bgr.shape[0])
    lightness: Any = cv2.extractChannel(cv2.cvtColor(bgr, cv2.COLOR_BGR2Lab), 0)
    a, b = (cv2.resize(c, size) for c in np.clip(np.rint(chroma + 128), 0, 255).astype(np.uint8))
    coloured = cv2.cvtColor(cv2.merge([lightness, a, b]), cv2.COLOR_Lab2BGR)
    return bytes(cv2.imencode(".jpg", coloured, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])
