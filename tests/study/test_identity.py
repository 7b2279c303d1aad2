"""A study knows its language model by one look at its weights."""

import pytest

from absorb_pl.data import ActivationDataModule, activation_cache
from absorb_pl.study import run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread", "_without_figures")


@pytest.fixture
def hashed(monkeypatch):
    """The models that are hashed."""
    seen, whole = [], activation_cache.model_identity
    monkeypatch.setattr(activation_cache, "model_identity", lambda model: (seen.append(model), whole(model))[1])
    return seen


def test_a_study_on_a_cold_cache_hashes_its_model_once(study_config, hashed, tmp_path):
    run_study(study_config(tmp_path))
    assert len(hashed) == 1


def test_a_data_module_hashes_its_model_once_and_on_a_warm_cache_never(hashed, tmp_path):
    settings = {"model": "tests/golden/gpt2-micro", "cache_dir": tmp_path}
    for times in (1, 1):
        data = ActivationDataModule(**settings)
        data.prepare_data()
        assert len(data.labels) == len(data.cache.rows())
        assert len(hashed) == times
