"""The benchmarks, at their smallest: both ways come to the same figures and the ratios are written down."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from absorb_pl.reports import report
from absorb_pl.saes import load_sae

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.mark.parametrize(
    ("name", "comparisons"),
    [pytest.param("bench_attribution", 8, marks=pytest.mark.slow), ("bench_cache", 3), ("bench_probing", 4)],
)
def test_both_ways_agree_and_the_ratios_are_written(script, tmp_path, name, comparisons):
    file = tmp_path / "figures" / f"{name}.json"
    script(name).main(["--quick", "--device", "cpu", "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["machine"]["matmul_gflops"] > 0
    assert len(written["comparisons"]) == comparisons
    for comparison in written["comparisons"]:
        assert comparison["largest_difference"] < 1e-4
        [plain], [this] = comparison["plain_seconds"], comparison["this_seconds"]
        assert comparison["ratio"] == pytest.approx(plain / this)


def test_the_engine_is_held_against_the_machines_own_rate(script, tmp_path):
    file = tmp_path / "gpu.json"
    script("bench_gpu").main(["--quick", "--device", "cpu", "--json", str(file)])
    written = json.loads(file.read_text())
    identity, *engine, plain = written["measurements"]
    assert identity["ms"] > 0
    assert plain["ms a word"] > 0
    assert {(one["what"], one["sequences a run"]) for one in engine} == {
        (f"{what}, {context}", size)
        for what in ("integrated gradients", "ablations")
        for context in ("own contexts", "shared context")
        for size in (64, 1024)
    }
    rate = written["machine"]["matmul_gflops"]
    for one in engine:
        share = one["gflop a word"] / (1e-3 * one["ms a word"]) / rate
        assert float(one["of matmul rate"].rstrip("%")) == pytest.approx(100 * share, abs=0.06, rel=1e-3)
        assert one["operators a word"] > 100
        assert 0 < float(one["in matrix products"].rstrip("%")) < 100


@pytest.mark.slow
def test_looks_of_the_monitor_are_held_against_evaluations_one_by_one(script, tmp_path):
    file = tmp_path / "monitor.json"
    script("bench_monitor").main(["--latents", "64", "--steps", "20", "--repeats", "1", "--json", str(file)])
    [found] = json.loads(file.read_text())["measurements"]
    assert (found["SAEs"], found["latents"], found["words"]) == (8, 64, 4491)
    assert found["times faster"] == pytest.approx(found["one by one, s"] / found["a look, s"], rel=0.1)


@pytest.mark.slow
def test_training_is_held_against_saelens_runner(script, tmp_path):
    file = tmp_path / "training.json"
    script("bench_training").main(["--quick", "--device", "cpu", "--json", str(file)])
    one, eight = json.loads(file.read_text())["measurements"]
    assert (one["sparsities"], eight["sparsities"]) == (1, 8)
    for found in (one, eight):
        assert found["this activations/s"] > 0
        assert found["saelens activations/s"] > 0


def test_the_plain_way_keeps_the_dtype_of_a_bfloat16_model(script):
    shapes = script("bench_gpu").SHAPES
    with script("benchmark_shapes").open_shape("small", "cpu", "bfloat16", shapes) as setting:
        [sae] = setting.saes(1)
        prompts = setting.prompts(1, shared_context=False)
        scores = script("bench_attribution").plain_integrated_gradients(setting, sae, prompts, 1)
    assert setting.model.cfg.dtype == torch.bfloat16
    assert scores.shape == (1, 512)
    assert scores.isfinite().all()
    assert scores.abs().max() > 0


@pytest.mark.slow
def test_a_sweep_gives_what_separate_studies_give(script, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_figures", lambda _: {})
    file = tmp_path / "sweep.json"
    script("bench_sweep").main(["--quick", "--device", "cpu", "--json", str(file)])
    written = json.loads(file.read_text())["comparisons"]
    assert [one["rules"] for one in written] == ["default rules", "projection rules"]
    for one in written:
        assert (one["saes"], one["separate_timed"], one["largest_difference"]) == (2, 1, 0)
        [sweep], [alone] = one["sweeps"], one["separate"]
        assert one["processor_share"] == pytest.approx(sweep["processor"] / alone["processor"] / 2)


def test_variants_reconstruct_what_the_sae_does(script, tmp_path):
    names = script("bench_sweep").sae_names(tmp_path, 16)
    assert len(set(names)) == 16
    bundled = [name for name in names if name.startswith("speller/")]
    sae, variant = load_sae(names[0]), load_sae(names[len(bundled)])
    x = torch.randn(50, sae.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(sae.W_dec.norm(dim=1), variant.W_dec.norm(dim=1), atol=0.1)
    assert torch.allclose(sae.decode(sae.encode(x)), variant.decode(variant.encode(x)), atol=1e-4)


def test_ways_take_turns_and_must_agree(script):
    benchmarking = script("benchmarking")
    turns = []

    def way(name, factor):
        def run(count):
            turns.append((name, count))
            return factor * torch.arange(count + 1.0)

        return run

    plain = benchmarking.Way("plain", way("plain", 1.0), 2)
    this = benchmarking.Way("this", way("this", 1.0), 4)
    found = benchmarking.compare("shape", "what", "item", plain, this, repeats=2, device="cpu")
    assert turns == [("plain", 1), ("this", 1), *[("plain", 2), ("this", 4)] * 2, ("this", 4)]
    assert found.largest_difference == 0
    other = benchmarking.Way("this", way("this", 1.01), 4)
    with pytest.raises(SystemExit, match=r"differ by 1\.0e-02"):
        benchmarking.compare("shape", "what", "item", plain, other, repeats=1, device="cpu")


def test_operations_are_counted(script):
    benchmarking = script("benchmarking")
    square = torch.rand(8, 8)
    way = benchmarking.Way("product", lambda count: torch.rand(count, 8) @ square * 0 + 1, 5)
    assert benchmarking.compare("shape", "what", "row", way, way, repeats=1, device="cpu").flops_per_item == 2 * 8 * 8


def test_peak_memory_never_falls(script):
    first, second = script("bench_attribution").memory_growth("speller", "cpu", portion=1, multiples=(1, 3))
    assert 0 <= first <= second < 100


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on the PATH")
def test_the_page_of_a_big_study_is_measured(script, tmp_path):
    file = tmp_path / "page.json"
    script("bench_page").main(["--saes", "3", "--words", "60", "--repeats", "1", "--json", str(file)])
    one, three = json.loads(file.read_text())["pages"]
    assert one["saes"] == 1
    assert three["megabytes"] > one["megabytes"] > 0.9
    assert all(row[name] > 0 for row in (one, three) for name in row if name.startswith("seconds"))


def test_sizes_are_measured_each_in_a_process_of_its_own(script, tmp_path):
    file = tmp_path / "sizes.json"
    sizes = ["208x128x16", "130x64x8"]
    script("bench_sizes").main(["--sizes", *sizes, "--json", str(file)])
    found = json.loads(file.read_text())["measurements"]
    assert [one["size"] for one in found] == sizes
    for one in found:
        assert 0 < one["peak before MiB"] <= one["peak MiB"]
        assert one["processor seconds"] > 0
        assert one["l0"] > 1


@pytest.mark.parametrize("size", ["20000", "9x128x16", "words"])
def test_sizes_that_cannot_be_are_refused(script, capsys, size):
    with pytest.raises(SystemExit):
        script("bench_sizes").main(["--sizes", size])
    assert repr(size) in capsys.readouterr().err
