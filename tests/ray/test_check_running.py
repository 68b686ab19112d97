"""What stops a run that is under way, and what does not."""

import pytest

from zsad.distributed.batch import check_running
from zsad.errors import CommitConflict, StorageError


class Raises:
    """A lease or a feed whose check raises what it was given, if anything."""

    def __init__(self, error=None):
        self.error = error

    def check(self):
        """Raise it."""
        if self.error:
            raise self.error


def test_a_lease_that_can_not_be_renewed_is_told_and_stops_nothing(caplog):
    check_running(Raises(StorageError("no space left")), Raises())
    assert "the lease can't be renewed: no space left" in caplog.text


@pytest.mark.parametrize(
    ("lease", "feed"), [(CommitConflict("taken over"), None), (StorageError("late"), StorageError("the listing broke"))]
)
def test_another_drivers_lease_and_a_broken_listing_stop_it(lease, feed):
    with pytest.raises(type(feed or lease), match=str(feed or lease)):
        check_running(Raises(lease), Raises(feed))
