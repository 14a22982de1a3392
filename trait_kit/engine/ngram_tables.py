"""Tables of numbers over tokens and hashed n-grams, and the one pass over texts that looks up any number of them.

A `LinearTable` holds what a linear model adds to its scores for a word (slots: open addressing by the word's hash state, the
word's numbers beside it, so that a word costs one cache line) and for an n-gram (buckets). `total` walks the texts' token
blocks once for all tables of a kind of normalisation and gives each text's sums and how many rows went into them; a model
makes probabilities or log weights of those. Tables are mapped from their file, so all processes of a machine share one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.ngrams import (
    EOS_STATE,
    Normalisation,
    Texts,
    buffers,
    inlined,
    kernel,
    ngram_hashes,
    sign_extend,
    text_array,
    token_blocks,
    word_states,
)


class LinearTable(NamedTuple):
    """What the kernels read, for C numbers a row."""

    cells: np.ndarray  # float32 [slots, width >= C + 3]: hash state (8 bytes), C numbers, ..., rows they stand for
    buckets: np.ndarray  # float32 [buckets, C]
    sizes: Sequence[int]  # shortest (1: words have no slots) and longest n-gram of the buckets, </s> counts, minn, maxn

    @property
    def states(self) -> np.ndarray:
        """uint64 [slots, width / 2]: the same memory; the first column holds the hash states, 0 where a slot is empty."""
        return self.cells.view(np.uint64)

    @property
    def spells(self) -> bool:
        """Whether words that it does not hold are read for their character n-grams."""
        return self.sizes[4] > 0 and len(self.buckets) > 0

    def add(self, states: np.ndarray, starts: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> None:
        """Write the sums and the number of rows of a block's texts. Two columns are looked up as one complex number."""
        shortest, longest, with_eos, *_ = self.sizes
        words, buckets = self.cells[:, 2 : 2 + sums.shape[1]], self.buckets
        if sums.shape[1] == 2:
            words, buckets = self.cells.view(np.complex64)[:, 1:2], buckets.view(np.complex64)
            sums = sums.view(np.complex128)
        look_up = _look_up_kernel(shortest, longest)
        zero = (buckets if longest == 2 else sums).dtype.type(0)  # pairs, the usual: single precision is faster
        for k in range(sums.shape[1]):
            numbers = words[:, k], self.cells[:, -1], buckets[:, k], zero
            counted = np.empty_like(rows) if k else rows  # once
            look_up(states, starts, bool(with_eos), self.states, *numbers, sums[:, k], counted)


def word_cells(
    words: Sequence[bytes], values: np.ndarray, rows: int, buckets: np.ndarray, sizes: Sequence[int]
) -> np.ndarray:
    """Cells of words, at most half of them used, each within one cache line where it can be.

    A word's numbers are its `values` (float32 [n, C]), which stand for so many `rows`, and those of its character n-grams.
    """
    slots = 1 << max(2 * len(words) - 1, 1).bit_length()
    cells = np.zeros((slots, 1 << (values.shape[1] + 2).bit_length()), np.float32)
    names = buffers(pa.array(words, pa.large_binary()))
    _fill(*names, word_states(*names), values, rows, cells.view(np.uint64), cells, buckets, *sizes[3:])
    return cells


def linear_table(cells: np.ndarray, buckets: np.ndarray, sizes: Sequence[int]) -> LinearTable:
    """A table that is no longer writable: one type for the kernels, whatever its arrays came from."""
    for array in (cells, buckets):
        array.flags.writeable = False
    return LinearTable(cells, buckets, sizes)


def write(path: Path | str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """A model file (safetensors): a header, whose `kind` names the format, and arrays of float32.

    Equal models give equal bytes, and a first array of cells lies within whole cache lines.
    """
    text = json.dumps(dict(header))  # one entry, because the library gives several in any order
    start = 8 + int.from_bytes(save(dict(arrays), {"model": text})[:8], "little")
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(arrays), {"model": text + " " * (-start % 64)}))
    return Path(path)


def read(path: Path | str, kind: str, how: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of a file of this kind, mapped and not read; `how` says in errors what makes one."""
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        layout = json.loads(data[8:start].tobytes())
        header = json.loads(layout.pop("__metadata__")["model"])
        arrays = {}
        for name, array in layout.items():
            first, last = array["data_offsets"]
            arrays[name] = data[start + first : start + last].view("<f4").reshape(array["shape"])
    except FileNotFoundError:
        raise TraitError(f"{path} does not exist. Make it with {how}.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise TraitError(f"{path} is not a whole model file of the kit ({error}). Make it again with {how}.") from None
    if header["kind"] != kind:
        raise TraitError(f"{path} holds '{header['kind']}', not '{kind}'. Make it again with {how}.")
    return header, arrays


def total(
    texts: Texts, tables: Sequence[LinearTable], normalisation: Normalisation = "none"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each table the sums over each text's rows (float64 [n, C]) and how many rows they are (int64 [n])."""
    array = text_array(texts)
    if normalisation != "none" and any(table.spells for table in tables):
        array, normalisation = ngrams.normalise(array), "none"  # the normalised words are needed
    lists = [[table, _unknown_words(array, table)] if table.spells else [table] for table in tables]
    results = [(np.zeros((len(array), table.buckets.shape[1])), np.zeros(len(array), np.int64)) for table in tables]
    for part, states, starts in token_blocks(*buffers(array), normalisation):
        for own, (sums, rows) in zip(lists, results, strict=True):
            for table in own:
                table.add(states, starts, sums[part], rows[part])
    return results


def _unknown_words(texts: pa.LargeStringArray, table: LinearTable) -> LinearTable:
    """The character n-grams of the words that the table does not hold, as a table of those words."""
    lines = texts.cast(pa.large_binary()).to_pylist()
    words = sorted({word for line in lines for word in re.split(rb"[\0\t-\r ]+", line) if word})
    states = word_states(*buffers(pa.array(words, pa.large_binary())))
    slots = table.states
    unknown = [word for word, state in zip(words, states, strict=True) if not slots[find_slot(state, slots), 0]]
    values = np.zeros((len(unknown), table.buckets.shape[1]), np.float32)
    cells = word_cells(unknown, values, 0, table.buckets, table.sizes)
    return linear_table(cells, table.buckets[:0], [2, 1, 1, 0, 0])


def count(texts: Texts, buckets: int, longest: int, normalisation: Normalisation = "none") -> np.ndarray:
    """int64 [buckets]: how often the texts' n-grams of 1 to `longest` words fall into each bucket."""
    counts = np.zeros(buckets, np.int64)
    for _, states, _ in token_blocks(*buffers(text_array(texts)), normalisation):
        words = states != EOS_STATE
        within = words
        for n in range(1, longest + 1):
            hashes = ngram_hashes(states, n)[within]
            counts += np.bincount((hashes % np.uint64(buckets)).astype(np.int64), minlength=buckets)
            within = within[:-1] & words[n:]
    return counts


@inlined
def find_slot(state, slot_states):
    """The word's slot, or the empty one where it would be."""
    mask = np.uint64(len(slot_states) - 1)
    slot = state & mask
    while slot_states[slot, 0] != state and slot_states[slot, 0] != 0:
        slot = (slot + np.uint64(1)) & mask
    return slot


@functools.cache
def _look_up_kernel(shortest: int, longest: int):
    """What adds up the rows of texts: words' slots (not where single words are hashed) and the n-grams that end at each
    token. The lengths are constants for the compiler, so that the loops over them cost nothing and sums stay in registers.
    """
    words, one, summed = shortest > 1, np.uint64(1), np.uint64(1_024)

    @inlined
    def add_ngrams(total, states, t, most, buckets):
        ngram, factor = np.uint64(0), one
        for n in range(most):
            ngram += sign_extend(states[t - np.uint64(n)]) * factor
            factor *= ngrams.NGRAM_MULTIPLIER
            if n + 1 >= shortest:
                total += buckets[ngram % np.uint64(len(buckets))]
        return total

    @kernel
    def _look_up(states, starts, with_eos, slot_states, numbers, held, buckets, zero, sums, rows):
        for d in range(len(starts) - 1):
            begin, stop = np.uint64(starts[d]), np.uint64(starts[d + 1])  # unsigned: see ngrams
            if not with_eos:
                stop -= one
            found = 0
            for n in range(shortest, longest + 1):
                found += max(np.int64(stop - begin) - n + 1, 0)
            part = begin
            while part < stop:
                whole = part >= begin + np.uint64(longest - 1)  # the first tokens, one by one, end only short n-grams
                until = min(part + summed, stop) if whole else part + one
                total, count = zero, np.float32(0)  # where it is of single precision, only within a part
                for t in range(part, until):
                    if words:
                        slot = find_slot(states[t], slot_states)
                        total += numbers[slot]
                        count += held[slot]
                    if whole:
                        total = add_ngrams(total, states, t, longest, buckets)
                    else:
                        total = add_ngrams(total, states, t, np.int64(t - begin + one), buckets)
                sums[d] += total
                found += np.int64(count)
                part = until
            rows[d] += found

    return _look_up


@kernel
def _fill(names, starts, states, values, own_rows, slot_states, cells, buckets, minn, maxn):
    """Give every word its slot; its character n-grams are folded into its numbers (</s> has none)."""
    columns = values.shape[1]
    for entry in range(len(states)):
        slot = find_slot(states[entry], slot_states)
        slot_states[slot, 0] = states[entry]
        total, rows = values[entry].astype(np.float64), own_rows
        if maxn > 0 and len(buckets) and states[entry] != EOS_STATE:
            rows += _add_subwords(names[starts[entry] : starts[entry + 1]], buckets, minn, maxn, total)
        cells[slot, cells.shape[1] - 1] = rows
        cells[slot, 2 : 2 + columns] = total


@kernel
def _add_subwords(name, buckets, minn, maxn, total):
    """Add the rows of the character n-grams of <name> to `total`; return how many. Characters, not bytes, are counted."""
    word = np.empty(len(name) + 2, np.uint8)
    word[0], word[1:-1], word[-1] = 60, name, 62  # < and >
    starts = np.append(np.flatnonzero((word & 0xC0) != 0x80), len(word))
    rows = 0
    for first in range(len(starts) - 1):
        state = ngrams.HASH_START
        for last in range(first + 1, min(first + maxn + 1, len(starts))):
            for k in range(starts[last - 1], starts[last]):
                state = ngrams.hash_byte(state, word[k])
            alone = last == first + 1 and (first == 0 or last == len(starts) - 1)
            if last - first >= minn and not alone:
                total += buckets[(state & ngrams.LOW_32) % np.uint64(len(buckets))]
                rows += 1
    return rows
