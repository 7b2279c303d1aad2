"""The page in a real browser, on a real study: what it shows, does and links to, and that its numbers are right."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from absorb_pl.reports.page import page_of
from absorb_pl.study import StudyConfig, TrainerSettings, compare_saes, make_page, run_study
from absorb_pl.words import TaskConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("ABSORB_PL_NEEDS_BROWSER"), reason="no Chromium on the PATH"
)
STANDARD, BATCHTOPK = "speller/l1-standard-w512-dense", "speller/l1-batchtopk-w512-dense"
HOSTILE = "<img src=x onerror=window.hacked=1></script><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = StudyConfig(
        saes=[STANDARD, BATCHTOPK, "speller/l2-batchtopk-w512-medium"],
        rules=["paper", "saebench-0.6.0", "absorb-pl-1"],
        task=TaskConfig(max_words=2000, max_icl_examples=4),
        run_dir=str(folder / "run"),
        cache_dir=str(folder / "cache"),
        trainer=TrainerSettings(accelerator="cpu", devices=1),
    )
    return run_study(config)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        assert CHROMIUM, "ABSORB_PL_NEEDS_BROWSER is set, and there is no Chromium on the PATH"
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, study):
    """Opens the study's page at a state; afterwards there must have been no errors or warnings."""
    problems, contexts = [], []

    def open_page(state="", *, file=None, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(f"{(file or study.run_dir / 'report.html').as_uri()}{state}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def state(**fields):
    from urllib.parse import urlencode

    return f"#{urlencode(fields)}"


def rows(page, table):
    """The rows of a table as lists of what their cells say."""
    selector = f".table[aria-label={table!r}] .tabulator-row"
    page.wait_for_selector(selector)
    cells = "row => [...row.querySelectorAll('.tabulator-cell')].map(cell => cell.innerText.trim())"
    return page.locator(selector).evaluate_all(f"rows => rows.map({cells})")


def test_the_front_shows_every_sae_with_its_rates(opened, study):
    page = opened()
    summary = study.tables["summary"]
    found = {cells[0]: cells for cells in rows(page, "SAEs")}
    assert len(found) == summary["sae"].nunique()
    for row in summary.to_dict("records"):
        shown = found[row["sae"].removeprefix("speller/")]
        interval = f"{row['absorption_rate']:.1%} [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
        assert interval in shown, row["rule"]
    assert page.locator("[role=img]").count() == 1


def test_a_click_on_a_title_sorts(opened, study):
    page = opened(state(view="saes", rule="paper"))
    names = (
        study.tables["summary"].query("rule == 'paper'").sort_values("l0")["sae"].str.removeprefix("speller/").tolist()
    )
    page.locator(".tabulator-col-title", has_text="L0").first.click()
    assert [cells[0] for cells in rows(page, "SAEs")] == names[::-1]
    page.locator(".tabulator-col-title", has_text="L0").first.press("Enter")  # the other way, by the keyboard
    assert [cells[0] for cells in rows(page, "SAEs")] == names


def test_a_filter_keeps_what_it_names(opened):
    page = opened()
    page.locator(".tabulator-header-filter input").first.press_sequentially("batchtopk")
    page.wait_for_function("document.querySelectorAll('.table[aria-label=SAEs] .tabulator-row').length === 2")
    assert all("batchtopk" in cells[0] for cells in rows(page, "SAEs"))


def test_from_an_sae_to_a_letter_to_a_word(opened, study):
    page = opened(state(view="saes", rule="absorb-pl-1"))
    page.get_by_role("link", name="l1-standard-w512-dense").click()
    page.wait_for_selector("html[data-ready=sae]")
    letters = study.tables["letters"].query("sae == @STANDARD and rule == 'absorb-pl-1'").set_index("label")
    letter = letters["num_absorbed"].idxmax()
    page.locator(".table[aria-label=classes] a", has_text=letter).first.click()
    page.wait_for_selector("html[data-ready=letter]")
    words = study.tables["words"].query("sae == @STANDARD and rule == 'absorb-pl-1' and label == @letter")
    word = words[words["is_absorption"]].iloc[-1]
    page.locator("input[type=search]").fill(word["word"])
    page.locator(".table[aria-label=words] a", has_text=word["word"]).first.click()
    detail = page.locator(".detail")
    assert detail.locator("h3").inner_text() == word["word"].strip()
    assert word["prompt"].split("\n")[-1].strip() in detail.locator("pre").inner_text()
    assert "absorb-pl-1: absorbed" in detail.inner_text()
    assert f"latent {int(word['top_latent'])}" in detail.inner_text()
    assert f"row={word['row']}" in page.url


def test_words_are_chosen_by_what_became_of_them(opened, study):
    rule, letter = "paper", "s"
    page = opened(state(view="letter", sae=STANDARD, rule=rule, letter=letter))
    words = study.tables["words"].query("sae == @STANDARD and rule == @rule and label == @letter")
    held_out = study.tables["held_out"].query("hook_name == 'blocks.1.hook_resid_post' and label == @letter")
    expected = {
        "all words": len(held_out),
        "absorbed": int(words["is_absorption"].sum()),
        "judged, not absorbed": int((~words["is_absorption"]).sum()),
        "not seen by the probe": int((held_out["probe_logit"] <= 0).sum()),
    }
    for shown, number in expected.items():
        page.locator("label", has_text="show").locator("select").select_option(shown)
        assert page.locator("[data-count]").get_attribute("data-count") == str(number), shown
    page.locator("label", has_text="show").locator("select").select_option("all words")
    page.locator("input[type=search]").fill("st")
    found = held_out["word"].str.contains("st").sum()
    assert page.locator("[data-count]").get_attribute("data-count") == str(found)


def test_a_link_leads_to_a_word_and_back(opened, study):
    word = study.tables["words"].query("sae == @BATCHTOPK and rule == 'saebench-0.6.0'").iloc[3]
    where = state(view="letter", sae=BATCHTOPK, rule="saebench-0.6.0", letter=word["label"], row=word["row"])
    page = opened(where)
    assert page.locator(".detail h3").inner_text() == word["word"].strip()
    page.get_by_role("link", name="SAEs").first.click()
    page.wait_for_selector("html[data-ready=saes]")
    page.go_back()
    page.wait_for_selector("html[data-ready=letter]")
    assert page.locator(".detail h3").inner_text() == word["word"].strip()


def test_a_latent_shows_where_it_fires_and_what_it_absorbs(opened, study):
    words = study.tables["words"].query("sae == @STANDARD and rule == 'absorb-pl-1'")
    absorbers = words[words["is_absorption"]]["top_latent"].value_counts()
    latent = int(absorbers.index[0])
    page = opened(state(view="latent", sae=STANDARD, rule="absorb-pl-1", latent=latent))
    fired = study.tables["firings"].query("sae == @STANDARD and latent == @latent")
    assert f"{len(fired)} held-out word" in page.locator("main").inner_text()
    assert f"{absorbers.iloc[0]} word" in page.locator(".facts").inner_text()
    strongest = fired.sort_values("activation").iloc[-1]
    first = rows(page, "words on which the latent fires")[0]
    held_out = study.tables["held_out"].set_index("row")
    assert first[0] == held_out.loc[strongest["row"], "word"].iloc[0].strip()


def test_two_saes_are_compared_word_by_word(opened, study):
    page = opened(state(view="compare", sae=STANDARD, other=BATCHTOPK, rule="saebench-0.6.0"))
    words = study.tables["words"].query("rule == 'saebench-0.6.0'")
    sides = [words[words["sae"] == sae].set_index("row")["is_absorption"] for sae in (STANDARD, BATCHTOPK)]
    differing = int((sides[0] != sides[1].reindex(sides[0].index)).sum())
    shown = page.locator(".facts").inner_text()
    assert f"{differing} word" in shown
    rates = study.tables["summary"].query("rule == 'saebench-0.6.0'").set_index("sae")["absorption_rate"]
    assert f"{100 * (rates[STANDARD] - rates[BATCHTOPK]):+.1f}" in shown


def test_a_comparison_brings_its_interval(opened, study, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(study.run_dir, run)
    table = compare_saes(run)
    table.to_parquet(run / "comparison.parquet")
    page = opened(state(view="compare", sae=BATCHTOPK, other=STANDARD, rule="paper"), file=make_page(run))
    row = table.query("rule == 'paper' and label == '' and a == @STANDARD and b == @BATCHTOPK").iloc[0]
    ends = [f"{100 * end:+.1f}".replace("-", "−") for end in (-row["ci_high"], -row["ci_low"])]
    assert f"[{ends[0]}, {ends[1]}]" in page.locator(".facts").inner_text()


def test_two_runs_come_to_one_page(opened, study, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(study.run_dir, other)
    run = tmp_path / "run"
    shutil.copytree(study.run_dir, run)
    page = opened(file=make_page(run, other))
    assert len(rows(page, "SAEs")) == 6
    page = opened(state(view="compare", sae=STANDARD, other=f"{STANDARD} (other)"), file=run / "comparison.html")
    assert "0 words" in page.locator(".facts").inner_text()


@pytest.mark.parametrize("view", ["saes", "sae", "letter", "latent", "compare", "about"])
@pytest.mark.parametrize("width", [400, 1200])
def test_no_view_is_wider_than_the_screen_in_light_and_dark(opened, view, width):
    where = state(view=view, sae=STANDARD, letter="s", latent=3)
    papers = []
    for scheme in ("light", "dark"):
        page = opened(where, viewport={"width": width, "height": 800}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_colours_can_be_chosen(opened):
    page = opened(color_scheme="light")
    page.locator("label", has_text="colours").locator("select").select_option("dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_names_with_html_in_them_are_text(opened, study, tmp_path):
    """An SAE, a class, a word and a prompt that try to run a script."""
    tables = {name: table.copy() for name, table in study.tables.items()}
    for table in tables.values():
        for column, old in (("sae", STANDARD), ("name", STANDARD), ("label", "s")):
            if column in table:
                table[column] = table[column].where(table[column] != old, HOSTILE)
        for column in ("word", "prompt"):
            if column in table:
                table[column] = HOSTILE
    tables["letters"]["reason"] = HOSTILE
    file = tmp_path / "report.html"
    settings = {"model": HOSTILE, "rules": {"paper": {}, "saebench-0.6.0": {}, "absorb-pl-1": {}}}
    file.write_text(page_of(tables, settings), encoding="utf-8")
    for view in ("saes", "sae", "letter", "latent", "compare", "about"):
        page = opened(state(view=view, sae=HOSTILE, letter=HOSTILE, other=BATCHTOPK, latent=3), file=file)
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
        assert HOSTILE in page.locator("body").inner_text()


def test_the_page_holds_the_numbers_of_the_tables(opened, study):
    page = opened()
    about = page.evaluate("async () => (await (await import('#data')).block('study'))")
    numbers = {"summary": ["sae", "rule"], "letters": ["sae", "rule", "label"]}
    for name, keys in numbers.items():
        expected = study.tables[name].set_index(keys).sort_index()
        found = pd.DataFrame(about[name]).set_index(keys).sort_index()
        for column in expected.select_dtypes("number"):
            np.testing.assert_array_equal(
                found[column].astype(float).to_numpy(), expected[column].astype(float).to_numpy(), err_msg=column
            )
    words = study.tables["words"]
    for number, sae in enumerate(about["about"]["saes"]):
        block = page.evaluate(f"async () => (await (await import('#data')).block('sae-{number}'))")
        for rule in ("paper", "saebench-0.6.0", "absorb-pl-1"):
            expected = words[(words["sae"] == sae["name"]) & (words["rule"] == rule)].reset_index(drop=True)
            found = pd.DataFrame(block.get(f"words {rule}", []), columns=None if len(expected) else expected.columns)
            assert len(found) == len(expected)
            assert found["row"].tolist() == expected["row"].tolist()
            assert found["is_absorption"].tolist() == expected["is_absorption"].tolist()
            assert found["unmet"].tolist() == expected["unmet"].tolist()
            for column in ("top_score", "second_score", "top_probe_cos", "main_max"):
                np.testing.assert_allclose(found[column].astype(float), expected[column], rtol=2**-16, atol=1e-38)


def test_a_page_without_firings_and_held_out_words_still_opens(opened, study, tmp_path):
    old = {name: table for name, table in study.tables.items() if name not in ("firings", "held_out")}
    old["words"] = old["words"].drop(columns="unmet")
    file = tmp_path / "report.html"
    file.write_text(page_of(old, {"model": "speller", "rules": {"paper": {}}}), encoding="utf-8")
    for view in ("saes", "sae", "letter", "latent", "compare", "about"):
        opened(state(view=view, sae=STANDARD, letter="s", latent=3), file=file)


def test_a_study_without_verdicts_of_an_sae_has_a_page(opened, study, tmp_path):
    words = study.tables["words"]
    tables = {**study.tables, "words": words[words["sae"] != STANDARD]}
    file = tmp_path / "report.html"
    file.write_text(page_of(tables, {"model": "speller", "rules": {"paper": {}}}), encoding="utf-8")
    opened(state(view="letter", sae=STANDARD, letter="s"), file=file)


def test_a_latent_leads_to_neuronpedia_where_its_sae_says_so(opened, study, tmp_path):
    place = "gemma-2-2b/12-gemmascope-res-16k"
    tables = {**study.tables, "summary": study.tables["summary"].assign(neuronpedia=place)}
    file = tmp_path / "report.html"
    file.write_text(page_of(tables, {"model": "speller", "rules": {"paper": {}}}), encoding="utf-8")
    page = opened(state(view="latent", sae=STANDARD, latent=7), file=file)
    link = page.get_by_role("link", name="neuronpedia")
    assert link.get_attribute("href") == f"https://www.neuronpedia.org/{place}/7"


def test_an_sae_shows_what_makes_its_rate_surer(opened, study, tmp_path):
    of = {"sae": STANDARD, "rule": "paper"}
    fitted = {"label": "", "repeats": 3, "absorption_rate": 0.125, "ci_low": 0.1, "ci_high": 0.15}
    shuffled = {"amount": "absorption_rate", "shuffled_mean": 0.25, "copies": 19, "p_value": 0.9, "exceeds": False}
    more = {"crossfit": pd.DataFrame([of | fitted]), "shuffles": pd.DataFrame([of | shuffled])}
    file = tmp_path / "report.html"
    file.write_text(page_of({**study.tables, **more}, {"model": "speller", "rules": {"paper": {}}}), encoding="utf-8")
    shown = opened(state(view="sae", sae=STANDARD, rule="paper"), file=file).locator(".facts").first.inner_text()
    assert "12.5% [10.0, 15.0], every word judged out of sample 3 times" in shown
    assert "25.0%, mean of 19: no more than chance, p 0.9" in shown
