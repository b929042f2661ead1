"""A headless Chromium for the tests of pages: Selenium with Debian's own driver, nothing downloaded."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,820",
]


def absent() -> str:
    """Why there is no browser to test in; empty where there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed (Debian: chromium, chromium-driver)" if missing else ""


class Browser:
    """One page in one window; elements are named by CSS selectors."""

    def __init__(self, driver: webdriver.Chrome):
        self._driver = driver

    def open(self, url: str) -> None:
        self._driver.get(url)

    def look(self, width: int, scheme: str) -> None:
        """A window of so many CSS pixels, and a reader who prefers a light or a dark page, and no motion."""
        window = {"width": width, "height": 820, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script's `return` gives; a promise is waited for."""
        return self._driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def type(self, selector: str, text: str) -> None:
        """Types into an element; a path into a file input chooses the file."""
        self.find(selector).send_keys(text)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The first true value of an expression."""
        waiting = WebDriverWait(self._driver, seconds, poll_frequency=0.05)
        return waiting.until(lambda _: self.run(f"return {script}"), f"waited {seconds} s for {script}")

    def press(self, *keys: str) -> None:
        """Keys, one after the other, to whatever has the focus."""
        ActionChains(self._driver).send_keys(*keys).perform()

    def hover(self, selector: str, x: int, y: int) -> None:
        """Moves the mouse over an element, to an offset from its centre."""
        ActionChains(self._driver).move_to_element_with_offset(self.find(selector), x, y).perform()

    def log(self) -> list[str]:
        """Messages of the console, errors of the security policy among them."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def screenshot(self, path: Path) -> None:
        self._driver.save_screenshot(str(path))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that is gone afterwards."""
    options = webdriver.ChromeOptions()
    # Both programs are named, so that Selenium's manager looks for none on the network.
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
