# mypy: ignore-errors
# ruff: noqa: E501, N803, SIM108
"""The Triton kernels: partial attention over pieces of the KV, and their combination.

The KV of a row is split as in FlashDecoding (Dao et al., 2023), so that one request fills the device: each program
attends over a piece of the committed slots, the last one over the tree, and leaves its result with the logarithm of
its weights' sum. All query heads that share a KV head are packed with the tree's nodes into the rows of one tile, so
the KV is read once for all of them. Lengths are read on the device: the grid depends on the capacity alone.

Scores and their exponentials are to base 2. Names in capitals are known when the kernel is compiled.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _product(a, b, IN_FLOAT32: tl.constexpr):
    """Matrix product, summed in float32. The interpreter knows no products of bfloat16 and takes them IN_FLOAT32."""
    if IN_FLOAT32:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _scores(query, keys, scale, softcap, HAS_SOFTCAP: tl.constexpr, IN_FLOAT32: tl.constexpr):
    """Scores `[m, n]` to base 2."""
    scores = _product(query, keys, IN_FLOAT32) * scale
    if HAS_SOFTCAP:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    return scores * _LOG2_E


@triton.jit
def _added(acc, best, total, scores, values, IN_FLOAT32: tl.constexpr):
    """Takes a block's scores `[m, n]` and values `[n, dim]` into the running softmax."""
    new_best = tl.maximum(best, tl.max(scores, 1))
    shift = tl.where(new_best == float("-inf"), 0.0, new_best)  # nothing seen so far: no NaN from inf - inf
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(best - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None] + _product(weights.to(values.dtype), values, IN_FLOAT32)
    return acc, new_best, total


@triton.jit
def _block(pointer, slots, dims, stride, end, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, IS_FULL: tl.constexpr):
    """States of a block of slots; slots and dims are `[n, 1]` and `[1, dim]`, or the other way round.

    What lies behind the end is never read: it may be NaN, and 0 * NaN is NaN.
    """
    places = pointer + slots * stride + dims
    if IS_FULL:
        if DIM == BLOCK_DIM:
            states = tl.load(places)
        else:
            states = tl.load(places, mask=dims < DIM, other=0.0)
    else:
        states = tl.load(places, mask=(slots < end) & (dims < DIM), other=0.0)
    return states


@triton.jit
def _prefix(
    acc, best, total, query, key_row, value_row, first, end, key_stride, value_stride, positions, scale, softcap, window,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IN_FLOAT32: tl.constexpr,
    IS_FULL: tl.constexpr,
):  # fmt: skip
    """Attends over committed slots `first .. end - 1`; with IS_FULL these are whole blocks, and nothing is masked."""
    dims, value_dims = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_VALUE_DIM)
    for begin in range(first, end, BLOCK_N):
        slots = begin + tl.arange(0, BLOCK_N)
        keys = _block(key_row, slots[None, :], dims[:, None], key_stride, end, DIM, BLOCK_DIM, IS_FULL)
        scores = _scores(query, keys, scale, softcap, HAS_SOFTCAP, IN_FLOAT32)
        if not IS_FULL:
            scores = tl.where(slots[None, :] < end, scores, float("-inf"))
        if HAS_WINDOW:
            scores = tl.where(slots[None, :] > positions[:, None] - window, scores, float("-inf"))
        values = _block(
            value_row, slots[:, None], value_dims[None, :], value_stride, end, VALUE_DIM, BLOCK_VALUE_DIM, IS_FULL
        )
        acc, best, total = _added(acc, best, total, scores, values, IN_FLOAT32)
    return acc, best, total


@triton.jit
def _tree(
    acc, best, total, query, key_row, value_row, start, q, key_stride, value_stride, positions, node, bits_row, num_words,
    depths_row, scale, softcap, window,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Attends over the tree. A block never crosses a word of 64 nodes, so each node needs one word a block."""
    dims, value_dims = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_VALUE_DIM)
    for begin in range(0, q, BLOCK_N):
        others = begin + tl.arange(0, BLOCK_N)
        slots, end = start + others, start + q
        keys = _block(key_row, slots[None, :], dims[:, None], key_stride, end, DIM, BLOCK_DIM, False)
        scores = _scores(query, keys, scale, softcap, HAS_SOFTCAP, IN_FLOAT32)
        words = tl.load(bits_row + node * num_words + begin // 64)
        seen = ((words[:, None] >> (others % 64)[None, :].to(tl.int64)) & 1) != 0
        seen = (seen | (others[None, :] == node[:, None])) & (others[None, :] < q)
        if HAS_WINDOW:
            depths = tl.load(depths_row + others, mask=others < q, other=0).to(tl.int32)
            seen = seen & ((start + depths)[None, :] > positions[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        values = _block(
            value_row, slots[:, None], value_dims[None, :], value_stride, end, VALUE_DIM, BLOCK_VALUE_DIM, False
        )
        acc, best, total = _added(acc, best, total, scores, values, IN_FLOAT32)
    return acc, best, total


@triton.jit
def partials_kernel(
    query_ptr, key_ptr, value_ptr, starts_ptr, bits_ptr, depths_ptr, partial_ptr, lse_ptr,
    query_row_stride, query_head_stride, query_stride, key_row_stride, key_head_stride, key_stride,
    value_row_stride, value_head_stride, value_stride,
    scale, softcap, window, q, group, kv_heads, num_words, num_splits,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """One piece of the KV of one row and KV head, for one tile of its queries.

    Grid: (tiles of queries, num_splits + 1, rows * kv_heads). Leaves means `[rows * kv_heads, num_splits + 1,
    group * q, value_dim]` and, one for each, the logarithm of the weights' sum, -inf where the piece is empty; there
    the mean is not written.
    """
    split, pair = tl.program_id(1), tl.program_id(2)
    row, kv_head = pair // kv_heads, pair % kv_heads
    start = tl.load(starts_ptr + row)
    is_tree = split == num_splits

    lowest = 0
    if HAS_WINDOW:
        lowest = tl.maximum(start - window + 1, 0)  # the root sees furthest back
    first_block = lowest // BLOCK_N
    blocks_each = tl.cdiv(tl.cdiv(start, BLOCK_N) - first_block, num_splits)
    first = (first_block + split * blocks_each) * BLOCK_N
    end = tl.minimum(first + blocks_each * BLOCK_N, start)
    first, end = tl.where(is_tree, 0, first), tl.where(is_tree, 0, end)

    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = m < group * q
    out = (pair.to(tl.int64) * (num_splits + 1) + split) * group * q + m
    if (first >= end) & (split != num_splits):
        tl.store(lse_ptr + out, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=is_query)
        return

    node = tl.where(is_query, m % q, 0)
    head = kv_head * group + tl.where(is_query, m // q, 0)
    dims = tl.arange(0, BLOCK_DIM)
    query_row = query_ptr + row.to(tl.int64) * query_row_stride
    query = tl.load(
        query_row + head[:, None] * query_head_stride + node[:, None] * query_stride + dims[None, :],
        mask=is_query[:, None] & (dims[None, :] < DIM),
        other=0.0,
    )
    key_row = key_ptr + row.to(tl.int64) * key_row_stride + kv_head.to(tl.int64) * key_head_stride
    value_row = value_ptr + row.to(tl.int64) * value_row_stride + kv_head.to(tl.int64) * value_head_stride
    depths_row, bits_row = depths_ptr + row * q, bits_ptr + row * q * num_words
    positions = node
    if HAS_WINDOW:
        positions = start + tl.load(depths_row + node).to(tl.int32)

    acc = tl.zeros([BLOCK_M, BLOCK_VALUE_DIM], tl.float32)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    whole = first + (end - first) // BLOCK_N * BLOCK_N
    acc, best, total = _prefix(
        acc, best, total, query, key_row, value_row, first, whole, key_stride, value_stride, positions, scale, softcap,
        window, DIM, VALUE_DIM, BLOCK_N, BLOCK_DIM, BLOCK_VALUE_DIM, HAS_WINDOW, HAS_SOFTCAP, IN_FLOAT32,
        True,
    )  # fmt: skip
    acc, best, total = _prefix(
        acc, best, total, query, key_row, value_row, whole, end, key_stride, value_stride, positions, scale, softcap,
        window, DIM, VALUE_DIM, BLOCK_N, BLOCK_DIM, BLOCK_VALUE_DIM, HAS_WINDOW, HAS_SOFTCAP, IN_FLOAT32,
        False,
    )  # fmt: skip
    acc, best, total = _tree(
        acc, best, total, query, key_row, value_row, start, tl.where(is_tree, q, 0), key_stride, value_stride, positions,
        node, bits_row, num_words, depths_row, scale, softcap, window,
        DIM, VALUE_DIM, BLOCK_N, BLOCK_DIM, BLOCK_VALUE_DIM, HAS_WINDOW, HAS_SOFTCAP, IN_FLOAT32,
    )  # fmt: skip

    has_seen = total > 0
    means = acc / tl.where(has_seen, total, 1.0)[:, None]
    lse = tl.where(has_seen, best + tl.log2(tl.where(has_seen, total, 1.0)), float("-inf"))
    tl.store(lse_ptr + out, lse, mask=is_query)
    value_dims = tl.arange(0, BLOCK_VALUE_DIM)
    is_mean = is_query[:, None] & (value_dims[None, :] < VALUE_DIM)
    tl.store(partial_ptr + out[:, None] * VALUE_DIM + value_dims[None, :], means, mask=is_mean)


@triton.jit
def combine_kernel(
    partial_ptr, lse_ptr, sinks_ptr, out_ptr, out_row_stride, out_head_stride, out_stride, q, group, kv_heads, num_pieces,
    VALUE_DIM: tl.constexpr, BLOCK_PIECES: tl.constexpr, BLOCK_VALUE_DIM: tl.constexpr, CHUNK: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Weighs the pieces of one query. Grid: (group * q, rows * kv_heads)."""
    m, pair = tl.program_id(0), tl.program_id(1)
    row, kv_head = pair // kv_heads, pair % kv_heads
    head, node = kv_head * group + m // q, m % q
    base = pair.to(tl.int64) * num_pieces * group * q + m

    pieces = tl.arange(0, BLOCK_PIECES)
    lse = tl.load(lse_ptr + base + pieces * group * q, mask=pieces < num_pieces, other=float("-inf"))
    best = tl.max(lse, 0)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * _LOG2_E
        best = tl.maximum(best, sink)
    total = tl.sum(tl.exp2(lse - best), 0)
    if HAS_SINKS:
        total += tl.exp2(sink - best)

    dims = tl.arange(0, BLOCK_VALUE_DIM)
    acc = tl.zeros([BLOCK_VALUE_DIM], tl.float32)
    for begin in range(0, num_pieces, CHUNK):
        some = begin + tl.arange(0, CHUNK)
        places = base + some * group * q
        weights = tl.exp2(tl.load(lse_ptr + places, mask=some < num_pieces, other=float("-inf")) - best)
        # Empty pieces have weight 0 and were never written.
        is_written = (weights > 0)[:, None] & (dims[None, :] < VALUE_DIM)
        means = tl.load(partial_ptr + places[:, None] * VALUE_DIM + dims[None, :], mask=is_written, other=0.0)
        acc += tl.sum(means * weights[:, None], 0)
    place = out_ptr + row.to(tl.int64) * out_row_stride + head * out_head_stride + node * out_stride + dims
    tl.store(place, (acc / total).to(out_ptr.dtype.element_ty), mask=dims < VALUE_DIM)
