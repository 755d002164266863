"""Runs every program of an export with JAX alone: `... LOADER FOLDER INPUTS OUTPUTS`.

INPUTS has the features of three batches; OUTPUTS gets what the programs return, by name.
"""

import runpy
import sys

import numpy as np

# Neither TensorFlow nor this package may be needed.
sys.modules["tensorflow"] = sys.modules["switch_tf"] = None


def flat(nest: object, name: str) -> dict[str, np.ndarray]:
    """Names every array of nested dictionaries by its path."""
    if not isinstance(nest, dict):
        return {name: np.asarray(nest)}
    return {path: array for key, value in nest.items() for path, array in flat(value, f"{name}/{key}").items()}


def main(loader: str, folder: str, inputs: str, outputs: str) -> None:
    """Evaluates, decodes and trains."""
    model = runpy.run_path(loader)["ExportedModel"](folder)
    with np.load(inputs) as arrays:
        batches = [
            {name.partition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{i}/")} for i in (0, 1, 2)
        ]
    encoder = {"encoder_input_tokens": batches[0]["encoder_input_tokens"]}
    found = flat(model.evaluate(model.weights, batches[0]), "evaluate")
    found |= flat(model.logits(model.weights, batches[0]), "logits")
    found |= flat(model.decode(model.weights, encoder), "decode")
    weights, slots = model.weights, model.slots
    for step, batch in enumerate(batches, start=model.manifest["step"]):
        results = model.train(weights, slots, np.int32(step), batch, np.int32(7))
        weights, slots = results["weights"], results["slots"]
        found |= flat(results, f"train/{step}")
    np.savez(outputs, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
