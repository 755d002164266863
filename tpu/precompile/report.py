"""What `switch-tf tpu precompile` says: a JSON object, or a page for people."""

import re

from switch_tf.errors import SettingError
from switch_tf.planning.costs import layout_description
from tpu.precompile import hlo
from tpu.precompile.advice import advice
from tpu.precompile.bounds import exchanges, step_flops
from tpu.precompile.chips import chip_of
from tpu.precompile.plan import TRAIN, Plan
from tpu.topologies import Slice

_GIB = 2**30
# "... required for HLO temporaries (16.25G) exceeds available HBM (15.75G)", "Used 41.3G of 30.75G hbm"
_NEEDED = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def report_of(plan: Plan, slice_: Slice, effort: str, lowering: dict, compiled: dict, text: str | None) -> dict:
    """Puts together what was found.

    Args:
      plan: the step.
      slice_: the TPUs.
      effort: the compiler's, "full" or "low".
      lowering: what the process that lowered says.
      compiled: what the process that compiled says; with "error", where the compiler refused.
      text: the compiled program, None where there is none.

    Returns:
      An object for JSON; docs/tpu.md explains its keys.

    Raises:
      SettingError: if the compiler refused for another reason than memory.
    """
    chip = chip_of(slice_.generation)
    held = layout_description(plan.config, plan.layout)["bytes_per_device"]
    memory = {
        "weights": held["weights"],
        "slots": held["slots"] if plan.step == TRAIN else 0,
        "limit": chip.device_bytes,
    }
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
        "fits": "error" not in compiled,
        "bytes_per_device": memory,
        "compilation": {
            "effort": effort,
            "lowering_seconds": lowering["seconds"],
            "lowering_host_bytes": lowering["host_bytes"],
            "compiling_seconds": compiled["seconds"],
            "compiling_host_bytes": compiled["host_bytes"],
        },
    }
    if "error" in compiled:
        memory["needed"] = _needed_bytes(compiled["error"])
        report["advice"] = advice(plan, slice_, memory["needed"])
        return report
    return report | _of_program(plan, slice_, memory, compiled, hlo.Program(text))


def _of_program(plan: Plan, slice_: Slice, memory: dict, compiled: dict, program: hlo.Program) -> dict:
    """Adds what only a compiled program tells."""
    chip = chip_of(slice_.generation)
    memory |= {
        "program": compiled["program_bytes"],
        "activations": compiled["peak_bytes"] - compiled["argument_bytes"],
        "padding": compiled["argument_bytes"] - memory["weights"] - memory["slots"],
        "given_up": compiled["alias_bytes"],
        "needed": compiled["peak_bytes"] + compiled["program_bytes"],
    }
    rows = exchanges(program.collectives(), plan.layout, slice_)
    flops = step_flops(plan, program.matmul_flops())
    products = flops.compiled * slice_.generation.devices_per_chip / chip.peak_flops
    exchange = sum(row.seconds for row in rows)
    tokens = plan.batch_size * (plan.inputs_length + plan.targets_length)
    return {
        "exchanges": [row._asdict() for row in rows],
        "flops_per_device": flops._asdict(),
        "seconds_at_least": {
            "products": products,
            "exchange": exchange,
            "step": max(products, exchange),
        },
        "tokens_per_second_at_most": tokens / max(products, exchange),
    }


def _needed_bytes(error: str) -> int:
    """Reads how much memory the compiler wanted, arguments and program included, whatever it calls them."""
    found = _NEEDED.search(error)
    if "RESOURCE_EXHAUSTED" not in error or not found:
        raise SettingError(f"The TPU's compiler refused the step, and not for its memory: {error.splitlines()[0]}")
    number, unit = (group for group in found.groups() if group)
    return round(float(number) * _UNITS[unit])


def report_text(report: dict) -> str:
    """Renders a report for people."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items()) or "one device"
    lengths = report["lengths"]
    what = f"{report['step']} step of {report['batch_size']} sequences of {lengths['inputs']} + {lengths['targets']}"
    parts = f" in {report['num_microbatches']} microbatches" if report["num_microbatches"] > 1 else ""
    again = report["rematerialization"]
    parts += f", {again} made again for the gradient" if again != "none" else ""
    title = f"{what} tokens{parts}, on {report['topology']} ({report['accelerator_type']}; {mesh})"
    memory = report["bytes_per_device"]
    needed = f"needs {memory['needed'] / _GIB:.2f} of {memory['limit'] / _GIB:.2f} GiB on each device"
    if not report["fits"]:
        return f"{title}\ndoes not fit: {needed}; {report['advice']}"
    compilation = report["compilation"]
    host = max(compilation["lowering_host_bytes"], compilation["compiling_host_bytes"])
    lines = [
        title,
        f"fits: {needed}",
        "",
        *_memory_lines(memory),
        "",
        *_exchange_lines(report["exchanges"]),
        "",
        *_bound_lines(report),
        "",
        f"lowered in {compilation['lowering_seconds']:.0f} s, compiled in {compilation['compiling_seconds']:.0f} s "
        f"({compilation['effort']} effort), with {host / _GIB:.1f} GiB of this machine's memory",
    ]
    return "\n".join(lines)


def _memory_lines(memory: dict) -> list[str]:
    rows = {
        "weights (float32)": memory["weights"],
        "Adafactor's slots": memory["slots"],
        "batch, and tiles that are not full": memory["padding"],
        "activations, gradients": memory["activations"],
        "program": memory["program"],
        "together": memory["needed"],
    }
    return [
        f"{'memory of a device':<40}{'GiB':>12}",
        *(f"{label:<40}{size / _GIB:>12.2f}" for label, size in rows.items()),
    ]


def _exchange_lines(rows: list[dict]) -> list[str]:
    return [
        f"{'exchange of a device':<24}{'along':<16}{'number':>8}{'MiB':>12}{'at least':>14}",
        *(
            f"{row['kind']:<24}{row['dimension']:<16}{row['number']:>8,}{row['num_bytes'] / 2**20:>12,.1f}"
            f"{1000 * row['seconds']:>11,.1f} ms"
            for row in rows
        ),
    ]


def _bound_lines(report: dict) -> list[str]:
    flops, seconds = report["flops_per_device"], report["seconds_at_least"]
    ratio = flops["compiled"] / flops["of_slots"]
    return [
        f"{'products of a device':<40}{'TFLOP':>12}",
        f"{'of the model, token by token':<40}{flops['of_tokens'] / 1e12:>12.3f}",
        f"{'with the slots that no token takes':<40}{flops['of_slots'] / 1e12:>12.3f}",
        f"{'of the program':<40}{flops['compiled'] / 1e12:>12.3f}  ({ratio:.2f} times that)",
        "",
        "no step can be faster than this, by the chip's published rates; real ones are slower",
        f"{'products':<40}{1000 * seconds['products']:>9,.1f} ms",
        f"{'exchange':<40}{1000 * seconds['exchange']:>9,.1f} ms",
        f"{'both at the same time':<40}{1000 * seconds['step']:>9,.1f} ms",
        f"{'tokens a second, at most':<40}{report['tokens_per_second_at_most']:>12,.0f}",
    ]
