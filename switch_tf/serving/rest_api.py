"""Requests and answers of TensorFlow Serving's REST API, as JSON."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class BadRequest(Exception):
    """What is wrong with a request, in a sentence for its sender."""


class PredictRequest(NamedTuple):
    """A request in one of the API's two formats.

    signature: which function of the model.
    inputs: texts by the names of the function's inputs.
    is_by_row: whether it has "instances", and gets "predictions"; else it has "inputs", and gets "outputs".
    """

    signature: str
    inputs: dict[str, list[bytes]]
    is_by_row: bool


def parse(body: bytes, input_names: Mapping[str, Sequence[str]]) -> PredictRequest:
    """Reads the body of a predict request.

    Args:
      body: JSON.
      input_names: the names of the inputs of each signature.

    Raises:
      BadRequest: if it is not one.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise BadRequest("The request must be a JSON object with 'instances' or 'inputs'.")
    signature = fields.get("signature_name", "serving_default")
    if not isinstance(signature, str) or signature not in input_names:
        raise BadRequest(f"There is no signature {signature!r}: there is {', '.join(sorted(input_names))}.")
    names = input_names[signature]
    if ("instances" in fields) == ("inputs" in fields):
        raise BadRequest("The request must have either 'instances' or 'inputs'.")
    if "instances" in fields:
        return PredictRequest(signature, _by_row(fields["instances"], names), True)
    return PredictRequest(signature, _by_column(fields["inputs"], names), False)


def _by_row(instances: Any, names: Sequence[str]) -> dict[str, list[bytes]]:
    if not isinstance(instances, list) or not instances:
        raise BadRequest("'instances' must be a list of at least one text.")
    rows = [_named(instance, names, "Each of 'instances'") for instance in instances]
    return {name: [_text(row[name]) for row in rows] for name in names}


def _by_column(inputs: Any, names: Sequence[str]) -> dict[str, list[bytes]]:
    found = {}
    for name, column in _named(inputs, names, "'inputs'").items():
        if not isinstance(column, list) or not column:
            raise BadRequest(f"The input '{name}' must be a list of at least one text.")
        found[name] = [_text(value) for value in column]
    if len({len(column) for column in found.values()}) > 1:
        raise BadRequest(f"The inputs {', '.join(names)} must have equally many texts.")
    return found


def _named(value: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Returns values by the names of the inputs; one input may go without its name."""
    if isinstance(value, dict) and value.keys() != {"b64"}:
        if value.keys() != set(names):
            raise BadRequest(f"{what} must have the inputs {', '.join(names)}, and no others.")
        return value
    if len(names) > 1:
        raise BadRequest(f"{what} must be an object with the inputs {', '.join(names)}.")
    return {names[0]: value}


def _text(value: Any) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
            return base64.b64decode(value["b64"], validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise BadRequest(f"A text cannot be read: {error}.") from error
    raise BadRequest(f"A text must be a string or {{'b64': string}}, not {str(value)[:40]!r}.")


def answer(outputs: Mapping[str, np.ndarray], is_by_row: bool) -> dict[str, Any]:
    """Returns the JSON object of a model's outputs, in the format of the request."""
    columns = {name: _plain(array.tolist()) for name, array in outputs.items()}
    if is_by_row:
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        return {"predictions": [row if len(row) > 1 else next(iter(row.values())) for row in rows]}
    return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
