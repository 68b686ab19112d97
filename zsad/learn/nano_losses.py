"""What nano is trained to do, as loss terms on one batch.

Towers are trained in turn. First the vision tower learns directions of its own for normal, abnormal and every defect
("prototypes"): with two vectors in place of a text tower that knows nothing yet, it learned with fewer samples. Then
the text tower learns which sentences mean those directions. At last both learn together, from sentences alone:

- captions: symmetric contrastive loss with several positives, captions that mean the same are never negatives;
- state: the image embedding between normal and abnormal, as the zero-shot image score asks it;
- dense: every patch token of the value-value path between the same states, as the anomaly map asks it;
- type: defective patch tokens among the defect words.

Legend: B images, P patches, D joint width, T texts, G groups, K defect words.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from zsad.backbone import text
from zsad.learn import wording
from zsad.learn.pool import Batch
from zsad.learn.styles import TRAINED_DEFECTS

TEMPERATURE = 0.07
TYPE_WEIGHT = 0.5
COVERED = 0.05  # a patch counts as defective from this share on; a thinner sliver is neither
_MAX_SCALE = 50


class Prototypes(nn.Module):
    """Directions for normal, abnormal and every trained defect, learned before there are texts for them.

    A defect's direction is the abnormal one plus an offset of its own, so that its name is an abnormal state too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.states_2D = nn.Parameter(0.1 * torch.randn(2, width))
        self.offsets_KD = nn.Parameter(0.1 * torch.randn(len(TRAINED_DEFECTS), width))

    def directions(self) -> tuple[Tensor, Tensor]:
        """Unit-length states (2, D), row 1 abnormal, and defects (K, D)."""
        states_2D = F.normalize(self.states_2D, dim=-1)
        return states_2D, F.normalize(states_2D[1] + self.offsets_KD, dim=-1)


def vision_losses(
    image_BD: Tensor,
    patches_BPD: Tensor,
    directions: tuple[Tensor, Tensor],
    batch: Batch,
    *,
    type_weight: float = TYPE_WEIGHT,
) -> dict[str, Tensor]:
    """State, dense and type loss of a batch of twins against prototypes, each with its weight applied.

    Every image is asked for "abnormal" and for the defect that it or its twin has.
    """
    states_2D, defects_KD = directions
    half = len(batch.defects) // 2
    types = [TRAINED_DEFECTS.index(name) if name in TRAINED_DEFECTS else 0 for name in batch.defects[:half] * 2]
    normal_BD, abnormal_BD = (states_2D[row].expand(len(types), -1) for row in (0, 1))
    states_GB2D = torch.stack(
        [torch.stack([normal_BD, abnormal_BD], dim=1), torch.stack([normal_BD, defects_KD[types]], dim=1)]
    )
    return _terms(image_BD, patches_BPD, states_GB2D, defects_KD, batch, type_weight)


def text_losses(
    model: Any, directions: tuple[Tensor, Tensor], words: wording.Wording, defects: list[str]
) -> dict[str, Tensor]:
    """How far every sentence, and every ensemble's mean, points from the prototype it means; 0 is exact."""
    states_2D, defects_KD = directions
    targets_ND = torch.cat([states_2D, defects_KD])
    texts_TD = encode_texts(model, words)
    sentences: dict[int, int] = {row: _meaning(name) for row, name in enumerate(defects)}
    ensembles: list[tuple[list[int], int]] = [(rows, 2 + k) for k, rows in enumerate(words.defects)]
    for group in (*words.shared, *words.own.values()):
        ensembles += [(group.normal, 0), (group.abnormal, 1)]
    sentences |= {row: target for rows, target in ensembles for row in rows}
    rows, meant = list(sentences), list(sentences.values())
    means_ED = torch.stack([_mean(texts_TD, rows) for rows, _ in ensembles])
    return {
        "sentences": 1 - (texts_TD[rows] * targets_ND[meant]).sum(dim=-1).mean(),
        "ensembles": 1 - (means_ED * targets_ND[[target for _, target in ensembles]]).sum(dim=-1).mean(),
    }


def joint_losses(
    model: Any,
    image_BD: Tensor,
    patches_BPD: Tensor,
    batch: Batch,
    words: wording.Wording,
    *,
    type_weight: float = TYPE_WEIGHT,
) -> dict[str, Tensor]:
    """The four terms with texts, each with its weight applied."""
    texts_TD = encode_texts(model, words)
    positives_BC = torch.from_numpy(words.positives_BC)
    scale = model.logit_scale.exp().clamp(max=_MAX_SCALE)
    captions = contrastive_loss(scale * image_BD @ texts_TD[: len(positives_BC)].T, positives_BC)
    states_GB2D = torch.stack([*_shared_states(words, texts_TD, len(image_BD)), _own_states(words, texts_TD, batch)])
    defects_KD = torch.stack([_mean(texts_TD, rows) for rows in words.defects])
    return {"captions": 0.2 * captions, **_terms(image_BD, patches_BPD, states_GB2D, defects_KD, batch, type_weight)}


def _terms(
    image_BD: Tensor, patches_BPD: Tensor, states_GB2D: Tensor, defects_KD: Tensor, batch: Batch, type_weight: float
) -> dict[str, Tensor]:
    is_bad_B = torch.tensor([defect != "good" for defect in batch.defects])
    return {
        "state": state_loss(image_BD, states_GB2D, is_bad_B),
        "dense": 2 * dense_loss(patches_BPD, states_GB2D, batch.coverage_BP),
        "type": type_weight * type_loss(patches_BPD, defects_KD, batch),
    }


def encode_texts(model: Any, words: wording.Wording) -> Tensor:
    """Unit-length embeddings (T, D) of all sentences of a step, with gradients."""
    return F.normalize(text.encode_tokens(model, tokenizer()(words.texts)), dim=-1)


def contrastive_loss(logits_BC: Tensor, positives_BC: Tensor) -> Tensor:
    """Symmetric contrastive loss in which every positive of a row or column shares the numerator."""

    def one_way(logits: Tensor, positives: Tensor) -> Tensor:
        among_positives = logits.masked_fill(~positives, float("-inf")).logsumexp(dim=-1)
        return (logits.logsumexp(dim=-1) - among_positives).mean()

    return (one_way(logits_BC, positives_BC) + one_way(logits_BC.T, positives_BC.T)) / 2


def state_loss(image_BD: Tensor, states_GB2D: Tensor, is_bad_B: Tensor) -> Tensor:
    """Cross-entropy of the image embedding between its normal and abnormal direction, mean over groups and images."""
    logits_GB2 = torch.einsum("bd,gbsd->gbs", image_BD, states_GB2D) / TEMPERATURE
    target_GB = is_bad_B.long().expand(len(states_GB2D), -1)
    return F.cross_entropy(logits_GB2.flatten(0, 1), target_GB.flatten())


def dense_loss(patches_BPD: Tensor, states_GB2D: Tensor, coverage_BP: Tensor) -> Tensor:
    """Weighted binary cross-entropy plus dice of the patch probabilities against the mask.

    Defective patches weigh five times as much, for they are rare; slivers under `COVERED` weigh nothing.
    """
    logits_GBP2 = torch.einsum("bpd,gbsd->gbps", patches_BPD, states_GB2D) / TEMPERATURE
    margin_GBP = logits_GBP2[..., 1] - logits_GBP2[..., 0]
    target = (coverage_BP >= COVERED).float()
    weight = torch.where(target > 0, 5.0, (coverage_BP == 0).float())
    bce = F.binary_cross_entropy_with_logits(margin_GBP, target.expand_as(margin_GBP), reduction="none")
    bce = (bce * weight).sum(dim=(1, 2)) / weight.sum()
    probability_GBP = margin_GBP.sigmoid() * (weight > 0)
    overlap = (probability_GBP * target).sum(dim=2)
    dice_GB = 1 - (2 * overlap + 1) / (probability_GBP.sum(dim=2) + target.sum(dim=1) + 1)
    return bce.mean() + dice_GB.mean()


def type_loss(patches_BPD: Tensor, defects_KD: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of each image's mean defective patch token among the defect words; 0 without defects."""
    weight_BP = batch.coverage_BP * (batch.coverage_BP >= COVERED)
    rows = [i for i, d in enumerate(batch.defects) if d in TRAINED_DEFECTS and float(weight_BP[i].sum()) > 0]
    if not rows:
        return patches_BPD.sum() * 0
    mean_RD = F.normalize(torch.einsum("bp,bpd->bd", weight_BP[rows], patches_BPD[rows]), dim=-1)
    target = torch.tensor([TRAINED_DEFECTS.index(batch.defects[i]) for i in rows])
    return F.cross_entropy(mean_RD @ defects_KD.T / TEMPERATURE, target)


def _meaning(defect: str) -> int:
    """Row of a defect's direction among (normal, abnormal, defects)."""
    return 2 + TRAINED_DEFECTS.index(defect) if defect in TRAINED_DEFECTS else 0


def _mean(texts_TD: Tensor, rows: list[int]) -> Tensor:
    return F.normalize(texts_TD[rows].mean(dim=0), dim=0)


def _pair(texts_TD: Tensor, group: wording.Group) -> Tensor:
    return torch.stack([_mean(texts_TD, group.normal), _mean(texts_TD, group.abnormal)])


def _shared_states(words: wording.Wording, texts_TD: Tensor, batch_size: int) -> Iterator[Tensor]:
    for group in words.shared:
        yield _pair(texts_TD, group).expand(batch_size, -1, -1)


def _own_states(words: wording.Wording, texts_TD: Tensor, batch: Batch) -> Tensor:
    pairs = {kind: _pair(texts_TD, group) for kind, group in words.own.items()}
    generic = _pair(texts_TD, words.shared[0])
    return torch.stack([pairs.get(kind, generic) for kind in batch.kinds])


@cache
def tokenizer() -> Any:
    """open_clip's BPE tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@cache
def vocabulary() -> NDArray[Any]:
    """Whole words of the vocabulary, from which unknown names are made."""
    import numpy as np

    words = (token.removesuffix("</w>") for token in tokenizer().encoder if token.endswith("</w>"))
    return np.array([word for word in words if word.isalpha() and len(word) > 2])
