import numpy as np
import pytest

from skad.detectors._rows_of_images import RowsOfImages


@pytest.fixture
def rows():
    return RowsOfImages({7: 2, 3: 1}, rows=((2,), np.float32), numbers=((), np.intp))


def test_rows_come_back_by_image(rows):
    rows.add(7, [[1, 2]], [5])
    rows.add(3, [[3, 4]], [6])
    rows.add(7, [[7, 8]], [9])
    assert list(rows) == [3, 7]
    np.testing.assert_array_equal(rows[7][0], [[1, 2], [7, 8]])
    np.testing.assert_array_equal(rows[7][1], [5, 9])
    np.testing.assert_array_equal(rows[3][0], [[3, 4]])


def test_no_row_is_written_over_another_image(rows):
    rows.add(3, [[3, 4]], [6])
    assert rows.is_full(3)
    assert not rows.is_full(7)
    with pytest.raises(ValueError, match="no room for 2 rows"):
        rows.add(3, [[0, 0], [0, 0]], [1, 1])
    assert 7 not in rows


def test_compact_rows_hold_what_was_added(rows):
    rows.add(7, [[1, 2]], [5])
    small = rows.compact()
    assert list(small) == [7]
    assert small.is_full(7)
    np.testing.assert_array_equal(small[7][0], [[1, 2]])


def test_there_may_be_no_image_at_all():
    assert list(RowsOfImages({}, rows=((2,), np.float32)).compact()) == []
