"""The report in a real browser: headless Chromium, driven by selenium."""

import shutil
import time

import pytest
from fake_records import make_record, many_records
from fake_results import make_run
from PIL import Image

from fgbench.analysis.records import Results
from fgbench.report import build
from fgbench.report.build import render


def page_of(records, command):
    """The page about some runs."""
    return render(Results(list(records)), command)


webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip(
        "Chromium is not installed (Debian: apt-get install chromium chromium-driver)",
        allow_module_level=True,
    )

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)


TEXTS_IN_THE_WAY = """
const found = [];
for (const panel of document.querySelectorAll("figure.chart:not([hidden]) svg.panel")) {
  const card = panel.closest("figure").getBoundingClientRect();
  const texts = [...panel.querySelectorAll("text")].filter(text => text.textContent.trim())
    .map(text => [text.textContent, text.getBoundingClientRect()]);
  texts.forEach(([text, box], place) => {
    if (box.left < card.left || box.right > card.right || box.top < card.top || box.bottom > card.bottom)
      found.push("cut: " + text);
    for (const [other, beside] of texts.slice(place + 1)) {
      const across = Math.min(box.right, beside.right) - Math.max(box.left, beside.left);
      const down = Math.min(box.bottom, beside.bottom) - Math.max(box.top, beside.top);
      if (across > 1 && down > 0.35 * Math.min(box.height, beside.height))
        found.push(text + " | " + other);
    }
  });
}
return found;
"""
"""Texts of the figures shown that leave their figure or lie on each other; a line's box has air in it."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def small_page(tmp_path_factory):
    records = [
        make_record(trainer, test_accuracy=accuracy, val_accuracy=0.5, train_loss=1.0, peak_memory_mib=memory)
        for trainer, accuracy, memory in [("backprop", 0.9, 62.0), ("forward-gradient", 0.7, 100.0)]
    ]
    path = tmp_path_factory.mktemp("small") / "report.html"
    path.write_text(page_of(records, "fgbench report results"))
    return path.as_uri()


@pytest.fixture(scope="module")
def crowded_page(tmp_path_factory):
    records = [
        make_record(
            *(trainer, seed),
            epochs=3,
            optimizer__lr=lr,
            test_accuracy=0.1 * place + lr,
            val_accuracy=0.5,
            train_loss=[2.0, 1.0, 0.03 * (place + 1)],
            peak_memory_mib=60.0 + 200 * place,
            epoch_time_s=1.0 + place + seed,
            trainer_options={"structure": "full", "guess": "normal"} if "forward" in trainer else {},
        )
        for place, trainer in enumerate(("backprop", "forward-gradient", "guided-forward-gradient"))
        for lr in (0.0004723, 0.0014960, 0.1)
        for seed in (0, 1)
    ]
    path = tmp_path_factory.mktemp("crowded") / "report.html"
    path.write_text(page_of(records, "fgbench report results"))
    return path.as_uri()


@pytest.fixture(scope="module")
def large_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "draw_charts", lambda series, prefix: [])  # they are looked at on the small page
        path.write_text(page_of(many_records(), "fgbench report results"))
    return path.as_uri()


@pytest.fixture(autouse=True)
def wide_and_light(browser):
    emulate(browser, 1280)


def emulate(browser, width, scheme="light", media=""):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def column(browser, number):
    script = (
        "return [...document.querySelectorAll('#all-runs tbody:not([hidden]) tr:first-child')]"
        ".map(row => row.cells[arguments[0]].textContent.trim())"
    )
    return browser.execute_script(script, number)


def click(browser, selector, place=0):
    script = "document.querySelectorAll(arguments[0])[arguments[1]].click()"
    browser.execute_script(script, selector, place)


def shown(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(each => each.checkVisibility())"
    return browser.execute_script(script, selector)


@pytest.mark.parametrize("page", ["small_page", "large_page"])
def test_it_opens_without_errors_and_fetches_nothing(browser, page, request):
    browser.get_log("browser")
    browser.get(request.getfixturevalue(page))
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title.startswith("What does training without a backward pass cost?")


@pytest.mark.parametrize("page", ["small_page", "large_page"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(browser, page, width, request):
    emulate(browser, width)
    browser.get(request.getfixturevalue(page))
    click(browser, "button.more")
    for each in range(len(shown(browser, ".tabs button"))):
        click(browser, ".tabs button", each)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("page", ["small_page", "large_page", "crowded_page"])
def test_comparisons_in_numbers_fit_a_window_of_1280_pixels(browser, page, request):
    browser.get(request.getfixturevalue(page))
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    boxes = "document.querySelectorAll('.scroll:has(> .numbers)')"
    hidden = f"return [...{boxes}].map(each => each.scrollWidth - each.clientWidth)"
    assert set(browser.execute_script(hidden)) == {0}


@pytest.mark.parametrize("width", [390, 1280])
def test_no_two_texts_of_a_figure_overlap_and_none_is_cut(browser, crowded_page, width):
    emulate(browser, width)
    browser.get(crowded_page)
    for each in range(len(shown(browser, ".tabs button"))):
        click(browser, ".tabs button", each)
        assert browser.execute_script(TEXTS_IN_THE_WAY) == []
    script = (
        "for (const text of document.querySelectorAll('svg.panel text')) text.after(text.cloneNode(true))"
    )
    browser.execute_script(script)
    assert browser.execute_script(TEXTS_IN_THE_WAY) != []


def test_the_numbers_behind_a_figure_are_saved_without_a_network(browser, small_page, tmp_path):
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    browser.get(small_page)
    click(browser, "a[download]")
    saved = tmp_path / "fc_fashion-mnist-panels-epochs.csv"
    for _ in range(100):
        if saved.exists():
            break
        time.sleep(0.05)
    head, first, *_ = saved.read_text().splitlines()
    assert head == "label,seed,epoch,test_accuracy,train_loss"
    assert first == "backprop,0,1,0.9,1.0"


def test_a_click_on_a_head_sorts_and_another_turns_it_round(browser, small_page):
    browser.get(small_page)
    click(browser, "#all-runs th button", 7)
    assert column(browser, 7) == ["62.0", "100.0"]
    click(browser, "#all-runs th button", 7)
    assert column(browser, 7) == ["100.0", "62.0"]
    heads = browser.execute_script(
        "return [...document.querySelectorAll('#all-runs th')].map(th => th.ariaSort)"
    )
    assert heads.index("descending") == 7
    click(browser, "#all-runs th button", 0)
    assert column(browser, 0) == ["backprop", "forward-gradient"]


def test_details_move_with_their_run(browser, large_page):
    browser.get(large_page)
    click(browser, "#all-runs th button", 4)
    values = [float(value) for value in column(browser, 4)]
    assert values == sorted(values)
    script = "return [...document.querySelectorAll('#all-runs tbody')].every(body => body.rows.length === 2)"
    assert browser.execute_script(script)


def test_runs_are_filtered_by_words_and_choices(browser, large_page):
    browser.get(large_page)
    search = browser.find_element("css selector", ".filters input")
    search.send_keys("ZEROTH lr=0.0003")
    assert column(browser, 0) == ["zeroth-order, lr=0.0003"] * 5
    assert browser.find_element("css selector", ".filters output").text == "5 of 500 runs"
    search.clear()
    search.send_keys(" ")
    browser.execute_script(
        "const select = document.querySelector('select[name=trainer]'); select.value = 'backprop';"
        "select.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert len(column(browser, 0)) == 100
    assert all(label.startswith("backprop") for label in column(browser, 0))


def test_details_are_shown_and_hidden(browser, small_page):
    browser.get(small_page)
    assert shown(browser, "tr.detail") == [False, False]
    button = browser.find_elements("css selector", "button.more")[1]
    button.click()
    assert shown(browser, "tr.detail") == [False, True]
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert shown(browser, "tr.detail") == [False, False]


def test_one_figure_at_a_time_on_the_screen_and_all_of_them_in_print(browser, small_page):
    browser.get(small_page)
    click(browser, ".tabs button", 1)
    assert shown(browser, "figure.chart") == [False, True, False]
    emulate(browser, 1280, media="print")
    assert shown(browser, "figure.chart") == [True, True, True]
    assert shown(browser, "nav, .tabs, .filters") == [False, False, False]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_text_stands_out_from_its_paper_in_light_and_dark(browser, small_page, scheme, dark):
    emulate(browser, 1280, scheme)
    browser.get(small_page)

    def brightness(selector, name):
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        red, green, blue = browser.execute_script(script, selector, name).strip("rgb()").split(",")[:3]
        return (int(red) + int(green) + int(blue)) / 765

    paper = brightness("body", "backgroundColor")
    assert (paper < 0.2) == dark
    for ink in (brightness("body", "color"), brightness("svg.panel text", "fill")):
        assert abs(ink - paper) > 0.6


def test_pictures_of_a_report_are_as_wide_as_a_desktop_and_a_phone(tmp_path, monkeypatch):
    import screenshots

    make_run(tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["screenshots.py", str(tmp_path / "results"), "--out", str(tmp_path)])
    screenshots.main()
    widths = {name: Image.open(tmp_path / f"report-{name}.png").width for name in ("desktop", "phone")}
    assert widths == {"desktop": 1280, "phone": 390}
