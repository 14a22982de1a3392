"""The Hugging Face hub: whatever goes wrong there is one error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trait_kit.engine.files import TraitError


@contextmanager
def from_hub(where: str, name: object, instead: str) -> Iterator[None]:
    """Load `name` (a folder, or a hub id) inside; `where` is the field that names it, `instead` what else it may name.

    The libraries raise a dozen kinds of errors for a missing network, an unknown or gated name, a broken file; the user
    needs one answer.
    """
    try:
        yield
    except TraitError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise TraitError(
            f"{where}: {name} could not be loaded ({reason}). Check the name and the network, or {instead}."
        ) from error
