"""Mistakes to plant in the attention kernels: of each program, of each file that it includes, what goes wrong and where."""

from __future__ import annotations

Mistakes = dict[str, dict[str, dict[str, tuple[str, str]]]]

TILES = {
    "one copy too few is waited for": ("copy_wait<kStages - 1>();", "copy_wait<kStages>();"),
    "keys are read where they were not stored": ("step * 2 + (matrix & 1)))", "step * 2 + (matrix >> 1)))"),
    "values are not transposed": ("load_matrices_transposed(", "load_matrices("),
    "sums are not rescaled when the maximum grows": ("out[i][e] *= shrink[e >> 1]", "out[i][e] *= 1.f"),
    "denominators are not rescaled": ("sum[r] *= shrink[r];", ""),
    "the maximum is not shared by a row's lanes": (
        "for (int x = 1; x < 4; x <<= 1) {  // the four lanes of a row",
        "for (int x = 1; x < 2; x <<= 1) {",
    ),
    "warps merge before all have written": (
        "__syncthreads();\n  for (int i = threadIdx.x;",
        "for (int i = threadIdx.x;",
    ),
    "a warp writes its result over tiles in use": ("__syncthreads();  // all warps are done with their stages", ""),
    "the next pass overwrites the meeting place": ("__syncthreads();  // the stages are filled again", ""),
    "the second half of the rows is taken from the first": (
        "store_partial(partial, row() + r * 8",
        "store_partial(partial, row()",
    ),
    "merged sums are not rescaled": ("sum.sums.y * old_factor", "sum.sums.y"),
    "merged denominators are not rescaled": ("next.total, new_factor", "next.total, 1.f"),
    "a document without keys divides by zero": ("has_keys ? 1.f / p.total : 0.f", "1.f / p.total"),
}
ROWS = {
    "16-bit types are taken for each other": ("return fp16_to_float(x.bits);", "return bf16_to_float(x.bits);"),
}
PANELS = {
    "heads of a document overlap": ("head * keys) * stride", "head) * stride"),
}

MISTAKES: Mistakes = {
    "test_attention_kernel.cpp": {
        "row_tile.cuh": TILES,
        "keys.cuh": PANELS,
        "attention.cuh": {
            "keys beyond the last one are not hidden": ("return t < n_keys; };", "return t >= 0; };"),
            "keys beyond the last one are read": ("t < n_keys ? t : n_keys - 1;", "t;"),
            "a chunk forgets those before it": ("if (chunk > 0) {", "if (chunk < 0) {"),
            "a row's maximum is overwritten while it is read": (
                "__syncwarp();  // a row is one warp's",
                "// a row is one warp's",
            ),
            "the last chunks are left out": ("chunk < chunks_of(n_keys); ++chunk", "chunk < 2; ++chunk"),
            "a chunk is written over another": (
                "(document * task.n_chunks + chunk)",
                "(document * task.n_chunks + chunk % 2)",
            ),
            "more rows are shared out than a partial result has": (" && n_rows <= kTileRows;", ";"),
            "more chunks are shared out than there are blocks": ("chunks_of(n_keys) <= task.n_chunks && ", ""),
        },
    },
    "test_cached_attention_kernel.cpp": {
        "row_tile.cuh": {"tiles are attended to twice": ("tile += kWarps) {", "tile += kWarps - 1) {")},
        "keys.cuh": {
            "the newest keys are not written": ("if (n == 0) continue;", "continue;"),
            "a row without keys is written": ("if (n == 0) continue;", ""),
            "values are written where keys belong": ("part >= units;", "part < units;"),
        },
        "cached_attention.cuh": {
            "beams see each other's past": ("shared.live[i].beams >> row & 1", "shared.live[i].beams != 0"),
            "the rest of the last tile is seen": ("return i < n_live && ", "return "),
            "what is beyond the list is read": ("[i < n_live ? i : n_live - 1]", "[i]"),
            "a slot is listed for every beam that sees it": ("is_first = is_first && slots[other] != slots[r];", "{}"),
            "positions are not added up": ("at += lane >= x ? before : 0;", "at += before;"),
            "a warp lists over another's rows": ("at += w < warp ? shared.counts[w] : 0;", ""),
            "lists are read before they are written": ("__syncthreads();\n  return total;", "return total;"),
            "warps count before all have": ("__syncthreads();\n  at -= count;", "at -= count;"),
            "the list overflows": ("kCachedThreads / 2;", "kCachedThreads;"),
            "times start again in every run": ("t = from + live.time;", "t = live.time;"),
            "a row looks beyond its past": ("&& t < shared.lengths[r];", ";"),
            "a row without keys divides by zero": ("shared.lengths[row] > 0);", "true);"),
        },
    },
    "test_plain_attention_kernel.cpp": {
        "keys.cuh": {**ROWS, **PANELS},
        "plain_attention.cuh": {
            "keys beyond the last one are not hidden": ("if (first + j >= n_keys) continue;", ""),
            "keys beyond the last one are read": ("first + j < n_keys ? first + j : n_keys - 1;", "first + j;"),
            "sums are not rescaled when the maximum grows": ("out[i] *= shrink;", ""),
            "denominators are not rescaled": ("sum *= shrink;", ""),
            "scores are added up over half the lanes": ("x < 32;", "x < 16;"),
            "lanes beyond D take part": (
                "i * 32 + lane < size ? to_float(from[i * 32 + lane]) : 0.f",
                "to_float(from[i * 32 + lane])",
            ),
            "lanes beyond D write": ("if (i * 32 + lane < size) set_to", "set_to"),
            "the newest keys are read before they are written": ("    __syncthreads();\n", ""),
            "a row without keys divides by zero": ("n_keys > 0 ? 1.f / sum : 0.f", "1.f / sum"),
            "the number of keys is the document's": ("task.ancestry ? row : document", "document"),
        },
        "pack_source.cuh": {
            "padding takes the next document's keys": (
                "n_keys - first < kPanelKeys ? n_keys - first : kPanelKeys",
                "kPanelKeys",
            ),
            "heads of a document overlap": ("part / size * keys + t", "part / size + t"),
            "values go where keys belong": ("to_value[to] = from_value", "to_value[to] = from_key"),
            "blocks pack the same panels": ("first += gridDim.y * kPanelKeys", "first += 2 * gridDim.y * kPanelKeys"),
            "panels begin one late": ("task.panel_begin[document] * ", "(task.panel_begin[document] + 1) * "),
        },
    },
}
