"""A real browser without a window, where one is installed: what a page is after its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed (Debian: apt install chromium)")

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=3000"
)


def dom(page: Path, profile: Path, at: str = "") -> str:
    """The page's tree, as HTML, when its scripts have run.   at: what follows # in its address."""
    address = page.resolve().as_uri() + (f"#{at}" if at else "")
    command = [CHROMIUM, *_FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()


def widths(page: Path, folder: Path, *sizes: int) -> dict[int, int]:
    """How wide the page becomes in windows of these widths, pixels: no wider where nothing sticks out."""
    seen = "[innerWidth,document.documentElement.scrollWidth]"
    measure = f"<script>addEventListener('load',()=>parent.postMessage({seen},'*'))</script>"
    inner = folder / "inner.html"
    inner.write_text(page.read_text().replace("</body>", measure + "</body>"))
    frames = "".join(f'<iframe src="inner.html" style="width:{n}px;height:700px;border:0"></iframe>' for n in sizes)
    outer = folder / "outer.html"
    outer.write_text(
        "<!doctype html><body><ol></ol><script>addEventListener('message',e=>{const li=document.createElement('li');"
        f"li.textContent=e.data.join(' ');document.querySelector('ol').append(li)}})</script>{frames}</body>"
    )
    tree = dom(outer, folder / "widths")
    found = [item.split("</li>")[0].split() for item in tree.split("<li>")[1:]]
    return {int(inside): int(wide) for inside, wide in found}
