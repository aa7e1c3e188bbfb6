# mypy: disable-error-code="no-untyped-def, attr-defined"
# ruff: noqa: ANN001, ANN202
"""
Hot loops, compiled. Every pick is screened by a bound on the scores and decided in float64.

Only the screens use fast mathematics; their error bounds hold for any order of summation. The deciding score is summed
from the first dimension to the last without it, as `numpy.cumsum` does: so it is the same number here and there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, get_num_threads, prange, set_num_threads

from hf_ext.guards.compiling import compiled
from hf_ext.guards.threads import torch_threads_kept

_MARGIN = 1.0 + 1e-9  # over the roundings of the bounds themselves
_TINY = 2.0**-53
_FAST = {"reassoc", "contract", "arcp", "nsz"}  # not ninf, nnan: -inf marks a row that was picked


# Four rows at a time, far apart: one stream of memory does not fill the bus. Measured with one thread at 1e5 x 384:
# float32 1.8 times, 8-bit codes 1.5 times as fast as row after row, and 1.5 times as fast as the BLAS product.


@compiled(fastmath=_FAST)
def _dots_int(q, t, start, stop, out):
    apart, d = (stop - start) // 4, q.shape[1]
    for j in range(start, start + apart):
        a, b, c, e = q[j], q[j + apart], q[j + 2 * apart], q[j + 3 * apart]
        sum_a = sum_b = sum_c = sum_e = np.int32(0)  # cannot overflow: see _code
        for i in range(d):
            weight = np.int32(t[i])
            sum_a = np.int32(sum_a + np.int32(np.int32(a[i]) * weight))
            sum_b = np.int32(sum_b + np.int32(np.int32(b[i]) * weight))
            sum_c = np.int32(sum_c + np.int32(np.int32(c[i]) * weight))
            sum_e = np.int32(sum_e + np.int32(np.int32(e[i]) * weight))
        out[j], out[j + apart], out[j + 2 * apart], out[j + 3 * apart] = sum_a, sum_b, sum_c, sum_e
    for j in range(start + 4 * apart, stop):
        row, total = q[j], np.int32(0)
        for i in range(d):
            total = np.int32(total + np.int32(np.int32(row[i]) * np.int32(t[i])))
        out[j] = total


@compiled(fastmath=_FAST)
def _dots_float(z, t, start, stop, out):
    apart, d = (stop - start) // 4, z.shape[1]
    for j in range(start, start + apart):
        a, b, c, e = z[j], z[j + apart], z[j + 2 * apart], z[j + 3 * apart]
        sum_a = sum_b = sum_c = sum_e = np.float32(0.0)
        for i in range(d):
            sum_a += a[i] * t[i]
            sum_b += b[i] * t[i]
            sum_c += c[i] * t[i]
            sum_e += e[i] * t[i]
        out[j], out[j + apart], out[j + 2 * apart], out[j + 3 * apart] = sum_a, sum_b, sum_c, sum_e
    for j in range(start + 4 * apart, stop):
        row, total = z[j], np.float32(0.0)
        for i in range(d):
            total += row[i] * t[i]
        out[j] = total


@compiled
def _exact(row, inverse_norm, target, theta):
    total = 0.0
    for i in range(len(theta)):
        total += (np.float64(row[i]) * inverse_norm - target[i]) * theta[i]
    return total


@compiled
def _length(vector):
    total = 0.0
    for value in vector:
        total += value * value
    return np.sqrt(total)


@compiled
def _code(theta, codes):
    """Fill `codes` (int16) with theta / scale such that 127 * sum |codes| fits int32; return the scale and error."""
    # Row codes are at most 127, so no sum of products leaves int32; each code may round up by one half: less d.
    largest = total = error = 0.0
    for value in theta:
        largest = max(largest, abs(value))
        total += abs(value)
    scale = largest / min(32766.0, (2147483647.0 / 127.0 - len(theta)) * (largest / total))
    for i in range(len(theta)):
        codes[i] = np.int16(np.rint(theta[i] / scale))
        error += (theta[i] - scale * codes[i]) ** 2
    return scale, np.sqrt(error)


@compiled
def _decide(upper, highest, leaders, width, rows, inverse_norms, numbers, target, theta):
    """Place of the greatest exact score, the first of equals; the score; how many exact scores were is_taken."""
    # Start at the leader with the highest bound: its score rules out nearly all others.
    highest_leader = -1
    for leader in leaders:
        if leader >= 0 and (highest_leader < 0 or upper[leader] > upper[highest_leader]):
            highest_leader = leader
    best = highest_leader
    count = 1
    number = numbers[best]
    score = _exact(rows[number], inverse_norms[number], target, theta)
    for b in range(len(highest)):
        if highest[b] < score:
            continue
        for j in range(b * width, min(len(upper), (b + 1) * width)):
            if upper[j] >= score and j != highest_leader:
                number = numbers[j]
                rival = _exact(rows[number], inverse_norms[number], target, theta)
                count += 1
                if rival > score or (rival == score and j < best):
                    best, score = j, rival
    return best, score, count


@compiled
def _first_left(is_taken):
    for j in range(len(is_taken)):
        if not is_taken[j]:
            return j
    return -1


@compiled
def _step(number, rows, inverse_norms, target, theta):
    row = rows[number]
    inverse_norm = inverse_norms[number]
    for i in range(len(theta)):
        theta[i] -= np.float64(row[i]) * inverse_norm - target[i]
    return _length(theta)


def _over_blocks(threaded: bool, width: int) -> tuple[Any, Any, Any]:
    # Compiled twice: not on every threading layer may several threads (one a group) enter a parallel region at a time.
    # `width` is in the closures and differs, by which numba's cache tells the two apart.

    @compiled(parallel=threaded)
    def quantise(rows, inverse_norms, numbers, target, q, scale, error, norm):
        d = len(target)
        for b in prange((len(numbers) + width - 1) // width):
            z = np.empty(d)
            for j in range(b * width, min(len(numbers), (b + 1) * width)):
                number = numbers[j]
                row = rows[number]
                inverse_norm = inverse_norms[number]
                largest = residual = 0.0
                for i in range(d):
                    z[i] = np.float64(row[i]) * inverse_norm - target[i]
                    largest = max(largest, abs(z[i]))
                step = np.float32(largest / 127.0 * 1.000001) if largest > 1e-30 else np.float32(1.0)
                for i in range(d):
                    code = np.rint(z[i] / step)
                    q[j, i] = np.int8(code)
                    residual += (z[i] - step * code) ** 2
                scale[j] = step
                error[j] = np.sqrt(residual) * 1.000001
                norm[j] = (_length(z) + np.sqrt(residual)) * 1.000001 + 1e-30

    @compiled(parallel=threaded)
    def int8_scores(q, scale, error, norm, codes, code_scale, length, code_error, is_taken, upper, highest, leaders):
        n = len(q)
        for b in prange((n + width - 1) // width):
            high, low, leader = -np.inf, -np.inf, -1
            _dots_int(q, codes, b * width, min(n, (b + 1) * width), upper)
            for j in range(b * width, min(n, (b + 1) * width)):
                if is_taken[j]:
                    upper[j] = -np.inf
                    continue
                score = scale[j] * code_scale * upper[j]
                bound = (error[j] * length + norm[j] * code_error) * _MARGIN
                upper[j] = score + bound
                high = max(high, score + bound)
                if score - bound > low:
                    low, leader = score - bound, j
            highest[b], leaders[b] = high, leader

    @compiled(parallel=threaded)
    def f32_scores(z, norm, t, unit_error, length, is_taken, upper, highest, leaders):
        n = len(z)
        for b in prange((n + width - 1) // width):
            high, low, leader = -np.inf, -np.inf, -1
            _dots_float(z, t, b * width, min(n, (b + 1) * width), upper)
            for j in range(b * width, min(n, (b + 1) * width)):
                if is_taken[j]:
                    upper[j] = -np.inf
                    continue
                score = length * upper[j]
                bound = norm[j] * (unit_error * length)
                upper[j] = score + bound
                high = max(high, score + bound)
                if score - bound > low:
                    low, leader = score - bound, j
            highest[b], leaders[b] = high, leader

    return quantise, int8_scores, f32_scores


WIDTH_ALONE, WIDTH_SHARED = 2048, 1024  # rows a block: with one thread, with several
_quantise_alone, _int8_alone, _f32_alone = _over_blocks(False, WIDTH_ALONE)
_quantise_shared, _int8_shared, _f32_shared = _over_blocks(True, WIDTH_SHARED)


@compiled
def int8_screen(shared, coded, theta, is_taken, upper, highest, leaders):
    """Upper bound of every score; per block the highest of them and the row whose lower bound leads."""
    q, scale, error, norm = coded
    codes = np.empty(len(theta), np.int16)
    code_scale, code_error = _code(theta, codes)
    length = _length(theta)
    code_error += 4 * (len(theta) + 4) * _TINY * length  # the deciding score's own rounding
    if shared:
        _int8_shared(q, scale, error, norm, codes, code_scale, length, code_error, is_taken, upper, highest, leaders)
    else:
        _int8_alone(q, scale, error, norm, codes, code_scale, length, code_error, is_taken, upper, highest, leaders)


@compiled
def int8_picks(shared, coded, rows, inverse_norms, numbers, target, theta, is_taken, places, lengths, scores):
    """Fill `places`, `lengths` (of theta after each pick) and `scores`; return how many exact scores were is_taken."""
    n = len(is_taken)
    evaluations = 0
    width = WIDTH_SHARED if shared else WIDTH_ALONE
    upper = np.empty(n)
    highest = np.empty((n + width - 1) // width)
    leaders = np.empty(len(highest), np.int64)
    for p in range(len(places)):
        best, score, count = _first_left(is_taken), 0.0, 0
        if _length(theta) > 0:
            int8_screen(shared, coded, theta, is_taken, upper, highest, leaders)
            best, score, count = _decide(upper, highest, leaders, width, rows, inverse_norms, numbers, target, theta)
        is_taken[best] = True
        places[p] = best
        scores[p] = score
        lengths[p] = _step(numbers[best], rows, inverse_norms, target, theta)
        evaluations += count
    return evaluations


@compiled
def f32_picks(shared, z, norm, rows, inverse_norms, numbers, target, theta, is_taken, places, lengths, scores):
    """As `int8_picks`, from centred float32 rows."""
    n, d = z.shape
    evaluations = 0
    width = WIDTH_SHARED if shared else WIDTH_ALONE
    upper = np.empty(n)
    highest = np.empty((n + width - 1) // width)
    leaders = np.empty(len(highest), np.int64)
    t = np.empty(d, np.float32)
    unit_error = 1.05 * (d + 8) * 2.0**-24
    for p in range(len(places)):
        best, score, count = _first_left(is_taken), 0.0, 0
        length = _length(theta)
        if length > 0:
            for i in range(d):
                t[i] = theta[i] / length
            if shared:
                _f32_shared(z, norm, t, unit_error, length, is_taken, upper, highest, leaders)
            else:
                _f32_alone(z, norm, t, unit_error, length, is_taken, upper, highest, leaders)
            best, score, count = _decide(upper, highest, leaders, width, rows, inverse_norms, numbers, target, theta)
        is_taken[best] = True
        places[p] = best
        scores[p] = score
        lengths[p] = _step(numbers[best], rows, inverse_norms, target, theta)
        evaluations += count
    return evaluations


@compiled
def quantise(shared, rows, inverse_norms, numbers, target, coded):
    """Fill the codes, steps, error bounds and norm bounds of `coded`."""
    q, scale, error, norm = coded
    if shared:
        _quantise_shared(rows, inverse_norms, numbers, target, q, scale, error, norm)
    else:
        _quantise_alone(rows, inverse_norms, numbers, target, q, scale, error, norm)


def call(kernel: Any, threads: int, *arguments: Any) -> Any:
    """Run a kernel on `threads` threads; with one thread any number of calls may run at a time."""
    with torch_threads_kept():  # with one thread too: loading a kernel loads its parallel twin, which starts threads
        if threads == 1:
            return kernel(False, *arguments)
        caller_threads = get_num_threads()
        set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
        try:
            return kernel(True, *arguments)
        finally:
            set_num_threads(caller_threads)
