"""The page in a real browser, against a whole running service."""

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
)

from api import page as served_page
from models_registry import ids
from models_registry.access import keys
from models_registry.persistence import database, tables
from retort import federation as federation_client
from retort.cli import up
from tests import factories, waiting
from tests.contracts import source
from tests.journeys import chromium, test_howto
from tests.journeys.stacks import ON_EMBEDDED, PATIENCE_SECONDS, Stack

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800), ON_EMBEDDED]

TINY = {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 8, 16]}}
FEDERATED = {
    "student": {"network": "retort/mlp"},
    "dataset": "digits@1",
    "method": {"name": "dsfl", "federation": {"clients": 3, "rounds": 2, "local_epochs": 1}},
    "training": {"batch_size": 32},
}
AXE = source.ROOT / "web/node_modules/axe-core/axe.min.js"
PART_BYTES = 16 * 2**20
"""`upload_part_bytes` of the service, as it is where nobody has set it."""
MANY = 10_000
POINTS = 1_000
WIDE: ViewportSize = {"width": 1440, "height": 900}
NARROW: ViewportSize = {"width": 380, "height": 780}
COLOURS: tuple[Literal["light", "dark"], ...] = ("light", "dark")
LOOKS: tuple[tuple[ViewportSize, Literal["light", "dark"]], ...] = (
    (WIDE, "light"),
    (NARROW, "dark"),
)
# A folder for pictures of every screen, at both widths and in both colours; none are taken without.
PICTURES = os.environ.get("RETORT_SCREENSHOTS")
PATIENCE_MS = 240_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for this file; it ends with it, as does the event loop that drives it."""
    assert (served_page.FILES / "index.html").exists(), "the page is not built: run `make web`"
    with chromium.started() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh profile."""
    made = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    made.set_default_timeout(PATIENCE_MS)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab in which an error of a script, or what the policy forbids, fails the test."""
    tab = context.new_page()
    faults = faults_told_by(tab)
    yield tab
    assert not faults


def faults_told_by(tab: Page) -> list[str]:
    """Return a list that grows with every fault that the tab's console tells."""
    told: list[str] = []

    def on_message(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            told.append(message.text)

    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("console", on_message)
    return told


def sign_in(page: Page, stack: Stack, api_key: str | None = None) -> None:
    """Sign in by typing a key, as a person does."""
    page.goto(stack.url)
    page.get_by_label("API key").fill(api_key or stack.api_key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


def go(page: Page, address: str) -> None:
    """Open a screen and wait until it has its rows."""
    page.evaluate("address => { location.hash = address }", address)
    page.wait_for_function("address => location.hash === address", arg=address)
    expect(page.locator("main h1")).to_be_visible()
    # Pictures of a report are fetched only once they come into view.
    expect(page.locator("main .skeleton:not(.picture *)")).to_have_count(0)


@dataclass(frozen=True)
class Shown:
    """What there is to look at: jobs with reports, one that failed, a study, a federation."""

    job: str
    failed: str
    study: str
    teacher: str
    federated: str
    federation: str


@pytest.fixture(scope="module")
def shown(stack: Stack, teacher: str) -> Shown:
    """Jobs and a study that have ended, small enough to take seconds."""
    request: dict[str, Any] = {"teacher": teacher, "student": TINY, "dataset": "digits@1"}
    with stack.client() as retort:
        failed = retort.jobs.submit(
            {
                **request,
                "name": "diverging",
                "method": {"name": "kd"},
                "training": {"epochs": 2, "optimizer": {"learning_rate": 90}},
                "max_attempts": 1,
                "report": False,
            }
        )
        study = retort.studies.submit(
            {
                **request,
                "name": "page-study",
                "methods": [{"name": "kd"}],
                "seeds": [0, 1, 2],
                "training": {"epochs": 1},
                "report": False,
            }
        )
        job = retort.jobs.submit(
            {
                **request,
                "name": "first-student",
                "method": {"name": "dkd"},
                "training": {"epochs": 2},
            }
        )
        federated = retort.jobs.submit({**FEDERATED, "name": "parties-in-one-process"})
        waiting_for_parties = retort.jobs.submit(
            {
                **FEDERATED,
                "name": "parties-elsewhere",
                "method": {"name": "dsfl", "federation": {"clients": "remote", "min_clients": 2}},
                "training": {"epochs": 3, "batch_size": 32},
            }
        )
        federation = next(retort.federations.list(job=waiting_for_parties.id))
        retort.federations.invite(federation.id, "north")
        retort.jobs.cancel(waiting_for_parties.id)
        assert retort.jobs.wait(failed.id, timeout=PATIENCE_SECONDS).state == "failed"
        assert retort.studies.wait(study.id, timeout=PATIENCE_SECONDS).state == "succeeded"
        assert retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS).state == "succeeded"
        assert retort.jobs.wait(federated.id, timeout=PATIENCE_SECONDS).state == "succeeded"
        stopped = retort.jobs.wait(waiting_for_parties.id, timeout=PATIENCE_SECONDS)
        assert stopped.state == "cancelled"
    return Shown(job.id, failed.id, study.id, teacher, federated.id, federation.id)


class TestSignIn:
    def test_by_a_link_works_once_and_leaves_nothing_in_the_address(
        self, stack: Stack, browser: Browser, page: Page
    ) -> None:
        service = up.LocalService(stack.url, stack.api_key, stack.folder, [])
        link = up.sign_in_link(service)
        page.goto(link)
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        assert "ak_" not in page.url
        page.reload()
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        other = browser.new_context()
        again = other.new_page()
        again.goto(link)
        expect(again.get_by_text("has been used")).to_be_visible()
        other.close()
        mine = page.evaluate("sessionStorage.getItem('retort.key_id')")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        with stack.client() as retort:

            def is_ended() -> bool:  # other tests leave keys of theirs
                ended = {key.id: key.revoked_at is not None for key in retort.keys.list()}
                return ended[mine]

            waiting.until(is_ended, "signing out has ended the page's key")

    def test_by_a_link_that_is_pasted_into_an_open_tab(self, stack: Stack, page: Page) -> None:
        service = up.LocalService(stack.url, stack.api_key, stack.folder, [])
        page.goto(stack.url)
        expect(page.get_by_label("API key")).to_be_visible()
        used: list[str] = []
        for _ in ("signed out", "signed in"):
            fragment = up.sign_in_link(service).partition("#")[2]
            page.evaluate("fragment => { location.hash = fragment }", fragment)
            page.wait_for_function(
                "former => ![null, former].includes(sessionStorage.getItem('retort.key_id'))",
                arg=used[-1] if used else "",
            )
            expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
            assert "ak_" not in page.url
            assert "ak_" not in page.inner_text("body")
            used.append(page.evaluate("sessionStorage.getItem('retort.key_id')"))
        with stack.client() as retort:

            def former_is_ended() -> bool:
                ended = {key.id: key.revoked_at is not None for key in retort.keys.list()}
                assert not ended[used[1]]
                return ended[used[0]]

            waiting.until(former_is_ended, "the tab's former key has ended")

    def test_is_printed_by_retort_up(self, stack: Stack) -> None:
        said = (stack.folder / "up.log").read_text()
        assert re.search(rf"{re.escape(stack.url)}/#sign-in=ak_\w+\n", said)

    def test_with_a_wrong_key_says_so(self, stack: Stack, page: Page) -> None:
        page.goto(stack.url)
        page.get_by_label("API key").fill("ak_dev_nonsense")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_visible()


class TestAWholeDay:
    def test_upload_submit_watch_compare_download(
        self, stack: Stack, page: Page, shown: Shown, tmp_path: Path
    ) -> None:
        weights = tmp_path / "teacher.safetensors"
        with stack.client() as retort:
            retort.models.download(retort.models.resolve(shown.teacher), weights)
        sign_in(page, stack)

        # Upload: a field at fault is named, then the same file is not sent again.
        page.get_by_role("link", name="Models").click()
        page.get_by_role("link", name="Upload a model").click()
        page.get_by_label("File").set_input_files(weights)
        for label, text in {
            "Name": "Uploaded By Hand",
            "Network": "retort/resnet8",
            "Channels": "1",
            "Height": "8",
            "Width": "8",
            "Mean": "0.3",
            "Standard deviation": "0.38",
        }.items():
            page.get_by_label(label, exact=True).fill(text)
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("Uploaded By Hand")
        page.get_by_label("Name", exact=True).fill("uploaded-by-hand")
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text(re.compile(r"uploaded-by-hand@\d+ is ready"))).to_be_visible()
        page.get_by_role("link", name="Distil it").click()

        # Submit: the form and the YAML follow each other, and what is wrong is said at its field.
        as_yaml = page.get_by_label("The job as YAML")
        expect(as_yaml).to_have_value(re.compile("teacher: uploaded-by-hand@"))
        epochs = page.get_by_label("epochs", exact=True)
        epochs.fill("-1")
        epochs.blur()
        expect(page.locator(".field.wrong").filter(has=epochs)).to_be_visible()
        written = json.dumps(
            {
                "name": "from-the-page",
                "teacher": "uploaded-by-hand@1",
                "student": TINY,
                "dataset": "digits@1",
                "method": {"name": "kd"},
                "training": {"epochs": 8},
            }
        )
        as_yaml.fill(written)
        expect(epochs).to_have_value("8")
        epochs.fill("6")
        epochs.blur()
        expect(as_yaml).to_have_value(re.compile('"epochs": 6'))
        expect(page.get_by_text("This job would be accepted")).to_be_visible()
        page.get_by_role("button", name="Submit").click()

        # Watch it to the end without a reload.
        expect(page.get_by_role("heading", name="from-the-page")).to_be_visible()
        expect(page.locator(".heading .state")).to_have_text("succeeded")
        expect(page.get_by_role("heading", name="Result")).to_be_visible()
        expect(page.locator(".chart canvas").first).to_be_visible()
        kinds = page.locator(".events b").all_text_contents()
        assert kinds[0] == "succeeded"
        assert kinds[-1] == "validating"

        # Download: the bytes are those of the registry.
        with page.expect_download() as downloading:
            page.get_by_role("button", name="Download the student").click()
        student = tmp_path / "student.safetensors"
        downloading.value.save_as(student)
        with stack.client() as retort:
            job = next(job for job in retort.jobs.list() if job.name == "from-the-page")
        assert job.result is not None
        digest = hashlib.sha256(student.read_bytes()).hexdigest()
        assert job.result.digest == f"sha256:{digest}"

        # Compare it with another.
        page.get_by_role("link", name="Jobs").click()
        page.get_by_label("Compare from-the-page").first.check()
        page.get_by_label("Compare first-student").first.check()
        page.get_by_role("link", name="Compare 2").click()
        table = page.get_by_role("table")
        expect(table).to_contain_text("from-the-page")
        expect(table.get_by_role("row", name=re.compile("^accuracy"))).to_contain_text("%")
        expect(page.locator(".chart canvas")).to_be_visible()


class TestAnUpload:
    def test_goes_on_after_a_reload_and_is_told_why_it_is_rejected(
        self, stack: Stack, page: Page, tmp_path: Path
    ) -> None:
        file = tmp_path / "no-weights.safetensors"
        file.write_bytes(b"no header".ljust(64, b".") + os.urandom(PART_BYTES))
        sign_in(page, stack)
        go(page, "#/upload?purpose=model")

        def hold(_: Route) -> None:
            """Let a part never leave, as where a tab is closed in the middle."""

        page.route(re.compile(r"/v1/uploads/\w+/parts/2$"), hold)

        def send() -> None:
            page.get_by_label("File").set_input_files(file)
            page.get_by_label("Name", exact=True).fill("no-weights")
            page.get_by_role("button", name="Upload", exact=True).click()

        send()
        with stack.client() as retort:

            def first_is_there() -> bool:
                begun = [one for one in retort.uploads.list() if one.filename == file.name]
                parts = retort.uploads.get(begun[0].id).parts if begun else []
                return [part.received for part in parts] == [True, False]

            waiting.until(first_is_there, "the first of two parts has arrived")
        page.reload()
        # Only now: what is held would leave where nothing holds it any more.
        page.unroute_all(behavior="ignoreErrors")
        expect(page.get_by_role("heading", name="Begun and not finished")).to_be_visible()
        expect(page.get_by_role("row", name=re.compile(file.name))).to_contain_text("16.8 MB")
        sent: list[str] = []
        page.on("request", lambda one: sent.append(one.url.rpartition("/parts/")[2]))
        send()
        expect(page.get_by_text("16.8 MB had arrived before")).to_be_visible()
        rejected = page.get_by_role("alert").filter(has_text="Rejected")
        expect(rejected).to_contain_text("no-weights.safetensors")
        assert "2" in sent
        assert "1" not in sent
        expect(page.get_by_role("row", name=re.compile(file.name))).to_have_count(0)

    def test_of_pictures_is_stored_as_the_form_says(
        self, stack: Stack, page: Page, tmp_path: Path
    ) -> None:
        archive = tmp_path / "pets.zip"
        test_howto.pictures(archive, each=10)
        sign_in(page, stack)
        go(page, "#/upload?purpose=dataset")
        page.get_by_label("File").set_input_files(archive)
        page.get_by_label("Name", exact=True).fill("pets-as-files")
        for side in ("Height", "Width"):
            page.get_by_label(side, exact=True).fill("64")
        page.get_by_label("Stored").select_option("encoded")
        further = page.locator("details", has_text="Further fields")
        further.get_by_text("Further fields").click()
        share = page.get_by_label("Unreadable pictures")
        share.fill("half")
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.locator(".field.wrong").filter(has=share)).to_be_visible()
        share.fill("0.5")
        page.get_by_label("Description").fill("Noise, by name.")
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("pets-as-files@1 is ready")).to_be_visible()
        with stack.client() as retort:
            version = retort.datasets.resolve("pets-as-files@1")
        assert version.encoded is not None
        assert version.encoded["kinds"] == {"png": 20}
        assert version.card == "Noise, by name."

    def test_of_predictions_has_images_and_classes_of_their_data_set(
        self, stack: Stack, page: Page, tmp_path: Path
    ) -> None:
        table = tmp_path / "answers.npz"
        test_howto.answers(table)
        sign_in(page, stack)
        go(page, "#/upload?purpose=model")
        page.get_by_label("Images and classes like").select_option("digits")
        expect(page.get_by_label("Height", exact=True)).to_have_value("8")
        expect(page.get_by_label("Classes", exact=True)).to_have_value(re.compile("^0, 1, 2"))
        page.get_by_label("predictions", exact=True).check()
        page.get_by_label("File").set_input_files(table)
        page.get_by_label("Name", exact=True).fill("answers-from-the-page")
        page.get_by_label("Data set", exact=True).fill("digits@no")
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("digits@no is no version")
        page.get_by_label("Data set", exact=True).fill("digits")
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_text("answers-from-the-page@1 is ready")).to_be_visible()
        with stack.client() as retort:
            version = retort.models.resolve("answers-from-the-page@1")
        assert version.kind == "predictions"
        assert version.arguments["dataset"] == "digits@1"


class TestAnEndedJob:
    def test_is_asked_for_once_however_many_events_it_has(
        self, stack: Stack, page: Page, shown: Shown
    ) -> None:
        sign_in(page, stack)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.partition("/v1")[2]))
        go(page, f"#/jobs/{shown.job}")
        expect(page.locator(".events b").first).to_have_text("succeeded")
        page.wait_for_timeout(300)
        assert asked.count(f"/jobs/{shown.job}") == 1
        assert sum("/metrics" in path for path in asked) == 1


class TestAnExport:
    def test_is_made_and_tried_with_a_picture(
        self, stack: Stack, page: Page, teacher: str, tmp_path: Path
    ) -> None:
        picture = tmp_path / "grey.png"
        Image.new("L", (8, 8), 128).save(picture)
        sign_in(page, stack)
        go(page, "#/models/{}/{}".format(*teacher.split("@")))
        page.get_by_role("button", name="Export", exact=True).click()
        table = page.get_by_role("region", name="Exports")
        expect(table.locator(".state")).to_have_text("ready")
        page.get_by_text("Try it with pictures").click()
        page.get_by_label("Pictures", exact=True).set_input_files(picture)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator(".picture li")).to_have_count(5)
        expect(page.locator(".picture li").first).to_contain_text("%")


class TestAFederation:
    def test_shows_clients_as_they_come_and_the_key_of_one_that_is_invited(
        self, stack: Stack, page: Page
    ) -> None:
        with stack.client() as retort:
            job = retort.jobs.submit(
                {
                    **FEDERATED,
                    "name": "open-federation",
                    "method": {"name": "dsfl", "federation": {"clients": "remote"}},
                    "training": {"epochs": 2},
                    "report": False,
                }
            )
        sign_in(page, stack)
        page.get_by_role("link", name="Federations").click()
        page.get_by_role("link", name="open-federation").click()
        page.get_by_label("Invite a party").fill("hospital-north")
        page.get_by_role("button", name="Invite").click()
        expect(page.get_by_text("is shown only now")).to_be_visible()
        command = page.locator(".notice pre").inner_text()
        row = page.get_by_role("row", name=re.compile("hospital-north"))
        expect(row).to_contain_text("invited")
        key, federation = re.findall(r"(?:ck_\w+|fed_\w+)", command)
        url = command.split("--url ")[1].split()[0]
        with federation_client.join(url, federation, key, samples=42, classes=10):
            expect(row).to_contain_text("joined")
            expect(row).to_contain_text("42")
        page.once("dialog", lambda dialog: dialog.accept())
        row.get_by_role("button", name="Revoke").click()
        expect(row).to_contain_text("revoked")
        with stack.client() as retort:
            retort.jobs.cancel(job.id)
        expect(page.locator(".heading .state")).to_have_text("cancelled")

    def test_in_one_process_is_drawn_with_its_job(
        self, stack: Stack, page: Page, shown: Shown
    ) -> None:
        sign_in(page, stack)
        go(page, f"#/jobs/{shown.federated}")
        expect(page.get_by_text("Accuracy on the validation split, by rounds")).to_be_visible()
        expect(page.get_by_text("By what all clients sent and received")).to_be_visible()
        cells = page.get_by_role("region", name="Images by client and class").locator("tbody tr")
        expect(cells).to_have_count(3)
        with stack.client() as retort:
            result = retort.jobs.get(shown.federated).result
        assert result is not None
        assert result.federation is not None
        for one in result.federation["by_client"]:
            row = cells.filter(has_text=one["name"])
            expect(row.locator("td").last).to_have_text(str(one["images"]))


class TestSamples:
    def test_of_a_class_are_shown_with_boxes_that_can_be_hidden(
        self, stack: Stack, page: Page
    ) -> None:
        sign_in(page, stack)
        go(page, "#/datasets/digit_scenes/1")
        drawn = page.locator(".sheet .overlay g")
        expect(drawn.first).to_be_visible()
        # A picture that cannot be shown has no width.
        broken = page.locator(".sheet img").evaluate_all(
            "all => all.filter(one => one.complete && one.naturalWidth !== 96).length"
        )
        assert broken == 0
        before = drawn.count()
        page.get_by_role("group", name="Classes that are drawn").get_by_label("3").uncheck()
        expect(drawn.filter(has_text=re.compile("^3$"))).to_have_count(0)
        assert 0 < drawn.count() < before

    def test_with_masks_have_the_pixels_of_a_class_in_its_colour(
        self, stack: Stack, page: Page
    ) -> None:
        sign_in(page, stack)
        go(page, "#/datasets/digit_scenes_masks/1")
        painted = """one => {
            const pixels = one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
            return pixels.filter((value, at) => at % 4 === 3 && value > 0).length;
        }"""
        mask = page.locator(".sheet canvas").first
        expect(mask).to_be_visible()
        waiting.until(lambda: mask.evaluate(painted) > 0, "a class is painted")
        toggles = page.get_by_role("group", name="Classes that are drawn").get_by_role("checkbox")
        for number in range(toggles.count()):
            toggles.nth(number).uncheck()
        waiting.until(lambda: mask.evaluate(painted) == 0, "all classes are hidden")


class TestANewStudy:
    def test_has_grids_in_form_and_yaml_and_opens_its_leaderboard(
        self, stack: Stack, page: Page, shown: Shown
    ) -> None:
        sign_in(page, stack)
        go(page, f"#/studies/new?teacher={shown.teacher}")
        as_yaml = page.get_by_label("The study as YAML")
        as_yaml.fill(
            json.dumps(
                {
                    "name": "study-from-the-page",
                    "teacher": shown.teacher,
                    "student": TINY,
                    "dataset": "digits@1",
                    "methods": [{"name": "kd", "temperature": 2}],
                    "training": {"epochs": 1},
                    "seeds": [0],
                    "report": False,
                }
            )
        )
        temperature = page.get_by_label("temperature", exact=True)
        expect(temperature).to_have_value("2")
        temperature.fill("1, 4")
        temperature.blur()
        expect(as_yaml).to_have_value(re.compile(r"grid.*: \[ ?1, 4 ?\]"))
        page.get_by_label("Seeds").fill("0, 0")
        page.get_by_label("Seeds").blur()
        expect(page.get_by_text("seeds must differ").first).to_be_visible()
        page.get_by_label("Seeds").fill("0, 1")
        page.get_by_label("Seeds").blur()
        expect(page.get_by_text("This study would be accepted: 6 jobs")).to_be_visible()
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_role("heading", name="study-from-the-page")).to_be_visible()
        expect(page.locator(".heading .state")).to_have_text("succeeded")
        board = page.get_by_role("table", name="Leaderboard")
        expect(board.locator("tbody tr")).to_have_count(3)
        expect(board).to_contain_text("%")


class TestYaml:
    def test_that_a_form_can_not_follow_is_told_or_mended(self, stack: Stack, page: Page) -> None:
        sign_in(page, stack)
        go(page, "#/submit")
        as_yaml = page.get_by_label("The job as YAML")
        epochs = page.get_by_label("epochs", exact=True)
        as_yaml.fill("name: x\nstudent: text\ntraining:\n")
        expect(epochs).to_have_value("")
        epochs.fill("3")
        epochs.blur()
        expect(as_yaml).to_have_value(re.compile(r"training:\n  epochs: 3"))
        page.get_by_label("Student network").fill("retort/resnet8")
        expect(as_yaml).to_have_value(re.compile(r"student:\n  network: retort/resnet8"))
        as_yaml.fill("training: *nothing")
        expect(page.get_by_text("The text is no spec yet")).to_be_visible()
        as_yaml.fill("x: &few\n  epochs: 2\n  seed: 5\ntraining: *few")
        epochs.fill("4")
        epochs.blur()
        expect(as_yaml).to_have_value(re.compile(r"training:\n  epochs: 4\n  seed: 5"))


@pytest.fixture
def endless(stack: Stack, teacher: str) -> Iterator[str]:
    """A job that goes on until it is cancelled."""
    with stack.client() as retort:
        job = retort.jobs.submit(
            {
                "name": "interrupted",
                "teacher": teacher,
                "student": TINY,
                "dataset": "digits@1",
                "method": {"name": "kd"},
                "training": {"epochs": 5000},
                "report": False,
            }
        )
        yield job.id
        retort.jobs.cancel(job.id)


class TestALostConnection:
    def test_is_shown_and_the_stream_goes_on_where_it_broke_off(
        self, stack: Stack, page: Page, endless: str
    ) -> None:
        sign_in(page, stack)
        go(page, f"#/jobs/{endless}")
        expect(page.locator(".connection")).to_have_text("live")
        # The connection is live before the first event has come.
        expect(page.locator(".events b").first).to_be_visible()
        asked: list[str | None] = []

        def on_request(request: Request) -> None:
            if request.url.endswith("/stream"):
                asked.append(request.headers.get("last-event-id"))

        page.on("request", on_request)
        api_process(stack).send_signal(signal.SIGKILL)
        expect(page.locator(".connection")).to_have_text("connection lost, trying again")
        expect(page.locator(".connection")).to_have_text("live")
        assert asked[-1] is not None, "the stream was begun anew"
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".heading .state")).to_have_text("cancelled")
        with stack.client() as retort:
            known = [event.type.removeprefix("job.") for event in retort.jobs.events_after(endless)]
        expect(page.locator(".events b")).to_have_count(len(known))
        assert page.locator(".events b").all_text_contents() == known[::-1]

    def test_is_none_of_a_tab_that_is_not_seen(
        self, stack: Stack, page: Page, endless: str
    ) -> None:
        sign_in(page, stack)
        go(page, f"#/jobs/{endless}")
        expect(page.locator(".connection")).to_have_text("live")
        # The page was sent events by then, or the stream would begin anew.
        expect(page.locator(".events b").first).to_be_visible()

        def show(state: str) -> None:
            page.evaluate(
                """state => {
                    const shown = {value: state, configurable: true};
                    Object.defineProperty(document, "visibilityState", shown);
                    document.dispatchEvent(new Event("visibilitychange"));
                }""",
                state,
            )

        def is_stream(request: Request) -> bool:
            return request.url.endswith("/stream")

        with page.expect_event("requestfailed", is_stream):
            show("hidden")
        with page.expect_request(is_stream) as asking:
            show("visible")
        assert asking.value.headers.get("last-event-id") is not None
        expect(page.locator(".connection")).to_have_text("live")


def api_process(stack: Stack) -> psutil.Process:
    """Return the process that serves the API."""
    mine = psutil.Process(stack.processes["up"].pid).children(recursive=True)
    return next(one for one in mine if "api.server" in one.cmdline())


@pytest.fixture(scope="module")
def crowded(stack: Stack) -> Iterator[tuple[str, str]]:
    """The key of a project with 10,000 jobs, and one of them, which has long curves."""
    path = stack.folder / "retort-data" / "retort.sqlite3"
    engine = database.connect(f"sqlite:///{path}")
    with database.sessions(engine).begin() as session:
        project = keys.create_project(session, name=ids.new("crowded"))
        key = factories.key(session, project_id=project.id)
        now = database.now(session)
        job = {
            "project_id": project.id,
            "task": "classification",
            "method": "kd",
            "queue": "cpu",
            "priority": 0,
            "labels": {},
            "spec": {"method": {"name": "kd"}, "student": {"network": "retort/resnet8"}},
            "state": "cancelled",
            "last_sequence": 0,
            "attempt": 0,
            "releases": 0,
            "max_attempts": 3,
            "fence": 0,
            "active_seconds": 0.0,
            "progress": 0.0,
        }
        rows = [
            {**job, "id": ids.new("job"), "name": f"job {number}", **_times(now, number)}
            for number in range(MANY)
        ]
        session.execute(sa.insert(tables.JobRow), rows)
        last = str(rows[-1]["id"])
        points = [
            {"job_id": last, "key": key_, "step": step, "attempt": 1, "value": 1 / step, "at": now}
            for key_ in ("loss/total", "loss/kd", "loss/task")
            for step in range(1, POINTS + 1)
        ]
        session.execute(sa.insert(tables.MetricRow), points)
    yield key, last
    engine.dispose()


def _times(now: Any, number: int) -> dict[str, Any]:
    at = now - timedelta(seconds=MANY - number)
    return {"created_at": at, "not_before": at, "claim_order_at": at, "finished_at": at}


class TestManyJobs:
    def test_are_shown_at_once_and_more_as_one_scrolls(
        self, stack: Stack, page: Page, crowded: tuple[str, str]
    ) -> None:
        sign_in(page, stack, crowded[0])
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(50)
        expect(rows.first).to_contain_text(f"job {MANY - 1}")
        for shown in (100, 150, 200):
            page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
            expect(rows).to_have_count(shown)
        names = page.locator("tbody .name").all_text_contents()
        assert names == [f"job {number}" for number in range(MANY - 1, MANY - 201, -1)]
        page.get_by_label("Name").fill("job 17")
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text("job 17")

    def test_are_asked_for_once_where_the_next_rows_fail(
        self, stack: Stack, page: Page, crowded: tuple[str, str]
    ) -> None:
        asked: list[str] = []

        def refuse(route: Route) -> None:
            asked.append(route.request.url)
            route.fulfill(status=500)

        further = re.compile(r"/v1/jobs\?.*cursor=")
        page.route(further, refuse)
        sign_in(page, stack, crowded[0])
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(50)
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        expect(page.get_by_role("alert")).to_be_visible()
        page.wait_for_timeout(500)
        assert len(asked) == 1
        page.unroute(further)
        page.get_by_role("button", name="Try again").click()
        expect(rows).to_have_count(100)

    def test_and_a_thousand_points_are_drawn_each_time_the_scale_changes(
        self, stack: Stack, page: Page, crowded: tuple[str, str]
    ) -> None:
        """How long a drawing takes is in the browser's own record, under `curves drawn`."""
        sign_in(page, stack, crowded[0])
        go(page, f"#/jobs/{crowded[1]}")
        drawn = "performance.getEntriesByName('curves drawn').map(one => one.duration)"
        for times in range(1, 5):
            page.wait_for_function(f"times => {drawn}.length >= times", arg=times)
            expect(page.locator("canvas").first).to_be_visible()
            page.get_by_label("losses on a logarithmic scale").click()


SCREENS = {
    "jobs": "#/jobs",
    "job": "#/jobs/{job}",
    "failed-job": "#/jobs/{failed}",
    "compare": "#/compare?jobs={job},{failed}",
    "submit": "#/submit?teacher={teacher}",
    "upload-model": "#/upload?purpose=model",
    "upload-predictions": "#/upload?purpose=predictions",
    "upload-dataset": "#/upload?purpose=dataset",
    "models": "#/models",
    "model": "#/models/{model}",
    "version": "#/models/{model}/1",
    "datasets": "#/datasets",
    "dataset": "#/datasets/digits/1",
    "studies": "#/studies",
    "new-study": "#/studies/new?teacher={teacher}",
    "federations": "#/federations",
    "federation": "#/federations/{federation}",
    "federated-job": "#/jobs/{federated}",
    "dataset-with-boxes": "#/datasets/digit_scenes/1",
    "dataset-with-masks": "#/datasets/digit_scenes_masks/1",
    "study": "#/studies/{study}",
    "workers": "#/workers",
    "methods": "#/methods",
    "method": "#/methods/dkd",
    "nothing": "#/jobs/job_that_is_not",
}


class TestEveryScreen:
    def test_fits_and_can_be_used_by_all(
        self, stack: Stack, browser: Browser, shown: Shown
    ) -> None:
        faults = []
        for size, colours in LOOKS:
            context = browser.new_context(
                viewport=size, color_scheme=colours, reduced_motion="reduce"
            )
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            told = faults_told_by(page)
            page.goto(stack.url)
            faults += faults_of(page, "sign-in", colours)
            sign_in(page, stack)
            model = shown.teacher.partition("@")[0]
            for name, template in SCREENS.items():
                go(page, template.format(**vars(shown), model=model))
                faults += faults_of(page, name, colours)
            context.close()
            faults += told
        assert not faults, "\n".join(faults)

    def test_is_reached_by_keyboard(self, stack: Stack, page: Page) -> None:
        sign_in(page, stack)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="New job")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="New job")).to_be_visible()


def faults_of(page: Page, name: str, colours: Literal["light", "dark"]) -> list[str]:
    """Return what is wrong with the screen that is shown: too wide, or unusable for some."""
    width = page.viewport_size["width"] if page.viewport_size else 0
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        for scheme in COLOURS:
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(200)
            page.screenshot(path=Path(PICTURES) / f"{name}-{width}-{scheme}.png", full_page=True)
        page.emulate_media(color_scheme=colours)
    faults = []
    needed = page.evaluate("document.documentElement.scrollWidth")
    if needed > width:
        faults.append(f"{name} needs {needed} of {width} pixels")
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run({resultTypes: ['violations']})")
    faults += [
        f"{name}: {one['id']} ({one['impact']}): {one['nodes'][0]['html'][:160]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    return faults
