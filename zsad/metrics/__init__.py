"""How good is a detector: ranking metrics, their streaming forms for pixels, and naming of defect types.

| module | holds |
|---|---|
| `ranking` | exact figures of scores in memory: image AUROC, AP, F1-max |
| `streaming` | pixel AUROC, AP, F1-max and PRO from histograms, constant memory, each with a bound of its error |
| `naming` | confusion matrix, macro F1, one-vs-rest AUROC and AP of defect types |
"""

from zsad.metrics.ranking import auroc, average_precision, f1_max

__all__ = ["auroc", "average_precision", "f1_max"]
