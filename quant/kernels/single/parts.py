"""A step of one token beside its products: inputs made ready, norms, rotations, attention, what joins gate and up.

All are functions of the table, where the instruction begins, and the position of the token.
"""

import math

import numpy as np

from llmconv.quant.kernels.compiling.build import inner
from llmconv.quant.kernels.integer_products import bytes_of, magnitude, scale_of
from llmconv.quant.kernels.single.functions import exp, sigmoid, tanh
from llmconv.quant.kernels.single.products import BASE
from llmconv.quant.kernels.terms.steps import (
    ATTENDED,
    CAPACITY,
    COUNT,
    FACTOR,
    HEAD,
    HEAD_COUNT,
    HEADS_KEPT,
    KEYS,
    QUERY,
    SCALE,
    SCORES,
    SHIFT,
    SIZE,
    SOURCE,
    TARGET,
    VALUE_HEAD,
    VALUES_KEPT,
    WEIGHT,
    WINDOW,
)
from llmconv.quant.kernels.vectors.lanes import f4, i4
from llmconv.quant.kernels.vectors.memory import load, store
from llmconv.quant.kernels.vectors.places import bytes_at, floats_at
from llmconv.quant.kernels.vectors.simd import (
    bits,
    f16_bits,
    f16_value,
    from_bits,
    max_,
    reduce_fmax,
    rint,
    splat,
    to_float,
    to_int,
    to_u8,
)
from llmconv.quant.kernels.vectors.stack import empty
from llmconv.quant.kernels.vectors.sums import fuse, sum_lanes

_UNITS = f4(127 * BASE * BASE)
"""What the largest magnitude becomes, so that no digit is -128."""
_LEAST, _MOST = f4(1e-30), f4(np.finfo(np.float32).max)
_MOST_F16 = f4(65504)
_GELU = f4(math.sqrt(2 / math.pi))


# ---- inputs of products


@inner
def _put_sums(floats, at, step, first, second):
    """Where a record's digits end: what a unit is, and sums of units of each half."""
    floats[at], floats[at + 1], floats[at + 2], floats[at + 3] = (
        step,
        step * first,
        step * second,
        step * (first + second),
    )


@inner
def round_floats(table, at, position):
    """To three digits under the largest magnitude of 32 numbers; none can be multiplied where one is infinite."""
    x, target = floats_at(table[at + SOURCE]), table[at + TARGET]
    base, square = f4(BASE), f4(BASE * BASE)
    for start in range(0, table[at + COUNT], 32):
        first = second = f4(0)
        most = from_bits(magnitude(x, start, 32))
        step = max(most, _LEAST) / _UNITS
        inverse = _UNITS / max(most, _LEAST)
        if not most <= _MOST:
            inverse, step = f4(0), f4(np.nan)
        for i in range(0, 32, 16):
            units = rint(load(x, start + i) * inverse)
            high = rint(units * (f4(1) / square))
            rest = units - high * square
            middle = rint(rest * (f4(1) / base))
            digits = bytes_at(target)
            store(digits, i, to_u8(to_int(high)))
            store(digits, i + 32, to_u8(to_int(middle)))
            store(digits, i + 64, to_u8(to_int(rest - middle * base)))
            first, second = second, sum_lanes(units)
        _put_sums(floats_at(target), 24, step, first, second)
        target += 4 * 28


def _round_bytes(block):
    @inner
    def round_bytes(table, at, position):
        x, target = floats_at(table[at + SOURCE]), table[at + TARGET]
        for start in range(0, table[at + COUNT], block):
            inverse, step = scale_of(x, start, block)
            for part in range(start, start + block, 32):
                first, second = bytes_of(x, part, inverse, block), bytes_of(x, part + 16, inverse, block)
                digits = bytes_at(target)
                store(digits, 0, to_u8(first))
                store(digits, 16, to_u8(second))
                _put_sums(floats_at(target), 8, step, sum_lanes(to_float(first)), sum_lanes(to_float(second)))
                target += 4 * 12

    return round_bytes


@inner
def round_brains(table, at, position):
    """As bfloat16 has them, ties to even."""
    x, values = floats_at(table[at + SOURCE]), floats_at(table[at + TARGET])
    for i in range(table[at + COUNT]):
        word = bits(x[i])
        odd = (word >> i4(16)) & i4(1)
        rounded = from_bits(i4((word + i4(0x7FFF) + odd) & i4(-0x10000)))
        values[i] = rounded if x[i] == x[i] else x[i]


@inner
def round_halves(table, at, position):
    """As float16 has them; as they are if one is beyond it."""
    x, values, fits = floats_at(table[at + SOURCE]), floats_at(table[at + TARGET]), True
    for i in range(table[at + COUNT]):
        fits = fits and abs(x[i]) <= _MOST_F16
    for i in range(table[at + COUNT]):
        values[i] = f16_value(f16_bits(x[i])) if fits else x[i]


# ---- vectors


@inner
def dot(a, i, b, j, n):
    """The sum of n products."""
    total = splat(f4(0))
    for at in range(0, n - 15, 16):
        total = fuse(load(a, i + at), load(b, j + at), total)
    out = sum_lanes(total)
    for at in range(n // 16 * 16, n):
        out += a[i + at] * b[j + at]
    return out


@inner
def add(table, at, position):
    x, y, factor = floats_at(table[at + SOURCE]), floats_at(table[at + TARGET]), from_bits(i4(table[at + FACTOR]))
    for i in range(table[at + COUNT]):
        y[i] += x[i] * factor


def _norm(centred):
    """Of vectors one after another, which may stay where they are; weight and bias of one, or no such."""

    @inner
    def norm(table, at, position):
        x, y = floats_at(table[at + SOURCE]), floats_at(table[at + TARGET])
        by, plus = floats_at(table[at + WEIGHT]), floats_at(table[at + SHIFT])
        n, eps = table[at + SIZE], from_bits(i4(table[at + FACTOR]))
        for start in range(0, table[at + COUNT] * n, n):
            mean = f4(0)
            if centred:
                for i in range(start, start + n):
                    mean += x[i]
                mean /= f4(n)
            for i in range(start, start + n):
                y[i] = x[i] - mean
            factor = f4(1) / f4(math.sqrt(dot(y, start, y, start, n) / f4(n) + eps))
            for i in range(n):
                out = y[start + i] * factor
                if table[at + WEIGHT] != 0:
                    out *= by[i]
                if table[at + SHIFT] != 0:
                    out += plus[i]
                y[start + i] = out

    return norm


def _rotate(neighbours):
    """The first numbers of each head turned in pairs: of neighbours, or of half of them apart."""

    @inner
    def rotate(table, at, position):
        dims, size = table[at + FACTOR], table[at + SIZE]
        x, turn = floats_at(table[at + TARGET]), 4 * position * dims
        cos, sin = floats_at(table[at + WEIGHT] + turn), floats_at(table[at + SHIFT] + turn)
        for head in range(0, table[at + COUNT] * size, size):
            for i in range(dims // 2):
                a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + dims // 2)
                first, second = x[head + a], x[head + b]
                x[head + a] = first * cos[a] - second * sin[a]
                x[head + b] = second * cos[b] + first * sin[b]

    return rotate


# ---- attention


@inner
def _copied(source, target, size):
    x, y = floats_at(source), floats_at(target)
    for i in range(size):
        y[i] = x[i]


@inner
def keep(table, at, position):
    size, value_size = table[at + HEAD], table[at + VALUE_HEAD]
    for head in range(table[at + HEADS_KEPT]):
        row = head * table[at + CAPACITY] + position
        _copied(table[at + QUERY] + 4 * head * size, table[at + KEYS] + 4 * row * size, size)
        value = table[at + ATTENDED] + 4 * head * value_size
        _copied(value, table[at + VALUES_KEPT] + 4 * row * value_size, value_size)


@inner
def _softmax(s, count):
    """exp(s - the largest), in place, and their sum; the place of the last vector is filled up."""
    filled = (count + 15) // 16 * 16
    for i in range(count, filled):
        s[i] = f4(-np.inf)
    most = splat(f4(-np.inf))
    for i in range(0, filled, 16):
        most = max_(load(s, i), most)
    peak, total = reduce_fmax(most), splat(f4(0))
    for i in range(0, filled, 16):
        power = exp(load(s, i) - peak)
        store(s, i, power)
        total = total + power
    return sum_lanes(total)


@inner
def attend(table, at, position, head):
    """One head: softmax of query times keys, times the values."""
    kept, capacity = head // (table[at + HEAD_COUNT] // table[at + HEADS_KEPT]), table[at + CAPACITY]
    size, value_size, window = table[at + HEAD], table[at + VALUE_HEAD], table[at + WINDOW]
    first = max(0, position + 1 - window) if window != 0 else 0
    count, scale = position + 1 - first, from_bits(i4(table[at + SCALE]))
    q, s = floats_at(table[at + QUERY] + 4 * head * size), floats_at(table[at + SCORES] + 4 * head * (capacity + 15))
    k = floats_at(table[at + KEYS] + 4 * (kept * capacity + first) * size)
    v = floats_at(table[at + VALUES_KEPT] + 4 * (kept * capacity + first) * value_size)
    y = floats_at(table[at + ATTENDED] + 4 * head * value_size)
    for i in range(count):
        s[i] = dot(q, 0, k, i * size, size) * scale
    inverse = f4(1) / _softmax(s, count)
    for d in range(0, value_size - 15, 16):
        mean = splat(f4(0))
        for i in range(count):
            mean = fuse(splat(s[i]), load(v, i * value_size + d), mean)
        store(y, d, mean * inverse)
    for d in range(value_size // 16 * 16, value_size):
        mean_of_one = f4(0)
        for i in range(count):
            mean_of_one += s[i] * v[i * value_size + d]
        y[d] = mean_of_one * inverse


# ---- gate and up


@inner
def _silu(x):
    return x * sigmoid(x)


@inner
def _gelu_tanh(x):
    return f4(0.5) * x * (f4(1) + tanh(_GELU * (x + f4(0.044715) * (x * x * x))))


@inner
def _quick_gelu(x):
    return x * sigmoid(f4(1.702) * x)


@inner
def _relu(x):
    return max_(f4(0), x)  # a NaN stays


@inner
def _relu2(x):
    most = max_(f4(0), x)
    return most * most


@inner
def _identity(x):
    return x


_OPENED = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": _relu,
    "relu2": _relu2,
    "identity": _identity,
    "tanh": tanh,
}


def _join(opened):
    @inner
    def join(table, at, position):
        x, by, y = floats_at(table[at + SOURCE]), floats_at(table[at + WEIGHT]), floats_at(table[at + TARGET])
        n, few = table[at + COUNT], empty(32, np.float32)
        for i in range(0, n, 16):
            if i + 16 > n:  # the last ones, by way of a whole vector
                for j in range(16):
                    few[j] = x[min(i + j, n - 1)]
                    few[16 + j] = by[min(i + j, n - 1)] if table[at + WEIGHT] != 0 else f4(1)
                store(few, 0, opened(load(few, 0)) * load(few, 16))
                for j in range(n - i):
                    y[i + j] = few[j]
            elif table[at + WEIGHT] != 0:
                store(y, i, opened(load(x, i)) * load(by, i))
            else:
                store(y, i, opened(load(x, i)))

    return join


ALONE = {
    "round_floats": round_floats,
    "round_bytes_32": _round_bytes(32),
    "round_bytes_256": _round_bytes(256),
    "round_brains": round_brains,
    "round_halves": round_halves,
    "norm_rms": _norm(False),
    "norm_layer": _norm(True),
    "rotate_halves": _rotate(False),
    "rotate_neighbours": _rotate(True),
    "keep": keep,
    "add": add,
    **{f"join_{name}": _join(opened) for name, opened in _OPENED.items()},
}
"""What one thread does by itself."""
