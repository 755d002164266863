"""A model's functions of token ids, for any number of rows, built from graphs of a few static shapes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from switch_tf.decoding.cached_step import INPUTS, encoder_output
from switch_tf.decoding.decoder import EXAMPLES, decode
from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.losses import cross_entropy, token_weights

Outputs = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The static shapes of an exported model.

    Attributes:
      lengths: of the inputs; a batch is padded to the first that holds it. The last one is the longest.
      target_length: of targets and predictions.
      batch_sizes: a request is padded to the first that holds it, or cut into batches of the last.
    """

    lengths: tuple[int, ...]
    target_length: int
    batch_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, values in (("lengths", self.lengths), ("batch_sizes", self.batch_sizes)):
            if not values or min(values) < 1 or list(values) != sorted(set(values)):
                raise SettingError(f"--{name}={','.join(map(str, values))} must be ascending numbers from 1 on.")

    @property
    def max_length(self) -> int:
        """The longest inputs."""
        return self.lengths[-1]


class ModelFunctions:
    """Decoding, likelihood, encoding and routing of a model.

    No `tf.Module`: a SavedModel is to hold the weights, not Keras's objects.

    Attributes:
      weights: the variables that the functions read.
      shapes: the static shapes that are traced.
      decoding: how `decode` decodes.
      sparse_layers: the names of the sparse layers of the "encoder" and the "decoder".
    """

    def __init__(self, model: EncoderDecoder, decoding: Decoding, shapes: Shapes):
        """Traces nothing yet.

        Args:
          model: built, with its weights.
          decoding: which decoder, and its settings.
          shapes: to trace.
        """
        self._model = model
        self.weights = [variable.value for variable in model.trainable_variables]
        self.shapes = shapes
        self.decoding = decoding
        self.sparse_layers = {
            stack: [name for name in model.config.sparse_layer_names if name.startswith(f"{stack}/")]
            for stack in ("encoder", "decoder")
        }
        # One for all signatures, so that each shape is traced once.
        self._compiled = {
            function: tf.function(function, autograph=False)
            for function in (self._decode_batch, self._score_batch, self._encode_batch, self._route_batch)
        }

    def decode(self, tokens: tf.RaggedTensor) -> Outputs:
        """Decodes: int32 [n, (ids)] -> tokens int32 [n, k, T], scores float32 [n, k]."""
        count = tf.range(tokens.nrows(out_type=tf.int32))
        return self._in_batches(tokens, [tf.expand_dims(count, 1)], self._decode_batch)

    def score(self, tokens: tf.RaggedTensor, targets: tf.RaggedTensor) -> Outputs:
        """Measures the log likelihood of targets: int32 [n, (ids)] twice -> scores float32 [n]."""
        padded = targets.to_tensor(shape=[None, self.shapes.target_length])
        return self._in_batches(tokens, [padded], self._score_batch)

    def encode(self, tokens: tf.RaggedTensor) -> Outputs:
        """Encodes: int32 [n, (ids)] -> embeddings float32 [n, L, M]."""
        return self._in_batches(tokens, [], self._encode_batch)

    def route(self, tokens: tf.RaggedTensor, targets: tf.Tensor) -> Outputs:
        """Finds each token's first expert in each sparse layer.

        Args:
          tokens: int32 [n, (ids)], inputs.
          targets: int32 [n, T].

        Returns:
          `input_tokens` int32 [n, L]; `encoder_experts` int32 [n, layers, L] and `decoder_experts` [n, layers, T].
        """
        return self._in_batches(tokens, [targets], self._route_batch)

    def _decode_batch(self, inputs: tf.Tensor, numbers: tf.Tensor) -> Outputs:
        features = {INPUTS: inputs, EXAMPLES: numbers}
        return decode(self._model, features, self.decoding, self.shapes.target_length)._asdict()

    def _score_batch(self, inputs: tf.Tensor, targets: tf.Tensor) -> Outputs:
        features = _teacher_forcing(inputs, targets)
        losses, _ = cross_entropy(self._model(features, dropless=True), targets)
        return {"scores": -tf.reduce_sum(losses * token_weights(features), axis=-1)}

    def _encode_batch(self, inputs: tf.Tensor) -> Outputs:
        return {"embeddings": encoder_output(self._model, inputs)}

    def _route_batch(self, inputs: tf.Tensor, targets: tf.Tensor) -> Outputs:
        output = self._model(_teacher_forcing(inputs, targets), dropless=True, return_routing=True)
        found: Outputs = {"input_tokens": inputs}
        for stack, width in (("encoder", inputs.shape[1]), ("decoder", targets.shape[1])):
            experts = [
                tf.reshape(output.routings[name].expert[..., 0], [-1, width]) for name in self.sparse_layers[stack]
            ]
            empty = tf.zeros([inputs.shape[0], 0, width], tf.int32)
            found[f"{stack}_experts"] = tf.stack(experts, axis=1) if experts else empty
        return found

    def _in_batches(
        self, tokens: tf.RaggedTensor, others: list[tf.Tensor], of_batch: Callable[..., Outputs]
    ) -> Outputs:
        """Applies a function of static shapes to any number of rows.

        Args:
          tokens: int32 [n, (ids)].
          others: int32 [n, ...] each.
          of_batch: (int32 [B, L], the others as [B, ...]) -> outputs with B rows.

        Returns:
          Its outputs for all n rows.
        """
        longest = tf.cast(tf.reduce_max(tokens.row_lengths()), tf.int32)
        cases = [
            self._case(tokens, others, self._compiled[of_batch], length, size)
            for length in self.shapes.lengths
            for size in self.shapes.batch_sizes
        ]
        length_index = _first_that_holds(self.shapes.lengths, longest)
        size_index = _first_that_holds(self.shapes.batch_sizes, tokens.nrows(out_type=tf.int32))
        return tf.switch_case(length_index * len(self.shapes.batch_sizes) + size_index, cases)

    @staticmethod
    def _case(
        tokens: tf.RaggedTensor, others: list[tf.Tensor], of_batch: Callable[..., Outputs], length: int, size: int
    ) -> Callable[[], Outputs]:
        def case() -> Outputs:
            rows = tokens.nrows(out_type=tf.int32)
            num_batches = tf.maximum((rows + size - 1) // size, 1)
            padding = num_batches * size - rows
            full = [
                tf.pad(array, [[0, padding]] + [[0, 0]] * (array.shape.rank - 1))
                for array in (tokens.to_tensor(shape=[None, length]), *others)
            ]

            def batch(index: tf.Tensor) -> Outputs:
                parts = [array[index * size : (index + 1) * size] for array in full]
                return of_batch(*(tf.ensure_shape(part, [size, *part.shape[1:]]) for part in parts))

            def body(index: tf.Tensor, found: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, Any]:
                outputs = batch(index)
                return index + 1, {name: array.write(index, outputs[name]) for name, array in found.items()}

            first = tf.function(batch, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32))
            arrays = {
                name: tf.TensorArray(output.dtype, num_batches, element_shape=output.shape)
                for name, output in first.structured_outputs.items()
            }
            _, arrays = tf.while_loop(lambda index, _: index < num_batches, body, (tf.constant(0), arrays))
            return {name: array.concat()[:rows] for name, array in arrays.items()}

        return case


def _first_that_holds(sizes: tuple[int, ...], number: tf.Tensor) -> tf.Tensor:
    """Returns the index of the first size that is not below a number, the last one where none is."""
    return tf.minimum(tf.searchsorted(tf.constant(sizes), tf.reshape(number, [1]))[0], len(sizes) - 1)


def _teacher_forcing(inputs: tf.Tensor, targets: tf.Tensor) -> dict[str, tf.Tensor]:
    shifted = tf.pad(targets, [[0, 0], [1, 0]])[:, :-1]
    return {INPUTS: inputs, "decoder_input_tokens": shifted, "decoder_target_tokens": targets}
