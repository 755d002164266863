"""`switch-tf serve`."""

import argparse

from switch_tf.cli import flags
from switch_tf.errors import SettingError

_EXAMPLES = """\
examples:
  switch-tf serve exported                        then open http://127.0.0.1:8501/
  curl -d '{"instances": ["The <extra_id_0> sat down."]}' http://127.0.0.1:8501/v1/models/model:predict

DIR is what `switch-tf export --format=saved_model --output=DIR` wrote. The API is that of TensorFlow Serving.
"""


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = flags.add_with_examples(commands, "serve", "serve an exported model over HTTP, with a page", _EXAMPLES)
    parser.add_argument(
        "folder", type=flags.path, metavar="DIR", help="an exported model; of several versions, the newest"
    )
    parser.add_argument("--name", default="model", help="of the model in addresses (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8501, help="0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--max_batch_size",
        type=int,
        default=16,
        metavar="N",
        help="texts that go through the model together; 1: no batching (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_timeout_ms",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long a request waits for others (default: %(default)s)",
    )
    parser.add_argument(
        "--max_waiting",
        type=int,
        default=1024,
        metavar="N",
        help="texts that may wait; then requests get status 503 (default: %(default)s)",
    )
    parser.add_argument(
        "--max_request_bytes", type=int, default=2**20, metavar="N", help="of a request (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
      SettingError: if the [serve] extra is not installed, there is no model, or the port is taken.
    """
    for name in ("max_batch_size", "max_waiting", "max_request_bytes"):
        if getattr(options, name) < 1:
            raise SettingError(f"--{name}={getattr(options, name)} must be at least 1.")
    try:
        from switch_tf.serving.served_model import ServedModel
        from switch_tf.serving.server import Limits, serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("switch_tf"):
            raise
        raise SettingError(f"`switch-tf serve` needs {error.name}: pip install 'switch-tf[serve]'.") from error
    limits = Limits(
        options.max_batch_size, options.batch_timeout_ms / 1000, options.max_waiting, options.max_request_bytes
    )
    serve(ServedModel(options.folder), options.name, options.host, options.port, limits)
