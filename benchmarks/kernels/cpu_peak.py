"""What a core can multiply at most, kind of instruction by kind, and the share of it that the kernels reach.

python -m benchmarks.kernels.cpu_peak                         prints the table
python -m benchmarks.kernels.cpu_peak --of cpu-20b-avx2       with the rates of that file of results beside

A loop of eight independent sums in registers, compiled for this CPU: no memory, no unpacking, no scales. So it is a
limit that no product of matrices reaches. All cores run at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.kernels.cpu_20b import PREFILL
from benchmarks.timing import results_folder, tell

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.kernels._native.build import find_compiler
from ossia.model.config import PUBLISHED, ModelConfig

COMMAND = "python -m benchmarks.kernels.cpu_peak"
SOURCE = r"""
#include <immintrin.h>
#include <stdio.h>
#include <time.h>
static double now() { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
#define MEASURE(name, type, zero, macs, one)                                                   \
    {                                                                                          \
        type s0 = zero, s1 = zero, s2 = zero, s3 = zero, s4 = zero, s5 = zero, s6 = zero, s7 = zero; \
        double best = 1e9;                                                                     \
        for (int round = 0; round < 15; ++round) {                                             \
            double begin = now();                                                              \
            for (long i = 0; i < 2000000; ++i) {                                               \
                one(s0) one(s1) one(s2) one(s3) one(s4) one(s5) one(s6) one(s7)                \
            }                                                                                  \
            double took = now() - begin;                                                       \
            best = took < best ? took : best;                                                  \
        }                                                                                      \
        printf("%s %.3f\n", name, 8 * 2e6 * macs / best / 1e9);                                \
    }
#define KEEP(s) __asm__ volatile("" : "+x"(s));
int main() {
    __m256 fa = _mm256_set1_ps(1.5f), fb = _mm256_set1_ps(1e-3f);
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    __asm__ volatile("" : "+x"(fa), "+x"(fb), "+x"(a), "+x"(b));
#define FMA(s) s = _mm256_fmadd_ps(fa, fb, s); KEEP(s)
    MEASURE("float32,_fma", __m256, _mm256_setzero_ps(), 8, FMA)
#define MADD(s) s = _mm256_add_epi32(s, _mm256_madd_epi16(a, b)); __asm__ volatile("" : "+x"(s), "+x"(a));
    MEASURE("16-bit_integers,_madd", __m256i, _mm256_setzero_si256(), 16, MADD)
#define MADDUBS(s) s = _mm256_add_epi16(s, _mm256_maddubs_epi16(a, b)); __asm__ volatile("" : "+x"(s), "+x"(a));
    MEASURE("8-bit_integers,_maddubs,_sums_of_16_bits", __m256i, _mm256_setzero_si256(), 32, MADDUBS)
#ifdef __AVX512VNNI__
    __m512 wa = _mm512_set1_ps(1.5f), wb = _mm512_set1_ps(1e-3f);
    __m512i wi = _mm512_set1_epi8(3), wj = _mm512_set1_epi8(5);
    __asm__ volatile("" : "+v"(wa), "+v"(wb), "+v"(wi), "+v"(wj));
#define KEEPW(s) __asm__ volatile("" : "+v"(s));
#define WFMA(s) s = _mm512_fmadd_ps(wa, wb, s); KEEPW(s)
    MEASURE("float32,_fma_of_512_bits", __m512, _mm512_setzero_ps(), 16, WFMA)
#define WORDS(s) s = _mm512_dpwssd_epi32(s, wi, wj); KEEPW(s)
    MEASURE("16-bit_integers,_vpdpwssd", __m512i, _mm512_setzero_si512(), 32, WORDS)
#define BYTES(s) s = _mm512_dpbusd_epi32(s, wi, wj); KEEPW(s)
    MEASURE("8-bit_integers,_vpdpbusd", __m512i, _mm512_setzero_si512(), 64, BYTES)
#endif
#ifdef __AVX512BF16__
#define BF16(s) s = _mm512_dpbf16_ps(s, (__m512bh)wi, (__m512bh)wj); KEEPW(s)
    MEASURE("bfloat16,_vdpbf16ps", __m512, _mm512_setzero_ps(), 32, BF16)
#endif
}
"""


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default=None, metavar="NAME", help="results of cpu_20b to compare with")
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    options = parser.parse_args()
    record = measure(options.of)
    tell(record, render_page(record), name=f"{options.of or 'cpu'}-peak", as_json=options.json)


def measure(of: str | None) -> dict[str, Any]:
    """Peaks of all cores together, and what a file of results reaches, in 10^9 multiply-adds a second."""
    peaks = measure_peaks()
    reached = [] if of is None else reached_rates(json.loads((results_folder() / f"{of}.json").read_text()))
    arguments = "" if of is None else f" --of {of}"
    return {"command": COMMAND + arguments, "environment": describe(), "peaks": peaks, "reached": reached}


def measure_peaks() -> dict[str, float]:
    """By instruction; the sum of one process a core, all at once."""
    compiler = find_compiler()
    if compiler is None:
        raise SystemExit("no C++ compiler was found; set CXX")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "peak.cpp", Path(folder) / "peak"
        source.write_text(SOURCE)
        subprocess.run([*compiler, "-O2", "-march=native", str(source), "-o", str(program)], check=True)
        cores = sorted(os.sched_getaffinity(0))
        with ThreadPoolExecutor(len(cores)) as pool:
            texts = list(pool.map(lambda core: run_on(program, core), cores))
    peaks: dict[str, float] = {}
    for text in texts:
        for line in text.splitlines():
            name, rate = line.split()
            peaks[name.replace("_", " ")] = round(peaks.get(name.replace("_", " "), 0.0) + float(rate), 1)
    return peaks


def run_on(program: Path, core: int) -> str:
    command = ["taskset", "-c", str(core), str(program)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def reached_rates(record: dict[str, Any]) -> list[dict[str, Any]]:
    """10^9 multiply-adds a second of prompts and of 8 sequences, by the seconds that `cpu_20b` recorded."""
    config = PUBLISHED["openai/gpt-oss-20b"]
    found: list[dict[str, Any]] = []
    for row in record["rows"]:
        seconds = {name: sorted(times)[len(times) // 2] for name, times in row["seconds"].items()}
        layer, head = macs_of_a_token(config)
        found.append(
            {
                "weights": row["weights"],
                "prefill": round((PREFILL * record["layers"] * layer + head) / seconds["prefill"] / 1e9, 1),
                "8 sequences": round(8 * record["layers"] * layer / seconds["layers, 8 sequences"] / 1e9, 1),
            }
        )
    return found


def macs_of_a_token(config: ModelConfig) -> tuple[int, int]:
    """Of a layer, attention's own products left out, and of lm_head."""
    D, F, H, K, C = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    layer = (H + 2 * K) * C * D + H * C * D + config.num_local_experts * D + config.num_experts_per_tok * 3 * D * F
    return layer, config.vocab_size * D


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    environment = record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    peaks = [[name, f"{rate:,.1f}"] for name, rate in record["peaks"].items()]
    reached = [[row["weights"], f"{row['prefill']:.1f}", f"{row['8 sequences']:.1f}"] for row in record["reached"]]
    table = markdown_table(["attention and lm_head", "prompts of 512", "8 sequences"], reached) if reached else ""
    return "\n".join(
        [
            "# What the cores can multiply",
            "",
            "10^9 multiply-adds a second, all cores together, sums in registers and nothing else:",
            "",
            markdown_table(["instruction", "limit"], peaks),
            "",
            *(["What the kernels reach, unpacking, scales and all else included:", "", table, ""] if reached else []),
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
