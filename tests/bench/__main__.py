"""Print every benchmark's table."""

from tests.bench import fisher, merge

if __name__ == "__main__":
    print(fisher.bench(repeats=3), end="\n\n", flush=True)
    print(merge.bench(repeats=5))
