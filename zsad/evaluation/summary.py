"""Figures as text: the table for the terminal and `metrics.md`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zsad.datasets.protocols import PROTOCOLS
from zsad.evaluation.figures import TITLES, Figure, ProductFigures, Results
from zsad.evaluation.tally import ErrorRow

NUM_ERRORS = 20
_ESCAPES = str.maketrans(
    {chr(code): " " for code in (*range(32), *range(127, 160))}
    | {"\\": "\\\\", "|": r"\|", "[": r"\[", "]": r"\]", "<": "&lt;", "&": "&amp;", "`": "'"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationInfo:
    """What was evaluated and how.

    Attributes:
        dataset: LAYOUT:URL.
        layout: of it.
        chosen: split, conditions and limit in words.
        detector: REF as given.
        model: backbone, method, precision and input in words.
        object_names: words used in prompts.
        calibrated_on: what the thresholds come from.
        threshold: calibrated.
        compared_at: the resolution in words.
        started: ISO 8601.
        finished: ISO 8601.
        version: of zsad.
    """

    dataset: str
    layout: str
    chosen: str
    detector: str
    model: str
    object_names: tuple[str, ...]
    calibrated_on: str
    threshold: float
    compared_at: str
    started: str
    finished: str
    version: str


def number(figure: Figure) -> str:
    """Three decimals, with the streaming error where it reaches the third; a dash where there is none."""
    if figure.value is None:
        return "-"
    return f"{figure.value:.3f}" + (f" ± {figure.error:.3f}" if figure.error >= 0.0005 else "")


def counts(results: Results) -> str:
    """How many images there are; they add up."""
    used = results.num_images - results.num_errors
    return f"{results.num_images:,} listed = {used:,} compared + {results.num_errors:,} errors"


def method_notes(info: EvaluationInfo) -> list[str]:
    """How the figures were taken, one sentence or two each."""
    return [
        f"Maps and masks are compared at {info.compared_at}: the method's own map (uncalibrated) is up-sampled "
        "bilinearly from the patch grid and, for methods published with a Gaussian filter (faprompt, promptad), "
        "filtered by it; masks are taken by the nearest pixel.",
        "Pixel figures pool all pixels of a product's images; each defect type is taken with all normal images of its "
        "product. Means are unweighted.",
        "PRO is the mean overlap of 8-connected defect regions over the false-positive rate of all normal pixels, up "
        "to 0.3, divided by 0.3.",
        "Image figures are exact. Pixel figures come from histograms of 32,768 bins; where that can move one by 0.0005 "
        "or more, the bound is printed as ±.",
        "F1-max picks its threshold with the truth; false alarms and detections are those of the detector's own "
        f"threshold, {info.threshold:g}.",
    ]


def markdown(results: Results, errors: Sequence[ErrorRow], info: EvaluationInfo) -> str:
    """The whole of `metrics.md`."""
    parts = [f"# {_cell(info.detector)} on {_cell(info.dataset)}", _facts(results, info), "## Products"]
    rows = {product.product: product.figures for product in results.products}
    parts.append(table("product", rows | ({f"mean of {len(rows)} products": results.mean} if len(rows) > 1 else {})))
    for product in results.products:
        parts += [f"## Defect types: {_cell(product.product)}", _type_table(product), _operation(product)]
        parts.append(_naming(product))
    parts += [reasons(results), "## How it was measured", "\n".join(f"- {note}" for note in method_notes(info))]
    if protocol := PROTOCOLS.get(info.layout):
        parts.append(
            f"Published practice for {protocol.name}: {protocol.images}; compared at {protocol.resolution}; pooled "
            f"over {protocol.pooling}; {protocol.metrics}. {protocol.published}."
        )
    if errors:
        parts += ["## Images that could not be used", _error_table(errors)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: str, rows: Mapping[str, Mapping[str, Figure]]) -> str:
    """Metrics by row as a Markdown table."""
    lines = [[head, *TITLES.values()], ["---"] * (len(TITLES) + 1)]
    lines += [[_cell(name), *(number(figures[metric]) for metric in TITLES)] for name, figures in rows.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def reasons(results: Results) -> str:
    """Why figures are missing, or means incomplete, each once."""
    said = {
        f"{TITLES[metric]}: {figure.reason}"
        for figures in [results.mean, *(product.figures for product in results.products)]
        for metric, figure in figures.items()
        if figure.reason
    }
    return "\n".join(f"- {text}" for text in sorted(said))


def terminal(results: Results, info: EvaluationInfo, page_uri: str) -> str:
    """What the job prints at its end."""
    rows = {product.product: product.figures for product in results.products}
    if len(rows) > 1:
        rows[f"mean of {len(rows)} products"] = results.mean
    elif rows:
        rows |= next(iter(results.products)).types
    lines = [
        f"detector   {info.detector}",
        f"data set   {info.dataset} ({info.chosen})",
        f"images     {counts(results)}",
        f"page       {page_uri}",
        "",
        table("", rows),
        reasons(results),
    ]
    return "\n".join(lines).rstrip()


def _facts(results: Results, info: EvaluationInfo) -> str:
    return "\n".join(
        [
            f"- images: {counts(results)}; {_cell(info.chosen)}",
            f"- detector: {_cell(info.model)}; object words: {_cell(', '.join(info.object_names))}",
            f"- thresholds from: {_cell(info.calibrated_on)}",
            f"- zsad {info.version}, {info.started} to {info.finished}",
        ]
    )


def _type_table(product: ProductFigures) -> str:
    rows = {f"{kind} ({product.num_by_type[kind]:,})": figures for kind, figures in product.types.items()}
    return table(f"type, against {product.num_normal:,} normal", {**rows, "mean of types": product.mean_of_types})


def _operation(product: ProductFigures) -> str:
    return (
        f"At the detector's threshold: false alarms {number(product.false_alarms)} of {product.num_normal:,} normal "
        f"images, detections {number(product.detections)} of {product.num_anomalous:,}."
    )


def _naming(product: ProductFigures) -> str:
    found = product.naming
    missing = f" No word for: {_cell(', '.join(found.unnameable))}." if found.unnameable else ""
    if found.macro_f1.value is None:
        return f"Naming of types: not available, {found.macro_f1.reason}.{missing}"
    words = _cell(", ".join(found.words))
    return (
        f"Naming of types, one against all other images, mean over {words}: AUROC {number(found.macro_auroc)}, AP "
        f"{number(found.macro_ap)}, F1 {number(found.macro_f1)}.{missing}"
    )


def _error_table(errors: Sequence[ErrorRow]) -> str:
    lines = ["| image | code | |", "| --- | --- | --- |"]
    lines += [f"| {_cell(e.uri)} | {_cell(e.code)} | {_cell(e.message)} |" for e in errors[:NUM_ERRORS]]
    rest = len(errors) - NUM_ERRORS
    return "\n".join([*lines, f"\n{rest:,} more are in metrics.json."] if rest > 0 else lines)


def _cell(text: str) -> str:
    """Text that can't break a Markdown table, become HTML, a link or a picture, or steer a terminal."""
    return text.translate(_ESCAPES)
