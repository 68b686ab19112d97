"""What training draws and what it leaves out."""

from zsad.datasets.synthetic import DEFECTS, MATERIALS, generate
from zsad.learn import styles


def test_trained_and_left_out_styles_share_nothing_and_cover_all():
    assert set(styles.TRAINED_MATERIALS) | set(styles.LEFT_OUT_MATERIALS) == set(MATERIALS)
    assert not set(styles.TRAINED_MATERIALS) & set(styles.LEFT_OUT_MATERIALS)
    assert set(styles.TRAINED_DEFECTS) | set(styles.LEFT_OUT_DEFECTS) == set(DEFECTS)
    assert not set(styles.TRAINED_DEFECTS) & set(styles.LEFT_OUT_DEFECTS)


def test_at_least_fourteen_defects_and_materials_are_trained():
    assert min(len(styles.TRAINED_DEFECTS), len(styles.TRAINED_MATERIALS)) >= 14


def test_training_never_draws_a_left_out_style():
    drawn = [generate(5, index, styles.training_styles(64)) for index in range(40)]
    assert not {sample.material for sample in drawn} & set(styles.LEFT_OUT_MATERIALS)
    assert not {sample.defect_type for sample in drawn} & set(styles.LEFT_OUT_DEFECTS)


def test_the_left_out_set_draws_left_out_materials_alone():
    drawn = [generate(5, index, styles.left_out_styles(64)) for index in range(20)]
    assert {sample.material for sample in drawn} <= set(styles.LEFT_OUT_MATERIALS)
