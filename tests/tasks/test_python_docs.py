"""The text that comes with Python."""

from tasks import python_docs


def test_there_are_about_two_million_characters_each_document_once():
    documents = python_docs.documents()
    assert sum(map(len, documents)) > 1_500_000
    assert len(set(documents)) == len(documents) > 5_000
    assert any("The assert statement" in text or '"assert" statement' in text for text in documents)


def test_held_out_documents_are_a_twentieth_and_never_trained_on():
    train, held_out = (
        {example["text"] for example in python_docs.python_docs(split, False).as_numpy_iterator()}
        for split in ("train", "validation")
    )
    assert not train & held_out
    assert len(train) + len(held_out) == len(python_docs.documents())
    assert 0.03 < len(held_out) / len(train) < 0.08


def test_order_follows_the_seed():
    def first(seed):
        return next(python_docs.python_docs("train", True, seed).as_numpy_iterator())["text"]

    assert first(0) == first(0) != first(1)
