"""Colour a folder of JPEGs with tomau, as a photo app would: wait until it is ready, and retry.

It needs only Python:  post.py http://colorize:8000 photos/ coloured/
"""

import http.client
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PATIENCE_S = 120.0
# The pause after a broken connection, or a response without Retry-After: the service is being restarted.
PAUSE_S = 1.0


def wait_until_ready(url: str, patience_s: float = PATIENCE_S) -> None:
    """Return as soon as the service accepts photos. Raises TimeoutError after `patience_s`."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (OSError, http.client.HTTPException):
            time.sleep(PAUSE_S)
    raise TimeoutError(f"{url} is not ready after {patience_s:g} s")


def colorize(url: str, photo: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """Return the coloured image. Colouring has no side effects, so every temporary failure is retried.

    Raises urllib.error.HTTPError if the photo is refused permanently (4xx), and TimeoutError after `patience_s`.
    """
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        request = urllib.request.Request(f"{url}/colorize", photo, {"Content-Type": "image/jpeg"})
        pause = PAUSE_S
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if error.code not in (429, 502, 503, 504):
                raise
            pause = float(error.headers.get("Retry-After") or PAUSE_S)
        except (OSError, http.client.HTTPException) as error:
            print(f"retry: {error}", file=sys.stderr)
        time.sleep(pause)
    raise TimeoutError(f"no coloured image within {patience_s:g} s")


def main(url: str, source: str, target: str) -> None:
    """Colour every JPEG of the folder `source` into `target`, four at a time."""
    wait_until_ready(url)
    photos = sorted(Path(source).glob("*.jpg"))

    def work(photo: Path) -> None:
        (Path(target) / photo.name).write_bytes(colorize(url, photo.read_bytes()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, photos))
    print(f"{len(photos)} photos")


if __name__ == "__main__":
    main(*sys.argv[1:])
