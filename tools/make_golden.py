"""Writes the golden files again: python -m tools.make_golden. Needs torch (pip install -e '.[interop]')."""

from tests.support.parity import GOLDEN
from tests.support.references import CASES, golden_case


def main() -> None:
    """Writes every case's file and says how large it is."""
    for name in CASES:
        golden_case(name).save(name)
        print(f"{name}: {(GOLDEN / f'{name}.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
