"""How published zero-shot figures of each data set are taken, for comparison with ours; printed by report and docs.

Only what was read in code or tables of the works named; what was not seen says so. In all of them, methods with
learned parts train on the test images of another data set: VisA's for MVTec AD, MVTec AD's for all others.
"""

from dataclasses import dataclass, fields

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One data set's published practice.

    Attributes:
        name: of the data set.
        images: what is evaluated.
        resolution: the side that maps and masks are compared at, px.
        pooling: over what figures are pooled and averaged.
        metrics: those in published tables.
        published: one figure to compare with, and whose.
    """

    name: str
    images: str
    resolution: str
    pooling: str
    metrics: str
    published: str


_POOLING = "all pixels of a product's test images; mean over products"
_RESOLUTION = "518 x 518 (FAPrompt), 400 x 400 (PromptAD), WinCLIP unknown"
PROTOCOLS = {
    "mvtec": Protocol(
        name="MVTec AD",
        images="test split, 1,725 images, 15 products",
        resolution=_RESOLUTION,
        pooling=_POOLING,
        metrics="image AUROC, AP, F1-max; pixel AUROC, AP, PRO (FPR up to 0.3)",
        published="WinCLIP, zero-shot: image AUROC 91.8, AP 96.5; pixel AUROC 85.1, PRO 64.6",
    ),
    "visa": Protocol(
        name="VisA",
        images="test part of the 1cls split, 2,162 images, 12 products",
        resolution=_RESOLUTION,
        pooling=_POOLING,
        metrics="image AUROC, AP, F1-max; pixel AUROC, AP, PRO (FPR up to 0.3)",
        published="WinCLIP, zero-shot: image AUROC 78.1, AP 81.2; pixel AUROC 79.6, PRO 56.8",
    ),
    "mpdd": Protocol(
        name="MPDD",
        images="test split",
        resolution="518 x 518 (FAPrompt)",
        pooling=_POOLING,
        metrics="image AUROC, AP; pixel AUROC, PRO",
        published="FAPrompt, zero-shot, by a later paper's table: pixel AUROC 96.5, PRO 87.9",
    ),
    "mad": Protocol(
        name="MAD (MAD-Sim, MAD-Real)",
        images=UNKNOWN,
        resolution=UNKNOWN,
        pooling=UNKNOWN,
        metrics="image AUROC; pixel AUROC, PRO",
        published="MultiADS, second-hand: MAD-Sim pixel AUROC 88.0, PRO 74.2; MAD-Real (filtered) image AUROC 78.5",
    ),
    "real_iad": Protocol(
        name="Real-IAD",
        images=UNKNOWN,
        resolution=UNKNOWN,
        pooling=UNKNOWN,
        metrics="image AUROC, AP; pixel AUROC, AP, PRO",
        published="WinCLIP, zero-shot: image AUROC 67.0, pixel AP 3.3",
    ),
    "btad": Protocol(
        name="BTAD",
        images="test split",
        resolution="518 x 518 (FAPrompt)",
        pooling=_POOLING,
        metrics="image AUROC, AP; pixel AUROC, PRO",
        published="AnomalyCLIP, zero-shot, by a review: image AUROC 88.3",
    ),
}


def protocol_table() -> str:
    """All protocols as a Markdown table, one row for each practice of a data set."""
    practices = [field.name for field in fields(Protocol) if field.name != "name"]
    rows = [
        (protocol.name if practice == practices[0] else "", practice, getattr(protocol, practice))
        for protocol in PROTOCOLS.values()
        for practice in practices
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (("data set", "", "practice"), ("---",) * 3, *rows))
