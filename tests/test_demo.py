"""`distgan demo`: the page, and what it does in a real browser."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.commands import web_runtime
from distgan.commands.demo import demo_page
from distgan.networks.base import ConditionalSpec, GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.directions import latent_directions
from distgan.networks.generator import Generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import slerp
from distgan.networks.mixture import mixture_spec
from tests.browser import chromium, served
from tests.test_commands import call
from tests.worlds import run_world, train_run

PART = GeneratorSpec(architecture="dcgan", image_size=(32, 48), channels=3, width=4, latent_dim=8)
CONDITIONAL = ConditionalSpec(**vars(PART), classes=("cat", "dog"), shares=(0.25, 0.75))
MIXTURE = mixture_spec(PART, classes=("cat", "dog"), weights=(0.25, 0.75))


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_directions_change_the_first_layer_most(architecture: str) -> None:
    """They are orthonormal; the first ones have the largest effect, none has a larger one."""
    spec = GeneratorSpec(
        architecture=architecture, image_size=32, channels=1, width=4, latent_dim=16
    )
    network = build_generator(spec)
    (directions,) = latent_directions(network, 5)
    torch.testing.assert_close(directions @ directions.T, torch.eye(5), rtol=0, atol=1e-5)
    with torch.no_grad():
        weight = network.project.weight
        effects = (weight @ directions.T).norm(dim=0)
        others = torch.nn.functional.normalize(torch.randn(16, 200), dim=0)
        assert (effects.diff() <= 1e-5).all()
        assert (weight @ others).norm(dim=0).max() < effects[0]


def data_of(page: str) -> dict[str, Any]:
    """Return the data in a page."""
    found = re.search(r'<script type="application/json" id="demo">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def page_of(folder: Path, *, offline: bool, title: str = "title") -> str:
    """Return the page of a new generator, whose ONNX file is a stand-in."""
    (folder / "generator.onnx").write_bytes(b"weights")
    generator = Generator(build_generator(MIXTURE), MIXTURE)
    return demo_page(generator, folder, title=title, offline=offline)


def test_page_names_a_version_and_hashes(tmp_path: Path) -> None:
    """The CDN's files have a version and hashes, and the policy allows no other host."""
    page = page_of(tmp_path, offline=False)
    for file in data_of(page)["runtime"].values():
        assert file["url"].startswith("https://cdn.jsdelivr.net/npm/onnxruntime-web@1.")
        assert re.fullmatch(r"sha384-[\w+/]{64}", file["integrity"])
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page, re.DOTALL)
    assert policy is not None
    assert "connect-src 'self' https://cdn.jsdelivr.net" in policy[1]


def test_offline_page_names_no_host(tmp_path: Path) -> None:
    """Nothing in the page points to another server; the policy allows only the page's own."""
    page = page_of(tmp_path, offline=True)
    assert "://" not in page.replace("http://localhost:8000", "")
    assert "connect-src 'self'\">" in page


def test_title_stays_text(tmp_path: Path) -> None:
    """A title can add no markup, neither to the page nor to the data."""
    page = page_of(tmp_path, offline=True, title="</script><b>x")
    assert "<b>x" not in page
    assert data_of(page)["title"] == "</script><b>x"


def run_demo(source: Path, out: Path) -> Path:
    """Write a demo with the runtime's real files, or skip the test if they cannot be had."""
    pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[onnx]'")
    code, said = call("demo", source, "--out", out, "--offline")
    if "cannot fetch onnxruntime-web" in said:
        pytest.skip(said)
    assert (code, "http.server" in said) == (0, True), said
    return out


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a trained run and its demo."""
    run = tmp_path_factory.mktemp("demo") / "run"
    run_world(1, train_run, shards, run, ["train.kimg=0.24"])
    return run, run_demo(run, run.parent / "out")


class Page:
    """A demo in a browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        """Open the page and wait until everything is drawn."""
        self.browser.set_script_timeout(120)
        self.browser.get(url)
        self.wait_for(lambda: not self.js("return byId('stage').inert"))
        self.settle()

    def js(self, code: str, *arguments: Any) -> Any:
        """Run code in the page."""
        return self.browser.execute_script(code, *arguments)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; fails after some time."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.js("return byId('status').textContent")
            time.sleep(0.05)

    def settle(self) -> None:
        """Wait until everything is drawn."""
        self.browser.execute_async_script("drawAll().then(arguments[0])")

    def set(self, selector: str, value: float) -> None:
        """Move a slider as a person does, and wait until everything is drawn."""
        self.js(
            "const input = document.querySelector(arguments[0]); input.value = arguments[1];"
            "input.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            value,
        )
        self.settle()

    def click(self, selector: str) -> None:
        """Click a button, and wait until everything is drawn.

        It is scrolled to the middle first, because the picture covers the top on a phone.
        """
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.browser.find_element("css selector", selector).click()
        self.settle()

    def pixels(self, selector: str = "#picture", number: int = 0) -> np.ndarray:
        """Return the pixels of a canvas, int [H, W, 3]."""
        values = self.js(
            "const canvas = all(arguments[0])[arguments[1]];"
            "const pixels = canvas.getContext('2d').getImageData(0, 0, demo.width, demo.height);"
            "return [...pixels.data]",
            selector,
            number,
        )
        height, width = self.js("return [demo.height, demo.width]")
        return np.array(values).reshape(height, width, 4)[:, :, :3]


def shown_by(generator: Generator, *inputs: torch.Tensor) -> np.ndarray:
    """Return the pixels, int [H, W, 3], of one latent [1, Z], and label, as PyTorch does."""
    image = generator.images(*inputs)[0].permute(1, 2, 0).int().numpy()
    return np.broadcast_to(image, (*image.shape[:2], 3))


@pytest.mark.slow
def test_page_shows_the_images_of_the_generator(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """On a phone: images appear and are PyTorch's, sliders change them, the console is empty."""
    run, out = trained
    generator = load_generator(run)
    with served(out) as url, chromium(tmp_path / "profile", width=390) as browser:
        page = Page(browser)
        page.open(url)
        assert page.js("return document.documentElement.scrollWidth") <= 390
        assert page.js("return all('#gallery canvas').length") == 12
        assert all(page.pixels("#gallery canvas", number).std() > 0 for number in range(12))
        start, end = (torch.tensor([page.js(f"return [...{name}]")]) for name in ("start", "end"))
        before = page.pixels()
        assert np.abs(before - shown_by(generator, start)).max() <= 1

        page.set(".direction", 3)
        (directions,) = latent_directions(generator.network, 8)
        expected = shown_by(generator, start + 3 * directions[:1])
        assert np.abs(page.pixels() - expected).max() <= 1
        assert np.abs(page.pixels() - before).max() > 1
        page.click("#reset")
        assert np.array_equal(page.pixels(), before)

        page.set("#way", 0.25)
        expected = shown_by(generator, slerp(start, end, torch.tensor([0.25]))[0])
        assert np.abs(page.pixels() - expected).max() <= 1
        page.set("#way", 1)
        assert np.array_equal(page.pixels(), page.pixels("#end canvas"))

        page.set("#way", 0)
        page.set("#truncation", 0.7)
        expected = shown_by(generator, generator.truncate(start, 0.7))
        assert np.abs(page.pixels() - expected).max() <= 1
        page.set("#truncation", 1)

        page.click("#random")
        assert not np.array_equal(page.pixels(), before)
        page.click("#gallery button")
        assert np.array_equal(page.pixels(), page.pixels("#gallery canvas"))
        page.click("#play")
        page.wait_for(lambda: float(page.js("return byId('way').value")) > 0.05)
        page.click("#play")
        assert page.js("return player === null")
        assert browser.get_log("browser") == []


@pytest.mark.slow
def test_image_is_downloaded_as_png(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The file shows the picture, enlarged to 512 pixels, under the run's name."""
    _, out = trained
    with served(out) as url, chromium(tmp_path / "profile") as browser:
        page = Page(browser)
        page.open(url)
        browser.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
        )
        browser.find_element("id", "download").click()
        page.wait_for((tmp_path / "run.png").exists)
        with Image.open(tmp_path / "run.png") as image:
            assert image.size == (512, 512)
            assert np.array_equal(np.asarray(image.convert("RGB"))[::16, ::16], page.pixels())
        assert browser.get_log("browser") == []


@pytest.mark.slow
def test_classes_can_be_chosen(tmp_path: Path) -> None:
    """Each class shows the images of its own generator, and moves in its own directions."""
    save_generator(build_generator(MIXTURE).eval(), MIXTURE, tmp_path, facts={})
    generator = load_generator(tmp_path)
    out = run_demo(tmp_path, tmp_path / "out")
    with served(out) as url, chromium(tmp_path / "profile") as browser:
        page = Page(browser)
        page.open(url)
        names = page.js("return [...byId('class').options].map((option) => option.textContent)")
        assert names == ["cat", "dog"]
        for number, part in enumerate(generator.network.parts):
            page.set("#class", number)
            page.set(".direction", 2)
            start = torch.tensor([page.js("return [...start]")])
            moved = start + 2 * latent_directions(part, 1)[0]
            assert np.abs(page.pixels() - shown_by(Generator(part, PART), moved)).max() <= 1
        assert browser.get_log("browser") == []


@pytest.mark.slow
def test_a_class_can_be_asked_for(tmp_path: Path) -> None:
    """Of a conditional generator, the page shows the image of a latent in the class chosen."""
    generator = Generator(build_generator(CONDITIONAL), CONDITIONAL)
    with torch.no_grad():  # a new one hardly tells classes apart
        generator.network.modulation.weight.normal_()
    save_generator(generator.network, CONDITIONAL, tmp_path, facts={})
    out = run_demo(tmp_path, tmp_path / "out")
    with served(out) as url, chromium(tmp_path / "profile") as browser:
        page = Page(browser)
        page.open(url)
        start = torch.tensor([page.js("return [...start]")])
        (directions,) = latent_directions(generator.network, 1)
        shown = []
        for number in range(2):
            page.set("#class", number)
            page.set(".direction", 2)
            expected = shown_by(generator, start + 2 * directions, torch.tensor([number]))
            assert np.abs(page.pixels() - expected).max() <= 1
            shown.append(page.pixels())
        assert np.abs(shown[0] - shown[1]).max() > 1
        page.click("#reset")
        page.set("#truncation", 0.7)
        truncated = generator.truncate(start, 0.7, torch.tensor([1]))
        expected = shown_by(generator, truncated, torch.tensor([1]))
        assert np.abs(page.pixels() - expected).max() <= 1
        assert browser.get_log("browser") == []


@pytest.mark.slow
def test_page_says_why_it_cannot_start(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """A changed runtime is not executed; without a connection, or as a file, it says what to do."""
    out = shutil.copytree(trained[1], tmp_path / "out")
    page = demo_page(load_generator(trained[0]), out, title="title", offline=False)
    unconnected = page.replace(web_runtime.CDN_HOST, "https://nowhere.invalid")
    (out / "unconnected.html").write_text(unconnected)
    with (out / web_runtime.SCRIPT.name).open("a") as script:
        script.write("\nwindow.isChanged = true;\n")
    with served(out) as url, chromium(tmp_path / "profile") as browser:
        page = Page(browser)
        for place, expected in (
            (url, "is not the file that this page was made for."),
            (f"{url}/unconnected.html", "distgan demo --offline"),
            (f"file://{out}/index.html", "http.server"),
        ):
            browser.get(place)
            page.wait_for(lambda: page.js("return byId('status').className") == "bad")
            assert expected in page.js("return byId('status').textContent")
            assert page.js("return byId('stage').inert && !window.isChanged")
