"""Writes the golden files again: python -m tests.interop.make_golden. Needs torch (pip install -e '.[interop]')."""

from tests.interop.parity import GOLDEN
from tests.interop.references import CASES, golden_case


def main() -> None:
    """Writes every case's file and says how large it is."""
    for name in CASES:
        golden_case(name).save(name)
        print(f"{name}: {(GOLDEN / f'{name}.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
