"""What the documents name exists, and what exists is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memwatch
from memwatch import config, model
from pytest_memwatch import options as plugin

ROOT = Path(__file__).resolve().parent.parent
DOCS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_every_setting_is_in_the_reference_with_what_it_accepts() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text()
    for setting in config.SETTINGS:
        assert f"| `{setting.name}` | `{setting.environment}` |" in text
        assert setting.accepts in text


def test_every_option_of_the_plugin_is_in_its_reference() -> None:
    text = (ROOT / "docs/reference/pytest.md").read_text()
    for option in plugin.OPTIONS:
        assert f"memwatch-{option.name}" in text, option.name


def test_every_channel_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/channels.md").read_text()
    for channel in model.CHANNELS:
        assert f"| `{channel.name}` | {channel.unit} | {channel.what} |" in text


def test_every_public_function_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/api.md").read_text()
    for name in memwatch.__all__:
        assert hasattr(memwatch, name)
        if callable(getattr(memwatch, name)) and not isinstance(getattr(memwatch, name), type):
            assert re.search(rf":members:.*\b{name}\b", text), name


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path}: {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_variable_a_document_names_is_one_memwatch_reads(path: Path) -> None:
    known = {setting.environment for setting in config.SETTINGS} | config.RESERVED | {"MEMWATCH_INTRVAL"}
    known |= {plugin.ENVIRONMENT + option.name.replace("-", "_").upper() for option in (plugin.ON, *plugin.OPTIONS)}
    assert set(re.findall(r"MEMWATCH_[A-Z_]*[A-Z]", path.read_text())) - known == set()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_make_target_and_script_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)|^\$ make ([a-z-]+)", text, re.MULTILINE):
        name = target[0] or target[1]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
    for script in re.findall(r"bench/[a-z_]+\.py", text):
        assert (ROOT / script).exists(), script
