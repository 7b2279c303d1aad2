"""Products by oneDNN: as exact as float32 is, only where asked for, and in all the work that multiplies most."""

import threading
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from absorb_pl import load_language_model, load_sae, matrix_products
from absorb_pl.attribution import (
    calculate_attribution_grads,
    calculate_individual_feature_ablations,
    calculate_integrated_gradient_attribution_patching,
    word_ablations,
    word_integrated_gradients,
)
from absorb_pl.data.residuals import read_contexts, read_residuals
from absorb_pl.engine import compute_prefix
from absorb_pl.matrix_products import fast_products, mkl_is_narrow
from absorb_pl.probes.base import take_steps
from absorb_pl.saes import encode_rows
from absorb_pl.training import SaeSettings, SparseAutoencoderModule
from absorb_pl.words import SpellingPrompt, tokenize_prompts

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.library, "get_kernel")),
    reason="this PyTorch has no oneDNN, or cannot put a kernel before its own",
)
ROWS, INNER, COLUMNS = 256, 192, 160
TEXT = 20 * " cat"
LAYOUTS = {
    "contiguous": lambda rows, columns: torch.randn(rows, columns),
    "transposed": lambda rows, columns: torch.randn(columns, rows).T,
    "columns of a wider one": lambda rows, columns: torch.randn(rows, 3 * columns)[:, columns : 2 * columns],
    "rows of a longer one, transposed": lambda rows, columns: torch.randn(columns, 3 * rows)[:, rows : 2 * rows].T,
    "every second column": lambda rows, columns: torch.randn(rows, 2 * columns)[:, ::2],
    "one row again and again": lambda rows, columns: torch.randn(1, columns).expand(rows, columns),
}


@pytest.fixture
def narrow(monkeypatch):
    """A processor on which oneDNN is to be used."""
    matrix_products._kernels.cache_clear()
    monkeypatch.setattr(matrix_products, "mkl_is_narrow", lambda: True)
    yield
    matrix_products._kernels.cache_clear()


def in_onednn(work) -> int:
    """How many products oneDNN does in some work."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return sum(event.count for event in profiler.key_averages() if event.key == "mkldnn::_linear_pointwise")


def assert_rounded(found, exact, size, terms):
    """Compare with the bound on the rounding of sums of so many terms (Higham, Accuracy and Stability, 3.5)."""
    eps = torch.finfo(torch.float32).eps / 2
    assert ((found.double() - exact).abs() <= terms * eps / (1 - terms * eps) * size).all()


@pytest.mark.numeric
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.usefixtures("narrow")
def test_products_of_any_layout_are_exact_to_rounding(left, right):
    a, b = LAYOUTS[left](ROWS, INNER), LAYOUTS[right](INNER, COLUMNS)
    for bias in (torch.randn(COLUMNS), torch.randn(2 * COLUMNS)[::2], torch.randn(1).expand(COLUMNS)):
        found = []
        with fast_products():
            assert in_onednn(lambda: found.extend([a @ b, torch.addmm(bias, a, b)])) == 2  # noqa: B023
        product, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        assert_rounded(found[0], product, size, INNER)
        assert_rounded(found[1], product + bias, size + bias.abs(), INNER + 1)
        assert all(each.is_contiguous() for each in found)


@pytest.mark.numeric
@pytest.mark.usefixtures("narrow")
def test_gradients_are_products_too():
    x, weight = torch.randn(ROWS, INNER, requires_grad=True), torch.randn(COLUMNS, INNER, requires_grad=True)
    bias, above = torch.randn(COLUMNS, requires_grad=True), torch.randn(ROWS, COLUMNS)

    def work():
        torch.nn.functional.linear(x, weight, bias).backward(above)

    with fast_products():
        assert in_onednn(work) == 3
    assert_rounded(x.grad, above.double() @ weight.double(), above.double().abs() @ weight.double().abs(), COLUMNS)
    assert_rounded(weight.grad, above.T.double() @ x.double(), above.T.double().abs() @ x.double().abs(), ROWS)
    assert torch.equal(bias.grad, above.sum(dim=0))


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("small", lambda a, b: a[:4] @ b),
        ("one column", lambda a, b: a @ b[:, :1]),
        ("float64", lambda a, b: a.double() @ b.double()),
        ("bfloat16", lambda a, b: a.bfloat16() @ b.bfloat16()),
        ("scaled", lambda a, b: torch.addmm(torch.ones(COLUMNS), a, b, beta=0.5, alpha=2)),
        ("a whole matrix added", lambda a, b: torch.addmm(torch.ones(ROWS, COLUMNS), a, b)),
        ("into a matrix", lambda a, b: torch.mm(a, b, out=torch.empty(ROWS, COLUMNS))),
        ("batches", lambda a, b: torch.stack([a, a]) @ torch.stack([b, b])),
    ],
)
@pytest.mark.usefixtures("narrow")
def test_other_products_are_as_ever(name, product):
    a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    matrix_products._kernels.cache_clear()
    before = product(a, b)
    with fast_products():
        assert in_onednn(lambda: product(a, b)) == 0, name
        assert torch.equal(product(a, b), before)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("product", [torch.mm, lambda a, b: torch.addmm(torch.ones(COLUMNS), a, b)])
@pytest.mark.parametrize("other", [(INNER + 1, COLUMNS), (INNER,)])
def test_matrices_that_do_not_fit_are_refused_as_ever(product, other):
    a, b = torch.randn(ROWS, INNER), torch.randn(other)
    with pytest.raises(RuntimeError) as expected:
        product(a, b)
    with fast_products(), pytest.raises(RuntimeError) as found:
        product(a, b)
    assert str(found.value) == str(expected.value)


@pytest.mark.usefixtures("narrow")
def test_threads_that_begin_together_share_the_kernels():
    a, b, found = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS), []

    def work():
        with fast_products():
            found.append(a @ b)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(each, found[0]) for each in found)
    assert torch.allclose(a @ b, found[0], atol=1e-3)


@pytest.mark.usefixtures("narrow")
def test_it_is_on_inside_and_in_one_thread_alone():
    a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)

    def count():
        return in_onednn(lambda: a @ b)

    elsewhere = []
    with fast_products():
        with fast_products():
            assert count() == 1
        assert count() == 1
        thread = threading.Thread(target=lambda: elsewhere.append(count()))
        thread.start()
        thread.join()
    assert (elsewhere, count()) == ([0], 0)


@pytest.mark.usefixtures("narrow")
def test_it_ends_with_an_error():
    def fail():
        with fast_products():
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    assert in_onednn(lambda: a @ b) == 0


@pytest.mark.usefixtures("narrow")
def test_it_can_be_switched_off():
    a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    with torch.backends.mkldnn.flags(enabled=False), fast_products():
        assert in_onednn(lambda: a @ b) == 0


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD", "AVX512", True),
        ("AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD", "AVX512", True),
        ("", "AVX512", False),
        ("vendor_id\t: GenuineIntel", "AVX512", False),
        ("Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", "AVX512", False),
        ("vendor_id\t: AuthenticAMD", "AVX2", False),
        ("vendor_id\t: AuthenticAMD", "DEFAULT", False),
    ],
)
def test_it_depends_on_the_processor(monkeypatch, maker, capability, expected):
    monkeypatch.setattr(matrix_products, "_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert mkl_is_narrow() is expected


def test_nothing_is_changed_where_mkl_is_as_wide_as_the_processor(monkeypatch):
    matrix_products._kernels.cache_clear()
    monkeypatch.setattr(matrix_products, "mkl_is_narrow", lambda: False)
    a, b = torch.randn(ROWS, INNER), torch.randn(INNER, COLUMNS)
    with fast_products():
        assert in_onednn(lambda: a @ b) == 0
    matrix_products._kernels.cache_clear()


@pytest.fixture(scope="module")
def case():
    """The bundled model, an SAE of it, and prompts."""
    model = load_language_model("speller")
    texts = [SpellingPrompt(" cat:", " C", " cat", 4), SpellingPrompt(" dog:", " D", " dog", 4)] * 8
    prompts = tokenize_prompts(model.tokenizer, texts, prepend_bos=True)
    sae = load_sae("speller/l1-standard-w512-dense")
    return SimpleNamespace(model=model, sae=sae, prompts=prompts, prefix=compute_prefix(model, prompts, [HOOK]))


def inside(*_):
    return matrix_products._CALLED.depth > 0


def margin(logits, rows):
    assert inside()
    return logits.gather(1, rows[:, None])[:, 0] - logits.mean(dim=1)


def last_logit(logits):
    assert inside()
    return logits[..., -1, 5]


def train_sae(steps):
    saes = {"small": SaeSettings("topk", 64, settings={"k": 4})}
    module = SparseAutoencoderModule(saes, {"x": 16})
    data = DataLoader([{"x": torch.randn(16, 16)}] * steps, batch_size=None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_steps=steps, accelerator="cpu", enable_model_summary=False, **quiet).fit(module, data)


def step_probe():
    probe = torch.nn.Linear(16, 16)

    def losses(batch):
        assert inside()
        return probe(batch["x"]).square().mean()

    take_steps(torch.optim.SGD(probe.parameters(), lr=0.1), {"x": torch.randn(16, 16)}, None, losses)


HOOK = "blocks.1.hook_resid_post"
WORK = {
    "reading contexts": lambda c: read_contexts(c.model, c.prompts.input_ids, [HOOK]),
    "reading words": lambda c: read_residuals(
        c.model, c.prompts.input_ids, c.prompts.attention_mask, c.prompts.word_positions, [HOOK]
    ),
    "encoding": lambda c: encode_rows(c.sae, torch.randn(64, 128)),
    "prefixes": lambda c: compute_prefix(c.model, c.prompts, [HOOK]),
    "scores of words": lambda c: word_integrated_gradients(c.model, c.sae, c.prompts, margin, prefix=c.prefix),
    "ablations of words": lambda c: word_ablations(c.model, c.sae, c.prompts, margin, prefix=c.prefix),
    "gradients": lambda c: calculate_attribution_grads(c.model, TEXT, last_logit, include_saes={HOOK: c.sae}),
    "integrated gradients": lambda c: calculate_integrated_gradient_attribution_patching(
        c.model, TEXT, last_logit, patch_indices=[3], include_saes={HOOK: c.sae}, interpolation_steps=2
    ),
    "ablations": lambda c: calculate_individual_feature_ablations(
        c.model, TEXT, last_logit, c.sae, ablate_features=[1, 2], ablate_token_index=3
    ),
    "training SAEs": lambda _: train_sae(2),
    "training probes": lambda _: step_probe(),
}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.usefixtures("narrow")
def test_all_work_that_multiplies_most_uses_it(monkeypatch, case, name):
    monkeypatch.setattr(matrix_products, "SMALLEST", 1)
    assert in_onednn(lambda: WORK[name](case)) > 0
