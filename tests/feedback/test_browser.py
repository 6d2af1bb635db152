"""From the page in a headless browser to a policy that has learned from the answers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

pytest.importorskip("selenium")
pytest.importorskip("uvicorn")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from sb3_pmpo import PMPO
from sb3_pmpo.feedback.clips import Segment, read_clips, write_clips
from sb3_pmpo.tools.label import _make_server

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="Debian's chromium and chromium-driver are not installed",
)
SEEN, DONE = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))
N_CLIPS = 8


@pytest.fixture
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=360,740"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield browser
    browser.quit()


def make_clips(folder: Path) -> None:
    """A white picture where the action was above 0, a black one where it was below."""

    def segments() -> Iterator[Segment]:
        for number in range(N_CLIPS):
            level = 0.6 if number % 2 else -0.6
            frames = np.full((10, 64, 96, 3), 255 * (number % 2), np.uint8)
            actions = np.full((10, 1), level, np.float32)
            yield Segment(np.zeros((10, 1), np.float32), actions, frames)

    about = {"env": "Toy"}
    write_clips(folder, segments(), observation_space=SEEN, action_space=DONE, fps=10, about=about)


def test_from_the_page_to_a_policy(tmp_path: Path, driver: Any) -> None:
    make_clips(tmp_path / "labels")
    clips = read_clips(tmp_path / "labels")
    server, bound, address = _make_server(clips, "127.0.0.1", 0, "sb3-pmpo offline ...")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    driver.get(address)
    wait = WebDriverWait(driver, 30)

    def brightness() -> float:
        """Of the picture that the clip shows, once it plays."""
        script = """
            const video = document.getElementById("video");
            if (video.readyState < 2) { return -1; }
            const canvas = document.createElement("canvas");
            const pen = canvas.getContext("2d");
            pen.drawImage(video, 0, 0, 1, 1);
            return pen.getImageData(0, 0, 1, 1).data[0];"""
        wait.until(lambda browser: browser.execute_script(script) >= 0)
        return float(driver.execute_script(script))

    def text(element: str) -> str:
        return str(driver.find_element(By.ID, element).text)

    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for number in range(N_CLIPS):
        wait.until(lambda _, n=number: text("counts").startswith(f"{n} of {N_CLIPS}"))
        good = brightness() > 128
        if number == 2:  # by keyboard alone: to the button, and press it
            for _ in range(10):
                ActionChains(driver).send_keys(Keys.TAB).perform()
                if driver.switch_to.active_element.get_attribute("id") == "reject":
                    break
            ActionChains(driver).send_keys(Keys.ENTER).perform()
            wait.until(lambda _: text("counts").startswith("3 of"))
            ActionChains(driver).send_keys("u").perform()
            wait.until(lambda _: text("counts").startswith("2 of"))
            ActionChains(driver).send_keys("f").perform()  # enough for today
            wait.until(lambda _: text("over") == f"2 of {N_CLIPS} clips have an answer")
            assert "sb3-pmpo offline" in text("command")
            driver.find_element(By.ID, "resume").click()
            brightness()
        if number == 3:
            driver.find_element(By.ID, "accept" if good else "reject").click()
            wait.until(lambda _: text("counts").startswith("4 of"))
            brightness()
            ActionChains(driver).send_keys(" ").perform()  # stops the clip, and answers nothing
            wait.until(lambda browser: browser.execute_script("return video.paused"))
            assert text("counts").startswith("4 of")
        else:
            ActionChains(driver).send_keys("a" if good else "r").perform()
    wait.until(lambda _: "sb3-pmpo offline" in text("command"))
    driver.find_element(By.ID, "finish").click()
    thread.join(20)
    assert not thread.is_alive()
    assert read_clips(tmp_path / "labels").answers().counts() == {
        "accept": N_CLIPS // 2,
        "reject": N_CLIPS // 2,
        "skip": 0,
    }
    data = read_clips(tmp_path / "labels").dataset()
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    model = PMPO.from_spaces("MlpPolicy", SEEN, DONE, learning_rate=1e-2, **arguments)
    model.learn_offline(data, 100, alpha=1.0, beta=0.0)
    assert model.predict(np.zeros((1, 1), np.float32), deterministic=True)[0] > 0.4
