"""Tokens and their hashes: the one pass over text that every linear selection model shares.

The fastText models and DSIR (arXiv 2302.03169) all are sums of table values over hashed word n-grams. `token_blocks` reads
Arrow buffers, without a Python object a document, and yields the 64-bit hash states of the tokens, a cache-sized block at a
time, for any number of tables to look up. The pass has no branch that a processor could guess wrong at a word's end: that,
not arithmetic, is what limits a loop over words. Normalisation, if a model was trained with one, happens in the same pass
(`normalise` gives the same tokens as text, for training).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trait_kit.engine.files import TraitError

Texts = Sequence[str] | pa.Array | pa.ChunkedArray
# What a model sees of a text: as fastText reads it, or `normalise`d. Model files hold the name: other rules, another name.
Normalisation = Literal["none", "words-1"]
NGRAM_MULTIPLIER = np.uint64(116049371)  # fastText: hash of w1..wn = hash of w1..wn-1 times this, plus hash of wn
HASH_START, FNV_PRIME = np.uint64(2166136261), np.uint64(16777619)
EOS_STATE = np.uint64(1318743920575550297)  # hash state of </s>, which ends each text in fastText
_SIGN, LOW_32, _ONE = np.uint64(0xFFFFFF00), np.uint64(0xFFFFFFFF), np.uint64(1)
_SPACE, _ALONE, _WORD = np.uint8(0), np.uint8(1), np.uint8(2)
_ASCII_KIND = np.array(
    [_SPACE if c <= 32 or c == 127 else _WORD if chr(c).isalnum() else _ALONE for c in range(128)], np.uint8
)
_ASCII_LOWER = np.array([ord(chr(c).lower()) for c in range(128)], np.uint64)
_IS_SPACE = np.array([c in (0, 9, 10, 11, 12, 13, 32) for c in range(256)], np.uint8)  # where fastText splits words
_SIGNED = np.array([c if c < 128 else c | 0xFFFFFF00 for c in range(256)], np.uint64)  # fastText hashes *signed* bytes
_LABEL_STATE = np.uint64(6661186916064608089)  # hash state after __label__
_CODE_POINTS = 0x1F000  # beyond the last character that has a lower case
BLOCK_TOKENS = 262_144  # most a block can hold; of usual text it holds a fifth, which stays in a core's own cache
CONTEXT = 8  # tokens repeated at the start of a block that continues a text: n-grams of up to 9 words cross it


def kernel(function: Callable) -> Callable:
    """Compile without the GIL (threads scale) and cache on disk, or only in memory where no folder can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


def inlined(function: Callable) -> Callable:
    """A piece of a kernel, pasted in: a call would count references to its arrays, at more cost than most pieces."""
    return numba.njit(inline="always", error_model="numpy")(function)


def text_array(texts: Texts) -> pa.LargeStringArray:
    """The texts as one Arrow array (no copy of Arrow input in one chunk); nulls and non-strings are errors by position."""
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        texts = _from_python(list(texts))
    if not pa.types.is_large_string(texts.type):
        if not (pa.types.is_string(texts.type) or pa.types.is_null(texts.type) or pa.types.is_string_view(texts.type)):
            raise TraitError(f"Texts to score must be strings, but this column is {texts.type}. Name the text column.")
        texts = pc.cast(texts, pa.large_string())
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if texts.null_count:
        row = pc.index(pc.is_null(texts), True).as_py()
        raise TraitError(f"Text {row} is null. Drop rows without text first (load_documents puts them in quarantine).")
    return texts


def _from_python(texts: list) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TraitError(f"Text {row} is {type(text).__name__}, not a string.") from None
            if text.encode("utf-8", "replace").decode() != text:
                raise TraitError(f"Text {row} is not valid Unicode. Decode it with errors='replace'.") from None
        raise


def buffers(array: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Read-only views of the array's UTF-8 bytes (uint8) and its n + 1 offsets (int64)."""
    _, offsets, values = array.buffers()
    if not len(array) or values is None or not values.size:
        views = np.zeros(1, np.uint8), np.zeros(len(array) + 1, np.int64)
    else:
        first = array.offset
        views = np.frombuffer(values, np.uint8), np.frombuffer(offsets, np.int64)[first : first + len(array) + 1]
    for view in views:
        view.flags.writeable = False  # one type whatever the source, so that kernels compile once
    return views


def normalise(texts: Texts) -> pa.LargeStringArray:
    """Lower case, one space between tokens, punctuation and East Asian characters as tokens of their own.

    Why: a hundred in-domain documents are too few to learn `Theorem,` apart from `theorem`, and languages written without
    spaces would be one token a sentence. It also takes the meaning from words that fastText obeys inside a text: `</s>`,
    which ends it, and `__label__x`, which would be a label in a training file. Applying it twice changes nothing.
    """
    try:
        array = pc.utf8_lower(text_array(texts))
    except pa.ArrowInvalid as error:
        raise TraitError(f"A text is not valid UTF-8 ({error}). load_documents puts such records in quarantine.") from None
    values, offsets = buffers(array)
    starts = np.zeros(len(array) + 1, np.int64)
    out = np.empty(2 * int(offsets[-1] - offsets[0]) + 1, np.uint8)  # at most a space before every byte
    used = _normalise(values, offsets, starts, out)
    return pa.LargeStringArray.from_buffers(len(array), pa.py_buffer(starts), pa.py_buffer(out).slice(0, used))


@inlined
def is_space(byte):
    """Whether fastText splits words at this byte."""
    return byte == 32 or (9 <= byte <= 13) or byte == 0


@inlined
def hash_byte(state, byte):
    """One step of fastText's FNV-1a, which takes bytes as *signed*; the low 32 bits of the result are its hash."""
    wide = np.uint64(byte)
    if byte >= 128:
        wide |= _SIGN
    return (state ^ wide) * FNV_PRIME


@inlined
def next_token(values, position, end):
    """The first token at or after `position`: (start, stop, state); start == stop where there is none.

    The state is 64 bits wide: its low half is fastText's hash of the token; all of it tells tokens apart (two words of a
    vocabulary of millions share the low half by chance, and no two tokens of a web corpus are likely to share the whole).
    """
    while position < end and is_space(values[position]):
        position += 1
    start = position
    state = HASH_START
    while position < end and not is_space(values[position]):
        state = hash_byte(state, values[position])
        position += 1
    return start, position, state


@inlined
def sign_extend(state):
    """A token's hash as fastText's n-grams take it: a signed 32-bit number widened to 64 bits."""
    return np.uint64(np.int64(np.int32(np.uint32(state & LOW_32))))


@inlined
def _wide_kind(values, position, end):
    """The class of the character whose first byte is here and not ASCII."""
    first = values[position]
    second = values[position + 1] if position + 1 < end else np.uint8(0)
    third = values[position + 2] if position + 2 < end else np.uint8(0)
    kind = _WORD
    if (
        (first == 0xC2 and (second == 0xA0 or second == 0x85))  # no-break space, next line
        or (first == 0xE2 and (second == 0x80 or (second == 0x81 and third <= 0xAF)))  # spaces, dashes, quotes
        or (first == 0xE3 and second == 0x80)  # ideographic space, full stop, brackets
    ):
        kind = _SPACE
    elif 0xE3 <= first <= 0xE9:  # kana and Chinese characters, U+3040 to U+9FFF
        kind = _ALONE
    return kind


@kernel
def _normalise(values, offsets, starts, out):
    """Fill `out` and each text's start in it; return how many bytes were written."""
    used = 0
    for d in range(len(offsets) - 1):
        begin = used
        starts[d] = begin
        end = offsets[d + 1]
        kind = _SPACE
        for position in range(offsets[d], end):
            byte = values[position]
            continued = 128 <= byte < 192  # the rest of a character goes where its first byte went
            if not continued:
                previous = kind
                kind = _ASCII_KIND[byte] if byte < 128 else _wide_kind(values, position, end)
                if kind != _SPACE and used > begin and (kind == _ALONE or previous != _WORD):
                    out[used] = 32
                    used += 1
            if kind != _SPACE:
                out[used] = byte
                used += 1
    starts[len(offsets) - 1] = used
    return used


class TokenBlock(NamedTuple):
    """The hashed tokens of some texts, or of a piece of one text that is too long for a block."""

    first: int  # number of the block's first text
    states: np.ndarray  # uint64 [n]: see next_token; EOS_STATE stands after the last token of each text
    starts: np.ndarray  # int64 [texts + 1]: where each text's tokens begin; what lies before starts[0] is CONTEXT
    ends: np.ndarray  # int64 [n]: the byte after each token; empty for normalised text, and where nobody asked
    odd: np.ndarray  # int64: the texts (of this block, from 0) with a token that starts with __label__, which may not count

    @property
    def texts(self) -> int:
        return len(self.starts) - 1


def token_blocks(
    values: np.ndarray,
    offsets: np.ndarray,
    normalisation: Normalisation = "none",
    first: int = 0,
    last: int | None = None,
    with_ends: bool = False,
) -> Iterator[TokenBlock]:
    """Blocks of the texts `first` .. `last` - 1 of `buffers`. A block's arrays are overwritten by the next block.

    `with_ends`: whether whole texts get `ends`, which take a tenth of the time; pieces of a long text always have them.
    """
    last = len(offsets) - 1 if last is None else last
    states = np.empty(BLOCK_TOKENS, np.uint64)
    starts = np.empty(BLOCK_TOKENS + 1, np.int64)
    ends = np.empty(BLOCK_TOKENS if normalisation == "none" else 0, np.int64)
    unasked = ends[:0]
    lower = _lower_case()

    def scan(number: int, pieces: np.ndarray, context: int, carry: np.ndarray, ends: np.ndarray) -> TokenBlock:
        starts[0] = context
        if normalisation == "none":
            labels = np.zeros(len(pieces) - 1, np.bool_)
            n = _scan_words(values, pieces, states, starts, ends, labels, carry)
        else:
            labels = np.empty(0, np.bool_)
            n = _scan_normalised(values, pieces, states, starts, lower, carry)
        return TokenBlock(number, states[:n], starts[: len(pieces)], ends[:n], np.flatnonzero(labels))

    room = BLOCK_TOKENS - CONTEXT - 2  # a byte is at most a token, and a text has one more: </s>
    needs = offsets + np.arange(len(offsets))
    while first < last:
        stop = min(int(np.searchsorted(needs, needs[first] + room, "right")) - 1, last)
        if stop > first:
            yield scan(first, offsets[first : stop + 1], 0, _new_text(), ends if with_ends else unasked)
            first = stop
            continue
        context, carry, position, end = 0, _new_text(), int(offsets[first]), int(offsets[first + 1])
        carry[_UNFINISHED] = True
        while carry[_UNFINISHED]:
            cut = min(position + room, end)
            while position + 4 < cut < end and 128 <= values[cut] < 192:
                cut -= 1  # not within a character
            carry[_UNFINISHED] = cut < end
            block = scan(first, np.array([position, cut]), context, carry, ends)
            yield block
            context = min(CONTEXT, len(block.states))
            for array in (states, ends):
                array[:context] = array[len(block.states) - context : len(block.states)].copy()
            position = cut
        first += 1


_STATE, _OPEN, _UNFINISHED = 0, 1, 2  # of the carry: the open token's hash state, its kind (0: none), whether text follows


def _new_text() -> np.ndarray:
    return np.array([HASH_START, 0, 0], np.uint64)


@functools.cache
def _lower_case() -> np.ndarray:
    """uint32 [_CODE_POINTS]: the lower case of each character, by Arrow's rules, as `normalise` has it."""
    points = [point for point in range(_CODE_POINTS) if not 0xD800 <= point < 0xE000]
    lower = np.arange(_CODE_POINTS, dtype=np.uint32)
    lower[points] = [ord(character) for character in pc.utf8_lower(pa.array(map(chr, points))).to_pylist()]
    lower.flags.writeable = False
    return lower


@kernel
def _scan_words(values, offsets, states, starts, ends, labels, carry):
    """Fill a block with fastText's tokens and return how many; mark texts with a __label__. Branch-free a byte.

    Indices are unsigned: a signed one is checked for being negative at each use, a fifth of the time.
    """
    n = np.uint64(starts[0])
    with_ends = len(ends) > 0
    for d in range(len(offsets) - 1):
        state, inside, label = carry[_STATE], carry[_OPEN], False
        for position in range(np.uint64(offsets[d]), np.uint64(offsets[d + 1])):
            byte = values[position]
            states[n] = state
            if with_ends:
                ends[n] = position
            word = _ONE - np.uint64(_IS_SPACE[byte])
            n += inside & (word ^ _ONE)
            state = ((state if inside else HASH_START) ^ _SIGNED[byte]) * FNV_PRIME
            label |= state == _LABEL_STATE
            inside = word
        labels[d] = label
        if carry[_UNFINISHED]:
            carry[_STATE], carry[_OPEN] = state, inside
        elif inside:
            states[n] = state
            if with_ends:
                ends[n] = offsets[d + 1]
            n += _ONE
        ended = False
        for k in range(np.uint64(starts[d]), n):
            ended |= states[k] == EOS_STATE
        if ended:  # the word </s> inside the text
            n = np.uint64(starts[d])
            while states[n] != EOS_STATE:
                n += _ONE
            carry[_UNFINISHED] = 0
        if not carry[_UNFINISHED]:
            states[n] = EOS_STATE
            if with_ends:
                ends[n] = offsets[d + 1]
            n += _ONE
        starts[d + 1] = n
    return n


@kernel
def _scan_normalised(values, offsets, states, starts, lower, carry):
    """Fill a block with the tokens of normalised text; return how many."""
    n = np.uint64(starts[0])
    for d in range(len(offsets) - 1):
        state, before = carry[_STATE], np.uint8(carry[_OPEN])
        position, end = np.uint64(offsets[d]), np.uint64(offsets[d + 1])
        while position < end:
            byte = values[position]
            states[n] = state
            if byte < 128:
                kind = _ASCII_KIND[byte]
                joined = (kind == _WORD) & (before == _WORD)
                state = ((state if joined else HASH_START) ^ _ASCII_LOWER[byte]) * FNV_PRIME
                position += _ONE
            else:
                kind = _wide_kind(values, np.int64(position), np.int64(end))
                joined = (kind == _WORD) & (before == _WORD)
                start = state if joined else HASH_START
                state, after = _hash_lower(start, values, np.int64(position), np.int64(end), lower)
                position = np.uint64(after)
            n += np.uint64((before != _SPACE) & (not joined))
            before = kind
        if carry[_UNFINISHED]:
            carry[_STATE], carry[_OPEN] = state, before
        else:
            states[n] = state
            n += np.uint64(before != _SPACE)
            states[n] = EOS_STATE
            n += _ONE
        starts[d + 1] = n
    return n


@inlined
def _hash_lower(state, values, position, end, lower):
    """Hash the lower case of the character of several bytes that starts here: (state, next position)."""
    byte = values[position]
    length = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
    if length == 1 or position + length > end:  # not UTF-8: a byte of its own
        return (state ^ _SIGNED[byte]) * FNV_PRIME, position + 1
    point = np.uint32(byte) & np.uint32(0x7F >> length)
    for k in range(1, length):
        point = (point << np.uint32(6)) | np.uint32(values[position + k] & 0x3F)
    if point < len(lower):
        point = lower[point]
    if point < 0x80:
        state = (state ^ _SIGNED[point]) * FNV_PRIME
    else:
        shift = 6 * (1 + (point >= 0x800) + (point >= 0x10000))
        lead = 0xC0 if shift == 6 else 0xE0 if shift == 12 else 0xF0
        state = (state ^ _SIGNED[lead | (point >> shift)]) * FNV_PRIME
        while shift > 0:
            shift -= 6
            state = (state ^ _SIGNED[0x80 | ((point >> shift) & 0x3F)]) * FNV_PRIME
    return state, position + length
