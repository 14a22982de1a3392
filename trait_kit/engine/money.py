"""What asking would cost, agreed on before the first request.

Prices live in a small YAML that the user owns (the parameter `prices`), since they change and no program should guess them.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from trait_kit.engine.files import TraitError
from trait_kit.params import TeacherParams

_FIELDS = ("usd_per_million_in", "usd_per_million_out")
_TOKENS_PER_SECOND = 50  # of one request among many: what a busy server typically gives


@dataclass(frozen=True)
class Estimate:
    """A bill of requests that have not been made. `hours` takes a server to write 50 tokens a second for each request."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost_usd: float
    hours: float

    @classmethod
    def of(cls, requests: int, tokens_in: int, tokens_out: int, prices: tuple[float, float], concurrency: int) -> Estimate:
        cost = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6
        return cls(requests, tokens_in, tokens_out, cost, tokens_out / _TOKENS_PER_SECOND / concurrency / 3600)

    def __str__(self) -> str:
        if not self.requests:
            return "no requests to a language model, nothing to pay"
        return (
            f"{self.requests:,} requests, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, "
            f"{usd(self.cost_usd) if self.cost_usd else 'nothing to pay'}, {self.hours:.1f} hours "
            f"at {self.tokens_out / self.requests / _TOKENS_PER_SECOND:.1f} seconds a request"
        )


def agree(estimate: Estimate, max_cost_usd: float) -> str:
    """The estimate in words, with what the cap does to it; TraitError where it costs money and no cap was set."""
    if estimate.cost_usd and not max_cost_usd:
        raise TraitError(
            f"This would cost about {usd(estimate.cost_usd)} ({estimate}). Set max_cost_usd to what you agree to spend."
        )
    if estimate.cost_usd > max_cost_usd:
        share = max_cost_usd / estimate.cost_usd
        return f"{estimate}; max_cost_usd = {max_cost_usd:g} will stop it after about {share:.0%} of the requests"
    return str(estimate)


def usd(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.2g}"


def prices(params: TeacherParams) -> tuple[float, float]:
    """USD for a million tokens (in, out) of the teacher's model. One that is not listed is free on this network only."""
    listed = _read(Path(params.prices))
    if params.teacher_model in listed:
        return listed[params.teacher_model]
    for url in addresses(params.teacher_base_url):
        if not _is_private(url):
            raise TraitError(
                f"{params.prices} does not say what '{params.teacher_model}' at {url} costs. Add the line\n"
                f'"{params.teacher_model}": {{usd_per_million_in: 0.0, usd_per_million_out: 0.0}}\n'
                "with its prices in USD for a million tokens."
            )
    return 0.0, 0.0


def addresses(base_urls: str) -> list[str]:
    """The addresses of teacher_base_url, which are separated by commas."""
    return [url.strip().rstrip("/") for url in base_urls.split(",") if url.strip()]


def _read(path: Path) -> dict[str, tuple[float, float]]:
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraitError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(listed, dict):
        raise TraitError(f"{path}: expected one line a model, name: {{{_FIELDS[0]}: ..., {_FIELDS[1]}: ...}}.")
    return {str(model): _price(path, model, entry) for model, entry in listed.items()}


def _price(path: Path, model: str, entry: object) -> tuple[float, float]:
    if isinstance(entry, dict) and set(entry) == set(_FIELDS):
        price = tuple(entry[field] for field in _FIELDS)
        if all(type(amount) in (int, float) and 0 <= amount < 1e6 for amount in price):
            return price
    raise TraitError(f"{path}: '{model}' must have exactly {' and '.join(_FIELDS)}, numbers that are not negative.")


def _is_private(url: str) -> bool:
    """Whether every address that the URL's host stands for is of this machine or of a private network."""
    try:
        host = urlsplit(url).hostname or ""
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        return all(ipaddress.ip_address(address.partition("%")[0]).is_private for address in found)
    except (OSError, ValueError):
        return False
