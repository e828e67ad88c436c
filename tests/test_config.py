from __future__ import annotations

from pathlib import Path

import pytest

from memwatch import config
from memwatch.config import SettingError, load

MEMWATCH_SETTINGS = {
    "interval": ("30s", "interval_s", 30.0),
    "growth_limit": ("6MiB/min", "growth_limit_bytes_per_s", 6 * 2**20 / 60),
    "memory_limit": ("2GiB", "memory_limit_bytes", 2**31),
    "warning": ("0.5", "warning", 0.5),
    "critical": ("90%", "critical", 0.9),
    "evidence": ("off", "evidence", "off"),
    "sample_every": ("512KiB", "sample_bytes", 512 * 1024),
    "directory": ("/somewhere", "directory", Path("/somewhere")),
    "name": ("api", "name", "api"),
    "labels": ("a=1, b=2", "labels", {"a": "1", "b": "2"}),
    "cleanup_interval": ("1m", "cleanup_interval_s", 60.0),
    "record_limit": ("8MiB", "record_limit_bytes", 8 * 2**20),
    "request_growth": ("25MiB", "request_growth_bytes", 25 * 2**20),
    "sinks": ("sentry,otel", "sinks", ("sentry", "otel")),
    "socket": ("control", "socket", "control"),
}


def test_the_table_of_this_test_has_every_setting() -> None:
    assert set(MEMWATCH_SETTINGS) == {setting.name for setting in config.SETTINGS}


@pytest.mark.parametrize("name", MEMWATCH_SETTINGS)
def test_every_setting_works_as_argument_from_the_environment_and_from_pyproject(name: str, tmp_path: Path) -> None:
    text, field, value = MEMWATCH_SETTINGS[name]
    setting = next(setting for setting in config.SETTINGS if setting.name == name)
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(f'[tool.memwatch]\n{name} = "{text}"\n')
    for loaded in (
        load({name: text}, environ={}),
        load(environ={setting.environment: text}),
        load(environ={}, pyproject=pyproject),
    ):
        assert getattr(loaded, field) == value
        assert name in loaded.origins


def test_arguments_win_over_the_environment_and_that_over_pyproject(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[tool.memwatch]\ninterval = "1s"\nname = "toml"\nevidence = "off"\n')
    loaded = load({"interval": "3s"}, environ={"MEMWATCH_INTERVAL": "2s", "MEMWATCH_NAME": "env"}, pyproject=pyproject)
    assert (loaded.interval_s, loaded.name, loaded.evidence) == (3.0, "env", "off")
    assert loaded.origins["interval"] == "argument"
    assert "MEMWATCH_NAME" in loaded.origins["name"]
    assert str(pyproject) in loaded.origins["evidence"]


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingError, match=r"MEMWATCH_INTRVAL: unknown setting, did you mean MEMWATCH_INTERVAL\?"):
        load(environ={"MEMWATCH_INTRVAL": "3s"})


def test_an_unknown_key_in_pyproject_is_refused_with_the_file_and_the_nearest_name(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[tool.memwatch]\nlabel = 'a=1'\n")
    with pytest.raises(SettingError, match=r"label: unknown setting, did you mean labels\?.*pyproject.toml"):
        load(environ={}, pyproject=pyproject)


def test_a_broken_pyproject_is_a_setting_error_that_names_the_file(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text("[tool.memwatch\n")
    with pytest.raises(SettingError, match=r"pyproject\.toml: cannot be read"):
        load(environ={}, pyproject=pyproject)


@pytest.mark.parametrize("bare", ["10", 10, 10.0, "2.5"])
@pytest.mark.parametrize("name", ["interval", "growth_limit", "memory_limit", "cleanup_interval", "record_limit", "request_growth"])
def test_a_bare_number_where_a_unit_matters_is_refused_and_told_so(name: str, bare: object) -> None:
    with pytest.raises(SettingError, match=rf"{name}: {bare!r} \(from argument\) is not accepted.*Give"):
        load({name: bare}, environ={})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interval", "1ms"), ("interval", "2h"), ("warning", "1.5"), ("warning", "0"), ("warning", True), ("critical", "-1"),
        ("memory_limit", "1kB"), ("evidence", "full"), ("labels", "novalue"), ("name", ""), ("directory", ""),
        ("growth_limit", "0MB/s"), ("cleanup_interval", "1ms"), ("directory", "~no-such-user-here/x"),
        ("directory", "a\0b"), ("name", "a\0b"), ("labels", {"a": "\0"}),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_naming_setting_value_source_and_what_is_accepted(name: str, value: object) -> None:
    with pytest.raises(SettingError) as refused:
        load({name: value}, environ={})
    message = str(refused.value)
    assert message.startswith(f"{name}: {value!r} (from argument) is not accepted.")
    assert next(setting.accepts for setting in config.SETTINGS if setting.name == name) in message


def test_levels_may_be_sizes_and_a_warning_above_critical_is_refused() -> None:
    loaded = load({"warning": "500MB", "critical": "700MB"}, environ={})
    assert (loaded.level_bytes(loaded.warning, 2**40), loaded.level_bytes(loaded.critical, None)) == (500e6, 700e6)
    with pytest.raises(SettingError, match=r"warning: 0\.95 .* is above critical"):
        load({"warning": 0.95}, environ={})


def test_a_fraction_has_no_bytes_without_a_limit() -> None:
    loaded = load(environ={})
    assert loaded.level_bytes(loaded.warning, None) is None
    assert loaded.level_bytes(loaded.warning, 1000) == 700


def test_a_growth_limit_in_percent_follows_the_memory_limit() -> None:
    loaded = load({"growth_limit": "36%/h"}, environ={})
    assert loaded.growth_limit(10_000) == pytest.approx(1.0)


def test_names_reserved_for_the_kill_switch_run_and_pytest_are_not_settings() -> None:
    load(environ={"MEMWATCH_DISABLE": "1", "MEMWATCH_RUN_ROOT": "1", "MEMWATCH_PYTEST_MODE": "warn"})


@pytest.mark.parametrize(("value", "disabled"), [("1", True), ("yes", True), ("0", False), ("false", False), ("", False)])
def test_the_kill_switch_reads_yes_and_no(value: str, disabled: bool) -> None:
    assert config.is_disabled({"MEMWATCH_DISABLE": value}) is disabled


def test_every_setting_is_described_with_its_origin() -> None:
    rows = {name: (value, origin) for name, value, origin in config.described(load({"interval": "30s"}, environ={}))}
    assert rows["interval"] == ("30 s", "argument")
    assert rows["warning"] == ("70% of the limit", "default")
    assert set(rows) == set(MEMWATCH_SETTINGS)


@pytest.mark.parametrize("name", ["interval", "cleanup_interval", "memory_limit", "record_limit", "growth_limit", "warning"])
def test_an_endless_number_is_refused_in_a_message_of_readable_length(name: str) -> None:
    units = {"memory_limit": "MiB", "record_limit": "MiB", "growth_limit": "MiB/s", "warning": "%"}
    for value in ("9" * 5000 + units.get(name, "s"), 10**5000):
        with pytest.raises(SettingError, match=rf"^{name}: .* is not accepted") as refused:
            load({name: value}, environ={})
        assert len(str(refused.value)) < 600


def test_a_relative_directory_is_the_one_meant_when_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = load({"directory": "here"}, environ={})
    monkeypatch.chdir("elsewhere")
    assert loaded.directory == tmp_path / "here"


def test_a_relative_directory_in_a_deleted_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SettingError, match=r"directory: 'here' \(from argument\) is not accepted"):
        load({"directory": "here"}, environ={})
    assert load({"directory": "/there"}, environ={}).directory == Path("/there")


def test_the_kill_switch_is_not_stopped_by_a_variable_that_is_misspelt_or_malformed() -> None:
    wrong = {"MEMWATCH_INTRVAL": "3s", "MEMWATCH_INTERVAL": "3", "MEMWATCH_WARNING": "99%", "MEMWATCH_DIR": "/there"}
    assert load(environ=wrong | {"MEMWATCH_DISABLE": "1"}).directory == Path("/there")
    with pytest.raises(SettingError):
        load(environ=wrong | {"MEMWATCH_DISABLE": "0"})
