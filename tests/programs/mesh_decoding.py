"""Decodes with every decoder on any engine and mesh, in a process of its own, and writes what came out.

python -m tests.programs.mesh_decoding OUTPUT.npz '{"engine": "dtensor", "mesh": "data:8"}'
"""

import dataclasses
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from switch_tf.decoding.decoder import make_decoder
from switch_tf.decoding.settings import Decoding
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from tests.programs.mesh_program import CONFIG, rules_for
from tests.support.features import random_features

DECODERS = {
    "greedy": Decoding(),
    "beam": Decoding(decoder="beam", num_beams=3),
    "sample": Decoding(decoder="sample", num_samples=2, top_k=40, top_p=0.9, seed=4),
}


def main(output: str, settings: dict) -> None:
    """Builds the model on the mesh, and decodes."""
    mesh = settings.get("mesh", "")
    rules = "batch:data" if settings["engine"] == "tpu" else rules_for(mesh)
    layout = Layout.parse(mesh, rules)
    devices = layout.num_devices if mesh else None
    engine = make_engine(settings["engine"], layout, devices, Processes())
    with engine.scope():
        model = EncoderDecoder(dataclasses.replace(CONFIG, eval_capacity_factor=None, tied_logits=False), seed=1)
        model.build()
    features = {"encoder_input_tokens": random_features(batch=8)["encoder_input_tokens"]}
    # What some targets start with, and other numbers than those of the rows.
    features["decoder_prefix_tokens"] = np.array([[5, 6], [7, 0], *[[0, 0]] * 6], np.int32)
    features["example_numbers"] = np.arange(8, 16, dtype=np.int32).reshape(8, 1)
    found = {}
    for name, decoding in DECODERS.items():
        found[f"{name}/tokens"], found[f"{name}/scores"] = make_decoder(model, decoding, 6, engine)(features)
    np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
