"""A model for servers that needs no TensorFlow: it answers with the text in capitals."""

import time

import numpy as np

PIECES = [b"\xe2\x96\x81one", b"\xe2\x96\x81two", b""]


class FakeModel:
    """What `ServedModel` offers."""

    version = "3"
    signatures = ("serving_default", "score", "experts")

    def __init__(self, seconds: float = 0.0):
        self.description = {
            "num_experts": 4,
            "sparse_layers": {"encoder": ["encoder/layer_1"], "decoder": ["decoder/layer_1"]},
        }
        self.seconds = seconds
        self.batches: list[int] = []

    def input_names(self, signature: str) -> list[str]:
        return ["inputs", "targets"] if signature == "score" else ["inputs"]

    def run(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        texts = inputs["inputs"]
        self.batches.append(len(texts))
        if b"fail" in texts:
            raise ValueError("It cannot.\nMore of it.")
        lengths = np.array([len(text) for text in texts], np.float32)
        if signature == "score":
            return {"scores": lengths}
        outputs = np.array([text.upper() for text in texts], object)
        if signature == "serving_default":
            return {"outputs": outputs, "scores": lengths}
        pieces = np.array([PIECES] * len(texts), object)
        experts = np.array([[[2, 3, 0]]] * len(texts), np.int32)
        return {
            "outputs": outputs,
            "input_pieces": pieces,
            "output_pieces": pieces,
            "encoder_experts": experts,
            "decoder_experts": experts,
        }

    def metadata(self) -> dict:
        return {name: {} for name in self.signatures}
