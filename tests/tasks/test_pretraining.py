"""Plain text files as a source."""

from tasks.pretraining import text_files


def test_text_files_hold_a_document_on_each_line(tmp_path):
    for name, text in {"train-0.txt": "one\n\ntwo\n", "train-1.txt": "three", "held-out.txt": "four\n"}.items():
        (tmp_path / name).write_text(text)
    source = text_files({"train": str(tmp_path / "train-*.txt"), "validation": str(tmp_path / "held-out.txt")})

    def read(split: str) -> list[bytes]:
        return sorted(example["text"] for example in source.get_dataset(split, shuffle=False).as_numpy_iterator())

    assert read("train") == [b"one", b"three", b"two"]
    assert read("validation") == [b"four"]
