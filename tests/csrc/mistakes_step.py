"""Mistakes to plant in the kernels of a step: of each program, of each file that it includes, what goes wrong and where."""

from __future__ import annotations

MISTAKES: dict[str, dict[str, dict[str, tuple[str, str]]]] = {
    "test_step_kernel.cpp": {
        "row_scan.cuh": {
            "touched tokens are in the maxima": (
                "x[e] = touched >> e & 1 ? kLowest : x[e]",
                "x[e] = x[e]",
            ),
            "marks are set before they are zero": (
                ("marks[threadIdx.x] = 0;\n    __syncthreads();"),
                "marks[threadIdx.x] = 0;",
            ),
            "marks are read before they are set": (
                ("threadIdx.x, kScanThreads);\n    __syncthreads();"),
                "threadIdx.x, kScanThreads);",
            ),
            "logits beyond the last one count": (
                "x[e] = offset < left ?",
                "x[e] = offset < kChunk ?",
            ),
            "the last chunk is read as if it were whole": (
                "task.aligned && left >= kChunk",
                "task.aligned",
            ),
            "keys are sorted without waiting": (
                ("      __syncthreads();\n      for (int pair"),
                "      for (int pair",
            ),
            "a merge does not mirror": (
                "step == size / 2 ?",
                "step == size ?",
            ),
            "sorting does not stop at the end": (
                "if (high >= n || keys",
                "if (keys",
            ),
            "edits overwrite keys": (
                "    __syncthreads();  // writing the i-th",
                "    // writing the i-th",
            ),
            "every edit counts as a token": (
                "i == begin || task.touches[i - 1].token != task.touches[i].token",
                "i >= begin",
            ),
            "penalties always multiply": (
                "score < 0 ? product(score, value) : score / value",
                "product(score, value)",
            ),
            "-inf may be raised": (
                "if (score == static_cast<Real>(kLowest)) return score;",
                "",
            ),
            "NaN is lost": (
                "broken |= x[e] != x[e];",
                "",
            ),
            "NaN is kept": (
                "x[e] = fmaxf(x[e], kLowest);",
                "x[e] = x[e];",
            ),
            "infinite maxima have a sum": (
                "!wants_sum || fabsf(most) == INFINITY",
                "!wants_sum",
            ),
            "the sum of the rest is left out": (
                "summarise(x, task.wants_rest_sum)",
                "summarise(x, false)",
            ),
        },
        "beam_rank.cuh": {
            "negative values order backwards": (
                "bits >> 63 ? ~bits",
                "bits >> 63 ? bits",
            ),
            "ties go to the higher token": (
                "value == other.value && place < other.place",
                "value == other.value && place > other.place",
            ),
            "touched tokens are found twice": (
                "reaching &= ~lane_marks<T>(marks, lane);",
                "",
            ),
            "counts are read before they are written": (
                ("= of_warp;\n    __syncthreads();"),
                "= of_warp;",
            ),
            "a forced token that is edited counts twice": (
                "row.forced_apart = !__any_sync(~0u, among);",
                "row.forced_apart = true;",
            ),
            "a forced row still has its other tokens": (
                "      row.dead = true;\n",
                "",
            ),
            "a row without a distribution lives": (
                "row.dead = !is_finite(row.log_sum);",
                "",
            ),
            "every warp reads every chunk": (
                "if (nth % kRankWarps == warp) ",
                "",
            ),
            "the number found is reset too early": (
                "__syncthreads();  // the number that was found before",
                "// the number that was found before",
            ),
            "candidates beyond the room are written": (
                "reaching && at < capacity;",
                "reaching;",
            ),
            "ties are taken from chunks alone": (
                "if (keys[index] < key && !has_touches) continue;",
                "if (keys[index] < key) continue;",
            ),
            "ties of the warps overwrite each other": (
                "for (int w = 0; w < warp; ++w) at +=",
                "for (int w = 0; w < 0; ++w) at +=",
            ),
            "touched ties are taken at their logits": (
                "return row.total(touched(row, low));",
                "{}",
            ),
        },
        "beam_step.cuh": {
            "ends beyond the best beams enter the pool": (
                "if (!ends || i >= k) value",
                "if (!ends) value",
            ),
            "equal values change places": (
                "other == mine && j < i",
                "other == mine && j > i",
            ),
            "the candidates are read before they are ranked": (
                ("ranker.rank(n_found);\n  __syncthreads();"),
                "ranker.rank(n_found);",
            ),
            "ends are read before they are known": (
                ("  __syncthreads();\n\n  const auto running"),
                "  const auto running",
            ),
            "the pool is read before it is written": (
                ("  __syncthreads();\n\n  if (warp != 0) return;"),
                "  if (warp != 0) return;",
            ),
            "a closed document takes hypotheses": (
                "if (!open) value += kBanished;",
                "",
            ),
            "a full pool takes hypotheses": (
                "if (scratch->full && task.early_stopping == 1) value += kBanished;",
                "",
            ),
            "the length limit is ignored": (
                "bool ends = n_new >= max_new;",
                "bool ends = false;",
            ),
            "only the first end token ends": (
                "e < task.n_eos; ++e",
                "e < (task.n_eos > 0); ++e",
            ),
            "beams that end go on": (
                "best[i].value + (hit[i] ? kBanished : 0.0)",
                "best[i].value + (hit[i] ? 0.0 : 0.0)",
            ),
            "the future is as long as the present": (
                "hopeful ? pow(static_cast<double>(max_new), task.length_penalty) :",
                "",
            ),
            "open documents are done": (
                "!(open && improvable) || (task.early_stopping == 1 && all_finished)",
                "true",
            ),
            "documents that are complete go on": (
                "(task.early_stopping == 1 && all_finished) || ",
                "",
            ),
            "documents in which all have ended go on": (
                "|| scratch->all_hit != 0;",
                ";",
            ),
        },
        "greedy_step.cuh": {
            "the last chunk wins": (
                "int chunk = n_chunks - 1 - lane; chunk >= 0; chunk -= 32",
                "int chunk = lane; chunk < n_chunks; chunk += 32",
            ),
            "touched tokens win at their logits": (
                "!(touched >> e & 1) && ",
                "",
            ),
            "NaN is no maximum": (
                "nan = nan || x != x;",
                "",
            ),
            "a row of -inf has no first token": (
                "!nan && most == kLowest",
                "false",
            ),
            "a row without a distribution has a best token": (
                "task.renormalize ? !finite :",
                "",
            ),
            "log-probabilities are not rounded": (
                "(x - most) - rounded_log_sum == -rounded_log_sum",
                "x == most",
            ),
            "every lane has its own token": (
                "  first = warp_least(first);",
                "",
            ),
            "a forced row has its chunks": (
                "forced < 0 ? static_cast<int>(scan.n_chunks) : 0",
                "static_cast<int>(scan.n_chunks)",
            ),
            "the forced token is lost": (
                "&& lane == 0) f(forced, 0.f);",
                "&& lane == 0) {}",
            ),
            "touched tokens are left out of the sum": (
                "sum += exp(static_cast<double>(score) - most);",
                "static_cast<void>(score);",
            ),
        },
    },
}
