"""Every page as people meet it: wide and narrow, light and dark, by keyboard, and by the rules of accessibility.

The accessibility rules are those of axe-core, which `make test` brings where npm is installed."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from quecc_jax.generate.questions import Usage
from quecc_jax.generate.scheduler import Scheduler
from quecc_jax.serve.backend import Asked
from quecc_jax.serve.own_backend import OwnBackend
from tests.browser import Browser, absent, browser
from tests.pages.making import FILES, QUESTIONS, addresses, chat

pytestmark = pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")

AXE = Path(__file__).parents[2] / ".venv-axe/axe.min.js"
WIDE, NARROW = 1200, 400
LOOKS = [(width, scheme) for width in (WIDE, NARROW) for scheme in ("light", "dark")]
CONTROLS = "a[href], button:enabled, input:enabled, select:enabled, textarea:enabled, summary, [tabindex='0']"


@pytest.fixture(scope="module", params=[*FILES, "chat"])
def pages(request, tmp_path_factory) -> Iterator[list[str]]:
    with addresses(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def show(window: Browser, address: str, width: int, scheme: str) -> None:
    """The page when all of it is there; in the chat the first question is answered."""
    window.look(width, scheme)
    window.open(address)
    if address.startswith("http:"):
        ask_first(window)
    # What watches the sizes of things has been told of them.
    window.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def ask_first(window: Browser) -> None:
    window.wait("document.querySelector('#drop canvas') !== null")
    window.click("#offered button")
    window.wait("document.querySelectorAll('.usage').length === 1")


# Each table, figure and chart: whether its last column ends inside of the part that shows, before and after its
# window is scrolled to the end, whether the keyboard reaches it and it says that it scrolls, as soon as it does.
WINDOWS = """
return [...document.querySelectorAll("table, picture, #explorer .window > svg")].map(thing => {
  const box = thing.closest(".scroll, .window"), end = thing.querySelector("tr > :last-child, img") || thing;
  const inside = () => end.getBoundingClientRect().right <= box.getBoundingClientRect().right + 1;
  const first = inside();
  box.scrollLeft = 1e6;
  const then = inside();
  box.scrollLeft = 0;
  const over = box.scrollWidth > box.clientWidth;
  const hint = getComputedStyle(box.nextElementSibling).display !== "none";
  const reached = thing.tabIndex === 0 || (over === (box.tabIndex === 0) && box.ariaLabel !== null);
  return [first, then, reached && over === hint];
});
"""


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_nothing_is_cut_and_everything_is_shown_as_the_reader_prefers(pages, window, width, scheme):
    for address in pages:
        show(window, address, width, scheme)
        root = "document.documentElement"
        scrolled, seen = window.run(f"return [{root}.scrollWidth, {root}.clientWidth]")
        assert scrolled <= seen, address
        for first, then, usable in window.run(WINDOWS):
            assert then and usable and (first or width == NARROW), address
        paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 25, 29)"}[scheme]
        assert window.run("return getComputedStyle(document.body).backgroundColor") == paper
        for image in window.run(
            "return [...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0, i.currentSrc ==="
            "  (i.previousElementSibling?.srcset ?? i.src), i.src === i.currentSrc, i.closest('picture') === null])"
        ):
            described, loaded, drawn, is_light, alone = image
            # The first source of a picture is its dark one.
            assert described and loaded and (alone or (drawn if scheme == "dark" else is_light)), address
        moving = (
            "return document.getAnimations().length + [...document.querySelectorAll('*')].filter("
            "node => getComputedStyle(node).transitionDuration !== '0s').length"
        )
        assert window.run(moving) == 0, address


@pytest.mark.skipif(
    not AXE.exists(), reason=f"{AXE.parent.name} has no axe-core (make test brings it by npm)"
)
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_no_rule_of_accessibility_is_broken(pages, window, width, scheme):
    rules = AXE.read_text()
    for address in pages:
        show(window, address, width, scheme)
        window.run(rules)
        found: dict[str, Any] = window.run("return axe.run(document)")
        assert len(found["passes"]) > 15
        broken = [(rule["id"], node["html"][:200]) for rule in found["violations"] for node in rule["nodes"]]
        assert broken == [], address


# Numbers of the controls that the Tab key should reach, in the order of the page, and of the one that it reached.
REACHABLE = f"""
return [...document.querySelectorAll("{CONTROLS}")].flatMap((node, at) => node.checkVisibility() ? [at] : []);
"""
REACHED = f"""
const node = document.activeElement;
const ringed = [node, node.parentElement].map(one => getComputedStyle(one)).some(
  style => style.outlineStyle !== "none" && style.opacity !== "0");
return [[...document.querySelectorAll("{CONTROLS}")].indexOf(node), ringed];
"""


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_tab_key_reaches_everything_in_order_and_shows_where_it_is(pages, window, width):
    for address in pages:
        show(window, address, width, "light")
        wanted, reached = window.run(REACHABLE), []
        # From the page's beginning, whatever was clicked to get it ready.
        window.run(
            "document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')"
        )
        for _ in wanted:
            window.press(Keys.TAB)
            at, ringed = window.run(REACHED)
            assert ringed, (address, at)
            reached.append(at)
        assert reached == wanted, address


def test_the_explorer_is_driven_by_keys(window, tmp_path):
    plan = next(path for path in FILES["law"](tmp_path) if path.name == "plan.html")
    show(window, plan.as_uri(), WIDE, "light")
    said, tip = (f"return document.querySelector('#explorer .{one}').textContent" for one in ("said", "tip"))

    def focused(selector: str, *keys: str) -> str:
        window.run(f"document.querySelector('#explorer {selector}').focus()")
        window.press(*keys)
        return window.run(said)

    first = window.run(said)
    dearer = focused("input[type=range]", *9 * [Keys.ARROW_RIGHT])
    assert dearer.split()[0] != first.split()[0]
    shown = "return document.querySelectorAll('#explorer .mark').length"
    marks = window.run(shown)
    focused("input[type=checkbox]", " ")
    assert window.run(shown) == marks - 7
    focused(".panel:nth-of-type(3) svg", Keys.ARROW_RIGHT)
    told = window.run(tip)
    focused(".panel:nth-of-type(3) svg", Keys.ARROW_RIGHT)
    assert "error" in told and "error" in window.run(tip) != told
    before = window.run(said)
    after = focused(".panel:last-of-type svg", *3 * [Keys.ARROW_UP], Keys.ARROW_RIGHT)
    assert after.split()[0] != before.split()[0]
    assert window.run("return document.activeElement.getAttribute('role')") == "application"
    assert [line for line in window.log() if "SEVERE" in line] == []


class Held(OwnBackend):
    """A backend that says the next piece when it may go on."""

    going = threading.Event()

    async def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        async for item in super().answer(asked):
            yield item
            while not self.going.is_set():
                await asyncio.sleep(0.02)


def test_the_chat_is_driven_by_keys(window):
    """A question to click, the square of one visual token, a question of one's own, and an answer that is stopped."""
    going = Held.going
    going.set()
    with chat(lambda engine: Held(Scheduler(engine))) as port:
        show(window, f"http://127.0.0.1:{port}/", WIDE, "dark")
        window.run("document.querySelector('#offered button:last-child').focus()")
        window.press(Keys.ENTER)
        window.wait(f"document.querySelector('.human .said')?.innerText === '{QUESTIONS[1]}'")
        window.wait("document.querySelectorAll('.usage').length === 1")

        token = "return [document.querySelector('#token').textContent, document.activeElement.ariaValueText]"
        window.run("document.querySelector('#drop canvas').focus()")
        window.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
        assert window.run(token) == 2 * ["visual token 6 of 16, row 2, column 2"]
        window.press(Keys.ESCAPE)
        assert "where 16 visual tokens look" in window.run(token)[0]
        window.run("document.querySelector('#heat').focus()")
        window.press(" ")
        assert window.run("return document.querySelector('#heat').ariaPressed") == "false"
        assert window.run("return document.querySelector('#drop canvas').getAttribute('role')") == "img"

        going.clear()
        window.run("document.querySelector('#text').focus()")
        window.press("and now?", Keys.TAB, Keys.ENTER)
        window.wait("document.activeElement.id === 'stop'")
        assert window.run("return document.querySelector('#log').ariaBusy") == "true"
        window.press(Keys.ENTER)
        window.wait("document.activeElement.id === 'send'")
        assert window.run("return document.querySelector('#log').ariaBusy") == "false"
        assert "(stopped" in window.run("return document.querySelector('.turn:last-child').innerText")

        # A question that is clicked while another is answered takes its place.
        window.run("document.querySelector('#text').focus()")
        window.press("and now?", Keys.ENTER)
        window.wait("document.querySelector('#log').ariaBusy === 'true'")
        window.run("document.querySelector('#offered button').focus()")
        window.press(Keys.ENTER)
        going.set()
        window.wait("document.querySelectorAll('.usage').length === 1")
        said = "return [...document.querySelectorAll('.human .said')].map(one => one.innerText)"
        assert window.run(said) == [QUESTIONS[0]]
        assert window.run("return document.querySelector('#log').ariaBusy") == "false"
        assert [line for line in window.log() if "Security" in line or "Uncaught" in line] == []
