"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = Path(__file__).parent / "tiny.yaml"


def trait_kit(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, from the project's root, as a user does."""
    command = [sys.executable, "-m", "trait_kit.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, **options)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A finished run of tests/tiny.yaml, made by the command line once for all tests; do not write into it."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    result = trait_kit("run", TINY, "--run-dir", run_dir)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return run_dir


@pytest.fixture
def tiny_copy(tiny_run, tmp_path) -> Path:
    """A copy of the finished run that a test may change."""
    import shutil

    return Path(shutil.copytree(tiny_run, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def one_thread():
    """A model as small as the tiny one is fastest on one thread, above all where the machine is busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """The folder of a tiny random model."""
    from tiny_llama import write_model

    return write_model(tmp_path_factory.mktemp("model"))


def pytest_configure(config):
    import tiny_random

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tiny_random.make()
