"""The bytes of every type on an emulated ARM processor, beside the reference's from an x86 one.

    python tests/bench/bytes_on_arm.py FOLDER [--rows 4] [TYPE ...]

The first time, FOLDER gets an emulator and a Python for arm64 from Debian's packages (`apt-get download`, unpacked with
`dpkg-deb -x`, with package lists of its own), and for it numpy, ml_dtypes, numba and llvmlite from PyPI: 150 MB, 600
unpacked.  Nothing is installed, nothing outside of FOLDER is touched.  Kernels are compiled in the emulator, by LLVM
for ARM: that takes nearly all of the time, and is done once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ["libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3"]
DEBIAN += ["python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"]
WHEELS = "numpy", "ml_dtypes", "numba", "llvmlite"


def run(*words: object, **named: object) -> None:
    subprocess.run([str(word) for word in words], check=True, **named)  # type: ignore[call-overload]


def prepare(folder: Path) -> None:
    """Fill a new folder: `tool` has the emulator, `root` the Python, `site` its packages."""
    packages, lists = folder / "packages", folder / "lists"
    for empty in (packages, lists / "state/lists/partial", lists / "cache/archives/partial", folder / "site"):
        empty.mkdir(parents=True, exist_ok=True)
    (lists / "status").touch()
    apt = ["apt-get", "-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"]
    for key, place in {"Dir::State": "state", "Dir::State::status": "status", "Dir::Cache": "cache"}.items():
        apt += ["-o", f"{key}={lists / place}"]
    run(*apt, "update")
    run(*apt, "download", *DEBIAN, cwd=packages)
    run("apt-get", "-q", "download", "qemu-user-static", cwd=packages)
    for package in packages.glob("*.deb"):
        run("dpkg-deb", "-x", package, folder / ("tool" if package.name.startswith("qemu") else "root"))
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    kind = ["--no-deps", "--only-binary=:all:", "--python-version", "311", "--implementation", "cp", "--abi", "cp311"]
    for glibc in ("manylinux2014", "manylinux_2_27", "manylinux_2_28"):
        kind += ["--platform", f"{glibc}_aarch64"]
    run(sys.executable, "-m", "pip", "download", "-q", *kind, "-d", packages, *wanted)
    for wheel in packages.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_intermixed_args()
    folder = options.folder.resolve()
    emulator = folder / "tool/usr/bin/qemu-aarch64-static"
    if not emulator.is_file():
        prepare(folder)
    kept = {"PYTHONPATH": f"{ROOT}:{folder / 'site'}", "LLMCONV_CACHE_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    program = [ROOT / "tests/support/golden_bytes.py", ROOT / "tests/golden/ggml.npz", "--rows", options.rows]
    words = [emulator, "-L", folder / "root", folder / "root/usr/bin/python3.11", "-W", "ignore", *program]
    done = subprocess.run([str(word) for word in (*words, *options.types)], env=os.environ | kept, check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
