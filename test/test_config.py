"""Settings: parsed once, named in errors, changed for a block."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mygrad.config import SETTINGS, Config, config, context
from mygrad.errors import ConfigError


def test_defaults_without_an_environment() -> None:
    made = Config({})
    assert {s.name: getattr(made, s.name) for s in SETTINGS} == {
        s.name: s.default for s in SETTINGS
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DEBUG", "3", 3),
        ("DEBUG", " 2 ", 2),
        ("MYGRAD_DEVICE", "CPU", "cpu"),
        ("CHECK", "1", True),
        ("CHECK", "True", True),
        ("CHECK", "off", False),
        ("CHECK", "", False),
        ("MYGRAD_THREADS", "0", 0),
        ("MYGRAD_CACHE", "off", "off"),
        ("MYGRAD_DATA", "/x", "/x"),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    found = getattr(Config({name: text}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DEBUG", "two"),
        ("DEBUG", "-1"),
        ("DEBUG", ""),
        ("DEBUG", "1.5"),
        ("CHECK", "2"),
        ("CHECK", "maybe"),
        ("MYGRAD_THREADS", "-2"),
        ("MYGRAD_THREADS", "all"),
        ("CPU", "x"),
    ],
)
def test_a_wrong_value_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"environment variable {name}: got '{text}', expected"):
        Config({name: text})


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"MYGRAD_DEVISE, expected one of .*MYGRAD_DEVICE"):
        Config({"MYGRAD_DEVISE": "cpu"})


def test_others_variables_are_not_ours() -> None:
    Config({"DEBUGGER": "x", "PATH": "", "MYGRADE": "1"})


def test_context_restores_also_after_an_error() -> None:
    seen = [config.DEBUG]

    def nested() -> None:
        with context(DEBUG=41, CHECK=True):
            seen.append(config.DEBUG)
            with context(DEBUG=42):
                seen.append(config.DEBUG)
            seen.append(config.DEBUG)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        nested()
    assert [*seen, config.DEBUG] == [seen[0], 41, 42, 41, seen[0]]


def test_context_of_an_unknown_name() -> None:
    with (
        pytest.raises(ConfigError, match=r"context: got DEBOG, expected one of DEBUG"),
        context(DEBOG=1),
    ):
        pass


def test_import_with_a_wrong_environment() -> None:
    environment = {**os.environ, "MYGRAD_THREADS": "many"}
    run = subprocess.run(
        [sys.executable, "-c", "import mygrad.config"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "ConfigError: environment variable MYGRAD_THREADS: got 'many'" in run.stderr


def test_every_setting_is_documented() -> None:
    assert all(s.doc and s.expected for s in SETTINGS)
    assert len({s.name for s in SETTINGS}) == len(SETTINGS)
    assert all(s.name in Config.__annotations__ for s in SETTINGS)
