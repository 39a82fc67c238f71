"""The explorer in a browser, on the small export: what its canvases show is what the model gives, to one 8-bit step."""

import functools
import http.server
import json
import shlex
import shutil
import signal
import threading
import urllib.parse

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

import nvae_tf
from nvae_tf.generation import sampling
from nvae_tf.generation.image_grid import pixels_of_files
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.serving import tflite
from nvae_tf.serving.device_signatures import DeviceSignatures
from nvae_tf.serving.server_files import PAGE, explorer_facts, write_explorer
from tests.command_fixtures import CHROMIUM, NEEDS_CHROMIUM, output_of, started
from tests.serving.conftest import EXAMPLES
from tests.serving.model_servers import served, with_few_warm_ups
from tests.tiny_model import flat

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
PIXELS = """part => [...document.querySelectorAll(`#${part} canvas, canvas#${part}`)].map(
  canvas => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data])"""
MEASURES = "performance.getEntriesByType('measure').map(({ name, duration }) => [name, duration])"


class Explorer:
    """A tab; `after(name, action)` waits until the page has done what follows from an action."""

    def __init__(self, tab, address):
        self.tab, self.errors = tab, []
        # Only so that a page that hangs ends: a server's first request of a signature takes seconds, more under load.
        tab.set_default_timeout(120_000)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab.goto(address)

    def settled(self):
        self.tab.wait_for_function("document.body.dataset.running === '0'")

    def after(self, action, *arguments):
        action(*arguments)
        self.settled()
        assert self.tab.locator("#problem").is_hidden(), self.tab.locator("#reason").inner_text()

    def pixels(self, part):
        return np.array(self.tab.evaluate(PIXELS, part)).reshape(-1, 8, 8, 4)[..., :3]

    def clipboard(self):
        self.tab.get_by_role("status").get_by_text("Copied").wait_for()
        return self.tab.evaluate("navigator.clipboard.readText()")

    def button(self, name):
        return self.tab.get_by_role("button", name=name, exact=True)


def assert_shows(pixels, images):
    assert pixels.shape == images.shape
    assert np.abs(pixels - 255.0 * np.asarray(images)).max() <= 1.0


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """The address that the command prints; a signature that a page does not ask for is not warmed up."""
    export = with_few_warm_ups(folder, tmp_path_factory.mktemp("address"), "sample")
    flags = [f"--path={export.parent}", "--model=tiny", "--explore", "--port=0", "--rest_port=0"]
    process = started(["-m", "export.serve", *flags])
    printed, start = [], "explorer: "
    for line in process.stdout:
        printed.append(line)
        if line.startswith(start):
            yield line.removeprefix(start).strip()
            process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0 and printed[-1] == "ended\n", "".join(printed)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def explorer(address, browser):
    explorer = Explorer(browser.new_page(), address)
    explorer.settled()
    yield explorer
    print("\nmilliseconds:", ", ".join(f"{name} {ms:.0f}" for name, ms in explorer.tab.evaluate(MEASURES)))
    assert explorer.errors == []


def latents_of(model, number):
    return [z.numpy() for z in model.encode(EXAMPLES[number : number + 1] / np.float32(255.0), seed=0)]


def test_the_grid_shows_samples_at_a_temperature_for_each_scale(explorer, model):
    assert_shows(explorer.pixels("samples"), model.generate(24, seed=1))
    explorer.after(explorer.button("Fewer").click)
    explorer.after(explorer.tab.get_by_role("slider", name="4×4").fill, "0.5")
    assert_shows(explorer.pixels("samples"), model.generate(12, temperature=[1.0, 0.5], seed=1))
    explorer.after(explorer.button("Next seed").click)
    assert_shows(explorer.pixels("samples"), model.generate(12, temperature=[1.0, 0.5], seed=2))
    explorer.after(explorer.tab.get_by_role("slider", name="4×4").fill, "1")


def test_an_uploaded_picture_is_encoded_and_its_groups_are_redrawn(explorer, model, tmp_path):
    Image.fromarray(EXAMPLES[5]).save(tmp_path / "own.png")
    explorer.after(explorer.tab.get_by_label("Your picture").set_input_files, tmp_path / "own.png")
    assert np.array_equal(explorer.pixels("original"), EXAMPLES[5:6])
    latents = latents_of(model, 5)
    assert_shows(explorer.pixels("current"), model.decode(latents))
    kl = model.score(EXAMPLES[5:6] / np.float32(255.0), seed=0, per_group=True).kl.numpy()[0]
    shown = explorer.tab.locator("#groups b").all_inner_texts()
    assert np.allclose(list(map(float, shown)), kl, atol=0.006)

    (score,) = model.outlier_score(EXAMPLES[5:6] / np.float32(255.0)).kl.numpy()
    assert f"sum of KLs {score:.3g}"[:14] in explorer.tab.locator("#facts").inner_text()
    assert explorer.pixels("map").max() > explorer.pixels("map").min()

    explorer.after(explorer.button("Redraw group 2 alone").click)
    top = [np.repeat(latents[0], 6, axis=0)]
    assert_shows(explorer.pixels("variants"), model.decode(top, temperature=1.0, seed=0))
    explorer.after(explorer.tab.get_by_label("Top groups kept").fill, "2")
    assert_shows(explorer.pixels("variants"), model.decode(latents))
    # The top group alone: the lower one is as before.
    explorer.after(explorer.button("Redraw group 1 alone").click)
    explorer.after(explorer.button("Variant 3").click)
    kept = json.loads(explorer.tab.evaluate("decodeURIComponent(location.hash.slice(1))"))["current"]["row"]["keep"]
    assert kept == [0, 1]


def test_an_interpolation_in_chosen_groups(explorer, model):
    for number, end in ((2, "A"), (9, "B")):
        explorer.after(explorer.button(f"Test image {number + 1}").click)
        explorer.after(explorer.button(f"Use as {end}").click)
    ends = [[z[0] for z in latents_of(model, number)] for number in (2, 9)]
    fractions = np.arange(7) / 6
    for lower_end in (1, 0):  # the lower group changes, then is kept
        pairs = zip(ends[0], (ends[1][0], ends[lower_end][1]), strict=True)
        latents = [sampling.latents_between(*pair, fractions, "spherical") for pair in pairs]
        assert_shows(explorer.pixels("path"), model.decode(latents))
        explorer.button("Copy Interpolation as curl").click()
        request = json.loads(explorer.clipboard().splitlines()[1])
        assert np.allclose(request["inputs"]["latent"], flat(latents), atol=1e-5)
        explorer.after(explorer.tab.get_by_label("2: ").uncheck)


def test_a_region_is_restored_with_the_keyboard_alone(explorer):
    explorer.after(explorer.button("Test image 4").click)
    explorer.tab.get_by_label("Region to restore").focus()
    for key in ("Space", "ArrowRight", "ArrowDown", "Space"):
        explorer.tab.keyboard.press(key)
    explorer.after(explorer.button("Restore").click)
    restored, original = explorer.pixels("restored"), EXAMPLES[3:4]
    changed = (restored != original).any(axis=(0, -1))
    assert len(restored) == 4 and changed[3:7, 3:7].mean() > 0.5
    # What can be copied is the last round's request.
    explorer.button("Copy Restoration as Python").click()
    names = {}
    exec(explorer.clipboard(), names)
    assert np.abs(255.0 * names["outputs"]["image"] - restored)[:, changed].max() <= 1.0
    changed[2:8, 2:8] = False
    assert not changed.any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_every_number_of_channels_come_back_from_files(explorer, channels):
    pixels = np.random.default_rng(0).integers(0, 256, [5, 6, channels])
    if channels % 2 == 0:
        pixels[..., -1] = 255  # browsers keep no color of what is transparent
    script = """async ([pixels, shape]) => {
      const { fromFile, sheet } = await import("./images.js");
      return [...await fromFile(await sheet([Uint8Array.from(pixels)], shape), shape)];
    }"""
    assert np.array_equal(explorer.tab.evaluate(script, [pixels.ravel().tolist(), [*pixels.shape]]), pixels.ravel())


def test_an_address_of_a_link_can_not_end_the_string_of_the_command_that_is_copied(explorer):
    script = """async () => new (await import("./server.js")).Model("http://x'; id; '", "a'b").asCurl({})"""
    command, _ = explorer.tab.evaluate(script).split(" <<", 1)
    assert shlex.split(command) == ["curl", "--data", "@-", "http://x%27; id; %27/v1/models/a%27b:predict"]


def test_a_link_brings_back_what_is_shown(explorer, address, browser):
    parts = ("samples", "current", "variants", "path")
    explorer.after(explorer.button("Variant 2").click)
    other = Explorer(browser.new_page(), explorer.tab.url)
    other.settled()
    for part in parts:
        assert np.array_equal(other.pixels(part), explorer.pixels(part)), part


def test_pictures_of_large_images_come_as_files(address, browser, model):
    tab, used = browser.new_page(), []

    def serve(route):
        answer = route.fetch()
        assert "SMALL = 2 ** 12" in answer.text()
        route.fulfill(response=answer, body=answer.text().replace("SMALL = 2 ** 12", "SMALL = 1"))

    tab.route("**/latents.js", serve)
    tab.on("request", lambda request: request.post_data and used.append(request.post_data_json["signature_name"]))
    explorer = Explorer(tab, address)
    explorer.settled()
    assert_shows(explorer.pixels("samples"), model.generate(24, seed=1))
    assert {"sample_png", "compose_png"} <= set(used) and not {"sample", "compose"} & set(used)
    explorer.button("Copy Samples as Python").click()
    names = {}
    exec(explorer.clipboard(), names)
    assert np.array_equal(pixels_of_files(names["outputs"]["image_bytes"]), explorer.pixels("samples"))


@pytest.fixture(scope="module")
def pets(conditional_folder, tmp_path_factory):
    """The address of a server of the model with classes, and the folder of its pages."""
    place = tmp_path_factory.mktemp("pets")
    export, pages = with_few_warm_ups(conditional_folder, place, "sample"), place / "explorer"
    write_explorer(pages, {"pets": explorer_facts(export)})
    with served("pets", export.parent, enable_cors=True, pages=pages) as servers:
        yield servers.url("rest"), pages


def test_classes_guidance_and_the_reweighted_prior(conditional_model, pets, browser):
    model, image = conditional_model, EXAMPLES[1:2] / np.float32(255.0)
    explorer = Explorer(browser.new_page(), f"{pets[0]}/{PAGE}")
    tab = explorer.tab
    explorer.settled()
    assert_shows(explorer.pixels("samples"), model.generate(24, seed=1, labels=[0, 1, 2] * 8))
    explorer.after(tab.get_by_label("Class").select_option, "dog")
    # One of the two at a time: together the model refuses them.
    guided, reweighted = tab.get_by_role("slider", name="Guidance"), tab.get_by_label("Reweighted prior")
    explorer.after(guided.fill, "2")
    guidance_of_dogs = model.generate(24, seed=1, labels=1, guidance=2.0).numpy()
    assert_shows(explorer.pixels("samples"), guidance_of_dogs)
    explorer.after(explorer.button("Sample 4 of seed 1").click)
    assert_shows(explorer.pixels("current"), guidance_of_dogs[3:4])
    explorer.after(reweighted.check)
    assert_shows(explorer.pixels("samples"), model.generate(24, seed=1, labels=1, prior="reweighted"))
    explorer.after(guided.fill, "3")
    assert not reweighted.is_checked()

    # A test image has a class of its own, with which it is encoded, scored and redrawn.
    explorer.after(explorer.button("Test image 2").click)
    assert_shows(explorer.pixels("current"), model.decode(model.encode(image, seed=0, labels=1), labels=1))
    facts, score = tab.locator("#facts").inner_text(), model.outlier_score(image, labels=1)
    for text, value in (("sum of KLs", score.kl), ("Mahalanobis distance", score.mahalanobis)):
        assert f"{text} {value.numpy()[0]:.3g}"[:-1] in facts
    assert explorer.errors == []


def test_a_page_of_another_address_asks_again_when_the_server_is_back(browser, pets, conditional_model):
    pages = functools.partial(http.server.SimpleHTTPRequestHandler, directory=pets[1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), pages) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{web.server_address[1]}/{PAGE}?server={pets[0]}"
        explorer = Explorer(browser.new_page(), address)
        explorer.settled()
        explorer.tab.route("**/*:predict", lambda route: route.abort())
        explorer.button("Next seed").click()
        explorer.tab.get_by_role("alert").get_by_text("No answer from").wait_for()
        explorer.tab.unroute("**/*:predict")
        explorer.after(explorer.button("Try again").click)
        assert_shows(explorer.pixels("samples"), conditional_model.generate(24, seed=2, labels=[0, 1, 2] * 8))
        web.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_nothing_is_wider_than_the_window_and_text_stands_out(address, browser, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    explorer = Explorer(tab, address)
    explorer.settled()
    root = "document.documentElement"
    assert tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0
    colors = tab.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, color[4:-1].split(", "))) for color in colors)
    assert (paper < ink) == (scheme == "dark") and abs(paper - ink) > 500


@pytest.fixture(scope="module")
def static(conditional_model, browser, tmp_path_factory):
    """The page of a model with classes that needs no server but one of files, and the hosts that it has asked."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    place, hosts = tmp_path_factory.mktemp("static"), set()
    nvae_tf.save(conditional_model, place / "pets")
    output_of(["-m", "export.export_tflite", f"--workdir={place / 'pets'}", f"--page={place / 'page'}"])
    pages = functools.partial(http.server.SimpleHTTPRequestHandler, directory=place / "page")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), pages) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        tab = browser.new_page()
        tab.on("request", lambda request: hosts.add(urllib.parse.urlsplit(request.url).port))
        explorer = Explorer(tab, f"http://127.0.0.1:{web.server_port}/")
        explorer.settled()
        yield explorer
        # What LiteRT.js notes on standard error is no error.
        assert [text for text in explorer.errors if not text.startswith(("INFO: ", "WARNING: "))] == []
        assert hosts <= {web.server_port, None}
        web.shutdown()


def test_a_static_page_draws_what_the_model_draws(static, conditional_model):
    model, labels, heats = conditional_model, [0, 1, 2] * 8, [1.0, 0.5]
    assert_shows(static.pixels("samples"), model.generate(24, seed=1, labels=labels))
    static.after(static.tab.get_by_role("slider", name="4×4").fill, "0.5")
    assert_shows(static.pixels("samples"), model.generate(24, temperature=heats, seed=1, labels=labels))
    static.after(static.button("Redraw group 2 alone").click)
    noise = flat(noise_per_image(model.plan.latent_shapes(), image_seeds(1, 2)))
    drawn = DeviceSignatures(model).drawn(noise, np.ones(2, np.float32), np.int32([0, 1])).latents
    top = [np.repeat(drawn[0].z[:1], 6, axis=0)]
    assert_shows(static.pixels("variants"), model.decode(top, temperature=heats, seed=0, labels=0))
    ends = [[latent.z.numpy()[number] for latent in drawn] for number in (0, 1)]
    latents = [sampling.latents_between(*pair, np.arange(7) / 6, "spherical") for pair in zip(*ends, strict=True)]
    path = model.decode(latents, labels=[0, 0, 0, 1, 1, 1, 1])
    assert_shows(static.pixels("path"), path)
    static.after(static.tab.evaluate, "dispatchEvent(new HashChangeEvent('hashchange'))")
    assert_shows(static.pixels("path"), path)
    for name in ("Images", "Restoration", "Copy Samples as curl"):
        assert not static.tab.get_by_text(name, exact=True).is_visible()


@pytest.mark.parametrize("fault", ["is not installed", "can't get"])
def test_a_static_page_without_npm_is_refused_in_one_line(conditional_model, tmp_path, monkeypatch, fault):
    if fault == "is not installed":
        monkeypatch.setattr(tflite.shutil, "which", lambda name: None)
    monkeypatch.setattr(tflite, "LITERT", ("file:nowhere",))
    with pytest.raises(ValueError, match=f"^npm {fault}"):
        tflite.write_static_page(conditional_model, tmp_path / "page", "pets", {})
    assert not list(tmp_path.iterdir())
