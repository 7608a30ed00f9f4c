"""What each stage costs. The pipeline's own report has no seconds, which differ from run to run."""

from collections.abc import Sequence

from stages.reporting.blocks import Block, Section, Table, Text
from stages.reporting.figures import bars_figure
from stages.reporting.wording import UNBROKEN
from stages.results.costs import Cost, ResultCost
from stages.results.shown import MISSING

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def results_section(costs: Sequence[ResultCost]) -> Section:
    """A table of what each result needs, from the first fine-tuning to its evaluation, and bars of its use's price."""
    rows = []
    for cost in costs:
        training = [part for part in cost.needed if part.stage.startswith("finetune-")]
        rest = [part for part in cost.needed if part not in training]
        row = [cost.name, str(len(training))]
        for parts in (training, rest, cost.needed):
            row += [_flops(_sum([part.flops for part in parts])), _seconds(_sum([part.seconds for part in parts]))]
        rows.append([*row, _flops(cost.inference)])
    header = ["", "models trained", "training FLOPs", "seconds", "the rest, FLOPs", "seconds", "all FLOPs", "seconds"]
    return Section(
        "result-cost",
        "What each result costs",
        [
            Text(
                "All that a result needs is counted once: fine-tuning of its models and of what they come from; the "
                "rest is estimation, search, merge and evaluations. The last column is the price of its use."
            ),
            Table([*header, "FLOPs an example"], rows),
            bars_figure(
                "inference",
                {cost.name: cost.inference for cost in costs},
                "FLOPs",
                "Inference: FLOPs of one example, as a mean over the task’s examples.",
                ",.3~s",
            ),
        ],
    )


def costs_section(costs: Sequence[Cost]) -> Section:
    """A table of the costs with their sums, and bars of the seconds, or of the FLOPs where no seconds are known."""
    rows = [[cost.stage, cost.what, _flops(cost.flops), _seconds(cost.seconds), cost.runs_on] for cost in costs]
    total = ["all", "", _flops(_sum([c.flops for c in costs])), _seconds(_sum([c.seconds for c in costs])), ""]
    blocks: list[Block] = [Table(["stage", "what", "FLOPs", "seconds", "runs on"], [*rows, total], named_by=2)]
    if any(cost.flops is None or cost.seconds is None for cost in costs):
        blocks.append(Text(f"{MISSING}: not known; a sum is shown where all of its parts are."))
    stages = [cost.stage for cost in costs]
    labels = [c.stage if stages.count(c.stage) == 1 else f"{c.stage}, {c.what}" for c in costs]
    seconds = {label: c.seconds for label, c in zip(labels, costs, strict=True) if c.seconds is not None}
    flops = {label: c.flops for label, c in zip(labels, costs, strict=True) if c.flops is not None}
    if seconds:
        blocks.append(bars_figure("cost", seconds, "seconds", "Measured seconds of each stage.", ",.3~r"))
    elif flops:
        blocks.append(bars_figure("cost", flops, "FLOPs", "Floating-point operations of each stage."))
    return Section("cost", "What it costs", blocks)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _flops(value: float | None) -> str:
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}{UNBROKEN}×{UNBROKEN}10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
