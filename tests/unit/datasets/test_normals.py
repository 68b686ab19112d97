"""Normal procedural images: always the same, and fewer of large ones."""

import numpy as np

from zsad.datasets.normals import procedural_normals


def test_procedural_normals_are_always_the_same():
    first, again = (np.stack(list(procedural_normals(32, 2))) for _ in range(2))
    assert first.shape == (2, 32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])


def test_fewer_procedural_normals_of_large_squares(monkeypatch):
    """Drawing costs by the pixel; counts by hand: 256 * 448^2 / 608^2 = 138.99."""
    from zsad.datasets import synthetic

    class Drawn:
        image = None

    monkeypatch.setattr(synthetic, "generate", lambda *_: Drawn)
    counts = {size: len(list(procedural_normals(size))) for size in (32, 448, 608, 1568)}
    assert counts == {32: 256, 448: 256, 608: 138, 1568: 64}
    assert len(list(procedural_normals(1568, 5))) == 5
