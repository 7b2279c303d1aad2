"""SAEs and models in memory: the tables of a study of the same on disk, and what a result can do."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata

import absorb_pl
from absorb_pl.cli import main
from absorb_pl.errors import (
    AbsorbError,
    HookNotFoundError,
    OutputFolderError,
    SaeInterfaceError,
    SaeWidthError,
    TrainerError,
)
from absorb_pl.models import load_language_model
from absorb_pl.reports.figures import draw_figures
from absorb_pl.saes import AdaptedSae, load_sae, sae_identity, to_unit_norms
from absorb_pl.schema import COMPARISON
from absorb_pl.study import StudyConfig, TrainerSettings, compare_saes, rescore_run, run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread", "_without_figures")

MODEL = "tests/golden/gpt2-micro"
SAES = [f"{MODEL}/sae_{name}" for name in ("jumprelu_A", "standard_A", "topk_B")]
HOOK = "blocks.1.hook_resid_post"
KEPT = ("task", "k_sparse", "rules", "rates", "trainer", "cache_dir")


class Plain:
    """An SAE that is no module, with decoder rows of norm 2, and says nothing of its hook."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.W_dec = 2 * torch.nn.functional.normalize(torch.randn(40, 48, generator=generator), dim=1)
        self.W_enc = self.W_dec.T.clone()

    def encode(self, x):
        return (x @ self.W_enc).relu()

    def decode(self, latents):
        return latents @ self.W_dec


def made(result):
    stages = json.loads((result.run_dir / "manifest.json").read_text())["stages"]
    return sum(stage.get("made", 0) for stage in stages.values())


def assert_same(found, expected, names=None):
    assert sorted(found) == sorted(expected)
    for name in found:
        ours = found[name] if names is None or "sae" not in found[name] else renamed(found[name], names)
        pd.testing.assert_frame_equal(ours, expected[name], check_exact=True)


def renamed(table, names):
    return table.assign(sae=table["sae"].map(names))


@pytest.fixture(scope="module")
def settings(study, tmp_path_factory):
    """The settings of the finished study, with a copy of its cache."""
    cache = tmp_path_factory.mktemp("cache") / "of_study"
    shutil.copytree(study[0].cache_dir, cache)
    return {name: getattr(study[0], name) for name in KEPT} | {"cache_dir": str(cache)}


@pytest.fixture(scope="module")
def in_memory(settings, tmp_path_factory, request):
    """The three SAEs as objects, scored on a model that is an object, with a cache of their own."""
    saes = {name: load_sae(str(request.config.rootpath / name)) for name in SAES}
    model = load_language_model(str(request.config.rootpath / MODEL))
    model.train().requires_grad_(True)
    own = {**settings, "cache_dir": str(tmp_path_factory.mktemp("cache"))}
    before = {name: sae_identity(sae) for name, sae in saes.items()}
    request.getfixturevalue("_without_figures")
    result = absorb_pl.score(saes, model, **own)
    assert {name: sae_identity(sae) for name, sae in saes.items()} == before
    return saes, model, own, result


def test_tables_are_those_of_the_same_saes_and_model_on_disk(study, in_memory):
    assert_same(in_memory[-1].tables, study[1].tables)


def test_the_model_and_the_saes_stay_as_they_were(in_memory):
    saes, model, *_ = in_memory
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(weight.requires_grad for sae in saes.values() for weight in sae.parameters()) is False


def test_what_was_scored_is_found_by_its_content(in_memory, capsys):
    saes, model, own, result = in_memory
    assert made(result) > 0
    again = absorb_pl.score({name: load_sae(name) for name in saes}, MODEL, **own)
    assert made(again) == 0
    assert_same(again.tables, result.tables)
    assert made(run_study(StudyConfig(saes=list(saes), model=model, run_dir=str(again.run_dir / "x"), **own))) == 0
    assert "Feature absorption" in capsys.readouterr().out


def test_names_objects_and_names_of_ones_own_go_together(study, settings):
    result = absorb_pl.score({"first": load_sae(SAES[0]), "last": SAES[2]}, MODEL, **settings)
    expected = {
        name: table[table["sae"].isin([SAES[0], SAES[2]])].reset_index(drop=True)
        for name, table in study[1].tables.items()
        if "sae" in table and name != "words"
    }
    names = {"first": SAES[0], "last": SAES[2]}
    assert_same({name: result.tables[name] for name in expected}, expected, names)
    assert result.settings["saes"] == {"first": "first", "last": SAES[2]}
    mixed = absorb_pl.score([SAES[2], load_sae(SAES[0])], MODEL, **settings)
    own = f"JumpReLUSAE-{sae_identity(load_sae(SAES[0]))[:8]}"
    assert mixed.summary["sae"].unique().tolist() == [SAES[2], own]
    assert mixed.settings["saes"] == [SAES[2], own]
    assert yaml.safe_load((mixed.run_dir / "config.yaml").read_text())["saes"] == [SAES[2], own]
    assert json.loads((mixed.run_dir / "manifest.json").read_text())["contents"][own] == sae_identity(load_sae(SAES[0]))
    one = absorb_pl.score(SAES[0], MODEL, **settings)
    assert made(one) == 0
    assert one.settings["saes"] == [SAES[0]]


def test_controls_and_copies_of_an_object_are_those_of_the_sae(settings, tmp_path):
    asked = {**settings, "rules": "saebench-0.6.0", "controls": ["random", "shuffled_decoder"], "shuffles": 2}
    by_name = absorb_pl.score(SAES[1], MODEL, **asked)
    own = {**asked, "cache_dir": str(tmp_path)}
    assert_same(absorb_pl.score({SAES[1]: load_sae(SAES[1])}, MODEL, **own).tables, by_name.tables)
    assert by_name.summary["control"].unique().tolist() == ["", "random", "shuffled_decoder"]


def test_an_sae_in_training_is_scored_as_it_would_be_saved(settings, tmp_path):
    config = StandardTrainingSAEConfig(d_in=48, d_sae=64, metadata=SAEMetadata(hook_name=HOOK))
    training = StandardTrainingSAE(config)
    with torch.no_grad():
        training.W_dec.mul_(3)
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    training.save_inference_model(tmp_path / "saved")
    asked = {**settings, "rules": "saebench-0.6.0"}
    result = absorb_pl.score({"sae": training}, MODEL, **asked)
    saved = absorb_pl.score({"sae": str(tmp_path / "saved")}, MODEL, **{**asked, "cache_dir": str(tmp_path / "cache")})
    assert_same(result.tables, saved.tables)
    assert training.training
    assert all(torch.equal(before[name], tensor) for name, tensor in training.state_dict().items())


def test_any_object_is_scored_where_its_hook_is_given(settings):
    asked = {**settings, "rules": "saebench-0.6.0"}
    mine = Plain()
    result = absorb_pl.score({"mine": mine}, MODEL, hook_name=HOOK, **asked)
    assert result.summary[["hook_name", "architecture", "folded"]].to_numpy().tolist() == [[HOOK, "Plain", "latents"]]
    wrapped = absorb_pl.score({"mine": to_unit_norms(AdaptedSae(mine, HOOK))}, MODEL, **asked)
    assert made(wrapped) == 0
    assert mine.W_dec.norm(dim=1).tolist() == pytest.approx([2.0] * 40)
    other = "blocks.3.hook_resid_pre"
    by_name, by_object = (
        absorb_pl.score({"sae": sae}, MODEL, hook_name=other, **asked) for sae in (SAES[1], load_sae(SAES[1]))
    )
    assert_same(by_object.tables, by_name.tables)
    assert by_object.summary["hook_name"].tolist() == [other]


def test_a_result_draws_and_compares(study, settings, in_memory):
    result = in_memory[-1]
    assert sorted(absorb_pl.reports.figures.figure_names(result.tables)) == sorted(draw_figures(result.tables))
    assert result.figure("absorption_by_letter").axes
    with pytest.raises(AbsorbError, match=r"absorption_vs_l0.*Nearest: absorption_by_letter"):
        result.figure("absorption_by_leter")
    with_themselves = result.compare()
    pd.testing.assert_frame_equal(with_themselves, compare_saes(study[1].run_dir))
    assert list(with_themselves) == list(COMPARISON)
    other = absorb_pl.score({"other": load_sae(SAES[1])}, MODEL, **settings)
    table = other.compare(result, rule="paper", saes=["other", SAES[1]])
    assert table[["a", "b"]].drop_duplicates().to_numpy().tolist() == [["other", SAES[1]]]
    assert (table["difference"].dropna() == 0).all()
    pd.testing.assert_frame_equal(table, other.compare(study[1].run_dir, rule="paper", saes=["other", SAES[1]]))


def test_a_page_needs_nothing_else(in_memory):
    page = in_memory[-1].page()
    assert page.parent == in_memory[-1].run_dir
    assert page.read_text(encoding="utf-8").startswith("<!")


def test_a_saved_result_is_a_run_of_its_own(in_memory, tmp_path, capsys):
    result = in_memory[-1]
    folder = result.save(tmp_path / "kept")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in result.run_dir.iterdir())
    assert yaml.safe_load((folder / "config.yaml").read_text())["run_dir"] == str(folder)
    main(["rescore", f"--run_dir={folder}", "--rule=saebench-0.6.0"])
    main(["compare", f"--run_dir={folder}"])
    assert "p (Holm)" in capsys.readouterr().out
    assert len(rescore_run(folder, "paper").tables["summary"]) == 3
    assert result.save(folder) == folder
    assert not (folder / "rescored").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(OutputFolderError, match=str(taken)):
            result.save(taken)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_temporary_run_is_there_as_long_as_its_result(settings, tmp_path, capfd):
    result = absorb_pl.score(SAES[1], MODEL, **settings)
    folder = result.run_dir
    assert (folder / "tables" / "summary.parquet").is_file()
    del result
    assert not folder.exists()
    kept = absorb_pl.score(SAES[1], MODEL, run_dir=str(tmp_path / "run"), **settings)
    assert (kept.run_dir, kept.stages) == (tmp_path / "run", None)
    assert capfd.readouterr().out == ""


class Texts(HTMLParser):
    """The elements and texts of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not attrs

    def handle_data(self, data):
        self.texts.append(data)


def test_a_notebook_shows_the_summary_and_no_text_as_markup(in_memory):
    shown = Texts(in_memory[-1]._repr_html_())
    assert {"table", "th", "td"} <= shown.tags
    assert shown.texts.count(SAES[0]) == 1
    assert any("%" in text and "[" in text for text in shown.texts)
    hostile = "<script>alert(1)</script>&<b onclick='x'>"
    tables = {**in_memory[-1].tables}
    tables["summary"] = tables["summary"].assign(
        sae=hostile, rule=hostile, model=hostile, evaluable=False, reason=hostile
    )
    result = replace(in_memory[-1], tables=tables, settings={"model": hostile})
    found = Texts(result._repr_html_())
    assert found.tags <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "br"}
    assert hostile in found.texts
    assert hostile in repr(result)


def test_a_stopped_study_has_no_tables_to_show(settings):
    result = run_study(StudyConfig(saes=[SAES[1]], model=MODEL, until="linear-probes", **settings), show=False)
    assert result._repr_html_() is None
    assert "stopped" in repr(result)
    for look in (lambda: result.summary, lambda: result.figure("x"), result.compare, result.page):
        with pytest.raises(AbsorbError, match="`until` was 'linear-probes'"):
            look()


def test_what_cannot_be_scored_is_named(settings, make_sae):
    with pytest.raises(AbsorbError, match=r"`saes` was 3, expected names of SAEs, or SAEs with"):
        absorb_pl.score([SAES[0], 3], MODEL, **settings)
    for name in (3, ""):
        with pytest.raises(AbsorbError, match="a text as a name"):
            absorb_pl.score({name: SAES[0]}, MODEL, **settings)
    with pytest.raises(AbsorbError, match="`saes` was 'a#random', expected a name for each SAE and control"):
        absorb_pl.score({"a": SAES[0], "a#random": SAES[1]}, MODEL, controls=["random"], **settings)
    with pytest.raises(AbsorbError, match="`models` was"):
        StudyConfig(models={MODEL: [load_sae(SAES[0])]})
    with pytest.raises(AbsorbError, match=r"Nearest: rules"):
        absorb_pl.score(SAES[0], MODEL, rule="paper")
    with pytest.raises(AbsorbError, match=r"`saes\['mine'\]` was .*one SAE, but it selects 3"):
        absorb_pl.score({"mine": f"{MODEL}/sae_*"}, MODEL, **settings)
    with pytest.raises(AbsorbError, match="a name for each SAE"):
        absorb_pl.score({f"{MODEL}/sae_*": f"{MODEL}/sae_*", SAES[0]: load_sae(SAES[1])}, MODEL, **settings)
    with pytest.raises(AbsorbError, match=r"`model` was 'GPT2LMHeadModel'.*boot_transformers"):
        absorb_pl.score(SAES[0], load_language_model(MODEL).original_model, **settings)
    with pytest.raises(HookNotFoundError, match="Pass hook_name"):
        absorb_pl.score(Plain(), MODEL, **settings)
    computed = Plain()
    computed.W_enc = computed.W_enc.requires_grad_() * 2
    with pytest.raises(SaeInterfaceError, match="can be copied"):
        absorb_pl.score(computed, MODEL, hook_name=HOOK, **settings)
    with pytest.raises(SaeWidthError):
        absorb_pl.score(make_sae("standard", d_in=16), MODEL, **settings)
    trainer = TrainerSettings("cpu", 2, "ddp", enable_progress_bar=False)
    with pytest.raises(TrainerError, match=r"`trainer.devices` was 2, expected one device, as mine is in the memory"):
        absorb_pl.score({"mine": load_sae(SAES[0])}, MODEL, **{**settings, "trainer": trainer})


def test_the_same_object_twice_is_scored_once_and_said():
    sae: SAE = load_sae(SAES[0])
    with pytest.warns(UserWarning, match="Given more than once and scored once: JumpReLUSAE-"):
        config = StudyConfig(saes=[sae, sae], model=MODEL)
    assert len(config.saes) == 1


def test_a_hugging_face_model_is_scored_once_it_is_wrapped(in_memory):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, _, own, result = in_memory
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    wrapped = TransformerBridge.boot_transformers(
        "mine", hf_model=model, tokenizer=tokenizer, dtype=model.dtype, device=model.device
    )
    found = absorb_pl.score(SAES[1], wrapped, **own)
    assert (found.settings["model"], found.settings["model_dtype"]) == ("mine", "float32")
    expected = result.summary[result.summary["sae"] == SAES[1]].assign(model="mine").reset_index(drop=True)
    pd.testing.assert_frame_equal(found.summary, expected, check_exact=True)


def test_folders_may_be_paths(settings):
    config = StudyConfig(saes={"mine": Path(SAES[0])}, model=Path(MODEL), **settings)
    assert (config.saes, config.model, config.in_memory) == ({"mine": SAES[0]}, MODEL, [])
    assert StudyConfig(saes=Path(SAES[0]), model=MODEL).saes == [SAES[0]]
