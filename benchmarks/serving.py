"""`switch-tf serve` under load, with dynamic batching and without.

Clients send texts of mixed length, each of them its next one when it has the answer to the last. Two servers of one
SavedModel are loaded in turn, and every answer is compared with that of `switch-tf predict`.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import pydoc_data.topics
import queue
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.measuring import spread

ROOT = pathlib.Path(__file__).parents[1]
SWITCH_TF = (sys.executable, "-m", "switch_tf.cli.main")
PREDICT = "/v1/models/model:predict"
# Trained briefly where no model directory is given: how many steps make no difference to the speed.
BRIEFLY = ("--gin_file=gin/models/switch_nano_16.gin", "--gin_file=gin/runs/installed_docs.gin", "--gin.TRAIN_STEPS=2")


class Load(NamedTuple):
    """What clients saw: seconds in all and for each request, and how many answers were errors or other texts."""

    seconds: float
    latencies: list[float]
    num_errors: int
    num_different: int


def texts_of(number: int) -> list[str]:
    """Returns texts of 1 to 60 words of Python's documentation, half of them with a sentinel; the same each time."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    draw = random.Random(0)
    texts = []
    for index in range(number):
        first, length = draw.randrange(len(words) - 60), draw.randint(1, 60)
        text = words[first : first + length]
        if index % 2:
            text[length // 2] = "<extra_id_0>"
        texts.append(" ".join(text))
    return texts


def predicted(model_dir: str, texts: Sequence[str], folder: pathlib.Path) -> list[str]:
    """Returns the predictions of `switch-tf predict`."""
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    files = (f"--file={folder / 'texts.txt'}", f"--output={folder / 'predictions.jsonl'}")
    subprocess.run([*SWITCH_TF, "predict", f"--model_dir={model_dir}", "--too_long=cut", *files], cwd=ROOT, check=True)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


@contextlib.contextmanager
def serving(exported: pathlib.Path, max_batch_size: int) -> Iterator[int]:
    """Runs a server; gives its port."""
    command = [*SWITCH_TF, "serve", str(exported), "--port=0", f"--max_batch_size={max_batch_size}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            assert found, line
            yield int(found[1])
        finally:
            process.terminate()


def load(port: int, texts: Sequence[str], expected: Sequence[str], num_clients: int) -> Load:
    """Sends each text once, from so many clients."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(texts)):
        waiting.put(index)
    start_together = threading.Barrier(num_clients + 1)

    def client() -> list[tuple[float, int, bool]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.connect()
        start_together.wait()
        seen = []
        with contextlib.suppress(queue.Empty):
            while True:
                index = waiting.get_nowait()
                began = time.perf_counter()
                connection.request("POST", PREDICT, json.dumps({"instances": [texts[index]]}))
                response = connection.getresponse()
                answer = json.loads(response.read())
                seconds = time.perf_counter() - began
                is_equal = response.status == 200 and answer["predictions"][0]["outputs"] == expected[index]
                seen.append((seconds, response.status, is_equal))
        connection.close()
        return seen

    with concurrent.futures.ThreadPoolExecutor(num_clients) as clients:
        running = [clients.submit(client) for _ in range(num_clients)]
        start_together.wait()
        began = time.perf_counter()
        seen = [answer for future in running for answer in future.result()]
    return Load(
        time.perf_counter() - began,
        [seconds for seconds, _, _ in seen],
        sum(status != 200 for _, status, _ in seen),
        sum(status == 200 and not is_equal for _, status, is_equal in seen),
    )


def measure(
    exported: pathlib.Path, texts: Sequence[str], expected: Sequence[str], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Returns a row for each server: throughput and its ratio to that without batching, latencies, wrong answers."""
    loads: dict[int, list[Load]] = {1: [], options.max_batch_size: []}
    with contextlib.ExitStack() as servers:
        ports = {size: servers.enter_context(serving(exported, size)) for size in loads}
        for _ in range(options.rounds):
            for size, found in loads.items():
                found.append(load(ports[size], texts, expected, options.clients))
    rows = []
    for size, found in loads.items():
        latencies = [seconds for each in found for seconds in each.latencies]
        rows.append(
            {
                "max_batch_size": size,
                **spread("throughput", [len(texts) / each.seconds for each in found]),
                **spread("ratio", [alone.seconds / each.seconds for alone, each in zip(loads[1], found)]),
                "p50": statistics.median(latencies),
                "p99": statistics.quantiles(latencies, n=100)[98],
                "errors": sum(each.num_errors for each in found),
                "different": sum(each.num_different for each in found),
            }
        )
    return rows


def main() -> None:
    """Exports, predicts, loads both servers, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", help="a trained model; by default one that is trained for two steps")
    parser.add_argument("--requests", type=int, default=2000, help="of one text each (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--max_batch_size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is loaded (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model_dir = options.model_dir or str(folder / "model")
        if options.model_dir is None:
            subprocess.run([*SWITCH_TF, "train", *BRIEFLY, f'--gin.MODEL_DIR="{model_dir}"'], cwd=ROOT, check=True)
        texts = texts_of(options.requests)
        expected = predicted(model_dir, texts, folder)
        exported = folder / "exported"
        export = ("export", f"--model_dir={model_dir}", f"--output={exported}")
        subprocess.run([*SWITCH_TF, *export, f"--batch_sizes=1,{options.max_batch_size}"], cwd=ROOT, check=True)
        rows = measure(exported, texts, expected, options)
    print(f"{options.requests} requests of {options.clients} clients, {os.cpu_count()} cores, {options.rounds} rounds")
    print(f"{'batch':>6}{'requests/s':>12}{'ratio':>8}{'p50 s':>8}{'p99 s':>8}{'errors':>8}{'different':>11}")
    for row in rows:
        print(
            f"{row['max_batch_size']:>6}{row['throughput']:>12.1f}{row['ratio']:>8.2f}{row['p50']:>8.2f}"
            f"{row['p99']:>8.2f}{row['errors']:>8}{row['different']:>11}"
        )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
