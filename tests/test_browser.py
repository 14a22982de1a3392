"""The notebooks as a person meets them: a real JupyterLab on loopback, a real browser, light and dark."""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, TINY, trait_kit
from test_explore import HOSTILE

from trait_kit import runs
from trait_kit.figures import report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("TRAIT_KIT_SCREENSHOTS")  # a folder for pictures of what the tests saw
SETTINGS = {  # nothing is fetched, a notebook's cells are all on the page, and a test says when it saves
    "docmanager-extension/plugin": '{"autosave": false}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}
INK_AND_GROUND = """() => [...document.querySelectorAll('.trait-kit :is(bdi, th, td, h4, summary, .line)')].filter(
  node => node.offsetParent && node.textContent.trim()).map(node => {
    let ground = node, colour = 'rgba(0, 0, 0, 0)'
    for (; ground && /, 0\\)$/.test(colour); ground = ground.parentElement) colour = getComputedStyle(ground).backgroundColor
    return [getComputedStyle(node).color, colour]
  })"""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on PATH or in $CHROMIUM")


@pytest.fixture(scope="module")
def project(tiny_run, tmp_path_factory) -> Path:
    """A checkout whose demo is the tiny experiment, with its finished run; everything but runs/ is under git."""
    root = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(TINY, root / "params" / "demo.yaml")
    shutil.copytree(tiny_run, root / "runs" / "demo")
    assert trait_kit("report", root / "runs" / "demo").returncode == 0  # it is headed by its folder's name
    (root / ".cache").symlink_to(ROOT / ".cache")
    (root / ".gitignore").write_text("runs/\n.cache\n.ipynb_checkpoints/\n")
    clean = f"{sys.executable} -m nbstripout --keep-id --extra-keys metadata.language_info"
    (root / ".gitattributes").write_text("notebooks/*.ipynb filter=nbstripout\n")
    for command in (["init", "-q"], ["config", "filter.nbstripout.clean", clean], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, "commit", "-qm", "all"], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    """The address of a JupyterLab that was started in the project, with settings of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    for name, text in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {
        **os.environ,
        **{name: str(home / folder) for name, folder in folders.items()},
        "PYTHONPATH": str(ROOT),
    }
    environment.pop(runs.BATCH_VARIABLE, None)
    given = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    given += [re.search(r"^SAVING := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]]
    given += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    address = f"http://127.0.0.1:{port}"
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *given], cwd=project, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-3_000:]
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Notebook:
    """One notebook, opened in a window of its own."""

    def __init__(self, browser, address: str, name: str) -> None:
        self.name, self.errors, self.asked = name, [], []
        self.page = browser.new_page(viewport={"width": 1440, "height": 1000})
        self.page.set_default_timeout(300_000)
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message) or dialog.dismiss())
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")

    def command(self, name: str, **given):
        return self.page.evaluate(
            "([name, given]) => window.jupyterapp.commands.execute(name, given)", [name, given]
        )

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")
        self.check()

    def check(self) -> None:
        wrong = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        assert wrong == []
        assert self.page.get_by_text("Error displaying widget").count() == 0

    def run(self, *lines: str) -> None:
        """In a cell that is added, and not saved."""
        self.command("notebook:insert-cell-below")
        add = "source => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource(source)"
        self.page.evaluate(add, "\n".join(lines))
        self.command("notebook:run-cell")

    def explorer(self, described: str):
        """The page and the control of that description."""
        label = self.page.locator(".widget-label", has_text=described).first
        label.scroll_into_view_if_needed()
        box = self.page.locator(".widget-vbox", has=label).last
        return box.locator(".trait-kit").last, label.locator("xpath=..")

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(name == 'Light').lower()}'")
        self.page.wait_for_timeout(500)

    def picture(self, what: str) -> None:
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{self.name}_{what}.png")

    def close(self, address: str) -> None:
        """Nothing went wrong on the way, and nobody else was asked for anything."""
        self.page.close()
        assert self.errors == []
        assert [url for url in self.asked if not url.startswith((address, "data:", "blob:", "ws:"))] == []


def contrast(one: str, other: str) -> float:
    """WCAG 2: of ink, laid over its ground where it is translucent."""

    def parts(colour: str) -> list[float]:
        return [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")]

    ground, ink = parts(other)[:3], parts(one)
    share = ink[3] if len(ink) > 3 else 1.0
    laid = [share * a + (1 - share) * b for a, b in zip(ink, ground, strict=False)]

    def light(colour: list[float]) -> float:
        linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    low, high = sorted([light(laid), light(ground)])
    return high / low


def legible(book: Notebook) -> None:
    for name in ("Dark", "Light"):
        book.theme(name)
        pairs = {tuple(pair) for pair in book.page.evaluate(INK_AND_GROUND)}
        assert pairs and min(contrast(*pair) for pair in pairs) >= 4.5, (name, pairs)
        wide = "() => [...document.querySelectorAll('.trait-kit')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert book.page.evaluate(wide) == 0
        book.picture(name.lower())


def move_and_see(book: Notebook, described: str, press: str) -> None:
    """Move a control by the keyboard: the page shows something else."""
    shown, control = book.explorer(described)
    before = shown.inner_text()
    moved = control.locator(".noUi-handle, select, input, textarea").first
    if moved.evaluate("node => node.tagName") == "SELECT":
        moved.select_option(index=int(press))
    elif press.startswith("Arrow"):
        moved.press(press)
    else:
        moved.fill(press)
    deadline = time.monotonic() + 20
    while shown.inner_text() == before:
        assert time.monotonic() < deadline, f"{described} changed nothing"
        book.page.wait_for_timeout(100)


def state(project: Path) -> tuple[dict[str, int], str]:
    """The demo run's files by content and time, and what git says."""
    files = {
        str(path): hash(path.read_bytes())
        for path in sorted((project / "runs" / "demo").rglob("*"))
        if path.is_file()
    }
    return files, subprocess.run(
        ["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("page", ["report.html", "06_figures/map.html", "reports.html"])
def test_pages_pass_axe_core_at_three_widths_light_and_dark(page, tiny_run, tmp_path, chromium):
    """axe cannot see through the shadow at the sides of a wide table, so contrast is measured without it."""
    address = tiny_run / page
    if page == "reports.html":  # two runs side by side; the page is written beside the first
        for name in "ab":
            shutil.copytree(tiny_run, tmp_path / name)
        address = report.write_report(tmp_path / "a", tmp_path / "b")
    for width, scheme in itertools.product((1280, 768, 390), ("light", "dark")):
        shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown.goto(address.as_uri())
        shown.add_style_tag(content=".scroll { background: none !important; overflow: visible !important }")
        shown.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
        found = axe.Axe().run(shown, options={"resultTypes": ["violations", "passes"]})
        assert found.violations_count == 0, found.generate_report()
        decided = {rule["id"]: len(rule["nodes"]) for rule in found.response["passes"]}
        assert decided["color-contrast"] >= (3 if page.endswith("map.html") else 20)
        shown.close()


def test_moving_the_cut_changes_the_numbers_and_nothing_else(project, lab, chromium):
    before = state(project)
    book = Notebook(chromium, lab, "02_filter_web")
    book.run_all()
    shown, _ = book.explorer("token budget")
    assert "this run's" in shown.inner_text()
    move_and_see(book, "token budget", "ArrowLeft")
    assert "this run's" not in shown.inner_text()
    move_and_see(book, "method", "2")
    legible(book)
    book.command("docmanager:save")
    book.close(lab)
    assert state(project) == before


def test_text_from_elsewhere_neither_acts_nor_is_typeset(project, lab, chromium):
    book = Notebook(chromium, lab, "06_figures")
    book.run(
        "from trait_kit.explore import show",
        "import pandas",
        f"hostile = pandas.DataFrame({{'text': [{HOSTILE!r}, 'short'], 'number': [1.5, 2.5]}})",
        "display(show.table(hostile))",
        "show.Explorer(lambda size: show.table(hostile.head(size)).data, {'size': [1, 2]}, 'still')",
    )
    book.page.locator(".trait-kit").nth(1).wait_for()
    move_and_see(book, "size", "ArrowRight")
    for opened in book.page.locator(".trait-kit details").all():
        opened.locator("summary").click()
    book.page.wait_for_timeout(1_000)
    live = ":is(script, img, iframe, svg, a, mjx-container, .MathJax)"
    assert book.page.locator(f".trait-kit {live}").count() == 0
    assert "$5 and $6 $$" in book.page.locator(".trait-kit").first.inner_text()
    legible(book)
    book.picture("hostile")
    book.close(lab)


@pytest.mark.slow
@pytest.mark.parametrize("name", runs.STEPS)
def test_every_notebook_runs_in_a_browser_and_its_explorers_move(name, project, lab, chromium):
    moves = {
        "02_filter_web": [("token budget", "ArrowRight"), ("method", "1")],
        "03_write_passages": [("task", "1"), ("search", "zzz"), ("search", "")],
        "05_evaluate": [("metric", "1"), ("against", "1"), ("where", "3"), ("search", "zzz")],
    }
    before = state(project)
    book = Notebook(chromium, lab, name)
    book.run_all()
    for described, press in moves.get(name, []):
        move_and_see(book, described, press)
    if name == "03_write_passages":
        shown, _ = book.explorer("outcome")
        shown.locator("details.entry").first.locator("summary").first.click()
        assert "Verdict" in shown.inner_text()
    if name == "05_evaluate":
        shown, _control = book.explorer("prompt")
        book.page.get_by_role("button", name="Ask both").click()
        shown.get_by_text("What both chose or wrote").wait_for(state="detached")  # the twin, before anybody asked
        shown.get_by_text("A test item of this run").wait_for()
        book.picture("asked")
        move_and_see(book, "search", "")
        book.page.locator(".widget-vbox details.entry > summary").first.click()
    if book.page.locator(".trait-kit").count():
        legible(book)
    book.command("docmanager:save")
    book.close(lab)
    assert state(project) == before


@pytest.mark.slow
def test_an_edited_parameter_trains_beside_the_run_under_a_live_curve(project, lab, chromium):
    before = state(project)
    book = Notebook(chromium, lab, "04_train_two_stages")
    book.page.evaluate(
        """() => {
          const cell = window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel
          cell.setSource(cell.getSource().replace('stage_tokens = None', 'stage_tokens = [1536, 1536]'))
          window.ran = window.jupyterapp.commands.execute('notebook:run-all-cells')
        }"""
    )
    curve = book.page.locator(".jp-CodeCell", has_text="live_loss").locator("img")
    curve.wait_for()
    curve.scroll_into_view_if_needed()
    book.picture("live")
    book.page.evaluate("() => window.ran")
    book.check()
    book.close(lab)
    assert state(project) == before
    scratch = runs.recorded(project / "runs" / "demo.scratch", "04_train_two_stages")
    assert scratch["params"]["stage_tokens"] == [1536, 1536]
