"""The page in a real Chromium, by clicks and by keys, wide and narrow; it asks no other computer for anything."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import MakeVideo
from tests.serve.conftest import WAIT, Running, moving, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Page = playwright.Page
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=1e3 * WAIT)
        yield found
        found.close()


@pytest.fixture(scope="module")
def service(run: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = ("--limits.max_mib", "4", "--teacher", str(teacher))
    with running(run, tmp_path_factory.mktemp("uploads"), *limits, key="secret") as found:
        yield found


@pytest.fixture
def page(browser: object, service: Running, request: pytest.FixtureRequest) -> Iterator[object]:
    """The page at a size, unlocked; whatever else it asks for than the service fails the test."""
    width, height = SIZES[getattr(request, "param", "desk")]
    context = browser.new_context(viewport={"width": width, "height": height})  # type: ignore[attr-defined]
    found, asked, wrong = context.new_page(), [], []
    found.set_default_timeout(1e3 * WAIT)
    found.on("request", lambda r: asked.append(r.url))
    found.on("pageerror", lambda e: wrong.append(str(e)))
    found.add_init_script("sessionStorage.setItem('stillmotion-key', 'secret')")
    found.goto(service.url)
    found.wait_for_selector("body[data-ready]")
    yield found
    context.close()
    hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme not in ("blob", "data")}
    assert hosts == {urlsplit(service.url).netloc}
    assert wrong == []


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("film") / "walk.webm"


@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_from_a_file_to_its_answer(
    page: object, film: Path, make_video: MakeVideo, request: pytest.FixtureRequest
) -> None:
    make_video(film, moving(30), fps=10, codec="libvpx")
    page.set_input_files("#file", film)  # type: ignore[attr-defined]
    page.wait_for_selector(".answer")  # type: ignore[attr-defined]
    check: Page = page
    assert check.inner_text("#title") == "walk.webm"
    assert check.locator(".answer").count() == 2
    who = [w.split(" · ") for w in check.locator(".who").all_inner_texts()]
    assert who == [["Student", "student"], ["Teacher", "teacher"]]
    percents = [float(t.rstrip(" %")) for t in check.locator(".answer >> nth=0 >> .score b").all_inner_texts()]
    assert sum(percents) == pytest.approx(100.0, abs=1.5)
    assert "decode" in check.inner_text(".answer >> nth=0 >> .ms-words")
    assert check.locator("#chart path").count() == 3
    assert check.locator(".shot").count() == 1 + 3
    # A click at the middle of the chart brings the video to its middle.
    box = check.locator("#chart").bounding_box()
    assert box is not None
    check.locator("#chart").click(position={"x": (44 + box["width"] - 8) / 2, "y": 60})
    check.wait_for_function("Math.abs(document.getElementById('video').currentTime - 1.5) < 0.1")
    plain = check.get_attribute(".shot img", "src")
    check.check("#heat")
    assert check.get_attribute(".shot img", "src") != plain
    width = SIZES["phone" if "phone" in request.node.name else "desk"][0]
    assert check.evaluate("document.documentElement.scrollWidth") <= width, "nothing stands out at the side"


def test_by_keys_alone(page: object, film: Path, make_video: MakeVideo) -> None:
    check: Page = page
    make_video(film, moving(30), fps=10, codec="libvpx")
    check.bring_to_front()
    check.wait_for_function("document.hasFocus()")
    check.keyboard.press("Tab")
    assert check.evaluate("document.activeElement.id") == "file"
    check.set_input_files("#file", film)  # what Enter opens here is the browser's own dialogue
    check.wait_for_selector(".answer")
    assert check.evaluate("document.activeElement.id") == "result", "where to read on"
    for _ in range(20):
        check.keyboard.press("Tab")
        if check.evaluate("document.activeElement.id") == "seek":
            break
    for key in ("ArrowRight", "Home"):  # the video plays until somebody seeks, and may be at its end
        check.keyboard.press(key)
    before = check.get_attribute("#seek", "aria-valuetext")
    assert before is not None
    assert before.startswith("0.00 s")
    for _ in range(5):
        check.keyboard.press("ArrowRight")
    after = check.get_attribute("#seek", "aria-valuetext")
    assert before != after
    assert after is not None
    assert "red" in after
    for _ in range(20):
        check.keyboard.press("Tab")
        if check.evaluate("document.activeElement.id") == "heat":
            break
    check.keyboard.press("Space")
    assert "speaks for" in (check.get_attribute(".shot img", "alt") or "")


def test_mistakes_are_told(page: object, tmp_path: Path) -> None:
    check: Page = page
    check.set_input_files("#file", {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    check.wait_for_selector("#problem:not([hidden])")
    assert "neither a video nor a still" in check.inner_text("#problem")
    check.set_input_files("#file", {"name": "big.mp4", "mimeType": "video/mp4", "buffer": bytes(5 * 2**20)})
    check.wait_for_function("document.getElementById('problem').textContent.includes('at most 4 MiB')")
    assert check.is_hidden("#result")
    check.evaluate("sessionStorage.setItem('stillmotion-key', 'wrong')")
    check.set_input_files("#file", {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    check.wait_for_selector("#locked:not([hidden])")
    check.fill("#key", "secret")
    check.keyboard.press("Enter")
    check.wait_for_selector("#give:not([hidden])")
    assert check.is_hidden("#locked")


def test_a_file_is_dropped_that_the_browser_cannot_play(page: object, tmp_path: Path, make_video: MakeVideo) -> None:
    check: Page = page
    path = make_video(tmp_path / "old.avi", moving(12), codec="mpeg4")
    data = list(path.read_bytes())
    check.evaluate(
        """data => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(data)], "old.avi", {type: "video/x-msvideo"}));
            window.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
        }""",
        data,
    )
    check.wait_for_selector("#unplayable:not([hidden])")
    assert check.locator("#chart path").count() == 3
    assert (check.get_attribute("#still", "src") or "").startswith("data:image/jpeg")


def test_the_camera(page: object) -> None:
    check: Page = page
    check.click("#camera")
    check.wait_for_selector("#chart path")  # two answers
    assert check.inner_text("#title") == "Camera"
    check.click("#stop")
    assert check.is_hidden("#stop")
    assert check.evaluate("document.getElementById('video').srcObject") is None


def test_clips_of_the_camera_for_a_network_that_sees_clips(
    browser: object, teacher: Path, tmp_path: Path
) -> None:  # fmt: skip
    with running(teacher, tmp_path / "up") as own:
        check: Page = browser.new_page()  # type: ignore[attr-defined]
        check.set_default_timeout(1e3 * WAIT)
        check.goto(own.url)
        check.wait_for_selector("body[data-ready]")
        check.click("#camera")
        # A busy machine may record a clip of one frame first; a still would never have three.
        check.wait_for_selector(".ms-words:has-text('3 frames')")
        check.close()
