"""Converts a checkpoint of any format into one of ours, Hugging Face's or T5X's: what `switch-tf convert` does."""

import contextlib
import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator

import gin
import tqdm

from switch_tf import storage
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.data.sentencepiece import path_in
from switch_tf.errors import SettingError
from switch_tf.interop import binary_files, formats, own_checkpoints, t5x, upcycling, vocabulary_files
from switch_tf.interop.architecture import expected_shapes
from switch_tf.interop.lazy_tensors import DTYPES, LazyTensor
from switch_tf.interop.model_gin import model_gin
from switch_tf.interop.sources import Source
from switch_tf.models.config import ModelConfig
from switch_tf.runs import gin_config
from switch_tf.runs.model_directory import versions

# What a model directory has besides the model, so that evaluate and predict work on it as it is.
_RUN_FILES = ("gin/runs/pretrain.gin",)
_RUN_BINDINGS = (
    'MIXTURE_OR_TASK = "python_docs_span_corruption"',
    "BATCH_SIZE = 8",
    'TASK_FEATURE_LENGTHS = {"inputs": 512, "targets": 114}',
)
_IMPORTS = "import tasks.python_docs\nimport tasks.vocabularies\n"
_INSTALLED_VOCABULARY = ("VOCABULARY = @InitialVocabulary()", "InitialVocabulary.checkpoint = %MODEL_DIR")

Written = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What to convert into what.

    Attributes:
      source: a folder, or the prefix of a bundle; local or in a bucket.
      target: the folder to make.
      source_kind: what the source is, one of `formats.READERS`; None to recognize it.
      target_kind: "switch_tf", "huggingface" or "t5x".
      dtype: of the weights in the target, "float32" or "bfloat16".
      family: of a Hugging Face directory; None: by the model.
      shard_bytes: size of its files at most.
      vocabulary: path of a SentencePiece model or a tokenizer.json; None for the one beside the source.
      with_slots: whether Adafactor's slots come along.
      upcycle: whether each expert is to be a copy of the source's dense layer.
      noise: standard deviation of what upcycling adds to each expert, as a fraction of the matrix's own.
      seed: of what upcycling draws.
      to_dense: "mean", or the number of an expert, to make a dense model; None to leave experts as they are.
      gin_files: settings of the target, after those of the source.
      bindings: the same, after the files.
      search_paths: folders in which to look for gin files first.
    """

    source: str
    target: str
    source_kind: str | None = None
    target_kind: str = "switch_tf"
    dtype: str = "float32"
    family: str | None = None
    shard_bytes: int = 5_000_000_000
    vocabulary: str | None = None
    with_slots: bool = False
    upcycle: bool = False
    noise: float = 0.0
    seed: int = 0
    to_dense: str | None = None
    gin_files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    search_paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.to_dense not in (None, "mean") and not self.to_dense.isdigit():
            raise SettingError(f"--to_dense={self.to_dense} must be 'mean' or the number of an expert, from 0.")
        if self.upcycle and self.to_dense is not None:
            raise SettingError("--upcycle makes experts and --to_dense removes them: give one of the two.")
        if self.noise < 0 or (self.noise and not self.upcycle):
            raise SettingError(f"--noise={self.noise} must be 0 or more, and needs --upcycle.")
        if self.target_kind == "switch_tf" and self.dtype != "float32":
            raise SettingError(f"--dtype={self.dtype} is for --to=huggingface and --to=t5x: ours keep float32.")
        if self.shard_bytes < 1:
            raise SettingError(f"--shard_gb={self.shard_bytes / 1e9} must be positive.")
        if self.with_slots and (self.target_kind == "huggingface" or self.upcycle or self.to_dense is not None):
            raise SettingError("--slots keeps what only --to=t5x and --to=switch_tf can have, of the same weights.")


def convert(conversion: Conversion) -> None:
    """Converts a checkpoint and prints what was made; see `Conversion`.

    Raises:
      SettingError: if the source cannot be read, the target cannot be written, or one has no counterpart of the other.
    """
    source = formats.open_source(conversion.source, conversion.source_kind)
    vocabulary = _vocabulary(conversion, source)
    config = _configure(conversion, source, has_vocabulary=vocabulary is not None)
    if vocabulary is not None:
        vocabulary_files.check_size(vocabulary, config.vocab_size, conversion.vocabulary or str(source.vocabulary))
    weights = _weights(conversion, source, config)
    slots = _slots(source) if conversion.with_slots else None
    for note in source.notes:
        print(note, file=sys.stderr)
    size = sum(math.prod(tensor.shape) for tensor in weights.values()) * DTYPES[conversion.dtype].itemsize
    with formats.new_folder(conversion.target) as folder, _progress(size) as written:
        if conversion.target_kind == "huggingface":
            dtype, shard_bytes = conversion.dtype, conversion.shard_bytes
            formats.write_huggingface(
                folder, config, weights, vocabulary, conversion.family, dtype, shard_bytes, written
            )
        elif conversion.target_kind == "t5x":
            cast = {name: tensor.cast(DTYPES[conversion.dtype]) for name, tensor in weights.items()}
            t5x.write_t5x(folder, cast, source.step, slots, written)
        else:
            _write_model_directory(folder, config, {**weights, **(slots or {})}, source, vocabulary, written)
    layers = f"{config.num_encoder_layers} + {config.num_decoder_layers} layers"
    experts = f"{config.num_experts} experts in {config.num_sparse_layers} of them" if config.num_experts else "dense"
    print(f"{conversion.target}: {layers}, {experts}; d_model {config.d_model}, d_ff {config.d_ff}, step {source.step}")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Written]:
    """Shows how many of the target's bytes have been written, at a terminal."""
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="convert", disable=None) as bar:

        def written(num_bytes: int) -> None:
            bar.update(num_bytes)

        yield written


def _configure(conversion: Conversion, source: Source, has_vocabulary: bool) -> ModelConfig:
    """Replaces the gin configuration by that of the target, and returns the target's model."""
    recorded, files, bindings = source.gin, conversion.gin_files, []
    if recorded is None:
        recorded = f"{_IMPORTS}\n{model_gin(source.config)}"
        files, bindings = (*_RUN_FILES, *files), [*_RUN_BINDINGS]
    if has_vocabulary:
        bindings += _INSTALLED_VOCABULARY
    if conversion.upcycle and any(binding.startswith("NUM_EXPERTS ") for binding in conversion.bindings):
        bindings.append("ModelConfig.num_experts = %NUM_EXPERTS")
    if conversion.to_dense is not None:
        bindings += ["NUM_EXPERTS = 0", "ModelConfig.num_experts = %NUM_EXPERTS"]
    bindings.append(f"MODEL_DIR = {conversion.target!r}")
    gin_config.load(files, [*bindings, *conversion.bindings], conversion.search_paths, recorded)
    return ModelConfig()


def _weights(conversion: Conversion, source: Source, config: ModelConfig) -> dict[str, LazyTensor]:
    if conversion.upcycle:
        return upcycling.upcycled(source.weights, config, source.path, conversion.noise, conversion.seed)
    weights, kept = dict(source.weights), source.config
    if conversion.to_dense is not None:
        weights = upcycling.densified(weights, conversion.to_dense, source.path)
        kept = dataclasses.replace(kept, num_experts=0)
    _check_same_shapes(kept, config, source.path)
    return weights


def _slots(source: Source) -> dict[str, LazyTensor]:
    slots = t5x.slots_of(source) if source.kind == "t5x" else dict(source.slots)
    if not slots:
        raise SettingError(f"{source.path} has no slots of Adafactor: leave --slots out.")
    return slots


def _check_same_shapes(theirs: ModelConfig, ours: ModelConfig, path: str) -> None:
    """Refuses gin settings that give the model other weights than the source has."""
    if theirs == ours:
        return
    there, here = expected_shapes(theirs), expected_shapes(ours)
    for name in sorted({**there, **here}):
        if there.get(name) != here.get(name):
            raise SettingError(
                f"{path} has {name} of the shape {there.get(name)}, and the gin settings ask for {here.get(name)}: set "
                "nothing that shapes weights, or see --upcycle and --to_dense."
            )


def _vocabulary(conversion: Conversion, source: Source) -> bytes | None:
    path = conversion.vocabulary or source.vocabulary
    if path is None and source.kind == "switch_tf":
        folders = (source.path, os.path.dirname(os.path.dirname(source.path)))
        path = next((path_in(folder) for folder in folders if storage.exists(path_in(folder))), None)
    if path is None:
        print("No vocabulary was found beside the weights: --vocabulary=FILE names one.", file=sys.stderr)
        return None
    return vocabulary_files.sentencepiece_model(path)


def _write_model_directory(
    folder: str,
    config: ModelConfig,
    tensors: dict[str, LazyTensor],
    source: Source,
    vocabulary: bytes | None,
    written: Written,
) -> None:
    """Fills a model directory: a checkpoint without data, config.gin, versions.txt, the vocabulary."""
    used = versions()
    files = {
        "config.gin": gin.config_str(max_line_length=120),
        "versions.txt": "".join(f"{name}=={version}\n" for name, version in used.items()),
    }
    for name, text in files.items():
        binary_files.write_text(os.path.join(folder, name), text)
    if vocabulary is not None:
        storage.make_folder(os.path.dirname(path_in(folder)))
        with binary_files.create(path_in(folder)) as file:
            file.write(vocabulary)
    manifest = Manifest(
        step=source.step,
        model=dataclasses.asdict(config),
        shapes={"step": (), **{name: tensor.shape for name, tensor in tensors.items()}},
        slots_since=source.slots_since,
        vocabulary=None if vocabulary is None else hashlib.sha256(vocabulary).hexdigest(),
        versions=used,
    )
    own_checkpoints.write_own(folder, tensors, manifest, written)
