"""Texts to token ids and back inside a TensorFlow graph, as SentencePiece and seqio do outside of one."""

import tensorflow as tf
import tensorflow_text as tf_text

PADDING, END = 0, 1


class TextProcessing(tf.Module):
    """One SentencePiece tokenizer, whose model travels in the graph.

    Not `FastSentencepieceTokenizer`, which leaves out pieces of single bytes.
    """

    def __init__(self, sentencepiece_model: bytes):
        """Makes the tokenizer.

        Args:
          sentencepiece_model: the serialized model, with the sentinels among its pieces.
        """
        super().__init__(name="text_processing")
        self._tokenizer = tf_text.SentencepieceTokenizer(model=sentencepiece_model)

    def tokenize(self, texts: tf.Tensor, max_length: int) -> tf.RaggedTensor:
        """Tokenizes texts, appends EOS, and cuts what is longer than `max_length`: string [n] -> int32 [n, (ids)]."""
        ids = self._tokenizer.tokenize(texts)[:, : max_length - 1]
        ends = tf.fill([tf.shape(texts)[0], 1], END)
        return tf.concat([ids, ends], axis=1)

    def detokenize(self, tokens: tf.Tensor) -> tf.Tensor:
        """Returns the text up to EOS, without padding: int32 [n, T] -> string [n]."""
        is_end = tf.cast(tf.equal(tokens, END), tf.int32)
        is_text = tf.logical_and(tf.equal(tf.cumsum(is_end, axis=1), 0), tf.not_equal(tokens, PADDING))
        return self._tokenizer.detokenize(tf.ragged.boolean_mask(self._known(tokens), is_text))

    def pieces(self, tokens: tf.Tensor) -> tf.Tensor:
        """Returns the piece of each token, "" for padding: int32 [n, T] -> string [n, T]."""
        return tf.where(tf.equal(tokens, PADDING), "", self._tokenizer.id_to_string(self._known(tokens)))

    def _known(self, tokens: tf.Tensor) -> tf.Tensor:
        """Replaces ids above the last piece, which an embedding table may have, by that of unknown text."""
        return tf.where(tokens < self._tokenizer.vocab_size(), tokens, self._unknown())

    def _unknown(self) -> tf.Tensor:
        return self._tokenizer.string_to_id("<unk>")
