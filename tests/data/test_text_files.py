"""Files of documents are found by names and patterns."""

import pytest

from switch_tf.data.text_files import matching_files
from switch_tf.errors import SettingError


def test_the_name_of_a_file_is_no_pattern(tmp_path):
    for name in ("a[1].txt", "a1.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    names = [str(tmp_path / name) for name in ("a1.txt", "a[1].txt", "b.txt")]
    assert matching_files(names[1], "TRAIN_FILES") == [names[1]]
    assert matching_files(str(tmp_path / "*.txt"), "TRAIN_FILES") == names
    assert matching_files(str(tmp_path / "[ab].txt"), "TRAIN_FILES") == [names[2]]
    with pytest.raises(SettingError, match=r"TRAIN_FILES = .*c\[1\]\.txt' matches no file"):
        matching_files(str(tmp_path / "c[1].txt"), "TRAIN_FILES")
