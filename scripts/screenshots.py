"""Take pictures of a report as a desktop and as a phone show it: docs/report-desktop.png, report-phone.png.

python scripts/screenshots.py [RESULTS] [--out docs]

Needs Chromium and its driver (Debian: apt-get install chromium chromium-driver) and the test extra.
"""

import argparse
import base64
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver

from fgbench.report.build import build_report

SIZES = {"desktop": (1280, 1900), "phone": (390, 1900)}
"""Width of the window and height of the picture, in pixels."""

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")


def main() -> None:
    """Make the page and both pictures of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results/cnn"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = build_report(given.results, Path(folder) / "report.html")
        browser = open_browser(folder)
        try:
            for name, (width, height) in SIZES.items():
                picture = take_picture(browser, page, width, height)
                path = given.out / f"report-{name}.png"
                picture.quantize(64).save(path, optimize=True)
                print(path)
        finally:
            browser.quit()


def open_browser(folder: str) -> webdriver.Chrome:
    """A Chromium without a window that keeps its files in a folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in [*FLAGS, f"--user-data-dir={folder}/profile"]:
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def take_picture(browser: webdriver.Chrome, page: Path, width: int, height: int) -> Image.Image:
    """The upper part of a page in a window so wide."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


if __name__ == "__main__":
    main()
