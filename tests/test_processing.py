"""Processed weights: an SAE is measured on the model that its metadata ask for."""

import json
import warnings

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

from absorb_pl.data import ActivationDataModule, PromptDataModule, read_residuals
from absorb_pl.engine.bare import bare_model
from absorb_pl.errors import ModelProcessingError
from absorb_pl.evaluators import AblationEvaluator, Evaluate, FeatureAbsorptionCalculator
from absorb_pl.models import load_language_model, model_identity
from absorb_pl.probes import LinearProbe, SaeProbe
from absorb_pl.saes import load_sae
from absorb_pl.saes.processing import check_processing, sae_processing
from absorb_pl.saes.source import SaeSource
from absorb_pl.study import run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

HOOK = "blocks.1.hook_resid_post"
CENTRED = {"center_writing_weights": True}
FOLDED = {**CENTRED, "fold_ln": True, "center_unembed": True}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """A GPT-2 whose stream has a mean, the same centred by hand, and an SAE that says how it was trained."""
    root = tmp_path_factory.mktemp("processing")
    model = AutoModelForCausalLM.from_pretrained(golden / "gpt2-micro")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=generator) / 10)
        model.transformer.wpe.weight.add_(0.3)
    model.save_pretrained(root / "raw")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for weight in (model.transformer.wte.weight, model.transformer.wpe.weight):
            weight.sub_(weight.mean(dim=1, keepdim=True))
        for block in model.transformer.h:
            for written in (block.attn.c_proj, block.mlp.c_proj):
                written.weight.sub_(written.weight.mean(dim=1, keepdim=True))
                written.bias.sub_(written.bias.mean())
    model.save_pretrained(root / "centred")
    for name in ("raw", "centred"):
        AutoTokenizer.from_pretrained(golden / "gpt2-micro").save_pretrained(root / name)
    for name, options in {"asks": CENTRED, "asks_all": FOLDED, "false": dict.fromkeys(FOLDED, False)}.items():
        write_sae(golden, root / name, model_from_pretrained_kwargs=options)
    return root


def write_sae(golden, folder, **metadata):
    sae = SAE.load_from_disk(str(golden / "gpt2-micro" / "sae_standard_A"))
    sae.save_model(folder)
    file = folder / "cfg.json"
    cfg = json.loads(file.read_text())
    cfg["metadata"] |= metadata
    file.write_text(json.dumps(cfg))


@pytest.fixture(scope="module")
def studies(folder, study_config, _one_thread, _without_figures):
    """Tables of SAEs that ask for two kinds of processing, and of one that asks for none on hand-centred weights."""
    quick = ("--k_sparse.ks=[1,2,3]", "--splits.max_k=3")
    mixed = study_config(
        folder / "mixed", f"--model={folder / 'raw'}", f"--saes={[str(folder / 'asks'), str(folder / 'false')]}", *quick
    )
    by_hand = study_config(
        folder / "by_hand", f"--model={folder / 'centred'}", f"--saes={[str(folder / 'false')]}", *quick
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return run_study(mixed), run_study(by_hand), [str(one.message) for one in said]


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("summary", ["rule", "l0", "explained_variance", "probe_f1", "num_splits", "absorption_rate", "num_words"]),
        ("letters", ["rule", "label", "num_candidates", "absorption_rate"]),
        ("words", ["rule", "row", "is_absorption", "top_latent", "top_score"]),
    ],
)
def test_an_sae_that_asks_scores_as_on_weights_centred_by_hand(studies, folder, table, columns):
    mixed, by_hand, _ = (studies[0].tables[table], studies[1].tables[table], None)
    asks = mixed[mixed["sae"] == str(folder / "asks")]
    assert len(asks)
    pd.testing.assert_frame_equal(
        asks[columns].reset_index(drop=True), by_hand[columns].reset_index(drop=True), rtol=1e-3, atol=1e-5
    )


def test_groups_are_apart_and_raw_weights_give_other_figures(studies, folder):
    summary = studies[0].tables["summary"].drop_duplicates("sae").set_index("sae")
    asks, raw = summary.loc[str(folder / "asks")], summary.loc[str(folder / "false")]
    assert (asks["processing"], raw["processing"]) == ("center_writing_weights", "")
    assert asks["explained_variance"] != pytest.approx(raw["explained_variance"], abs=0.01)
    assert asks["model"] == f"{raw['model']}+center_writing_weights"
    manifests = [json.loads(file.read_text()) for file in studies[0].run_dir.glob("*/manifest.json")]
    assert sorted(manifest["stages"]["load"]["processing"] for manifest in manifests) == [
        [],
        ["center_writing_weights"],
    ]


def test_nothing_is_warned_of(studies):
    assert [message for message in studies[2] if "from_pretrained" in message] == []


@pytest.mark.parametrize("name", ["asks", "asks_all"])
def test_processed_residuals_are_those_of_weights_centred_by_hand(folder, name):
    wanted = sae_processing(load_sae(str(folder / name)))
    made = load_language_model(str(folder / "raw"), dtype="float64", processing=wanted)
    by_hand = load_language_model(str(folder / "centred"), dtype="float64")
    ids = torch.randint(2, 200, (3, 8), generator=torch.Generator().manual_seed(0))
    mask, last = torch.ones_like(ids, dtype=torch.bool), torch.full((3,), 7)
    found, expected = (read_residuals(model, ids, mask, last, [HOOK])[HOOK] for model in (made, by_hand))
    assert found.mean(dim=1).abs().max() < 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # TransformerLens processes in float32
    answers = [model(ids).log_softmax(dim=-1) for model in (made, by_hand)]
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-5)


def test_the_bare_model_is_used_only_where_it_is_processed_too(folder):
    """Centred weights lie in Hugging Face's own parameters, folded norms beside them."""
    ids = torch.randint(2, 200, (1, 8), generator=torch.Generator().manual_seed(0))
    for name, used in (("asks", True), ("asks_all", False)):
        wanted = sae_processing(load_sae(str(folder / name)))
        model = load_language_model(str(folder / "raw"), processing=wanted)
        bare = bare_model(model)
        assert bare is not None
        assert (bare.site(model, HOOK, ids, 4) is not None) == used


def test_processing_is_part_of_the_models_identity(folder):
    raw, made = (load_language_model(str(folder / "raw"), processing=steps) for steps in ((), tuple(CENTRED)))
    assert model_identity(raw) != model_identity(made)


def test_false_asks_for_nothing(folder):
    assert sae_processing(load_sae(str(folder / "false"))) == ()


@pytest.mark.parametrize(
    "metadata",
    [
        {"model_from_pretrained_kwargs": {"checkpoint_index": 3}},
        {"model_from_pretrained_kwargs": {"refactor_factored_attn_matrices": True}},
        {"hook_head_index": 0},
    ],
)
def test_what_cannot_be_given_is_refused(golden, gpt2, tmp_path, metadata):
    write_sae(golden, tmp_path / "sae", **metadata)
    with pytest.raises(ModelProcessingError, match=next(iter(metadata.get("model_from_pretrained_kwargs", metadata)))):
        SaeSource.check(str(tmp_path / "sae"), gpt2)


def test_a_model_at_hand_without_the_processing_is_refused(folder):
    raw = load_language_model(str(folder / "raw"))
    with pytest.raises(ModelProcessingError, match="center_writing_weights"):
        AblationEvaluator(raw, [str(folder / "asks")])
    made = load_language_model(str(folder / "raw"), processing=tuple(CENTRED))
    AblationEvaluator(made, [str(folder / "asks")])
    with pytest.raises(ModelProcessingError, match="weights as they are"):
        check_processing(made, load_sae(str(folder / "false")))


@pytest.mark.parametrize(
    ("bounds", "fits"), [((None,), True), ([1, None], True), ([0, 10], False), ([0, 64, 2], False)]
)
def test_words_stand_where_the_sae_was_trained(golden, gpt2, tmp_path, bounds, fits):
    write_sae(golden, tmp_path / "sae", seqpos_slice=bounds, context_size=128)
    source, positions = SaeSource.check(str(tmp_path / "sae"), gpt2), torch.tensor([20, 21, 60])
    if fits:
        source.check_words(positions)
        return
    with pytest.raises(ModelProcessingError, match="seqpos_slice"):
        source.check_words(positions)


def test_an_sae_trained_without_a_beginning_token_gets_prompts_without(golden, gpt2, tmp_path):
    write_sae(golden, tmp_path / "sae", prepend_bos=False)
    steps = sae_processing(load_sae(str(tmp_path / "sae")))
    model = load_language_model(str(golden / "gpt2-micro"), processing=steps)
    found, usual = PromptDataModule(model).prompts, PromptDataModule(gpt2).prompts
    assert (usual.input_ids[:, 0] == gpt2.tokenizer.bos_token_id).all()
    torch.testing.assert_close(found.lengths, usual.lengths - 1)
    torch.testing.assert_close(found.word_positions, usual.word_positions - 1)


def quiet(tmp_path, **options):
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        inference_mode=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        **options,
    )


def meet(way, sae, model, data, path):
    """Bring an SAE and words together in one of the ways that there are outside studies."""
    if way == "fit":
        quiet(path).fit(SaeProbe(sae, 26, ks=[1]), datamodule=data)
    elif way == "test":
        quiet(path, callbacks=[Evaluate(sae)]).test(LinearProbe(48, 26), datamodule=data, verbose=False)
    elif way == "predict":
        quiet(path).predict(AblationEvaluator(model, [sae]), datamodule=data.prompt_data)
    elif way == "without a Trainer":
        AblationEvaluator(model, [sae]).tabulate_words(data.prompt_data, torch.tensor([3]))
    else:
        calculator = FeatureAbsorptionCalculator(model, ["abc", "bcd"], max_icl_examples=2)
        calculator.calculate_absorption_sampled(
            load_sae(sae), ["cat"], torch.ones(48), lambda logits: logits[:, -1, 0], [0], show_progress=False
        )


@pytest.mark.filterwarnings("ignore:.*batches per epoch")
@pytest.mark.parametrize("way", ["fit", "test", "predict", "without a Trainer", "the calculator"])
def test_positions_are_compared_wherever_an_sae_meets_words(study, golden, gpt2, tmp_path, way):
    config = study[0]
    data = ActivationDataModule(gpt2, HOOK, config.task, config.cache_dir)
    at = {*data.prompt_data.prompts.word_positions.tolist()}
    write_sae(golden, tmp_path / "fits", seqpos_slice=[1, max(at) + 1], context_size=128)
    write_sae(golden, tmp_path / "beyond", seqpos_slice=[0, 1], context_size=128)
    meet(way, str(tmp_path / "fits"), gpt2, data, tmp_path)
    with pytest.raises(ModelProcessingError, match=r"seqpos_slice of .* was range\(0, 1\)"):
        meet(way, str(tmp_path / "beyond"), gpt2, data, tmp_path)
