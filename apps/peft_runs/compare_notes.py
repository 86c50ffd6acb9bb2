"""What has to be said beside a comparison's figures, in the terminal and in the report alike."""

from peft_runs.compare_results import Results
from peft_runs.compare_words import metric


def notes(results: Results) -> list[str]:
    """Sentences, the most important first."""
    return [*_ranking(results), *_drawing(results), *_merging(results), *_timing(results)]


def _ranking(results: Results) -> list[str]:
    if not results.finished:
        return []
    if results.ranked:
        headings = ", ".join(column.heading for column in results.columns)
        return [f"Mean ± standard deviation (n − 1) of {len(results.seeds)} seeds: {headings}."]
    said = (
        "One seed: nothing is ranked, since the spread over seeds is unknown; the rows go by the number of trained "
        "parameters. Means and deviations: --seeds 3."
    )
    [first, *others] = results.columns
    if first.share and not others and results.test_samples:
        middle = sorted(row.figures[first.name].mean for row in results.finished)[len(results.finished) // 2]
        error = (middle * (1 - middle) / results.test_samples) ** 0.5
        said += (
            f" The choice of {results.test_samples} test samples alone moves {metric(middle, None, True)} by "
            f"± {100 * error:.1f} points (standard error)."
        )
    return [said]


def _drawing(results: Results) -> list[str]:
    """What is better, of figures of drawn pictures; with several seeds also the two that matter in one."""
    if results.base is None:
        return []
    better: dict[str, list[str]] = {}
    for column in results.columns:
        better.setdefault(column.better, []).append(column.heading)
    [first, *others] = [(how, f"of {', '.join(headings)}") for how, headings in better.items()]
    parts = [f"{first[0].capitalize()} is better {first[1]}", *(f"{how} {headings}" for how, headings in others)]
    said = [f"{'; '.join(parts)}."]
    if "teacher_milliseconds" in results.base:
        said.append(f"The teacher takes {results.base['teacher_milliseconds']:.4g} ms a picture.")
    found = vlhi(results) if results.ranked else {}
    if found:
        each = ", ".join(f"{method} {value:.2f}" for method, value in found.items())
        said.append(f"VLHI (SaRA, 2025), with spelling in place of CLIP's score: {each}; 2 is best in both.")
    return said


def vlhi(results: Results) -> dict[str, float]:
    """Style and fidelity in one, 0 to 2: each method's place between the worst and the best of the comparison
    (Hu et al., *SaRA*, ICLR 2025); nothing where a figure is missing or all are alike."""
    names = ("frechet", "fidelity")
    rows = [row for row in results.finished if all(name in row.figures for name in names)]
    places = []
    for name, sign in zip(names, (-1, 1), strict=True):
        values = [sign * row.figures[name].mean for row in rows]
        if not values or max(values) == min(values):
            return {}
        places.append([(value - min(values)) / (max(values) - min(values)) for value in values])
    return {row.method: sum(pair) for row, pair in zip(rows, zip(*places, strict=True), strict=True)}


def _merging(results: Results) -> list[str]:
    return [
        f"{row.method} does not merge: {row.merged_reason}"
        for row in results.finished
        if row.merged_reason and row.merged_difference is None
    ]


def _timing(results: Results) -> list[str]:
    timing = results.timing
    failed = [f"{what.capitalize()} could not be measured: {why}" for what, why in results.unmeasured.items()]
    if "steps" not in timing:
        return failed
    threads = f" ({timing['device']})"
    if timing["device"] == "cpu":
        threads = f", {timing['threads']} {'thread' if timing['threads'] == 1 else 'threads'}"
    return [*failed, f"Step: median of {timing['steps']} training steps, measured after all training, alone{threads}."]
