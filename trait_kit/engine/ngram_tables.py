"""Tables of numbers over tokens and hashed n-grams, and the one pass over texts that looks up any number of them.

A `LinearTable` holds what a linear model adds to its scores for a word (slots: open addressing by the word's hash state, the
word's numbers beside it, so that a word costs one cache line) and for an n-gram (buckets). `total` walks the texts' token
blocks once for all tables of a kind of normalisation and gives each text's sums and how many rows went into them; a model
makes probabilities or log weights of those. Tables are mapped from their file, so all processes of a machine share one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.ngrams import Normalisation, Texts, buffers, inlined, kernel, sign_extend, text_array, token_blocks


class LinearTable(NamedTuple):
    """What the kernels read, for C numbers a row."""

    cells: np.ndarray  # float32 [slots, width >= C + 3]: hash state (8 bytes), C numbers, ..., rows they stand for
    buckets: np.ndarray  # float32 [buckets, C]
    sizes: np.ndarray  # int64: shortest and longest n-gram of the buckets, whether </s> is a token, minn, maxn (0: none)

    @property
    def states(self) -> np.ndarray:
        """uint64 [slots, width / 2]: the same memory; the first column holds the hash states, 0 where a slot is empty."""
        return self.cells.view(np.uint64)

    @property
    def spells(self) -> bool:
        """Whether tokens' hashes do not suffice, but unknown words are read for their character n-grams."""
        return self.sizes[4] > 0

    @property
    def kernel(self) -> Callable:
        """What looks this table up."""
        (shortest, longest), words, columns = self.sizes[:2].tolist(), len(self.cells) > 2, self.buckets.shape[1]
        usual = columns <= 2 and longest == 2 and len(self.buckets) and shortest == (2 if words else 1)
        return _pairs_kernel(columns, words) if usual and not self.spells else _look_up


def empty_cells(entries: int, columns: int) -> np.ndarray:
    """Cells for so many words, at most half of them used, each within one cache line where it can be."""
    slots = 1 << max(2 * entries - 1, 1).bit_length()
    width = 1 << (columns + 2).bit_length()
    return np.zeros((slots, width), np.float32)


def linear_table(cells: np.ndarray, buckets: np.ndarray, sizes: Sequence[int]) -> LinearTable:
    """A table that is no longer writable: one type for the kernels, whatever its arrays came from."""
    table = LinearTable(cells, buckets, np.array(sizes, np.int64))
    for array in table:
        array.flags.writeable = False
    return table


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
    array, spells = text_array(texts), any(table.spells for table in tables)
    if normalisation != "none" and spells:
        array, normalisation = ngrams.normalise(array), "none"  # the normalised bytes are needed
    values, offsets = buffers(array)
    results = [(np.zeros((len(array), table.buckets.shape[1])), np.zeros(len(array), np.int64)) for table in tables]
    for block in token_blocks(values, offsets, normalisation, spells):
        part = slice(block.first, block.first + len(block.starts) - 1)
        tokens = block.states, block.starts, block.ends, values, offsets[part]
        for table, (sums, rows) in zip(tables, results, strict=True):
            table.kernel(*tokens, table.states, *table, sums[part], rows[part])
    return results


def count(texts: Texts, buckets: int, ngrams: int, normalisation: Normalisation = "none") -> np.ndarray:
    """int64 [buckets]: how often the texts' n-grams of 1 to `ngrams` words fall into each bucket."""
    counts = np.zeros(buckets, np.int64)
    for block in token_blocks(*buffers(text_array(texts)), normalisation):
        _count(block.states, block.starts, ngrams, counts)
    return counts


@kernel
def _count(states, starts, longest, counts):
    buckets = np.uint64(len(counts))
    for d in range(len(starts) - 1):
        end = starts[d + 1] - 1  # </s> is no token here
        for first in range(starts[d], end):
            ngram = np.uint64(0)
            for t in range(first, min(first + longest, end)):
                ngram = ngram * ngrams.NGRAM_MULTIPLIER + sign_extend(states[t])
                counts[ngram % buckets] += 1


@kernel
def ngram_state(states):
    """The hash of the n-gram of these tokens."""
    ngram = np.uint64(0)
    for state in states:
        ngram = ngram * ngrams.NGRAM_MULTIPLIER + sign_extend(state)
    return ngram


@inlined
def find_slot(state, slot_states):
    """The word's slot, or the empty one where it would be."""
    mask = np.uint64(len(slot_states) - 1)
    slot = state & mask
    while slot_states[slot, 0] != state and slot_states[slot, 0] != 0:
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel
def _look_up(states, starts, ends, values, offsets, slot_states, cells, buckets, sizes, sums, rows):
    """Add the rows of a block's texts to `sums` and `rows`; `values` and `offsets` are the texts' bytes."""
    columns, n_buckets = buckets.shape[1], np.uint64(len(buckets))
    shortest, longest, with_eos, minn, maxn = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    for d in range(len(starts) - 1):
        stop = starts[d + 1] - (0 if with_eos else 1)
        for t in range(starts[d], stop):
            slot = find_slot(states[t], slot_states)
            held = np.int64(cells[slot, cells.shape[1] - 1])
            for c in range(columns):
                sums[d, c] += cells[slot, 2 + c]
            if held == 0 and maxn > 0 and n_buckets > 0 and states[t] != ngrams.EOS_STATE:
                start = ends[t]
                while start > offsets[d] and ngrams.BYTE_KINDS[values[start - 1]]:
                    start -= 1
                held = add_subwords(values, start, ends[t], buckets, minn, maxn, sums[d])
            rows[d] += held
            ngram = np.uint64(0)
            for n in range(1, min(longest, stop - t) + 1 if n_buckets > 0 else 0):
                ngram = ngram * ngrams.NGRAM_MULTIPLIER + sign_extend(states[t + n - 1])
                if n >= shortest:
                    rows[d] += 1
                    for c in range(columns):
                        sums[d, c] += buckets[ngram % n_buckets, c]


_ZERO, _SUMMED = np.float32(0), 1_024


@functools.cache
def _pairs_kernel(columns: int, words: bool):
    """The same for the usual tables: one or two columns, words or hashed single words, and pairs. Twice as fast, because
    sums stay in registers and no branch depends on a token. `columns` and `words` are constants for the compiler."""
    two = columns == 2
    rows_cell = (1 << (columns + 2).bit_length()) - 1

    @inlined
    def add_single(state, token, n_buckets, slot_states, cells, buckets, first, second, held):
        if words:
            slot = find_slot(state, slot_states)
            first += cells[slot, 2]
            if two:
                second += cells[slot, 3]
            held += cells[slot, rows_cell]
        else:
            row = token % n_buckets
            first += buckets[row, 0]
            if two:
                second += buckets[row, 1]
        return first, second, held

    @kernel
    def _look_up_pairs(states, starts, ends, values, offsets, slot_states, cells, buckets, sizes, sums, rows):
        n_buckets = np.uint64(len(buckets))
        for d in range(len(starts) - 1):
            begin, stop = starts[d], starts[d + 1]
            if not sizes[2]:
                stop -= 1
            if stop == begin:
                continue
            before = sign_extend(states[begin])  # nothing stands before the first token
            first, second, held = add_single(
                states[begin], before, n_buckets, slot_states, cells, buckets, _ZERO, _ZERO, _ZERO
            )
            sums[d, 0] += first
            if two:
                sums[d, 1] += second
            rows[d] += np.int64(held)
            start = begin + 1
            for part in range(start, stop, _SUMMED):  # single precision within a part, double over parts
                first = second = held = _ZERO
                for t in range(np.uint64(part), np.uint64(min(part + _SUMMED, stop))):  # unsigned: see ngrams
                    state = states[t]
                    token = sign_extend(state)
                    first, second, held = add_single(
                        state, token, n_buckets, slot_states, cells, buckets, first, second, held
                    )
                    row = (before * ngrams.NGRAM_MULTIPLIER + token) % n_buckets
                    first += buckets[row, 0]
                    if two:
                        second += buckets[row, 1]
                    before = token
                sums[d, 0] += first
                if two:
                    sums[d, 1] += second
                rows[d] += np.int64(held)
            rows[d] += (stop - start) + (0 if words else stop - begin)

    return _look_up_pairs


@kernel
def add_subwords(values, start, stop, buckets, minn, maxn, total):
    """Add the rows of the character n-grams of <word> to `total`; return how many. Characters, not bytes, are counted."""
    word = np.empty(stop - start + 2, np.uint8)
    word[0], word[1:-1], word[-1] = 60, values[start:stop], 62  # < and >
    rows = 0
    for first in range(len(word)):
        state, last = ngrams.HASH_START, first
        for n in range(1, maxn + 1 if (word[first] & 0xC0) != 0x80 else 0):
            if last == len(word):
                break
            state = ngrams.hash_byte(state, word[last])
            last += 1
            while last < len(word) and (word[last] & 0xC0) == 0x80:
                state = ngrams.hash_byte(state, word[last])
                last += 1
            if n >= minn and not (n == 1 and (first == 0 or last == len(word))):
                row = (state & ngrams.LOW_32) % np.uint64(len(buckets))
                for c in range(len(total)):
                    total[c] += buckets[row, c]
                rows += 1
    return rows
