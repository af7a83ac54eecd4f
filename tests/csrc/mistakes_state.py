"""Mistakes to plant in the kernels around a step: of each program, of each file that it includes, what goes wrong and where."""

from __future__ import annotations

MISTAKES: dict[str, dict[str, dict[str, tuple[str, str]]]] = {
    "test_plan_edits_kernel.cpp": {
        "plan_edits.cuh": {
            "the table is not cleared": ("table[place] = kNoToken;", ";"),
            "the table is read before all lanes have cleared it": (
                "    __syncwarp();\n\n    for (int from = 0; task.penalizes",
                "    for (int from = 0; task.penalizes",
            ),
            "equal tokens of one turn are all looked up": (
                "!(__match_any_sync(~0u, token) & lanes_before(lane)) &&",
                "",
            ),
            "places beyond the history are asked for": (
                "from + lane < n ? history[from + lane] : kNoToken",
                "history[from + lane]",
            ),
            "a probe does not go on": ("place = place + 1 == places ? 0 : place + 1;", ""),
            "a probe leaves the table": ("place + 1 == places ? 0 : place + 1", "place + 1"),
            "a token that is there counts as new": (
                "if (held == token) return false;",
                "if (held == token) return true;",
            ),
            "only the first loads are stored": ("from += 32 * kLoadsUnderWay", "from += n"),
            "lanes write to one place": ("first + count + __popc(applying & lanes_before(lane))", "first + count"),
            "what was appended is not counted": ("count += __popc(applying);", ""),
            "the n-gram before the newest is compared": ("n - task.ngram_size + 1;", "n - task.ngram_size;"),
            "an n-gram is too short": (
                "i < task.ngram_size - 1; ++i) repeats",
                "i < task.ngram_size - 2; ++i) repeats",
            ),
            "the current n-gram repeats itself": ("bool repeats = begin < last;", "bool repeats = begin <= last;"),
            "the token before is banned": (
                "history[begin + task.ngram_size - 1] : kNoToken",
                "history[begin] : kNoToken",
            ),
            "forcing does not stop the history": ("if (forced < 0 && (", "if (("),
            "all beams read the first row": ("task.sequences + row * task.columns", "task.sequences"),
            "lengths are taken by row": ("task.lengths[row / task.n_beams]", "task.lengths[row % task.n_beams]"),
            "warps share one history": ("+ warp * plan_edits_words(task.columns)", ""),
            "the phase overwrites the history's edits": (
                "const int place = first + count + i;",
                "const int place = first + i;",
            ),
            "a phase has one turn": ("i < in_phase; i += 32", "i < in_phase && i < 32; i += 32"),
            "a stretch may overflow": ("if (count + in_phase > task.stretch) __trap();", ""),
            "a row beyond the last writes": ("if (row >= task.n_rows) return;", ""),
        }
    },
    "test_extend_beams_kernel.cpp": {
        "extend_beams.cuh": {
            "documents that are not active move": ("if (!active) return;", ""),
            "changes begin before all has been read": ("  __syncthreads();\n", ""),
            "a column is written while it is read": (
                "value[k] = from ? from[column] : 0;\n",
                "value[k] = from ? from[column] : 0;\n      if (k == 0 && from) const_cast<int32_t*>(from)[column] = -1;\n",
            ),
            "the pool takes what the beams have become": (
                "in_sequences.store(sequences, columns, column);\n    in_pool.store",
                "in_sequences.store(sequences, columns, column);\n    MovingColumn<kBeams>(of_pool, column, length).store",
            ),
            "pool entries come from the wrong beam": (
                "sequences + (source - beams) * columns",
                "sequences + parent * columns",
            ),
            "entries of the pool stay": (
                "of_pool.from[beam] = source == beam ? nullptr",
                "of_pool.from[beam] = !from_beam ? nullptr",
            ),
            "the ancestry stays": (
                "of_ancestry.from[beam] = stays ? nullptr : ancestry + parent * times;",
                "of_ancestry.from[beam] = nullptr;",
            ),
            "a row's own slot is that of its parent": (
                "= static_cast<int32_t>(row);",
                "= static_cast<int32_t>(first + parent);",
            ),
            "only the first columns move": (
                "column < longest; column += kExtendThreads",
                "column < longest && column < kExtendThreads; column += kExtendThreads",
            ),
            "columns behind the length move": (
                "in_sequences(of_sequences, column, length)",
                "in_sequences(of_sequences, column, longest)",
            ),
            "the newest time of the ancestry stays": (
                "in_ancestry(of_ancestry, column, n_keys)",
                "in_ancestry(of_ancestry, column, n_keys - 1)",
            ),
            "old entries of the pool get a token": ("if (pool_token >= 0) pool[", "pool["),
            "old entries of the pool get longer": (
                "from_beam ? length + 1 : task.pool_lengths[first + source]",
                "length + 1",
            ),
            "a token is written behind the last column": ("if (length < columns) {", "{"),
            "a slot is written behind the last time": ("if (n_keys < times) ancestry", "ancestry"),
            "a document that is done keeps its keys": ("done ? 0 : n_keys + 1", "n_keys + 1"),
            "a document that is done stays": ("task.active[document] = false;", ""),
            "its source stays": ("task.source_length[document] = 0;", ""),
            "lengths stay": ("task.lengths[document] = length + 1;", ""),
            "scores stay": ("task.kept_scores[row] = score;", ""),
            "beams that do not exist are written": (
                "  if (beam < beams) {\n    if (length",
                "  if (beam < kBeams) {\n    if (length",
            ),
        }
    },
    "test_add_norm_kernel.cpp": {
        "add_norm.cuh": {
            "a warp adds up half of its lanes": (
                "for (int step = 16; step; step >>= 1)",
                "for (int step = 8; step; step >>= 1)",
            ),
            "the branch is not added": ("four[c].x[i] += added.x[i];", ";"),
            "the branch of the first row is added": (
                "load_four<kType>(task.branch, row * size + d)",
                "load_four<kType>(task.branch, d)",
            ),
            "elements behind the end count as deviations": (
                "    if (c * kWarpElements + lane * kLaneElements >= size) continue;\n",
                "",
            ),
            "elements behind the end are read": (
                "d < size ? load_four(stream + d) : FourFloats{}",
                "load_four(stream + d)",
            ),
            "the last chunk is written in full": (
                "      if (d >= size) continue;\n      const FourFloats& sums",
                "      const FourFloats& sums",
            ),
            "the deviation is not centred": (
                "const float centred = four[c].x[i] - mean;",
                "const float centred = four[c].x[i];",
            ),
            "the second group has the weights of the first": (
                "load_four(task.weight + d)",
                "load_four(task.weight + d % 512)",
            ),
            "the bias is the weight": ("load_four(task.bias + d)", "load_four(task.weight + d)"),
            "eps is left out": ("sqrtf(variance + eps)", "sqrtf(variance)"),
            "what the mean lacks is ignored": (
                "return ((x - mean) - missing) * scale;",
                "return (x - mean) * scale;",
            ),
            "post-norm keeps the sum": ("task.post_norm ? normed : sums", "sums"),
            "pre-norm keeps the norm": ("task.post_norm ? normed : sums", "normed"),
            "post-norm without a branch keeps the sum": (
                "if (task.post_norm || task.branch) store",
                "if (task.branch) store",
            ),
            "halves are swapped": ("pack<kType>(four.x[0], four.x[1])", "pack<kType>(four.x[1], four.x[0])"),
            "rows beyond the last are written": (
                "  if (row >= task.n_rows) return;\n  float* stream = task.stream + row * size;",
                "  float* stream = task.stream + row * size;",
            ),
            "any size: the sum is not kept": ("stream[d] = x += load_one", "x += load_one"),
            "any size: post-norm keeps the sum": ("if (task.post_norm) stream[d] = normed;", ""),
            "any size: a lane leaves its column": (
                "const float normed = normal(stream[d])",
                "const float normed = normal(stream[d ^ 1])",
            ),
        }
    },
}
