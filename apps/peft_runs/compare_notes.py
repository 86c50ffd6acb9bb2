"""What has to be said beside a comparison's figures, in the terminal and in the report alike."""

from peft_runs.compare_results import Results
from peft_runs.compare_words import metric


def notes(results: Results) -> list[str]:
    """Sentences, the most important first."""
    return [*_ranking(results), *_merging(results), *_timing(results)]


def _ranking(results: Results) -> list[str]:
    if not results.finished:
        return []
    if results.ranked:
        return [f"{results.metric.capitalize()}: mean ± standard deviation (n − 1) of {len(results.seeds)} seeds."]
    said = (
        "One seed: nothing is ranked, since the spread over seeds is unknown; the rows go by the number of trained "
        "parameters. Means and deviations: --seeds 3."
    )
    if results.share and results.test_samples:
        middle = sorted(row.metric or 0.0 for row in results.finished)[len(results.finished) // 2]
        error = (middle * (1 - middle) / results.test_samples) ** 0.5
        said += (
            f" The choice of {results.test_samples} test samples alone moves {metric(middle, None, True)} by "
            f"± {100 * error:.1f} points (standard error)."
        )
    return [said]


def _merging(results: Results) -> list[str]:
    return [
        f"{row.method} does not merge: {row.merged_reason}"
        for row in results.finished
        if row.merged_reason and row.merged_difference is None
    ]


def _timing(results: Results) -> list[str]:
    timing = results.timing
    if timing.get("failure"):
        return [f"Step times could not be measured: {timing['failure']}"]
    if "steps" not in timing:
        return []
    threads = f", {timing['threads']} threads" if timing["device"] == "cpu" else f" ({timing['device']})"
    return [f"Step: median of {timing['steps']} training steps, measured after all training, alone{threads}."]
