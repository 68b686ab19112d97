"""ALFA against its formulas, over a stub and over the tiny tower."""

import math

import pytest
import tiny_model
import torch
import torch.nn.functional as F

from zsad.backbone import ImageFeatures
from zsad.backbone.similarity import probability, similarity
from zsad.errors import ConfigError
from zsad.methods import METHODS, Alfa, AlfaConfig, WinCLIP, WinCLIPConfig, aligner, memory
from zsad.methods.base import FewShot, Subject
from zsad.methods.contextual import choose
from zsad.methods.windows import encode, harmonic_map, harmonic_mean, ordinary_tokens
from zsad.prompts.ensemble import ABNORMAL_STATES, NORMAL_STATES

MODES = ("none", "interval", "topk", "soft")
ALIGNERS = ("patch_only", "ridge", "transport")
LN3 = math.log(3)
LOOKS = {"normal": ("an even coat", "a clean edge"), "abnormal": ("a nick {0}", "a burnt spot")}


class StubBackbone:
    """Two axes: normal texts point along the first, abnormal ones along the second; `angle` turns single phrases."""

    name = "stub"

    def __init__(self, image, patches, grid, *, same=False, turned=None, untaught=()):
        self.image, self.patches, self.grid, self.same, self.turned = image, patches, grid, same, turned or {}
        self.untaught = untaught

    def unseen(self, phrase):  # noqa: D102
        return tuple(word for word in phrase.split() if word in self.untaught)

    def encode_text(self, strings):  # noqa: D102
        return torch.stack([self.embed(text) for text in strings])

    def embed(self, text):  # noqa: D102
        angle = next((angle for phrase, angle in self.turned.items() if phrase in text), None)
        if angle is None:
            is_abnormal = any(word in text for word in ("damaged", "with flaw", "with defect", "with damage"))
            angle = math.pi / 2 if is_abnormal and not self.same else 0.0
        return torch.tensor([math.cos(angle), math.sin(angle)])

    def encode_image(self, pixels, *, vv_start=None, taps=()):  # noqa: D102
        image, patches = torch.tensor([self.image]), torch.tensor([self.patches])
        return ImageFeatures(image_BD=image, patches_BPD=patches, grid=self.grid, taps={})


def alfa(backbone, object_name="cable", tensors=None, **settings):
    return Alfa(AlfaConfig(**settings), backbone, Subject(object_name=object_name), tensors)


def blank():
    return torch.zeros(1, 8, 8, 3, dtype=torch.uint8)


def test_score_and_map_by_hand():
    """Margin 0.01 ln 3 for the image, 0.07 ln 3 and 0 for the patches: 3/4; 3/4 and 1/2; half image, half the peak."""
    backbone = StubBackbone([0.0, 0.01 * LN3], [[0.0, 0.07 * LN3], [0.3, 0.3]], (1, 2))
    found = alfa(backbone, mode="none", top_patches=1, map_weight=0.5).predict(blank())
    torch.testing.assert_close(found.map_Bhw, torch.tensor([[[0.75, 0.5]]]))
    torch.testing.assert_close(found.score_B, torch.tensor([0.75]))
    alone = alfa(backbone, mode="none", map_weight=0.0, temperature=0.005).predict(blank())
    torch.testing.assert_close(alone.score_B, torch.tensor([0.9]))  # margin / temperature = 2 ln 3


@pytest.mark.parametrize("mode", MODES)
def test_equal_directions_say_nothing(mode):
    found = alfa(StubBackbone([0.3, 0.8], [[0.9, 0.1], [0.0, 1.0]], (1, 2), same=True), mode=mode).predict(blank())
    assert found.map_Bhw.tolist() == [[[0.5, 0.5]]]
    assert found.score_B.tolist() == [0.5]


@pytest.mark.parametrize("name", ["ridge", "transport"])
def test_equal_directions_give_a_constant_map_through_windows(tiny_backbone, name):
    method = alfa(tiny_backbone, aligner=name, mode="none")
    method.units_ND = method.units_ND[:1].expand(len(method.units_ND), -1)
    found = method.predict(tiny_model.pixels(2, 32, 32))
    torch.testing.assert_close(found.map_Bhw, torch.full((2, 4, 4), 0.5))


def test_dropped_prompts_shrink_the_margin_by_the_kept_share():
    """An abnormal phrase that looks normal is dropped: 11 of 12 units stay, and the others point along the axes.

    The image lies along the normal axis, so s = 1 for normal units, 0 for abnormal ones, and cos 0.1 for the phrase.
    Normal units are turned a little, so that the limits [0.92, 0.995] hold it and five of them.
    """
    turned = {"odd look": 0.1, "without": 0.2, "flawless": 0.4, "perfect": 0.05, "unblemished": 0.06}
    backbone = StubBackbone([1.0, 0.0], [[1.0, 0.0]], (1, 1), turned=turned)
    method = alfa(backbone, mode="interval", abnormal=("an odd look",), map_weight=0.0, temperature=1.0)
    similarities = similarity(torch.tensor([1.0, 0.0]), method.units_ND).double().numpy()
    chosen = choose(similarities, method.is_abnormal_N, "interval")
    assert chosen.share == 11 / 12
    assert [p for p, w in zip(method.prompts, chosen.weight_N, strict=True) if not w] == ["cable with an odd look"]
    normal = F.normalize(
        torch.tensor([[math.cos(a), math.sin(a)] for a in (0, 0.4, 0.05, 0.06, 0.2, 0.2, 0.2)]).mean(0), dim=0
    )
    expected = torch.sigmoid(11 / 12 * (0 - normal[0]))
    torch.testing.assert_close(method.predict(blank()).score_B, expected[None])


def test_without_choice_it_is_winclip_but_for_the_mean_of_means(tiny_backbone):
    """Unit-length means of each state, then their mean, against one mean of all prompts: nearly one direction."""
    pixels = tiny_model.pixels(3, 32, 32)
    shared = {"temperature": 0.07, "map_weight": 0.5}
    ours = alfa(tiny_backbone, mode="none", aligner="patch_only", **shared).predict(pixels)
    theirs = WinCLIP(WinCLIPConfig(**shared), tiny_backbone, Subject(object_name="cable")).predict(pixels)
    torch.testing.assert_close(ours.map_Bhw, theirs.map_Bhw, atol=0.02, rtol=0)
    torch.testing.assert_close(ours.score_B, theirs.score_B, atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ridge", "transport"])
def test_windows_by_the_formula(tiny_backbone, mode, name):
    pixels = tiny_model.pixels(2, 32, 40)
    method = alfa(tiny_backbone, aligner=name, mode=mode, beta=0.3, **LOOKS)
    found = method.predict(pixels)
    features, windows = encode(tiny_backbone, pixels, sizes=(2, 3))
    local_BPD = ordinary_tokens(tiny_backbone, pixels)
    for row in range(2):
        u, own = features.image_BD[row], {size: x[row] for size, x in windows.items()}
        chosen = choose((method.units_ND @ u).double().numpy(), method.is_abnormal_N, mode)
        weight = torch.from_numpy(chosen.weight_N).float()
        states = torch.stack(
            [(weight[side] @ method.units_ND[side]) for side in (~method.is_abnormal_N, method.is_abnormal_N)]
        )
        states = F.normalize(states, dim=-1)
        towards = states[1] - states[0]
        image = probability(chosen.share * (u @ towards) / 0.01)
        sides = aligner.pairs(u, own, local_BPD[row], (4, 5))
        local = aligner.ridge(states, *sides, 0.1) if name == "ridge" else aligner.transport(states, *sides)
        patches = probability(local_BPD[row] @ (local[1] - local[0]) / 0.07)
        scales = [harmonic_map(probability(x @ towards / 0.01)[None], (4, 5), size)[0] for size, x in own.items()]
        expected = 0.7 * harmonic_mean([image.expand(20), *scales]) + 0.3 * patches
        torch.testing.assert_close(found.map_Bhw[row].flatten(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALIGNERS)
def test_the_order_of_phrases_changes_no_bit(tiny_backbone, mode, name):
    pixels = tiny_model.pixels(2, 32, 32)
    reversed_looks = {side: looks[::-1] for side, looks in LOOKS.items()}
    first, second = (
        alfa(tiny_backbone, mode=mode, aligner=name, **looks).predict(pixels) for looks in (LOOKS, reversed_looks)
    )
    assert torch.equal(first.score_B, second.score_B)
    assert torch.equal(first.map_Bhw, second.map_Bhw)
    assert first.explanation == second.explanation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALIGNERS)
def test_an_image_is_scored_alike_at_every_place_of_a_batch(tiny_backbone, mode, name):
    plain = alfa(tiny_backbone, mode=mode, aligner=name)
    method = alfa(
        tiny_backbone, mode=mode, aligner=name, tensors=plain.remember([tiny_model.pixels(2, 32, 40, seed=3)])
    )
    pixels = tiny_model.pixels(5, 32, 40)
    found = method.predict(pixels)
    for shift in (1, 2, 3):
        moved = method.predict(pixels.roll(shift, dims=0))
        assert torch.equal(moved.score_B.roll(-shift), found.score_B)
        assert torch.equal(moved.map_Bhw.roll(-shift, dims=0), found.map_Bhw)
        assert moved.explanation[shift:] + moved.explanation[:shift] == found.explanation


@pytest.mark.parametrize("name", ALIGNERS)
def test_a_remembered_image_adds_nothing(tiny_backbone, name):
    pixels = tiny_model.pixels(1, 32, 32)
    plain = alfa(tiny_backbone, aligner=name)
    knowing = alfa(tiny_backbone, aligner=name, tensors=plain.remember([pixels]))
    before, after = plain.predict(pixels), knowing.predict(pixels)
    torch.testing.assert_close(after.map_Bhw, before.map_Bhw / 2, atol=2e-6, rtol=0)
    torch.testing.assert_close(after.score_B, before.score_B / 2, atol=2e-6, rtol=0)
    assert isinstance(plain, FewShot)
    assert memory.is_remembered(knowing.tensors)


def test_explanations_name_three_prompts_a_side_by_falling_similarity(tiny_backbone):
    method = alfa(tiny_backbone, mode="none", **LOOKS)
    (found,) = method.predict(tiny_model.pixels(1, 32, 32)).explanation
    assert [side for _, side, _ in found] == ["normal"] * 3 + ["abnormal"] * 3
    u = tiny_backbone.encode_image(tiny_model.pixels(1, 32, 32)).image_BD
    told = dict(zip(method.prompts, similarity(u, method.units_ND)[0].tolist(), strict=True))
    for part, states in ((found[:3], NORMAL_STATES), (found[3:], ABNORMAL_STATES)):
        values = [value for _, _, value in part]
        assert values == sorted(values, reverse=True)
        assert all(told[prompt] == value for prompt, _, value in part)
        own = {state.replace("{}", "cable") for state in states} | {
            f"cable with {x}" for s in LOOKS.values() for x in s
        }
        assert {prompt for prompt, _, _ in part} <= own


def test_dropped_prompts_are_not_in_the_explanation():
    turned = {"odd look": 0.1, "without": 0.2, "flawless": 0.4, "perfect": 0.05, "unblemished": 0.06}
    backbone = StubBackbone([1.0, 0.0], [[1.0, 0.0]], (1, 1), turned=turned)
    told = {}
    for mode in ("none", "interval"):
        (found,) = alfa(backbone, mode=mode, abnormal=("an odd look",)).predict(blank()).explanation
        told[mode] = [prompt for prompt, _, _ in found]
    assert "cable with an odd look" in told["none"]
    assert "cable with an odd look" not in told["interval"]


def test_looks_with_words_the_tower_was_never_taught_get_no_vote(caplog):
    backbone = StubBackbone([1.0, 0.0], [[1.0, 0.0]], (1, 1), untaught={"weir"})
    method = alfa(backbone, normal=("an even rim", "an even weir"), abnormal=("a cut weir",))
    assert "cable with an even rim" in method.prompts
    assert not any("weir" in prompt for prompt in method.prompts)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 phrases have words that stub was never taught; no vote",
        "1 of 1 phrases have words that stub was never taught; no vote",
    ]


def test_braces_in_phrases_and_names_are_ordinary_characters(tiny_backbone):
    method = alfa(tiny_backbone, object_name="{} {x}", abnormal=("a hole {} {1}",))
    assert "{} {x} with a hole {} {1}" in method.prompts
    assert "damaged {} {x}" in method.prompts
    assert len(set(method.prompts)) == len(method.prompts) == len(NORMAL_STATES) + len(ABNORMAL_STATES) + 1


def test_a_phrase_of_the_ensemble_counts_once(tiny_backbone):
    assert len(alfa(tiny_backbone, abnormal=("flaw",)).prompts) == len(NORMAL_STATES) + len(ABNORMAL_STATES)


def test_lists_as_json_has_them_become_tuples():
    assert AlfaConfig(normal=["an even coat"]) == AlfaConfig(normal=("an even coat",))


@pytest.mark.parametrize("quick", [False, True])
def test_gelu_and_quick_gelu_towers_run(quick):
    backbone = tiny_model.backbone_of(tiny_model.random_model(tiny_model.model_cfg(quick_gelu=quick)))
    found = alfa(backbone, aligner="ridge").predict(tiny_model.pixels(1, 32, 56))
    assert found.map_Bhw.shape == (1, 4, 7)
    assert 0 < found.map_Bhw.min() <= found.map_Bhw.max() < 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "all"}, "mode is 'all'; choose none, interval, topk, soft"),
        ({"aligner": "windows"}, "aligner is 'windows'; choose ridge, transport, patch_only"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"local_temperature": float("nan")}, "local_temperature is nan"),
        ({"ridge": 0.0}, "ridge is 0.0"),
        ({"beta": 1.1}, "beta is 1.1"),
        ({"map_weight": -0.1}, "map_weight is -0.1"),
        ({"top_patches": 0}, "top_patches is 0"),
        ({"normal": "an even coat"}, "normal must be a list"),
        ({"normal": ["x"] * 257}, "at most 256 phrases"),
        ({"abnormal": ["two\nlines"]}, "one line of printable characters"),
        ({"abnormal": ["x" * 121]}, "1 to 120 characters"),
        ({"abnormal": [7]}, "must be text, not 7"),
        ({"normal": ["A nick"], "abnormal": ["a nick"]}, "occurs twice"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        AlfaConfig(**settings)


def test_the_docstring_says_what_is_ours():
    import zsad.methods.alfa as module

    said = " ".join((module.__doc__ or "").split())
    assert (
        "reconstructed from the paper's abstract; the formulas of contextual scoring and of the aligner are ours"
        in said
    )
    assert METHODS["alfa"] == (Alfa, AlfaConfig)


def test_units_are_unit_length_means_over_templates(tiny_backbone):
    method = alfa(tiny_backbone)
    torch.testing.assert_close(method.units_ND.norm(dim=-1), torch.ones(11))
    assert method.is_abnormal_N.tolist() == [False] * 7 + [True] * 4
    assert set(method.prompts[:7]) == {state.replace("{}", "cable") for state in NORMAL_STATES}
    assert set(method.prompts[7:]) == {state.replace("{}", "cable") for state in ABNORMAL_STATES}
