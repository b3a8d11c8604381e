import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from selfdistill import methods
from selfdistill.methods.describe import describe
from selfdistill.methods.method import Method
from selfdistill.training.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_reference_says_what_the_code_says():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == script("make_recipe_reference").reference(), "run scripts/make_recipe_reference.py"


def test_the_method_cards_say_what_the_methods_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    written = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "cards").glob("*.md")}
    assert written == script("make_method_cards").cards(), "run scripts/make_method_cards.py"


def test_the_tables_of_the_papers_page_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert page.count("<!-- study ") == len(list((ROOT / "benchmarks" / "results" / "studies").glob("*.json")))
    assert page == script("papers_tables").filled(page), "run scripts/papers_tables.py"


@pytest.mark.parametrize("name", methods.names())
def test_a_described_method_can_be_pasted_into_a_recipe(name: str):
    pasted = yaml.safe_load(describe(methods.build(name)))
    recipe = parse_recipe({"method": pasted})
    assert isinstance(recipe.method, Method)
    assert recipe.method == methods.build(name)


def test_every_setting_that_is_printed_says_what_it_means():
    for name in methods.names():
        for line in describe(methods.build(name)).splitlines():
            assert not re.match(r"\s+(?!kind)\w+: ", line) or "#" in line, f"{name}: {line} has no description"


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_in_the_documents_lead_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target


def test_recipes_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"recipes/[\w./-]+\.yaml", text):
        assert (ROOT / path).exists(), path


def test_the_readme_s_table_of_methods_is_what_the_command_prints():
    from selfdistill.methods.table import method_table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert method_table([methods.build(name) for name in methods.names()]) in text
