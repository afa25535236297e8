"""A real browser without a screen: Debian's Chromium, driven by selenium."""

import base64
import os
import shutil
import subprocess

import pytest

PACKAGES = ("chromium", "chromium-driver", "python3-selenium")


def missing():
    try:
        import selenium.webdriver   # noqa: F401
    except ImportError:
        return True
    return not (shutil.which("chromium") and shutil.which("chromedriver"))


def need():
    """Without a browser: root could install it, so that its absence is a failure; else the test is skipped."""
    if not missing():
        return
    told = f"no browser here: {', '.join(PACKAGES)}"
    policy = subprocess.run(["apt-cache", "policy", *PACKAGES], capture_output=True, text=True).stdout
    if os.geteuid() == 0 and policy.count("Candidate:") - policy.count("Candidate: (none)") == len(PACKAGES):
        pytest.fail(f"{told} are not installed (./build.sh test installs them)", pytrace=False)
    pytest.skip(told)


class Browser:
    """One window; what its console says, and what it asks for, is kept until looked at."""

    def __init__(self, folder):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update",
                     "--force-device-scale-factor=1", f"--user-data-dir={folder}/profile"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.set_capability("unhandledPromptBehavior", "ignore")     # an alert() is found, not shut
        env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        self.driver = webdriver.Chrome(service=Service(shutil.which("chromedriver"), env=env), options=options)
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(60)

    def open(self, url):
        self.console()
        self.driver.get(url)

    def close(self):
        self.driver.quit()

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def texts(self, selector):
        """What the elements say that can be seen."""
        return self.js("return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
                       ".map(e => e.textContent)", selector)

    def text(self, selector):
        return " | ".join(self.texts(selector))

    def console(self):
        return [f"{line['level']}: {line['message']}" for line in self.driver.get_log("browser")]

    def look(self, width, height, dark):
        """As a window of this size shows it, in daylight or at night."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

    def shot(self, path):
        """All of the page, not only what fits the window."""
        width, height = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {
            "format": "png", "captureBeyondViewport": True,
            "clip": {"x": 0, "y": 0, "width": width, "height": min(height, 5000), "scale": 1}})
        with open(path, "wb") as f:
            f.write(base64.b64decode(shot["data"]))
