"""Real leaks in real libraries, and a look-alike: three of the cases that `make leaks` runs, at the same time."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parent.parent / "bench"
CASES = [("03-ujson-bigint", "leaky"), ("12-marshmallow-registry", "leaky"), ("32-lookalike-lru-warmup", "fixed")]


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_leaks", BENCH / "leaks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="elsewhere: the versions of these libraries that leak are for Python 3.11"
)
def test_leaks_of_real_libraries_are_found_within_45_s_and_a_filling_cache_is_not_one(tmp_path: Path) -> None:
    leaks = load_runner()

    def attempt(which: tuple[str, str]) -> tuple[bool, str]:
        case, variant = BENCH / "leaks" / which[0], which[1]
        return leaks.judge(case, variant, leaks.run(case, variant, venvs=tmp_path))  # type: ignore[no-any-return]

    with ThreadPoolExecutor(len(CASES)) as pool:
        results = dict(zip(CASES, pool.map(attempt, CASES), strict=True))
    assert {which: said for which, (right, said) in results.items() if not right} == {}
