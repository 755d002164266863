"""Filling sentinels."""

import pytest

from switch_tf.runs.infilling import fill


@pytest.mark.parametrize(
    ("text", "prediction", "filled"),
    [
        ("The <extra_id_0> sat on <extra_id_1>.", "<extra_id_0> cat<extra_id_1> a mat", "The [cat] sat on [a mat]."),
        ("<extra_id_0> b <extra_id_1>", "<extra_id_1> c", "[] b [c]"),
        ("<extra_id_0> x", "no sentinel at all", "[] x"),
        ("<extra_id_0> x", "<extra_id_0> first <extra_id_0> second", "[first] x"),
        ("<extra_id_1> <extra_id_10>", "<extra_id_10> ten <extra_id_1> one", "[one] [ten]"),
    ],
)
def test_spans_go_where_their_sentinels_stand(text, prediction, filled):
    assert fill(text, prediction) == filled
