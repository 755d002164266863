"""The report of `switch-tf tpu precompile`: an object for JSON, and its text."""

import re
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from switch_tf.errors import SettingError
from switch_tf.planning.costs import layout_description
from tpu.precompile.advice import advice
from tpu.precompile.bounds import step_flops, total_collectives
from tpu.precompile.chips import chip_of
from tpu.precompile.hlo import HloProgram
from tpu.precompile.plan import TRAIN, Plan
from tpu.topologies import Slice

_GIB = 2**30
# "... required for HLO temporaries (16.25G) exceeds available HBM (15.75G)", "Used 41.3G of 30.75G hbm"
_NEEDED = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def make_report(
    plan: Plan,
    slice_: Slice,
    effort: str,
    lowering: dict[str, Any],
    compiled: dict[str, Any],
    hlo_text: str | None = None,
) -> dict[str, Any]:
    """Combines the results of lowering and compiling.

    Args:
      plan: the step.
      slice_: the TPU slice.
      effort: the compiler's, "full" or "low".
      lowering: seconds and host memory of the lowering process.
      compiled: what the compiling process measured, or its "error".
      hlo_text: the optimized program of one device; None after an error.

    Returns:
      An object for JSON; docs/tpu.md explains its keys.

    Raises:
      SettingError: if the compiler rejected the step for another reason than memory.
    """
    held = layout_description(plan.config, plan.layout)["bytes_per_device"]
    memory: dict[str, int] = {
        "weights": held["weights"],
        "slots": held["slots"] if plan.step == TRAIN else 0,
        "limit": chip_of(slice_.generation).device_bytes,
    }
    if plan.teacher is not None:
        memory["teacher"] = plan.teacher_bytes
    report = {
        "topology": slice_.topology_name,
        "accelerator_type": slice_.accelerator_type,
        "num_devices": slice_.num_devices,
        "mesh": dict(plan.layout.mesh),
        "step": plan.step,
        "batch_size": plan.batch_size,
        "num_microbatches": plan.num_microbatches,
        "rematerialization": plan.config.rematerialization if plan.step == TRAIN else "none",
        "lengths": {"inputs": plan.inputs_length, "targets": plan.targets_length},
        "fits": hlo_text is not None,
        "bytes_per_device": memory,
        "compilation": {
            "effort": effort,
            "lowering_seconds": lowering["seconds"],
            "lowering_host_bytes": lowering["host_bytes"],
            "compiling_seconds": compiled["seconds"],
            "compiling_host_bytes": compiled["host_bytes"],
        },
    }
    if hlo_text is None:
        memory["needed"] = _needed_bytes(compiled["error"])
        return report | {"advice": advice(plan, slice_, memory["needed"])}
    memory |= {
        "program": compiled["program_bytes"],
        "activations": compiled["peak_bytes"] - compiled["argument_bytes"],
        "padding": compiled["argument_bytes"] - memory["weights"] - memory["slots"] - plan.teacher_bytes,
        "aliased": compiled["alias_bytes"],
        "needed": compiled["peak_bytes"] + compiled["program_bytes"],
    }
    return report | _bounds(plan, slice_, HloProgram(hlo_text))


def _bounds(plan: Plan, slice_: Slice, program: HloProgram) -> dict[str, Any]:
    """What the program computes and communicates, and how long that takes at least."""
    totals = total_collectives(program.collectives(), plan.layout, slice_)
    flops = step_flops(plan, program.matmul_flops())
    matmuls = flops.compiled * slice_.generation.devices_per_chip / chip_of(slice_.generation).peak_flops
    collectives, exposed = sum(total.seconds for total in totals), sum(total.exposed_seconds for total in totals)
    step = matmuls + exposed
    return {
        "collectives": [total._asdict() for total in totals],
        "flops_per_device": flops._asdict(),
        "min_seconds": {"matmuls": matmuls, "collectives": collectives, "exposed": exposed, "step": step},
        "max_tokens_per_second": plan.batch_size * (plan.inputs_length + plan.targets_length) / step,
    }


def _needed_bytes(error: str) -> int:
    """Parses how much memory the program needs, arguments and code included, from the compiler's error."""
    found = _NEEDED.search(error)
    if "RESOURCE_EXHAUSTED" not in error or not found:
        raise SettingError(f"The TPU compiler rejected the step, but not for its memory: {error.splitlines()[0]}")
    number, unit = (group for group in found.groups() if group)
    return round(float(number) * _UNITS[unit])


def report_text(report: dict[str, Any]) -> str:
    """Renders a report as text."""
    memory = report["bytes_per_device"]
    needed = f"needs {memory['needed'] / _GIB:.2f} of {memory['limit'] / _GIB:.2f} GiB per device"
    if not report["fits"]:
        return f"{_title(report)}\ndoes not fit: {needed}; {report['advice']}"
    compilation = report["compilation"]
    host = max(compilation["lowering_host_bytes"], compilation["compiling_host_bytes"])
    sections = [
        f"{_title(report)}\nfits: {needed}",
        _memory_table(memory),
        _collectives_table(report["collectives"]),
        _flops_table(report["flops_per_device"]),
        _bounds_table(report),
        f"lowered in {compilation['lowering_seconds']:.0f} s, compiled in {compilation['compiling_seconds']:.0f} s "
        f"({compilation['effort']} effort), with {host / _GIB:.1f} GiB of host memory",
    ]
    return "\n\n".join(sections)


def _title(report: dict[str, Any]) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items()) or "one device"
    lengths, recomputed = report["lengths"], report["rematerialization"]
    details = f" in {report['num_microbatches']} microbatches" if report["num_microbatches"] > 1 else ""
    details += f", {recomputed} recomputed in the backward pass" if recomputed != "none" else ""
    return (
        f"{report['step']} step of {report['batch_size']} sequences of {lengths['inputs']} + {lengths['targets']} "
        f"tokens{details}, on {report['topology']} ({report['accelerator_type']}; {mesh})"
    )


def _table(headers: list[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders cells that are formatted already; columns of numbers are aligned to the right."""
    alignment = ["right" if all(cell[:1].isdigit() for cell in column) else "left" for column in zip(*rows)]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=alignment)


def _memory_table(memory: dict[str, int]) -> str:
    rows = {
        "weights (float32)": memory["weights"],
        "Adafactor slots": memory["slots"],
        **({"teacher's weights": memory["teacher"]} if "teacher" in memory else {}),
        "batch and tile padding": memory["padding"],
        "activations and gradients": memory["activations"],
        "program": memory["program"],
        "total": memory["needed"],
    }
    return _table(["memory per device", "GiB"], [(label, f"{size / _GIB:.2f}") for label, size in rows.items()])


def _collectives_table(totals: list[dict[str, Any]]) -> str:
    rows = [
        (
            *(total["kind"], total["dimension"], f"{total['number']:,}", f"{total['asynchronous']:,}"),
            *(f"{total['num_bytes'] / 2**20:,.1f}", f"{1000 * total['seconds']:,.1f}"),
            f"{1000 * total['exposed_seconds']:,.1f}",
        )
        for total in totals
    ]
    headers = ["collectives per device", "along", "number", "asynchronous", "MiB", "ms at least", "not covered"]
    return _table(headers, rows)


def _flops_table(flops: dict[str, float]) -> str:
    rows = [
        ("model", flops["model"] / flops["all_slots"], flops["model"]),
        ("model, with empty expert slots", 1.0, flops["all_slots"]),
        ("compiled program", flops["compiled"] / flops["all_slots"], flops["compiled"]),
    ]
    cells = [(label, f"{count / 1e12:.3f}", f"{ratio:.2f}") for label, ratio, count in rows]
    return _table(["matmul FLOPs per device", "TFLOP", "ratio"], cells)


def _bounds_table(report: dict[str, Any]) -> str:
    seconds = report["min_seconds"]
    rows = [
        ("matmuls", f"{1000 * seconds['matmuls']:,.1f}"),
        ("collectives", f"{1000 * seconds['collectives']:,.1f}"),
        ("collectives that no matmul covers", f"{1000 * seconds['exposed']:,.1f}"),
        ("step: matmuls, and what they do not cover", f"{1000 * seconds['step']:,.1f}"),
    ]
    table = _table(["lower bound of the time, by the chip's peak rates", "ms"], rows)
    return f"{table}\nat most {report['max_tokens_per_second']:,.0f} tokens per second"
