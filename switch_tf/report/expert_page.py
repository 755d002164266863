"""`switch-tf experts`: what each expert of a run knows, as a table and as a page."""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from switch_tf import storage
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.data.task_lookup import vocabulary_of
from switch_tf.errors import SettingError
from switch_tf.evaluation.expert_choices import make_expert_reader
from switch_tf.health.rules import percent
from switch_tf.report.html_elements import page, table
from switch_tf.report.specialization import Following, LayerProfile, followings, layer_profile, weight_similarity
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import Run, load_run

_NUM_TEXTS = 5


class ExpertChoices(NamedTuple):
    """The experts of held-out tokens.

    tokens: int [N] by stack, ids of the real tokens.
    rows: int [N] by stack, the example of each token.
    experts: int [N, K] by layer, -1 for none.
    """

    tokens: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    experts: dict[str, np.ndarray]


def _stack(layer: str) -> str:
    return layer.split("/")[0]


def read_choices(run: Run, num_batches: int) -> ExpertChoices:
    """Routes held-out batches of a run's data."""
    experiment = run.experiment
    batches = evaluation_batches(
        experiment.mixture_or_task,
        experiment.task_feature_lengths,
        experiment.batch_size,
        num_batches,
        cache=experiment.cache,
    )
    read = make_expert_reader(run.model, run.engine)
    tokens: dict[str, list[np.ndarray]] = {"encoder": [], "decoder": []}
    rows: dict[str, list[np.ndarray]] = {"encoder": [], "decoder": []}
    experts: dict[str, list[np.ndarray]] = {layer: [] for layer in experiment.model.sparse_layer_names}
    for number, batch in enumerate(batches):
        real = {"encoder": batch["encoder_input_tokens"] != 0, "decoder": batch["decoder_target_tokens"] != 0}
        for stack, mask in real.items():
            tokens[stack].append(batch[f"{stack}_input_tokens"][mask])
            rows[stack].append(number * len(mask) + np.nonzero(mask)[0])
        for layer, chosen in read(batch).items():
            experts[layer].append(chosen[real[_stack(layer)]])
    return ExpertChoices(
        *({name: np.concatenate(parts) for name, parts in of.items()} for of in (tokens, rows, experts))
    )


def pieces_of(vocabulary: seqio.Vocabulary, size: int) -> list[str]:
    """Returns the text of the ids 0 to `size` - 1."""
    tokenizer = getattr(vocabulary, "tokenizer", None)
    if tokenizer is None:
        return [vocabulary.decode([index]) for index in range(size)]
    known = tokenizer.get_piece_size()
    return [tokenizer.id_to_piece(index) if index < known else f"<{index}>" for index in range(size)]


class LayerReport(NamedTuple):
    """A layer's profile, and the cosines [E, E] between its experts' weights."""

    profile: LayerProfile
    similarity: np.ndarray


def _weights_of(run: Run, layer: str) -> list[np.ndarray]:
    block = layer.removesuffix("/self_attention")
    sublayer = "self_attention" if layer.endswith("/self_attention") else "feed_forward"
    found = [
        variable
        for name, variable in run.variables().items()
        if name.startswith(f"{block}/{sublayer}/") and "/experts/" in name
    ]
    return run.engine.fetch([tf.convert_to_tensor(variable) for variable in found])


def _expert_text(profile: LayerProfile, expert: int) -> tuple[str, str]:
    """What an expert's typical tokens and kinds are, as text."""
    of = profile.experts[expert]
    tokens = "  ".join(f"{token.piece} {token.times} ({token.ratio:.1f}x)" for token in of.tokens)
    kinds = ", ".join(f"{kind} {percent(share)} ({ratio:.1f}x)" for kind, share, ratio in of.kinds if ratio >= 1.2)
    return tokens, kinds


def _layer_section(layer: str, report: LayerReport) -> str:
    profile, similarity = report
    num_experts = len(profile.experts)
    others = similarity[~np.eye(num_experts, dtype=bool)]
    rows = []
    for expert, of in enumerate(profile.experts):
        tokens, kinds = _expert_text(profile, expert)
        alike = np.where(np.arange(num_experts) == expert, -2.0, similarity[expert]).argmax()
        nearest = f"{alike} ({similarity[expert, alike]:.2f})" if num_experts > 1 else ""
        rows.append([str(expert), percent(of.share), tokens, kinds, nearest])
    note = f"{profile.information}."
    if len(others):
        note += (
            f" Cosine between the weights of two experts: {others.mean():.2f} on average, {others.max():.2f} at most."
        )
    header = ["expert", "share", "tokens: count (ratio to chance)", "kinds: share (ratio to the layer's)", "most alike"]
    return f"<h2>{html.escape(layer)}</h2><p>{note}</p>" + table(header, rows, wrapped=True)


def _following_section(found: Mapping[tuple[str, str], Following]) -> str:
    if not found:
        return ""
    rows = []
    for (layer, later), each in found.items():
        strongest = np.argsort(-np.nan_to_num(each.next_share))[:5]
        text = ", ".join(
            f"{expert} to {each.next_expert[expert]} ({percent(each.next_share[expert])})"
            for expert in strongest
            if not np.isnan(each.next_share[expert])
        )
        rows.append([f"{layer} to {later}", f"{each.mutual_information:.2f}", text])
    header = ["layers", "shared information (0 to 1)", "experts whose tokens stay together most"]
    return "<h2>Which expert follows which</h2>" + table(header, rows, wrapped=True)


def _colored(pieces: Sequence[str], experts: Sequence[int], num_experts: int) -> str:
    parts = []
    for piece, expert in zip(pieces, experts):
        text = html.escape(piece).replace("▁", " ")
        if expert < 0:
            parts.append(f'<span title="no slot">{text}</span>')
        else:
            # The golden angle keeps the colors of neighbors apart.
            hue = round(expert * 137.508 % 360) if num_experts > 12 else round(360 * expert / num_experts)
            parts.append(f'<span title="expert {expert}" style="background:hsl({hue} 80% 50%/.35)">{text}</span>')
    return "".join(parts)


def _texts_section(choices: ExpertChoices, layers: Mapping[str, LayerReport], pieces: Sequence[str]) -> str:
    """Five held-out texts, colored by the layer of each stack whose experts depend most on the token."""
    parts = ["<h2>Texts, each token colored by its expert</h2>"]
    for stack in ("encoder", "decoder"):
        of_stack = [layer for layer in layers if _stack(layer) == stack]
        if not of_stack:
            continue
        layer = max(of_stack, key=lambda name: layers[name].profile.mutual_information)
        num_experts = len(layers[layer].profile.experts)
        parts.append(f"<h3>{html.escape(layer)}</h3>")
        rows = choices.rows[stack]
        for row in itertools.islice(dict.fromkeys(rows), _NUM_TEXTS):
            words = [pieces[index] for index in choices.tokens[stack][rows == row]]
            parts.append(f"<p>{_colored(words, choices.experts[layer][rows == row, 0], num_experts)}</p>")
    return "".join(parts)


def write_experts(experiment: Experiment, step: int | None, num_batches: int, output: str | None) -> None:
    """Prints what each expert of a checkpoint knows, and writes `experts.html`.

    Args:
      experiment: whose model directory holds the checkpoint.
      step: which one; None for the newest.
      num_batches: held-out batches to route at most.
      output: the folder of the page; None for the model directory.

    Raises:
      SettingError: if the model has no experts, or there is no such checkpoint or no held-out data.
    """
    if not experiment.model.sparse_layer_names:
        raise SettingError(
            f"MODEL_DIR = '{experiment.model_dir}' has a dense model, NUM_EXPERTS = 0: it has no experts."
        )
    run = load_run(experiment, step)
    choices = read_choices(run, num_batches)
    pieces = pieces_of(vocabulary_of(experiment.mixture_or_task), experiment.model.vocab_size)
    num_experts = experiment.model.num_experts
    layers = {
        layer: LayerReport(
            layer_profile(choices.tokens[_stack(layer)], experts, num_experts, pieces),
            weight_similarity(_weights_of(run, layer)),
        )
        for layer, experts in choices.experts.items()
    }
    for layer, report in layers.items():
        print(f"{layer}: {report.profile.information}")
        for expert, of in enumerate(report.profile.experts):
            tokens, kinds = _expert_text(report.profile, expert)
            print(f"  {expert:4d}  {percent(of.share):>6}  {tokens}{f'  [{kinds}]' if kinds else ''}")
    first_choices = {layer: experts[:, 0] for layer, experts in choices.experts.items()}
    body = [_layer_section(layer, report) for layer, report in layers.items()]
    body += [_following_section(followings(first_choices, num_experts)), _texts_section(choices, layers, pieces)]
    name = os.path.basename(os.path.normpath(experiment.model_dir))
    folder = output or experiment.model_dir
    storage.make_folder(folder)
    path = os.path.join(folder, "experts.html")
    storage.write_atomically(
        path, page(f"What the experts of {name} know, step {int(run.step.numpy())}", "\n".join(body))
    )
    print(f"Wrote {path}.")
