from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[dev]')")
EXAMPLE = Path(__file__).parents[2] / "examples" / "record_report.py"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a chromium on the PATH (apt-get install chromium)")
def test_film_of_a_report_moves(page: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.webp"
    done = subprocess.run([sys.executable, EXAMPLE, page, out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as film:
        assert film.n_frames > 12 and film.size == (1000, 640)
        first = film.convert("RGB").tobytes()
        film.seek(6)
        assert film.convert("RGB").tobytes() != first
