"""Documents that are made from the code are up to date, and their examples run."""

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch

from absorb_pl import functional, schema
from absorb_pl.cli import main
from absorb_pl.rules import known_rules, registry, rule_named

ROOT = Path(__file__).parents[1]


def test_made_documents_are_up_to_date():
    for path, text in runpy.run_path(str(ROOT / "scripts/document.py"))["documents"]().items():
        assert path.read_text(encoding="utf-8") == text, "run scripts/document.py"


@pytest.mark.parametrize("table", ["summary", "letters", "words", "sensitivity", "latents", "k_sparse", "candidates"])
def test_a_studys_tables_have_the_columns_of_the_schema(study, table):
    found, columns = study[1].tables[table], schema.TABLES[table]
    assert list(found.columns) == [name for name in columns if name != "child"]
    assert all(column.meaning.endswith((".", ")")) for column in columns.values())
    for name in found:
        kinds = {"int64": "iuf", "float64": "f", "bool": "b", "str": "OTf", "object": "O"}[columns[name].dtype]
        assert found[name].dtype.kind in kinds or found[name].isna().all(), name


def test_the_training_table_has_the_columns_of_the_schema(study):
    assert set(study[1].tables["training"].columns) == set(schema.TRAINING)


def test_the_page_of_rules_names_all_rules_and_settings():
    text = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    for name in known_rules():
        assert f"`{name}`" in text
        for setting in rule_named(name)().own_settings():
            assert f"`{setting}`" in text


def test_the_page_of_definitions_has_all_functions():
    text = (ROOT / "docs/definitions.md").read_text(encoding="utf-8")
    for name in functional.__all__:
        assert f"::: {getattr(getattr(functional, name), '__module__', 'absorb_pl.functional')}" in text, name


def test_the_page_of_rules_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    labels = ["a", "b", "c"] * 40
    centres = torch.randn(3, 128, generator=generator) * 3
    activations = centres[torch.arange(120) % 3] + torch.randn(120, 128, generator=generator)
    scope = {"activations": activations, "labels": labels}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, scope)
    assert "my-rule" in capsys.readouterr().out
    assert isinstance(scope["tables"]["words"], pd.DataFrame)
    monkeypatch.chdir(ROOT)
    for line in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)[0].splitlines():
        words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)][1:]
        folder = tmp_path / words[words.index("--run_dir") + 1]
        main([*words, "--run_dir", str(folder), "--cache_dir", str(tmp_path / "cache")])
        assert (folder / "config.yaml").is_file()


@pytest.mark.usefixtures("_one_thread")
def test_the_page_of_training_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        short = re.sub(r"max_steps=\d+", "max_steps=20", code).replace("every_n_steps=100", "every_n_steps=10")
        exec(short, scope)
    printed = capsys.readouterr().out
    assert "absorb-pl-1" in printed
    assert "Hedging(moved=" in printed
    assert sorted(path.name for path in (tmp_path / "lightning_logs/my_saes").iterdir()) == ["k2", "k4"]
