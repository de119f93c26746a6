import numpy as np
import pytest

from defectgen.yolo.evaluate import recall_at_false_alarms


def _recall(clean_confidences, num_clean_images, **settings):
    """Two defective files with four defects, one clean file."""
    return recall_at_false_alarms(
        hits=[np.array([True, False, True]), np.array([True]), np.zeros(len(clean_confidences), dtype=bool)],
        confidences=[np.array([0.9, 0.5, 0.3]), np.array([0.6]), np.array(clean_confidences, dtype=float)],
        is_clean=[False, False, True],
        num_clean_images=num_clean_images,
        num_defects=4,
        **settings,
    )


def test_below_100_clean_images_one_false_alarm_is_allowed():
    # Above 0.4 two of the four defects are found (0.9, 0.6), and 0.3 above 0.2.
    assert _recall([0.4, 0.2], 50) == _recall([0.4, 0.2], 100) == (0.75, 0.2)


def test_one_false_alarm_in_100_is_allowed():
    # 0.4 is allowed; the next one, 0.2, is not. Found: 0.9, 0.6, 0.3.
    assert _recall([0.4, 0.2], 100) == (0.75, 0.2)


def test_threshold_is_zero_where_every_alarm_is_allowed():
    assert _recall([0.4, 0.2], 300) == (0.75, 0.0)
    assert _recall([], 10) == (0.75, 0.0)


def test_exact_multiples_are_not_lost_to_rounding():
    # 0.01 * 300 in floating point must count as 3.
    assert _recall([0.95, 0.94, 0.93, 0.55], 300) == (0.5, 0.55)


def test_equal_alarms_are_cut_together():
    assert _recall([0.4, 0.4], 100) == (0.5, 0.4)


def test_alarm_above_every_hit_leaves_nothing():
    assert _recall([0.99, 0.98], 20) == (0.0, 0.98)


@pytest.mark.parametrize(("num_clean_images", "num_defects"), [(0, 4), (10, 0)])
def test_no_clean_images_or_no_defects_give_no_answer(num_clean_images, num_defects):
    assert (
        recall_at_false_alarms(
            hits=[], confidences=[], is_clean=[], num_clean_images=num_clean_images, num_defects=num_defects
        )
        is None
    )
