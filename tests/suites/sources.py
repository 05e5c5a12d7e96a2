"""The source packages whose image suites are used: they are fetched, and their image files listed."""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# Debian's lists of package sources.
APT_SOURCES = Path("/etc/apt")
FETCH_S = 900
# The first bytes of the formats that the service accepts.
SIGNATURES = (
    *(b"\xff\xd8", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM", b"RIFF"),
    *(b"\0\0\0\x0cjP", b"8BPS", b"\xff\x0a"),
)
# Image extensions that Pillow does not know.
MORE_EXTENSIONS = {".svg", ".svgz", ".heic", ".heif", ".hif", ".jxl", ".jxr", ".exr", ".dng", ".nef", ".svs", ".hdr"}


class Unavailable(Exception):
    """A source package can't be downloaded."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A project's source package: the registry, the possible names there, and the relevant folder ("": all)."""

    name: str
    registry: str
    packages: tuple[str, ...]
    folder: str = ""


SUITES = (
    Suite("Pillow", "pypi", ("pillow",)),
    Suite("libpng", "debian", ("libpng1.6",)),
    Suite("libtiff", "debian", ("tiff",)),
    Suite("libheif", "debian", ("libheif",)),
    Suite("libvips", "debian", ("vips",)),
    Suite("golang.org/x/image", "debian", ("golang-golang-x-image",)),
    Suite("PHP", "debian", ("php8.5", "php8.4", "php8.3", "php8.2"), "ext"),
)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An unpacked suite, and the version of its package."""

    suite: Suite
    version: str
    root: Path


def fetch(suite: Suite, cache: Path) -> Unpacked:
    """Return the suite, downloaded and unpacked into the cache folder if necessary. Raises Unavailable."""
    folder = cache / re.sub(r"\W+", "-", suite.name)
    stamp = folder / "version"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        downloads, tree = folder / "download", folder / "tree"
        downloads.mkdir(parents=True)
        archive = _pypi(suite, downloads) if suite.registry == "pypi" else _debian(suite, downloads, cache / "apt")
        with tarfile.open(archive) as packed:
            packed.extractall(tree, _members(packed, suite.folder), filter="data")
        stamp.write_text(_version(archive.name), "utf-8")
        shutil.rmtree(downloads)
    return Unpacked(suite, stamp.read_text("utf-8"), folder / "tree")


def _members(packed: tarfile.TarFile, folder: str) -> Iterator[tarfile.TarInfo]:
    """Return the files of the archive, or those of one folder in it."""
    for member in packed:
        if member.isfile() and (not folder or member.name.split("/")[1] == folder):
            yield member


def _version(archive: str) -> str:
    found = re.search(r"[-_]v?(\d[\w.]*?)(\.orig)?\.tar", archive)
    return found.group(1) if found else archive


def _run(command: list[str], **options: object) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False, **options)  # type: ignore[call-overload]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(command[:3])}: {lines[-1] if lines else done.returncode}")
    return str(done.stdout)


def _pypi(suite: Suite, downloads: Path) -> Path:
    name = suite.packages[0]
    flags = ["--no-deps", "--no-binary", name, "--disable-pip-version-check", "--quiet", "--dest", str(downloads)]
    _run([sys.executable, "-m", "pip", "download", *flags, name])
    return next(downloads.glob("*.tar.*"))


def _debian(suite: Suite, downloads: Path, apt: Path) -> Path:
    """Download with apt, with a private list of the source packages of the machine's registry."""
    if shutil.which("apt-get") is None:
        raise Unavailable("no apt-get here")
    environment = {"APT_CONFIG": str(_apt_config(apt)), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    if not (apt / "updated").exists():
        _run(["apt-get", "--quiet", "update"], env=environment)
        (apt / "updated").touch()
    tried: Unavailable | None = None
    for package in suite.packages:
        try:
            listed = _run(["apt-cache", "showsrc", package], env=environment)
        except Unavailable as error:
            tried = tried or error
            continue
        # A mirror may lack the newest version, for example of a security update.
        for version in reversed(re.findall(r"^Version: (\S+)$", listed, re.MULTILINE)):
            command = ["apt-get", "--quiet", "source", "--download-only", "--tar-only", f"{package}={version}"]
            try:
                _run(command, env=environment, cwd=downloads)
            except Unavailable as error:
                tried = error
                continue
            return next(downloads.glob("*.orig.tar.*[!c]"))
    raise tried or Unavailable(f"no source package of {suite.name}")


def _apt_config(apt: Path) -> Path:
    """Write apt's configuration for source packages. Everything that apt changes is inside the folder."""
    apt = apt.resolve()
    for folder in ("sources", "state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    for listed in (APT_SOURCES / "sources.list", *(APT_SOURCES / "sources.list.d").glob("*")):
        if listed.suffix in (".list", ".sources") and listed.exists():
            text = listed.read_text("utf-8")
            text = re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)
            text = re.sub(r"^deb(?=[ \t])", "deb-src", text, flags=re.MULTILINE)
            (apt / "sources" / listed.name).write_text(text, "utf-8")
    config = apt / "apt.conf"
    config.write_text(
        f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{apt}/sources";\n'
        f'Dir::State "{apt}/state";\nDir::Cache "{apt}/cache";\nAPT::Sandbox::User "root";\n',
        "utf-8",
    )
    return config


def images(unpacked: Unpacked, seen: set[bytes]) -> Iterator[Path]:
    """Yield the image files of a suite, found by content or extension; of equal files, only the first.

    seen: hashes of the files so far, which is extended.
    """
    Image.init()
    extensions = {*Image.registered_extensions(), *MORE_EXTENSIONS}
    for path in sorted(unpacked.root.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        is_picture = data.startswith(SIGNATURES) or data[4:8] == b"ftyp"
        digest = hashlib.sha256(data).digest()
        if (is_picture or path.suffix.lower() in extensions) and digest not in seen:
            seen.add(digest)
            yield path
