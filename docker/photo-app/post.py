"""What a photo app does with tomau: waits until it is ready, and sends a photo again when it is told to.

Needs nothing but Python:  post.py http://colorize:8000 photos/ coloured/
"""

import http.client
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PATIENCE_S = 120.0
# For answers that name no time, and connections that break: the service is being restarted.
PAUSE_S = 1.0


def wait_until_ready(url: str, patience_s: float = PATIENCE_S) -> None:
    """Returns as soon as the service takes photos. Raises TimeoutError."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (OSError, http.client.HTTPException):
            time.sleep(PAUSE_S)
    raise TimeoutError(f"{url} is not ready after {patience_s:g} s")


def colorize(url: str, photo: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """The coloured photo. Colouring has no side effects, so whatever may pass is tried again.

    Raises urllib.error.HTTPError when the photo is refused for good (4xx), TimeoutError when patience is at its end.
    """
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        request = urllib.request.Request(f"{url}/colorize", photo, {"Content-Type": "image/jpeg"})
        pause = PAUSE_S
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code not in (429, 502, 503, 504):
                raise
            pause = float(error.headers.get("Retry-After") or PAUSE_S)
        except (OSError, http.client.HTTPException) as error:
            print(f"again: {error}", file=sys.stderr)
        time.sleep(pause)
    raise TimeoutError(f"no answer within {patience_s:g} s")


def main(url: str, source: str, target: str) -> None:
    """Colours every JPEG of a folder, four at a time."""
    wait_until_ready(url)
    photos = sorted(Path(source).glob("*.jpg"))

    def work(photo: Path) -> None:
        (Path(target) / photo.name).write_bytes(colorize(url, photo.read_bytes()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, photos))
    print(f"{len(photos)} photos")


if __name__ == "__main__":
    main(*sys.argv[1:])
