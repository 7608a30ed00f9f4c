"""Print every benchmark's table."""

from tests.bench import fisher, memory, merge

if __name__ == "__main__":
    print(fisher.bench(repeats=9), end="\n\n", flush=True)
    print(fisher.bench_rivals(repeats=3, device="cpu"), end="\n\n", flush=True)
    print(fisher.bench_rivals(repeats=3, device="cuda"), end="\n\n", flush=True)
    print(fisher.bench_gpu(repeats=9), end="\n\n", flush=True)
    print(memory.bench(), end="\n\n", flush=True)
    print(merge.bench(repeats=5))
